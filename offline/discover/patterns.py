"""Clusters of paths: the patterns that are mined (section 3.2, Mine)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score

STARTS = 10  # of K-Means, the best of which counts
SILHOUETTE_PATHS = 5_000  # drawn; the coefficient needs all pairs of them
_SAME = 1e-6  # silhouettes that differ by less are equal: the smaller k wins


@dataclass(frozen=True, slots=True)
class Patterns:
    """A clustering. Without a silhouette there were too few different paths, and all of them are one cluster."""

    labels: NDArray[np.int64]  # [n], 0..k-1
    centroids: NDArray[np.float32]  # [k, D], unit vectors
    curve: dict[int, float]  # silhouette by k

    @property
    def k(self) -> int:
        """How many clusters."""
        return len(self.centroids)

    def closeness(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine of each path to the centroid of its own cluster, [n]."""
        cosine: NDArray[np.float32] = (vectors * self.centroids[self.labels]).sum(1)
        return cosine


def cluster(vectors: NDArray[np.float32], candidates: Sequence[int], seed: int) -> Patterns:
    """K-Means over unit vectors [n, D], with the k of the highest silhouette among `candidates` that are below n."""
    possible = sorted({k for k in candidates if 2 <= k < len(vectors)})
    curve: dict[int, float] = {}
    best: tuple[float, NDArray[np.int64]] | None = None
    for k in possible:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different paths than k, or too many rounds
            labels = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(vectors).astype(np.int64)
        if len(np.unique(labels)) < 2:
            continue
        sampled = min(SILHOUETTE_PATHS, len(vectors))
        value = float(silhouette_score(vectors, labels, sample_size=sampled, random_state=seed))
        curve[k] = round(value, 4)
        if best is None or value > best[0] + _SAME:
            best = value, labels
    labels = np.zeros(len(vectors), np.int64) if best is None else np.unique(best[1], return_inverse=True)[1]
    centroids = np.stack([vectors[labels == one].mean(0) for one in range(int(labels.max()) + 1)])
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return Patterns(labels, centroids, curve)


def flat(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """A map: the two principal components [n, 2] of the paths, and their share of the variance."""
    centred = vectors - vectors.mean(0)
    covariance = centred.T @ centred
    values, axes = np.linalg.eigh(covariance.astype(np.float64))
    total = float(values.sum())
    axes = axes[:, ::-1][:, :2]
    # An axis may point either way; the larger part of it points up.
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return centred @ axes, float(values[::-1][:2].sum() / total) if total > 0 else 1.0
