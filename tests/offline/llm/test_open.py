from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.errors import LLMError, RecipeError
from offline.llm.cache import FILE, AnswerCache
from offline.llm.open import open_backend
from offline.prepare import Dataset
from offline.recipe import TeacherRecipe
from tests.offline.llm.prompts import asks
from tests.offline.llm.server import Layer

EMPTY = Dataset([], [], [np.array([], np.int32)][:0])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_local_model_is_opened_with_a_cache_and_closed(untrained: Path, tmp_path: Path) -> None:
    recipe = TeacherRecipe(backend="local", model=str(untrained), batch=2)
    with open_backend(recipe, EMPTY, tmp_path / "cache") as backend:
        first = list(backend.answer(asks(1)))
    with AnswerCache(tmp_path / "cache") as cache:
        assert len(cache) == 1
    with open_backend(recipe, EMPTY, tmp_path / "cache") as backend:
        assert list(backend.answer(asks(1))) == first
        assert backend.usage.cached == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_endpoint_is_opened_with_the_key_of_the_environment(
    layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOTER_LLM_API_KEY", " sk-from-outside ")
    recipe = TeacherRecipe(backend="endpoint", model="m", base_url=layer.url + "/")
    with open_backend(recipe, EMPTY, tmp_path) as backend:
        assert all(answer.texts for answer in backend.answer(asks(1)))
        assert backend.name == f"endpoint m at {layer.url}"
    assert layer.asked[0].headers["authorization"] == "Bearer sk-from-outside"


@pytest.mark.parametrize("backend", ["local", "endpoint"])
def test_a_recipe_without_a_model_is_refused(backend: Any, tmp_path: Path) -> None:
    recipe = TeacherRecipe(backend=backend, base_url="http://localhost:1/v1")
    with pytest.raises(RecipeError, match=r"teacher\.model is empty"), open_backend(recipe, EMPTY, tmp_path):
        pass


def test_an_endpoint_without_the_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    recipe = TeacherRecipe(backend="endpoint", model="m", base_url="http://localhost:1/v1")
    message = r"needs the package openai, .*pip install -e '\.\[llm\]'"
    with pytest.raises(LLMError, match=message), open_backend(recipe, EMPTY, tmp_path):
        pass


def test_a_broken_cache_is_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    recipe = TeacherRecipe(backend="local", model="smollm2")
    with pytest.raises(LLMError, match="is damaged"), open_backend(recipe, EMPTY, tmp_path):
        pass
