"""Item-to-item statistics of training sequences, and the kNN recommender made of them.

The count of (i, j) sums, over all users and all positions at most `window` apart, `UNIT / distance` where j came
after i and `backward` times that where it came before. Counts are integers: one user's part can then be taken out
again exactly, so that what was left out leaves no trace, not even a rounding error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

UNIT = 2520  # divisible by every distance up to 10
_TOGETHER = 1 << 15  # items that are counted at a time
_PAIRS = 1 << 19  # pairs that are looked up at a time


@dataclass(frozen=True, slots=True)
class Weights:
    """How near items count, and how a history is turned into a score. Tuned on the validation split of beauty."""

    window: int = 10  # positions
    backward: float = 0.25  # weight of "j before i" against "j after i"
    source_power: float = 0.25  # exponents of the item frequencies that a count is divided by: both 0.5 is the cosine
    target_power: float = 0.05
    recency: float = 0.55  # weight of an item against the one bought after it


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Co-occurrence counts and item frequencies."""

    counts: sparse.csr_array  # int64 [N+1, N+1]
    frequency: NDArray[np.int64]  # [N+1], interactions per item; 0 at index 0
    weights: Weights

    @classmethod
    def fit(cls, sequences: Iterable[NDArray[np.int32]], num_items: int, weights: Weights | None = None) -> Self:
        """Count over sequences of item indices 1..num_items, oldest first; memory goes with the pairs that differ."""
        weights = weights or Weights()
        size = num_items + 1
        counts = sparse.csr_array((size, size), dtype=np.int64)
        frequency = np.zeros(size, np.int64)
        for some in _portions(sequences):
            flat, owner = flatten(some)
            _, source, target, value = _pairs(flat, owner, weights)
            counts = counts + table(value, source, target, (size, size))
            frequency += np.bincount(flat, minlength=size)
        return cls(counts, frequency, weights)

    def score(
        self, histories: Sequence[NDArray[np.int32]], leave_out: Sequence[NDArray[np.int32]] | None = None
    ) -> NDArray[np.float32]:
        """Scores float32 [len(histories), N+1] of every item as the next one; see `score_sparse`."""
        return self.score_sparse(histories, leave_out).toarray()

    def score_sparse(
        self, histories: Sequence[NDArray[np.int32]], leave_out: Sequence[NDArray[np.int32]] | None = None
    ) -> sparse.csr_array:
        """Scores float32 [len(histories), N+1]; items without a stored value score 0.

        `leave_out[b]` is the sequence that row b's user put into `fit`: its counts are taken out before row b is
        scored, in the pairs and in the frequencies.
        """
        bounds = self._shares(histories)
        if len(bounds) < 2:
            return self._score_sparse(histories, leave_out)
        parts = [
            self._score_sparse(histories[a:b], leave_out[a:b] if leave_out is not None else None)
            for a, b in zip([0, *bounds], bounds, strict=False)
        ]
        return cast("sparse.csr_array", sparse.vstack(parts, format="csr"))

    def sold(self, leave_out: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
        """How often the others bought each item, int64 [len(leave_out), N+1]; `leave_out` as for `score_sparse`."""
        own: NDArray[np.int64] = own_frequency(leave_out, len(self.frequency)).toarray()
        return self.frequency - own

    def _shares(self, histories: Sequence[NDArray[np.int32]]) -> list[int]:
        """Ends of runs of histories that look up about `_PAIRS` pairs each: popular items go with thousands."""
        pairs = np.diff(self.counts.indptr)
        looked_up = np.cumsum([pairs[history].sum() for history in histories])
        last = np.flatnonzero(np.diff(looked_up // _PAIRS)) + 1
        return [*last.tolist(), *([len(histories)] if len(histories) else [])]

    def _score_sparse(
        self, histories: Sequence[NDArray[np.int32]], leave_out: Sequence[NDArray[np.int32]] | None
    ) -> sparse.csr_array:
        size = len(self.frequency)
        flat, row = flatten(histories)
        if not len(flat):
            return table(np.zeros(0, np.float32), flat, row, (len(histories), size))
        age = ages(row)
        own = own_frequency(leave_out, size) if leave_out is not None else None
        pairs: sparse.csr_array = self.counts[flat]  # one row per item of a history
        source = self.frequency[flat]
        if leave_out is not None and own is not None:
            pairs = pairs - self._own_pairs(leave_out, flat, row)
            pairs.eliminate_zeros()
            at, stored = positions(own, row, flat)
            source[stored] -= own.data[at]
        weight = self.weights.recency**age / np.maximum(source, 1) ** self.weights.source_power
        combine = sparse.csr_array((weight, (row, np.arange(len(flat)))), shape=(len(histories), len(flat)))
        scores = combine @ pairs
        scores.sort_indices()
        target = self.frequency[scores.indices]
        if own is not None:
            entry = own.tocoo()
            at, stored = positions(scores, entry.row, entry.col)
            target[at] -= entry.data[stored]
        scores.data /= UNIT * np.maximum(target, 1) ** self.weights.target_power
        return cast("sparse.csr_array", scores.astype(np.float32))

    def _own_pairs(
        self, leave_out: Sequence[NDArray[np.int32]], flat: NDArray[np.int32], row: NDArray[np.int64]
    ) -> sparse.csr_array:
        """What the left-out users put into `counts[flat]`, int64 [len(flat), N+1]."""
        size = len(self.frequency)
        rows, inverse = np.unique(row * size + flat, return_inverse=True)
        user, source, target, value = _pairs(*flatten(leave_out), self.weights)
        keys = user * size + source
        at = np.minimum(np.searchsorted(rows, keys), len(rows) - 1)
        asked = rows[at] == keys  # the rest starts from items outside the histories
        own: sparse.csr_array = table(value[asked], at[asked], target[asked], (len(rows), size))[inverse]
        return own


def _portions(sequences: Iterable[NDArray[np.int32]]) -> Iterator[list[NDArray[np.int32]]]:
    """The sequences in lists of about `_TOGETHER` items."""
    some: list[NDArray[np.int32]] = []
    items = 0
    for sequence in sequences:
        some.append(sequence)
        items += len(sequence)
        if items >= _TOGETHER:
            yield some
            some, items = [], 0
    if some:
        yield some


def flatten(sequences: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All items one after another, and the sequence that each belongs to."""
    if not len(sequences):
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    lengths = np.fromiter((len(s) for s in sequences), np.int64, len(sequences))
    return np.concatenate(list(sequences)).astype(np.int32), np.repeat(np.arange(len(sequences)), lengths)


def ages(owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many items of its own sequence come after each item, by the owners that `flatten` gives: 0 for the latest."""
    lengths = np.bincount(owner)
    return np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(owner))


def own_frequency(sequences: Sequence[NDArray[np.int32]], size: int) -> sparse.csr_array:
    """How often each sequence holds each item, int64 [len(sequences), size]."""
    flat, owner = flatten(sequences)
    ones = np.ones(len(flat), np.int64)
    return table(ones, owner, flat, (len(sequences), size))


def table(
    values: NDArray[Any], rows: NDArray[np.integer], columns: NDArray[np.integer], shape: tuple[int, int]
) -> sparse.csr_array:
    """A sparse table of values at (row, column); values at the same place are summed."""
    # Conversion from coordinates also sorts the columns of each row.
    summed: sparse.csr_array = sparse.coo_array((values, (rows, columns)), shape=shape).tocsr()
    return summed


def _pairs(
    flat: NDArray[np.int32], owner: NDArray[np.int64], weights: Weights
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Weighted pairs of the sequences: owner, source, target and integer weight."""
    parts: list[tuple[NDArray[np.int64], ...]] = []
    for distance in range(1, weights.window + 1):
        first = np.flatnonzero(owner[distance:] == owner[:-distance])
        if not len(first):  # no sequence is longer than this
            break
        early, late, who = flat[first].astype(np.int64), flat[first + distance].astype(np.int64), owner[first]
        differ = early != late
        early, late, who = early[differ], late[differ], who[differ]
        forward, backward = round(UNIT / distance), round(UNIT * weights.backward / distance)
        parts.append((who, early, late, np.full(len(who), forward)))
        parts.append((who, late, early, np.full(len(who), backward)))
    if not parts:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty, empty
    who, source, target, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    return who, source, target, value


def positions(
    stored: sparse.csr_array, rows: NDArray[np.integer], columns: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where in `stored.data` the values of (rows[i], columns[i]) are, for those i that have one: where, and which."""
    width = stored.shape[1]
    owner = np.repeat(np.arange(stored.shape[0]), np.diff(stored.indptr))
    keys = owner * width + stored.indices  # ascending: indices are sorted within a row
    wanted = rows.astype(np.int64) * width + columns
    if not len(keys):
        return np.zeros(0, np.int64), np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = keys[at] == wanted
    return at[found], found
