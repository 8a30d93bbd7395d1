from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from offline.errors import StageError, TrainingError
from offline.features import item_features
from offline.prepare import Dataset, ItemText
from offline.recipe import TokenizeRecipe

ITEMS, USERS, D = 20, 60, 12
RECIPE = TokenizeRecipe(width=6)


def shopping(*, texts: bool = True, without: frozenset[int] = frozenset(), last: int = 0) -> Dataset:
    """Sequences whose last two items are turned by `last`; items in `without` have no text."""
    random = np.random.default_rng(0)
    sequences = []
    for _ in range(USERS):
        row = random.choice(ITEMS - 1, size=6, replace=False) + 1  # nobody buys the last item
        row[-2:] = (row[-2:] + last) % (ITEMS - 1) + 1
        sequences.append(row.astype(np.int32))
    items = [ItemText(f"i{i}", "", f"text {i}" if texts and i not in without else "", {}) for i in range(1, ITEMS + 1)]
    return Dataset([f"u{u}" for u in range(USERS)], items, sequences)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    np.save(tmp_path / "embeddings.npy", embeddings())
    return tmp_path


def embeddings() -> NDArray[np.float32]:
    drawn = np.random.default_rng(1).normal(0.4, 1.0, (ITEMS, D))
    unit: NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_each_kind_weighs_the_same_beside_the_other(tokens: Path) -> None:
    found = item_features(["text", "collaborative"], shopping(), tokens, RECIPE, include_validation=False)
    assert found.shape == (ITEMS, D + RECIPE.width)
    assert found.dtype == np.float32
    for kind in (found[:, :D], found[:, D:]):
        known = kind.any(axis=1)
        np.testing.assert_allclose(kind[known].mean(axis=0), 0, atol=1e-6)
        assert np.square(kind[known]).sum(axis=1).mean() == pytest.approx(1, abs=1e-5)
    centred = embeddings() - embeddings().mean(axis=0)
    np.testing.assert_allclose(found[:, :D] / found[0, 0], centred / centred[0, 0], rtol=1e-3, atol=1e-4)


def test_an_item_that_nobody_bought_has_no_place_among_what_was_bought(tokens: Path) -> None:
    found = item_features(["collaborative"], shopping(), tokens, RECIPE, include_validation=False)
    assert not found[-1].any()
    assert found[:-1].any(axis=1).all()


def test_an_item_without_text_has_its_neighbours(tokens: Path) -> None:
    every = item_features(["text"], shopping(), tokens, RECIPE, include_validation=False)
    one = item_features(["text"], shopping(without=frozenset({3})), tokens, RECIPE, include_validation=False)
    assert not np.allclose(one[2], every[2], atol=1e-2)
    assert np.corrcoef(one[3], every[3])[0, 1] > 0.99


def test_a_catalogue_without_texts_is_told_by_what_was_bought_or_not_at_all(tokens: Path) -> None:
    bare = shopping(texts=False)
    both = item_features(["text", "collaborative"], bare, tokens, RECIPE, include_validation=False)
    np.testing.assert_array_equal(
        both, item_features(["collaborative"], bare, tokens, RECIPE, include_validation=False)
    )
    with pytest.raises(TrainingError, match=r'no item of this data set has a text: take \["collaborative"\]'):
        item_features(["text"], bare, tokens, RECIPE, include_validation=False)


@given(last=st.integers(1, ITEMS - 3))
def test_no_item_from_the_target_on_is_read(last: int) -> None:
    """Of any split that the features are for: training alone, or training and validation."""
    first, other = shopping(), shopping(last=last)
    assert_alike(first, other, include_validation=False)
    for row, before in zip(other.sequences, first.sequences, strict=True):
        row[-2] = before[-2]
    assert_alike(first, other, include_validation=True)


def assert_alike(first: Dataset, other: Dataset, *, include_validation: bool) -> None:
    one, two = (
        item_features(["collaborative"], each, Path(), RECIPE, include_validation=include_validation)
        for each in (first, other)
    )
    np.testing.assert_array_equal(one, two)


def test_embeddings_of_other_items_are_refused(tokens: Path) -> None:
    np.save(tokens / "embeddings.npy", embeddings()[:-1])
    with pytest.raises(StageError, match="was not made of it"):
        item_features(["text"], shopping(), tokens, RECIPE, include_validation=False)
