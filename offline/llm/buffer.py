"""A layer of transformers' KV cache that grows in place."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicLayer

GROWTH = 1.5


class BufferLayer(DynamicLayer):
    """Keys and values [rows, heads, tokens, width] as views of a larger buffer.

    transformers' own layer copies all keys and values for every token, which at 32 rows of 1,000 tokens costs more than
    the model does.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # published without annotations
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_: object,
        **__: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, length, end)
        assert self._buffers is not None
        keys, values = self._buffers
        keys[:, :, length:end] = key_states
        values[:, :, length:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only these rows, in this order."""
        if self._buffers is not None:
            length = self.get_seq_length()
            keys, values = self._buffers
            self._buffers = (keys[indices], values[indices])
            self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def _grow(self, keys: torch.Tensor, values: torch.Tensor, length: int, end: int) -> None:
        room = max(int(length * GROWTH), end + 64)
        grown = tuple(new.new_empty((*new.shape[:2], room, new.shape[3])) for new in (keys, values))
        if self._buffers is not None:
            for new, old in zip(grown, self._buffers, strict=True):
                new[:, :, :length] = old[:, :, :length]
        self._buffers = (grown[0], grown[1])
