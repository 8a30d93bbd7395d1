"""Hard filters: which items a request may get, as a mask over the trie that the graph searches.

The mask is the format of the graph's input `allowed`, uint8 [A]: one bit for every node of the trie of semantic IDs,
all levels one after the other, and within a level in the lexicographic order of the nodes' prefixes; node n is bit
n % 8 (the least significant first) of byte n // 8. A node is alive if an item beneath it may be returned, so the beam
never enters a prefix that leads nowhere and k items come back whenever k are eligible. A mask of the one byte 0xFF
means no filter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from service.errors import FieldError, ReleaseCorrupt, RequestInvalid, pointer_to
from service.release.catalogue import Catalogue

CACHE_BYTES = 64 * 1024 * 1024
# Of objects, in CPython 3.11: what a filter and its key hold beside numbers and letters, and what each value adds.
FILTER_BYTES = 900
VALUE_BYTES = 150
FEW = 1024  # eligible items that are quicker to rank than to look for among all by popularity

_WITHOUT_BIT = ~(np.uint8(1) << np.arange(8, dtype=np.uint8))  # [8]
_BIT = np.uint64(1) << np.arange(64, dtype=np.uint64)  # [64]
_BITS_BELOW = _BIT - np.uint64(1)  # [64]

Asked = tuple[tuple[str, tuple[str, ...]], ...]  # columns in order, each with its distinct values in order


@dataclass(frozen=True, slots=True)
class Nodes:
    """The M nodes of a catalogue's trie in the mask's order. Leaves are numbered 0..N-1, in lexicographic order."""

    leaf: NDArray[np.int32]  # [N + 1], leaf of each item; 0 for padding, which no filter allows
    item: NDArray[np.int32]  # [N], item of each leaf
    path: NDArray[np.int32]  # [N, L], nodes on the way to each leaf
    start: NDArray[np.int32]  # [M], first leaf beneath
    end: NDArray[np.int32]  # [M], one beyond the last leaf beneath

    @property
    def above(self) -> int:
        """Nodes that are no leaves; those come last."""
        return len(self.start) - len(self.path)

    @property
    def mask_bytes(self) -> int:
        """A, the length of a mask."""
        return -(-len(self.start) // 8)

    @classmethod
    def of(cls, codes: NDArray[np.integer]) -> Self:
        """The nodes of semantic IDs `codes` [N, L], row i for item i + 1. Raises ReleaseCorrupt if two share one."""
        items, depth = codes.shape
        order = np.lexsort(codes.T[::-1])
        ranked = codes[order]
        differs = np.ones((items, depth), np.bool_)  # from the leaf before, at this level or above
        np.logical_or.accumulate(ranked[1:] != ranked[:-1], axis=1, out=differs[1:])
        if not differs[:, -1].all():
            raise ReleaseCorrupt("two items of the catalogue share a semantic ID: run `scoter export` again")
        leaf = np.zeros(items + 1, np.int32)
        leaf[order + 1] = np.arange(items, dtype=np.int32)
        path = np.empty((items, depth), np.int32)
        starts: list[NDArray[np.intp]] = []
        ends: list[NDArray[np.intp]] = []
        before = 0  # nodes of the levels above
        for level in range(depth):
            heads = np.flatnonzero(differs[:, level])
            path[:, level] = before - 1 + np.cumsum(differs[:, level])
            starts.append(heads)
            ends.append(np.append(heads[1:], items))
            before += len(heads)
        start, end = np.concatenate(starts).astype(np.int32), np.concatenate(ends).astype(np.int32)
        return cls(leaf, (order + 1).astype(np.int32), path, start, end)


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """What one combination of allowed and blocked attributes leaves of a catalogue.

    It holds a bit for each node and a count for each 64, no number for each item: of a million items 64 MiB keep the
    filters of every campaign and market, where each one that is made anew stops all requests for tens of ms.
    """

    eligible: int  # items that are
    few: NDArray[np.int32] | None  # the indices of those items, unless they are more than `FEW`
    unknown: tuple[tuple[str, str], ...]  # (column, value) asked for that no item has
    _nodes: Nodes
    _alive: NDArray[np.uint64]  # [W], the mask of a request that excludes nothing, 64 nodes to a word
    _before: NDArray[np.int32]  # [W], nodes that are alive before each word

    def passes(self, indices: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of these item indices are eligible; padding is not."""
        node = self._nodes.above + self._nodes.leaf[indices]
        passing: NDArray[np.bool_] = (self._alive[node >> 6] & _BIT[node & 63] > 0) & (indices > 0)
        return passing

    def mask(self, excluded: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The graph's `allowed` [A] for a request that also excludes these item indices; 0 and repetitions count not.

        It covers the exclusions, so the request's `exclude` may be left empty. Not to be written to.
        """
        nodes, chosen = self._nodes, np.asarray(excluded, np.int64)
        mask = self._alive.view(np.uint8)[: nodes.mask_bytes]
        leaf = np.unique(nodes.leaf[chosen[self.passes(chosen)]])  # those excluded that were eligible, [E]
        if not len(leaf):
            return mask
        # Level by level, and leaves in order: equal nodes stand together, which spares a sort.
        path = nodes.path[leaf].ravel("F")  # [L * E]
        begins = np.flatnonzero(np.concatenate(([True], path[1:] != path[:-1])))
        node = path[begins]
        taken = np.concatenate((begins[1:], [len(path)])) - begins
        before = self._alive_before(np.stack((nodes.start[node], nodes.end[node])))
        dead = node[before[1] - before[0] == taken]
        mask = mask.copy()
        np.bitwise_and.at(mask, dead >> 3, _WITHOUT_BIT[dead & 7])
        return mask

    @property
    def nbytes(self) -> int:
        """Memory that this filter alone holds."""
        return self._alive.nbytes + self._before.nbytes + (0 if self.few is None else self.few.nbytes)

    def _alive_before(self, leaf: NDArray[np.int32]) -> NDArray[np.int32]:
        """Nodes that are alive before each leaf. Between two leaves there are only leaves."""
        node = self._nodes.above + leaf
        word = node >> 6
        before: NDArray[np.int32] = self._before[word] + np.bitwise_count(self._alive[word] & _BITS_BELOW[node & 63])
        return before


class Filters:
    """Resolves the filters of requests over one catalogue, and keeps the latest ones.

    Values are compared as they are written in the catalogue, capitals included. For one thread at a time.
    """

    def __init__(self, catalogue: Catalogue, cache_bytes: int = CACHE_BYTES) -> None:
        """Raises ReleaseCorrupt if two items share a semantic ID."""
        self._nodes = Nodes.of(catalogue.codes)
        self._index = _inverted(catalogue, self._nodes.leaf)
        self._cache: OrderedDict[tuple[Asked, Asked], Filter] = OrderedDict()
        self._cached_bytes, self._cache_bytes = 0, cache_bytes

    @property
    def columns(self) -> list[str]:
        """Attribute columns that the catalogue has."""
        return sorted(self._index)

    def resolve(self, allow: Mapping[str, Sequence[str]], block: Mapping[str, Sequence[str]]) -> Filter:
        """The filter that leaves items with any of the allowed values in every column of `allow`, and none of `block`.

        A value that no item has matches nothing and is named in the filter's `unknown`. Raises RequestInvalid for a
        column that the catalogue has not, or one without values.
        """
        key = (_canonical(allow), _canonical(block))
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        self._check(allow, block)
        made = self._make(*key)
        self._keep(key, made)
        return made

    def _make(self, allow: Asked, block: Asked) -> Filter:
        nodes = self._nodes
        eligible = np.ones(len(nodes.path), np.bool_)  # leaf by leaf
        for column, values in allow:
            has_any = np.zeros_like(eligible)
            for leaves in self._leaves(column, values):
                has_any[leaves] = True
            eligible &= has_any
        for column, values in block:
            for leaves in self._leaves(column, values):
                eligible[leaves] = False
        before = np.zeros(len(eligible) + 1, np.int32)
        np.cumsum(eligible, out=before[1:])
        bits = np.zeros(64 * (len(nodes.start) // 64 + 1), np.bool_)  # one at least beyond the last node
        bits[: nodes.above] = before[nodes.end[: nodes.above]] > before[nodes.start[: nodes.above]]
        bits[nodes.above : len(nodes.start)] = eligible
        alive = np.packbits(bits, bitorder="little").view("<u8")
        alive.flags.writeable = False  # handed out as it is where nothing is excluded
        count = np.bitwise_count(alive)
        few = nodes.item[eligible] if before[-1] <= FEW else None
        unknown = {
            (column, value)
            for column, values in (*allow, *block)
            for value in values
            if value not in self._index[column]
        }
        return Filter(
            int(before[-1]), few, tuple(sorted(unknown)), nodes, alive, np.cumsum(count, dtype=np.int32) - count
        )

    def _leaves(self, column: str, values: tuple[str, ...]) -> Iterator[NDArray[np.int32]]:
        index = self._index[column]
        return (index[value] for value in values if value in index)

    def _check(self, allow: Mapping[str, Sequence[str]], block: Mapping[str, Sequence[str]]) -> None:
        wrong: list[FieldError] = []
        for side, columns in (("allow", allow), ("block", block)):
            for column, values in columns.items():
                pointer = pointer_to(("filters", side, column))
                if column not in self._index:
                    known = ", ".join(self.columns) or "none"
                    wrong.append(FieldError(pointer, f"is no attribute of this catalogue, which has: {known}"))
                elif not values:
                    wrong.append(FieldError(pointer, "must hold at least one value"))
        if wrong:
            raise RequestInvalid(wrong)

    def _keep(self, key: tuple[Asked, Asked], made: Filter) -> None:
        self._cache[key] = made
        self._cached_bytes += _size(key, made)
        while self._cached_bytes > self._cache_bytes:
            self._cached_bytes -= _size(*self._cache.popitem(last=False))


def _canonical(columns: Mapping[str, Sequence[str]]) -> Asked:
    """One key for all ways to write the same filter."""
    return tuple(sorted((column, tuple(sorted(set(values)))) for column, values in columns.items()))


def _size(key: tuple[Asked, Asked], made: Filter) -> int:
    # A caller can make keys long: what strings hold counts too, by the four bytes that a character may take. And many:
    # of a small catalogue objects are most of what a filter takes, ten times its bits and more.
    values = [value for _, values in chain(*key) for value in values]
    return FILTER_BYTES + made.nbytes + sum(VALUE_BYTES + 4 * len(value) for value in values)


def _inverted(catalogue: Catalogue, leaf: NDArray[np.int32]) -> dict[str, dict[str, NDArray[np.int32]]]:
    """Column -> value -> leaves of the items that have it, in order."""
    found: dict[str, dict[str, list[int]]] = {}
    for index, item in enumerate(catalogue.items, start=1):
        for column, values in item.attributes.items():
            rows = found.setdefault(column, {})
            for value in values:
                rows.setdefault(value, []).append(index)
    return {
        column: {value: np.sort(leaf[rows]) for value, rows in by_value.items()} for column, by_value in found.items()
    }
