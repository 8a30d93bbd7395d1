"""Sequences as padded arrays, for training and for scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offline.prepare import Dataset


def left_pad(sequences: Sequence[NDArray[np.integer]], length: int) -> NDArray[np.int64]:
    """The last `length` items of each sequence, int64 [len(sequences), length], zeros in front."""
    out = np.zeros((len(sequences), length), np.int64)
    for row, sequence in enumerate(sequences):
        recent = sequence[-length:]
        if len(recent):
            out[row, -len(recent) :] = recent
    return out


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Training sequences: position j of `inputs` is followed by position j of `targets`.

    Only the last position of a user, whose target is t-2, may see H: reasoning written from a longer history would
    show an earlier position its future.
    """

    inputs: NDArray[np.int64]  # [R, T], left-padded
    targets: NDArray[np.int64]  # [R, T]
    lengths: NDArray[np.int64]  # [R], inputs present
    users: NDArray[np.int64]  # [R], row of the data set
    latest: NDArray[np.bool_]  # [R], whether the last position is its user's last, and may see H

    def __len__(self) -> int:
        return len(self.inputs)

    def reasoned(self) -> TrainingRows:
        """Those that may see H."""
        kept = self.latest
        return TrainingRows(self.inputs[kept], self.targets[kept], self.lengths[kept], self.users[kept], kept[kept])

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
    """One row a user; with `include_validation` the validation item is a training target too."""
    parts = dataset.trainings(include_validation=include_validation)
    inputs = left_pad([p[:-1] for p in parts], length)
    targets = left_pad([p[1:] for p in parts], length)
    users = np.arange(len(parts))
    return TrainingRows(inputs, targets, (inputs > 0).sum(1), users, np.ones(len(parts), np.bool_))


def prefix_rows(dataset: Dataset, length: int, *, include_validation: bool = False) -> TrainingRows:
    """One row for every training target, with the history before it: for models that train on the last position."""
    parts = dataset.trainings(include_validation=include_validation)
    ends = [(user, end) for user, part in enumerate(parts) for end in range(1, len(part))]
    inputs = left_pad([parts[user][:end] for user, end in ends], length)
    targets = np.zeros_like(inputs)
    targets[:, -1] = [parts[user][end] for user, end in ends]
    users = np.array([user for user, _ in ends], np.int64)
    latest = np.array([end == len(parts[user]) - 1 for user, end in ends], np.bool_)
    return TrainingRows(inputs, targets, (inputs > 0).sum(1), users, latest)
