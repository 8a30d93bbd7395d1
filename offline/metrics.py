"""Recall and NDCG with one relevant item per user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (5, 10)


def ranks(items: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each target in its row of `items` [U, N], from 1; 0 where it is not among them."""
    hit = items == targets[:, None]
    return np.where(hit.any(1), hit.argmax(1) + 1, 0).astype(np.int64)


def hits(rank: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Recall of each user: 1 where the target is among the first k, else 0; of the shape of `rank`."""
    return ((rank > 0) & (rank <= k)).astype(np.float64)


def gains(rank: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """NDCG of each user: 1 / log2(1 + rank), 0 beyond k; of the shape of `rank`."""
    return np.where((rank > 0) & (rank <= k), 1.0 / np.log2(1.0 + np.maximum(rank, 1)), 0.0)


def recall(rank: NDArray[np.int64], k: int) -> float:
    """Share of users whose target is among the first k."""
    return float(hits(rank, k).mean())


def ndcg(rank: NDArray[np.int64], k: int) -> float:
    """Mean of 1 / log2(1 + rank) over users, 0 beyond k."""
    return float(gains(rank, k).mean())


def summary(rank: NDArray[np.int64]) -> dict[str, float]:
    """Recall and NDCG at 5 and 10, rounded to what a sample of users can tell."""
    found: dict[str, float] = {}
    for k in CUTOFFS:
        found[f"recall@{k}"] = round(recall(rank, k), 5)
        found[f"ndcg@{k}"] = round(ndcg(rank, k), 5)
    return found
