from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offline.collaborative import collaborative_embeddings, neighbour_means


def sequences(*rows: list[int]) -> list[NDArray[np.int32]]:
    return [np.array(row, np.int32) for row in rows]


def communities(users: int = 300, seed: int = 0) -> list[NDArray[np.int32]]:
    """Users who buy within one of three groups of ten items (1-10, 11-20, 21-30), rarely outside."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        items = user % 3 * 10 + random.integers(1, 11, 6)
        stray = random.random(6) < 0.05
        rows.append(np.where(stray, random.integers(1, 31, 6), items).astype(np.int32))
    return rows


def test_items_bought_together_lie_together() -> None:
    vectors = collaborative_embeddings(communities(), 30, 8, seed=7)
    assert vectors.shape == (30, 8)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    likeness = (vectors @ vectors.T).reshape(3, 10, 3, 10).mean(axis=(1, 3))
    inside = np.diag(likeness)
    assert inside.min() > likeness[~np.eye(3, dtype=bool)].max() + 0.3


def test_the_same_sequences_and_seed_give_the_same_embeddings() -> None:
    first, again = (collaborative_embeddings(communities(), 30, 8, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_an_item_without_neighbours_lies_at_zero() -> None:
    vectors = collaborative_embeddings(sequences([1, 2, 3], [2, 3, 1], [4], [3, 2]), 5, 4, seed=0)
    assert vectors.shape == (5, 4)
    assert vectors[:3].any(axis=1).all()
    assert not vectors[3:].any()


def test_no_pair_at_all() -> None:
    assert not collaborative_embeddings(sequences([1], [2]), 3, 8, seed=0).any()


def test_an_unplaced_item_lies_at_the_mean_of_its_placed_neighbours() -> None:
    vectors = np.eye(5, dtype=np.float32)
    placed = neighbour_means(sequences([1, 3], [3, 1], [2, 3], [3, 4]), vectors, np.array([0, 0, 1, 1, 1], bool))
    np.testing.assert_array_equal(placed[:2], vectors[:2])
    # Item 3: twice beside item 1, once beside item 2; item 4 is not placed itself.
    np.testing.assert_allclose(placed[2], np.array([2, 1, 0, 0, 0]) / np.sqrt(5), atol=1e-6)
    # Items 4 and 5 have no placed neighbour.
    np.testing.assert_array_equal(placed[3:], vectors[3:])
    np.testing.assert_array_equal(vectors, np.eye(5, dtype=np.float32))
