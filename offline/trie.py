"""The semantic-ID trie as flat arrays, in pure numpy.

Level l holds one node for every distinct prefix of l+1 codes, in lexicographic order. So the children of a node
are consecutive at the next level, and a child's state *is* its position there: no pointers, no hashing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Level:
    """The nodes of one level; n nodes, m nodes at the level above (1 for the root)."""

    code: NDArray[np.int64]  # [n] last code of the node's prefix
    parent: NDArray[np.int64]  # [n] node at the level above
    first: NDArray[np.int64]  # [m + 1] node p's children are first[p]:first[p + 1]
    start: NDArray[np.int64]  # [n] first leaf beneath, a node of the last level
    leaves: NDArray[np.int64]  # [n] items beneath: the leaves start:start + leaves
    fanout: int  # most children of any node above

    def __len__(self) -> int:
        return len(self.code)


@dataclass(frozen=True, slots=True)
class Trie:
    """All semantic IDs of a catalogue of N items, L codes each."""

    levels: list[Level]
    item: NDArray[np.int64]  # [N] item index (1..N) of each node of the last level
    path: NDArray[np.int64]  # [N + 1, L] nodes on the way to an item; -1 in row 0 (padding)
    codebook: int


def build_trie(codes: NDArray[np.integer], codebook: int) -> Trie:
    """The trie of `codes` [N, L]; row i is the semantic ID of item i + 1.

    Raises ValueError if two items share a semantic ID or a code is not in 0..codebook-1.
    """
    num_items, depth = codes.shape
    if num_items == 0:
        raise ValueError("a trie needs at least one item")
    if codes.min() < 0 or codes.max() >= codebook:
        raise ValueError(f"codes must be in 0..{codebook - 1}, found {codes.min()}..{codes.max()}")
    order = np.lexsort(codes.T[::-1])
    ranked = codes[order].astype(np.int64)  # [N, L], lexicographic
    differs = ranked[1:] != ranked[:-1]  # [N - 1, L]
    path = np.full((num_items + 1, depth), -1, np.int64)
    levels: list[Level] = []
    above = np.zeros(num_items, np.int64)
    size_above = 1
    for level in range(depth):
        starts = np.concatenate([[True], differs[:, : level + 1].any(axis=1)])
        node = np.cumsum(starts) - 1  # [N] node of each ranked item
        heads = np.flatnonzero(starts)
        parent = above[heads]
        counts = np.bincount(parent, minlength=size_above)
        levels.append(
            Level(
                code=ranked[heads, level],
                parent=parent,
                first=np.concatenate([[0], np.cumsum(counts)]),
                start=heads,
                leaves=np.diff(np.append(heads, num_items)),
                fanout=int(counts.max()),
            )
        )
        path[order + 1, level] = node
        above, size_above = node, len(heads)
    if size_above != num_items:
        raise ValueError(f"{num_items} items share {size_above} semantic IDs: every item needs its own")
    return Trie(levels, order.astype(np.int64) + 1, path, codebook)


def packed_alive(trie: Trie, eligible: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Nodes with an eligible item beneath, eligible [N] by item: the input `allowed` [A] (see `service.filters`)."""
    paths = trie.path[1:][eligible]
    alive = [np.bincount(paths[:, number], minlength=len(level)) > 0 for number, level in enumerate(trie.levels)]
    return np.packbits(np.concatenate(alive), bitorder="little")
