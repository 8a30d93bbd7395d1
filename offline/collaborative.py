"""Item embeddings without a text: which items were bought near which others, in training alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from offline.cooccurrence import Neighbours
from offline.threads import one_thread

SMOOTHING = 0.75  # exponent of the context's frequency: rare neighbours would look more telling than they are


def collaborative_embeddings(
    sequences: Sequence[NDArray[np.int32]], num_items: int, width: int, seed: int
) -> NDArray[np.float32]:
    """Embeddings float32 [N, width] of items 1..N: the SVD of their positive pointwise mutual information.

    Rows have length 1; an item without a neighbour in `sequences`, which must be training sequences, has a row of
    zeros. With fewer than `width` items there are as many columns as items.
    """
    with one_thread():
        left, values, _ = randomized_svd(
            _mutual_information(sequences, num_items),
            n_components=min(width, num_items),
            n_iter=7,
            random_state=seed,
        )
    vectors = left * np.sqrt(values)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(lengths > 1e-9, vectors / np.maximum(lengths, 1e-9), 0.0).astype(np.float32)
    return unit


def neighbour_means(
    sequences: Sequence[NDArray[np.int32]], vectors: NDArray[np.float32], unplaced: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """`vectors` [N, D] with the rows where `unplaced` [N] replaced by the mean of their neighbours in `sequences`.

    Neighbours count by how often and how near they were bought; only placed ones count. Means are scaled to length 1;
    an item without such a neighbour keeps its row.
    """
    weights = _together(sequences, len(vectors))[unplaced] @ sparse.diags_array((~unplaced).astype(np.float64))
    means = weights @ vectors.astype(np.float64)
    lengths = np.linalg.norm(means, axis=1)
    rows = np.flatnonzero(unplaced)[lengths > 0]
    placed = vectors.copy()
    placed[rows] = (means[lengths > 0] / lengths[lengths > 0, None]).astype(np.float32)
    return placed


def _together(sequences: Sequence[NDArray[np.int32]], num_items: int) -> sparse.csr_array:
    """How often and how near i and j were bought, either way: float64 [N, N], symmetric."""
    counts = Neighbours.fit(sequences, num_items).counts[1:, 1:].astype(np.float64)
    return sparse.csr_array(counts + counts.T)


def _mutual_information(sequences: Sequence[NDArray[np.int32]], num_items: int) -> sparse.csr_array:
    pairs = _together(sequences, num_items).tocoo()
    frequency = np.bincount(pairs.row, pairs.data, minlength=num_items)
    context = frequency**SMOOTHING
    expected = frequency[pairs.row] * context[pairs.col]
    information = np.log(pairs.data * context.sum() / expected)
    positive = information > 0
    return sparse.csr_array(
        (information[positive], (pairs.row[positive], pairs.col[positive])), shape=(num_items, num_items)
    )
