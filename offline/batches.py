"""Sequences as padded arrays, for training and for scoring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offline.prepare import Dataset


def left_pad(sequences: list[NDArray[np.int32]], length: int) -> NDArray[np.int64]:
    """The last `length` items of each sequence, int64 [len(sequences), length], zeros in front."""
    out = np.zeros((len(sequences), length), np.int64)
    for row, sequence in enumerate(sequences):
        recent = sequence[-length:]
        if len(recent):
            out[row, -len(recent) :] = recent
    return out


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Every user's training sequence: position j of `inputs` is followed by position j of `targets`.

    Only the last position, whose target is t-2, may see H: reasoning written from a longer history would show an
    earlier position its future.
    """

    inputs: NDArray[np.int64]  # [U, T], left-padded
    targets: NDArray[np.int64]  # [U, T]
    lengths: NDArray[np.int64]  # [U], inputs present

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, size: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """User rows of one epoch, shuffled, rows of like length together so that little padding is computed."""
        order = random.permutation(len(self))
        window = size * 16
        groups: list[NDArray[np.int64]] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            groups += [part[i : i + size] for i in range(0, len(part), size)]
        for index in random.permutation(len(groups)):
            yield groups[index]


def training_rows(dataset: Dataset, length: int, *, include_validation: bool = False) -> TrainingRows:
    """Training rows of all users; with `include_validation` the validation item is a training target too."""
    parts = [s[:-1] if include_validation else s[:-2] for s in dataset.sequences]
    inputs = left_pad([p[:-1] for p in parts], length)
    targets = left_pad([p[1:] for p in parts], length)
    return TrainingRows(inputs, targets, (inputs > 0).sum(1))
