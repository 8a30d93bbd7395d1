"""Backends on an endpoint, as tests open them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from offline.llm.endpoint import EndpointBackend
from offline.recipe import TeacherRecipe

Open = Callable[..., EndpointBackend]
KEY = "sk-do-not-tell-4711"


def recipe_of(url: str, **changes: Any) -> TeacherRecipe:
    settings: dict[str, Any] = {"backend": "endpoint", "model": "small", "base_url": url, "timeout": 30.0, "retries": 2}
    return TeacherRecipe(**settings | changes)
