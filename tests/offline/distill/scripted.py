"""A teacher whose words are made of its prompt, byte for byte; and one that misbehaves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path

from offline.chains.rationale import Chain, write
from offline.llm.base import Answer, Backend, Prompt, Rationale, Usage
from offline.prepare import Dataset
from offline.recipe import TeacherRecipe

Reply = Callable[[int, Prompt], str | BaseException | None]


def chain_of(prompt: Prompt) -> str:
    """A valid chain that no other prompt gets."""
    task = prompt.task
    assert isinstance(task, Rationale)
    facts = repr((prompt.messages, task.history, task.own, task.target))
    mark = hashlib.sha256(facts.encode()).hexdigest()[:6]
    seen = " and ".join(f"number {item}" for item in task.history[-2:])
    steps = tuple(f"{name.lower()} says {seen}, {mark}" for name in task.template)
    return write(Chain(f"bought {seen}, {mark}", steps, f"in short {seen}, {mark}"), task.template)


class Scripted:
    """A backend that answers in reverse order with `reply(number of the answer, prompt)`."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.asked: list[Prompt] = []
        self.closed = 0
        self.usage = Usage(model="scripted")

    @property
    def name(self) -> str:
        return "scripted"

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        for index in reversed(range(len(prompts))):
            prompt = prompts[index]
            said = self._reply(len(self.asked), prompt)
            if isinstance(said, BaseException):
                raise said
            self.asked.append(prompt)
            self.usage.requests += 1
            yield Answer(index, error="status 500") if said is None else Answer(index, (said,))

    def close(self) -> None:
        self.closed += 1

    def opened(self, recipe: TeacherRecipe, dataset: Dataset, cache: Path) -> AbstractContextManager[Backend]:
        """Takes the place of `open_backend`."""
        return closing(self)


def good(number: int, prompt: Prompt) -> str:
    return chain_of(prompt)
