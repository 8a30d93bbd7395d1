"""What a backbone is to fusion, decoder and beam.

HSTU and SASRec read one vector an item and let a position see its past only, so that one pass trains all positions of
a sequence. TIGER reads L vectors an item, one for each code, and lets every position see all of the history: it
trains on one target a row.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Backbone(Protocol):
    """An encoder of left-padded sequences; S is T, or T * L where items come as their codes."""

    def __call__(self, x: Tensor, present: Tensor) -> Tensor:
        """x [B, S, d], oldest first; present bool [B, S], False for padding -> h_seq [B, S, d].

        No output at a present position may depend on the values of padding.
        """
        ...


class Inputs(Protocol):
    """How the items of a history become the vectors that a backbone reads."""

    def __call__(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """History int64 [B, T], left-padded with 0 -> x [B, S, d], present bool [B, S]."""
        ...
