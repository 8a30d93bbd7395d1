from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from offline.discover import prune as module
from offline.discover.prune import prune


def _greedy(vectors: NDArray[np.float32], similarity: float) -> list[int]:
    """The definition, word by word."""
    kept: list[int] = []
    keeper: list[int] = []
    for row in range(len(vectors)):
        cosines = [float(vectors[row] @ vectors[other]) for other in kept]
        if cosines and max(cosines) > similarity:
            keeper.append(kept[int(np.argmax(cosines))])
        else:
            kept.append(row)
            keeper.append(row)
    return keeper


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.3, 0.6, 0.85, 0.95]))
def test_blocks_find_what_the_definition_says(seed: int, n: int, similarity: float) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((5, 6))
    vectors = centres[rng.integers(5, size=n)] + rng.standard_normal((n, 6)) * rng.choice([0.05, 0.3, 1.0])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 7)
        patch.setattr(module, "TILE", 5)
        assert prune(vectors, similarity).tolist() == _greedy(vectors, similarity)


def test_the_first_of_equal_paths_stays() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0.8, 0.6], [0, 1]], np.float32)
    assert prune(vectors, 0.85).tolist() == [0, 1, 0, 3, 1]


def test_what_was_dropped_keeps_nobody_out() -> None:
    angles = np.array([0.0, 0.5, 1.0])  # each is like the one before, the last one is not like the first
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert prune(vectors, 0.85).tolist() == [0, 0, 2]


@pytest.mark.slow
def test_many_paths_are_pruned_in_seconds() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((20_000, 64), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[10_000:] = vectors[:10_000]
    assert (prune(vectors, 0.85)[10_000:] == np.arange(10_000)).all()
