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

from service.errors import FieldError, ReleaseCorrupt, RequestInvalid
from service.release.catalogue import Catalogue

CACHE_BYTES = 64 * 1024 * 1024

_WITHOUT_BIT = ~(np.uint8(1) << np.arange(8, dtype=np.uint8))  # [8]

Asked = tuple[tuple[str, tuple[str, ...]], ...]  # columns in order, each with its distinct values in order


@dataclass(frozen=True, slots=True)
class Nodes:
    """The M nodes of a catalogue's trie in the mask's order. Leaves are numbered 0..N-1, in lexicographic order."""

    leaf: NDArray[np.int32]  # [N + 1], leaf of each item; 0 for padding, which no filter allows
    path: NDArray[np.int32]  # [N, L], nodes on the way to each leaf
    start: NDArray[np.int32]  # [M], first leaf beneath
    end: NDArray[np.int32]  # [M], one beyond the last leaf beneath

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
        return cls(leaf, path, np.concatenate(starts).astype(np.int32), np.concatenate(ends).astype(np.int32))


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """What one combination of allowed and blocked attributes leaves of a catalogue of N items."""

    items: NDArray[np.bool_]  # [N + 1], whether each item index is eligible; False for padding
    eligible: int  # items that are
    unknown: tuple[tuple[str, str], ...]  # (column, value) asked for that no item has
    _nodes: Nodes
    _before: NDArray[np.int32]  # [N + 1], eligible leaves before each leaf
    _alive: NDArray[np.uint8]  # [A], the mask of a request that excludes nothing

    def mask(self, excluded: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The graph's `allowed` [A] for a request that also excludes these item indices; 0 and repetitions count not.

        It covers the exclusions, so the request's `exclude` may be left empty. Not to be written to.
        """
        nodes, chosen = self._nodes, np.asarray(excluded, np.int64)
        leaf = np.unique(nodes.leaf[chosen[self.items[chosen]]])  # those excluded that were eligible, [E]
        if not len(leaf):
            return self._alive
        # Level by level, and leaves in order: equal nodes stand together, which spares a sort.
        path = nodes.path[leaf].ravel("F")  # [L * E]
        begins = np.flatnonzero(np.concatenate(([True], path[1:] != path[:-1])))
        node = path[begins]
        taken = np.concatenate((begins[1:], [len(path)])) - begins
        dead = node[self._before[nodes.end[node]] - self._before[nodes.start[node]] == taken]
        mask = self._alive.copy()
        np.bitwise_and.at(mask, dead >> 3, _WITHOUT_BIT[dead & 7])
        return mask

    @property
    def nbytes(self) -> int:
        """Memory that this filter alone holds."""
        return self.items.nbytes + self._before.nbytes + self._alive.nbytes


class Filters:
    """Resolves the filters of requests over one catalogue, and keeps the latest ones.

    Values are compared as they are written in the catalogue, capitals included. For one thread at a time.
    """

    def __init__(self, catalogue: Catalogue, cache_bytes: int = CACHE_BYTES) -> None:
        """Raises ReleaseCorrupt if two items share a semantic ID."""
        self._items = len(catalogue)
        self._nodes = Nodes.of(catalogue.codes)
        self._index = _inverted(catalogue)
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
        items = np.ones(self._items + 1, np.bool_)
        items[0] = False
        for column, values in allow:
            has_any = np.zeros_like(items)
            for rows in self._rows(column, values):
                has_any[rows] = True
            items &= has_any
        for column, values in block:
            for rows in self._rows(column, values):
                items[rows] = False
        at_leaf = np.empty(self._items, np.bool_)
        at_leaf[self._nodes.leaf[1:]] = items[1:]
        before = np.zeros(self._items + 1, np.int32)
        np.cumsum(at_leaf, out=before[1:])
        alive = np.packbits(before[self._nodes.end] > before[self._nodes.start], bitorder="little")
        alive.flags.writeable = False  # handed out as it is where nothing is excluded
        unknown = {
            (column, value)
            for column, values in (*allow, *block)
            for value in values
            if value not in self._index[column]
        }
        return Filter(items, int(before[-1]), tuple(sorted(unknown)), self._nodes, before, alive)

    def _rows(self, column: str, values: tuple[str, ...]) -> Iterator[NDArray[np.int32]]:
        index = self._index[column]
        return (index[value] for value in values if value in index)

    def _check(self, allow: Mapping[str, Sequence[str]], block: Mapping[str, Sequence[str]]) -> None:
        wrong: list[FieldError] = []
        for side, columns in (("allow", allow), ("block", block)):
            for column, values in columns.items():
                pointer = f"/filters/{side}/{column.replace('~', '~0').replace('/', '~1')}"
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
    # A caller can make keys long: what strings hold counts too, by the four bytes that a character may take.
    texts = sum(4 * len(value) for _, values in chain(*key) for value in values)
    return made.nbytes + texts


def _inverted(catalogue: Catalogue) -> dict[str, dict[str, NDArray[np.int32]]]:
    """Column -> value -> indices of the items that have it."""
    found: dict[str, dict[str, list[int]]] = {}
    for index, item in enumerate(catalogue.items, start=1):
        for column, values in item.attributes.items():
            rows = found.setdefault(column, {})
            for value in values:
                rows.setdefault(value, []).append(index)
    return {
        column: {value: np.array(rows, np.int32) for value, rows in by_value.items()}
        for column, by_value in found.items()
    }
