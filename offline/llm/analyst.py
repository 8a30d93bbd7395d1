"""The `analyst` backend: statistics behind the protocol that language models implement. It calls none and says so.

It reads a prompt's `task` and answers in the same formats. Temperature and seed draw the paths that it thinks up, and
nothing else; `top_p`, `max_tokens` and `pattern` mean nothing here. The same data set, seeds and task give the same
texts, in whatever company and order they are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from offline.analyst.engine import BACKEND, Analyst, Case
from offline.analyst.operations import OPERATIONS, Op, common
from offline.analyst.ranking import Shopper
from offline.chains import explore, mine, rationale
from offline.chains.template import Template
from offline.errors import RecipeError
from offline.llm.base import Abstract, Answer, Explore, Prompt, Rationale, Usage
from offline.prepare import Dataset

TOGETHER = 512  # prompts at a time


class AnalystBackend:
    """Answers prompts about the users of one data set.

    Only `dataset.training` of its users is counted: about a second for 200,000 interactions.
    """

    def __init__(self, dataset: Dataset, *, seed: int = 7) -> None:
        self._analyst = Analyst(dataset, seed=seed)
        self._items = dataset.num_items
        self._usage = Usage(model=BACKEND)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """That it is no language model."""
        return BACKEND

    @property
    def usage(self) -> Usage:
        """Requests and seconds; there are no tokens and no cost."""
        return self._usage

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """One Answer for each prompt, in order. A task that cannot be reasoned about is answered with its error."""
        for first in range(0, len(prompts), TOGETHER):
            start = time.monotonic()
            block = prompts[first : first + TOGETHER]
            answers = self._answered(block, first)
            self._usage.requests += len(block)
            self._usage.failed += sum(answer.error is not None for answer in answers)
            self._usage.seconds += time.monotonic() - start
            yield from answers

    def close(self) -> None:
        """There is nothing to give back."""

    def _answered(self, prompts: Sequence[Prompt], first: int) -> list[Answer]:
        texts: list[list[str]] = [[] for _ in prompts]
        errors: dict[int, str] = {}
        explored: list[tuple[int, Case]] = []
        reasoned: list[tuple[int, Case]] = []
        for place, prompt in enumerate(prompts):
            try:
                if isinstance(prompt.task, Abstract):
                    texts[place] = [_abstraction(prompt.task)] * prompt.sampling.n
                elif isinstance(prompt.task, Explore):
                    explored += [(place, case) for case in self._explored(prompt, prompt.task)]
                else:
                    reasoned.append((place, self._reasoned(prompt.task)))
            except RecipeError as error:
                errors[place] = str(error)
        for (place, _), answer in zip(
            explored, self._analyst.explorations([case for _, case in explored]), strict=True
        ):
            if answer.recommendations:
                texts[place].append(explore.write(answer))
            else:
                errors[place] = "every item of the catalogue was bought already: there is nothing to recommend"
        chains = self._analyst.rationales([case for _, case in reasoned])
        for (place, case), chain in zip(reasoned, chains, strict=True):
            texts[place] = [rationale.write(chain, case.path)] * prompts[place].sampling.n
        return [
            Answer(first + place, error=errors[place]) if place in errors else Answer(first + place, tuple(answer))
            for place, answer in enumerate(texts)
        ]

    def _explored(self, prompt: Prompt, task: Explore) -> list[Case]:
        """One case for each answer that is wanted."""
        shopper = self._shopper(task.history, task.own)
        if task.path is not None:
            return [Case(shopper, Template(task.path).steps)] * prompt.sampling.n
        seed, temperature = prompt.sampling.seed or 0, prompt.sampling.temperature
        return [
            Case(shopper, self._analyst.path(shopper, temperature=temperature, seed=seed, draw=draw))
            for draw in range(prompt.sampling.n)
        ]

    def _reasoned(self, task: Rationale) -> Case:
        shopper = self._shopper(task.history, task.own)
        if task.target is not None:
            self._known((task.target,))
        return Case(shopper, Template(task.template).steps, task.target)

    def _shopper(self, history: tuple[int, ...], own: tuple[int, ...]) -> Shopper:
        if not history:
            raise RecipeError("the history is empty: there is nothing to reason about")
        self._known((*history, *own))
        return Shopper(np.array(history, np.int32), np.array(own, np.int32))

    def _known(self, items: tuple[int, ...]) -> None:
        for item in items:
            if not 1 <= item <= self._items:
                raise RecipeError(f"there is no item {item}: the catalogue has items 1 to {self._items}")


def _abstraction(task: Abstract) -> str:
    """The common path of the exemplars, in Fig. 10's form."""
    found = common(task.exemplars)
    exemplars = len(task.exemplars)
    held = [f"{_name(op)} ({count} of {exemplars})" for op, count in found.shares.items() if op in found.operations]
    rare = [_name(op) for op in found.shares if op not in found.operations]
    channels = {channel for op in found.operations for channel in OPERATIONS[op].adds}
    counted = {"flow", "next", "around"} & channels
    grounds = [
        *(["what other customers bought"] if counted else []),
        *(["likeness in content"] if {"like", "use", "shared", "due"} & channels else []),
        *(["brand and category"] if {"brand", "category"} & channels else []),
        *(["how items sell"] if {"popular", "tier"} & channels else []),
    ]
    return f"""### 1. Pattern Summary
- Core Logic: The paths go from {_name(found.operations[0])} to {_name(found.operations[-1])} in about \
{len(found.path)} steps, by {", ".join(grounds)}.
- Key Steps: {"; ".join(held)}.
### 2. Performance Assessment
- Why it works: Rank {task.rank} of {task.clusters} with {task.recall:.2%} Recall@20, by ranking on \
{", ".join(grounds)}.
- Limitations: {f"Only some of the paths hold {', '.join(rare)}." if rare else "The paths differ in words only."}
### 3. Optimized Paths
{mine.BEST} {Template(found.path)}
- Improvement Logic: It keeps the operations that most of the exemplars share, each once and in their usual order, and \
leaves out the rest."""


def _name(op: Op) -> str:
    return OPERATIONS[op].wordings[0]
