"""Embeddings kept by encoder and text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offline.errors import StageError
from offline.reason.vectors import Vectors


def test_what_is_kept_comes_back_for_this_encoder_alone(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16)
    with Vectors.open(tmp_path / "reasoning", "one") as vectors:
        assert vectors.missing(["a", "b", "a"]) == ["a", "b", "a"]
        vectors.put(["a", "b", "ä"], rows)
    with Vectors.open(tmp_path / "reasoning", "one") as vectors:
        assert vectors.missing(["ä", "c", "a"]) == ["c"]
        found = vectors.of(["ä", "a", "a"])
        assert found is not None
        np.testing.assert_array_equal(found, rows[[2, 0, 0]])
        assert vectors.of(["a", "c"]) is None
    with Vectors.open(tmp_path / "reasoning", "other") as vectors:
        assert vectors.missing(["a"]) == ["a"]


def test_an_encoder_that_changed_under_its_name_is_told(tmp_path: Path) -> None:
    with Vectors.open(tmp_path, "one") as vectors:
        vectors.put(["a"], np.zeros((1, 4), np.float16))
        vectors.put(["b"], np.zeros((1, 6), np.float16))
        with pytest.raises(StageError, match="changed under its name"):
            vectors.of(["a", "b"])
