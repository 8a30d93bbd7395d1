"""Pruning near-duplicates: of paths that are more alike than a threshold, the first one stays.

The definition is greedy, in the order given: a path is a duplicate if its cosine to a path *that was kept before it*
is above `similarity`; the keeper it counts for is the most similar one of those. What was dropped keeps nobody out.
That is computed exactly, in blocks: as many products as there are pairs of a path and a keeper, and no more memory
than one tile. 100,000 paths of which none is like another take a minute on one core (docs/discover.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024  # paths that are compared with all keepers at a time
TILE = 16_384  # keepers at a time: BLOCK x TILE similarities are 64 MB


def prune(vectors: NDArray[np.float32], similarity: float) -> NDArray[np.int64]:
    """The keeper of each path, int64 [n]; a path that is kept is its own. `vectors` are unit vectors [n, D]."""
    n, width = vectors.shape
    keeper = np.arange(n)
    kept = np.empty((n, width), np.float32)  # the first `count` rows
    rows = np.empty(n, np.int64)  # which paths they are
    count = 0
    for start in range(0, n, BLOCK):
        block = vectors[start : start + BLOCK]
        best = np.full(len(block), -np.inf, np.float32)
        nearest = np.zeros(len(block), np.int64)
        for first in range(0, count, TILE):
            cosine = block @ kept[first : min(first + TILE, count)].T  # [block, tile]
            at = cosine.argmax(1)
            value = cosine[np.arange(len(block)), at]
            better = value > best  # equal ones: the earlier keeper
            best[better], nearest[better] = value[better], rows[first + at[better]]
        within = block @ block.T
        for place in range(len(block)):
            if best[place] > similarity:
                keeper[start + place] = nearest[place]
                continue
            later = within[place, place + 1 :]
            better = later > best[place + 1 :]
            best[place + 1 :][better] = later[better]
            nearest[place + 1 :][better] = start + place
        fresh = np.flatnonzero(keeper[start : start + len(block)] == np.arange(start, start + len(block)))
        kept[count : count + len(fresh)] = block[fresh]
        rows[count : count + len(fresh)] = start + fresh
        count += len(fresh)
    return keeper
