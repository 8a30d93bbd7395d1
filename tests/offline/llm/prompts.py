"""Prompts for tests of backends."""

from __future__ import annotations

from typing import Any

from offline.llm.base import Explore, Message, Prompt, Sampling

SYSTEM = "You answer in a few words."


def ask(text: str, *, pattern: str | None = None, **sampling: Any) -> Prompt:
    """A prompt for a language model; the task is no matter."""
    defaults: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0}
    messages = (Message("system", SYSTEM), Message("user", text))
    return Prompt(messages, Sampling(**defaults | sampling), Explore((1,), (1,)), pattern)


def asks(count: int, **sampling: Any) -> list[Prompt]:
    """Different prompts."""
    return [ask(f"What is {number} plus one?", **sampling) for number in range(count)]
