"""The backend that a recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from offline.errors import RecipeError
from offline.llm.base import Backend
from offline.llm.cache import AnswerCache
from offline.prepare import Dataset
from offline.recipe import TeacherRecipe

ANSWERS = "answers"  # folder of a work folder: all stages share its answers, and its budget


@contextmanager
def open_backend(recipe: TeacherRecipe, dataset: Dataset, cache: Path) -> Iterator[Backend]:
    """`analyst`, `endpoint` or `local`, closed at the end; answers of the latter two are kept in the folder `cache`.

    Raises RecipeError if the recipe lacks something, LLMError if the backend cannot be opened.
    """
    with closing(_opened(recipe, dataset, cache)) as backend:
        yield backend


def _opened(recipe: TeacherRecipe, dataset: Dataset, cache: Path) -> Backend:
    # Each backend imports what only it needs.
    if recipe.backend == "analyst":
        from offline.llm.analyst import AnalystBackend  # noqa: PLC0415

        return AnalystBackend(dataset, seed=recipe.seed)
    answers = AnswerCache(cache)
    try:
        if recipe.backend == "endpoint":
            from offline.llm.chat import key_from_environment  # noqa: PLC0415
            from offline.llm.endpoint import EndpointBackend  # noqa: PLC0415

            return EndpointBackend(recipe, answers, key_from_environment())
        from offline.llm.local import LocalBackend  # noqa: PLC0415

        if not recipe.model:
            raise RecipeError("teacher.model is empty: give a folder, a hub name, a .gguf file or `smollm2`")
        return LocalBackend(
            recipe.model, batch=recipe.batch, precision=recipe.precision, seed=recipe.seed, cache=answers
        )
    except BaseException:
        answers.close()
        raise
