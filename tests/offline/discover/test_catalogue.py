from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offline.discover import catalogue as module
from offline.discover.catalogue import Catalogue, predicted
from tests.offline.discover.scripted import WordEncoder

TEXTS = [f"thing t{n} of kind k{n % 3}" for n in range(30)]


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> WordEncoder:
    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(WordEncoder, "texts", [])
    return WordEncoder()


def test_the_nearest_item_is_that_of_the_highest_cosine(tmp_path: Path, encoder: WordEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    found = Catalogue(vectors, encoder.encode, tmp_path / "m").nearest(["a thing t4", "kind k2 t8", *TEXTS])
    assert found.shape == (32, 20)
    asked = encoder.encode(["a thing t4", "kind k2 t8", *TEXTS])
    np.testing.assert_array_equal(found[:, 0], (asked @ vectors.T).argmax(1) + 1)


def test_a_text_is_encoded_once_whoever_asks_again(tmp_path: Path, encoder: WordEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    first = Catalogue(vectors, encoder.encode, tmp_path / "m")
    encoder.texts.clear()
    expected = first.nearest(["one t1", "two t2", "one t1"])
    assert encoder.texts == ["one t1", "two t2"]
    with (tmp_path / "m").open("ab") as file:
        file.write(b"torn")
    again = Catalogue(vectors, encoder.encode, tmp_path / "m")
    np.testing.assert_array_equal(again.nearest(["one t1", "three t3", "two t2"])[[0, 2]], expected[:2])
    assert encoder.texts == ["one t1", "two t2", "three t3"]
    assert again.different == 3


def test_a_catalogue_may_be_smaller_than_the_depth(tmp_path: Path, encoder: WordEncoder) -> None:
    assert Catalogue(encoder.encode(TEXTS[:3]), encoder.encode, tmp_path / "m").nearest(["x t1"]).shape == (1, 3)


def test_a_set_is_unique_in_order_and_may_step_past_a_history() -> None:
    nearest = np.array([[4, 5], [4, 6], [7, 8], [5, 4]], np.int32)
    assert predicted(nearest) == [4, 7, 5]
    assert predicted(nearest, frozenset({4, 7})) == [5, 6, 8]
    assert predicted(nearest, frozenset({4, 5})) == [6, 7]
    assert predicted(nearest[:0]) == []
