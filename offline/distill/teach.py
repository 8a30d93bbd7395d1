"""Stage `teach` (Alg. 2, step 1): the teacher's chains under the template, for a sample of users.

Output folder:

    teacher.jsonl   {"user", "overall", "steps", "summary"}, a row for each chain that can be learnt from
    rejected.jsonl  {"user", "reason", "text"}, a row for each other one
    summary.json    who wrote them, how many were kept and why the others were not, tokens, cost and seconds

A chain is written from the history of the training split, up to t-3. With hindsight the teacher also knows the training
target t-2. Nothing here reads a validation or test item.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from offline.chains import rationale
from offline.chains.rationale import Chain, View
from offline.chains.template import Template
from offline.distill.answers import NO_ANSWER, Said, ask_all
from offline.errors import AnswerError, StageError
from offline.llm.base import Backend, Prompt, Sampling, Usage
from offline.llm.open import ANSWERS, open_backend
from offline.prepare import Dataset, load_dataset
from offline.recipe import Recipe
from offline.stage import Stage, console, read_json, read_rows, run_stage, write_json, write_rows

VERSION = 1
EARLY = 40  # answers after which a teacher that hardly ever keeps to the format is not paid any further
HARDLY_EVER = 0.05
TOLD = "says that it was told"
SETTINGS = {"users", "hindsight", "items", "text_chars", "temperature", "top_p", "max_tokens", "seed"}


@dataclass(frozen=True, slots=True)
class Taught:
    """A user's chain, as the teacher wrote it."""

    user: int  # row in the data set
    chain: Chain


def teach(work: Path, prepared: Stage, template: Template, recipe: Recipe, upstream: Sequence[Stage]) -> Stage:
    """Run the stage. Raises LLMError when the teacher cannot be asked any more, StageError when it cannot be read."""
    settings: dict[str, Any] = {
        "template": list(template.steps),
        "teacher": recipe.teacher.words(),
        **recipe.distill.model_dump(include=SETTINGS),
    }
    return run_stage(
        work, "teach", VERSION, settings, upstream, lambda folder: _Run(folder, prepared, template, recipe).go()
    )


def load_chains(folder: Path, dataset: Dataset) -> list[Taught]:
    """The chains of a finished stage, in the order in which users were drawn."""
    rows = {user: row for row, user in enumerate(dataset.users)}
    return [
        Taught(rows[row["user"]], Chain(row["overall"], tuple(row["steps"]), row["summary"]))
        for row in read_rows(folder / "teacher.jsonl")
    ]


def view(recipe: Recipe) -> View:
    """How much of a history teacher and student see."""
    return View(recipe.distill.items, recipe.distill.text_chars)


def sample(dataset: Dataset, count: int, seed: int) -> list[int]:
    """Users drawn without replacement: of a larger count, the first ones are the same."""
    return [int(user) for user in np.random.default_rng(seed).permutation(len(dataset.users))[:count]]


def teacher(recipe: Recipe, dataset: Dataset, folder: Path) -> AbstractContextManager[Backend]:
    """The teacher, for a stage at work in `folder`; all stages of a work folder share its answers."""
    return open_backend(recipe.teacher, dataset, folder.parent / ANSWERS)


def question(dataset: Dataset, user: int, template: Template, recipe: Recipe, *, hindsight: bool) -> Prompt:
    """What the teacher is asked about a user."""
    distill = recipe.distill
    sampling = Sampling(
        temperature=distill.temperature, top_p=distill.top_p, max_tokens=distill.max_tokens, seed=distill.seed
    )
    return rationale.ask(dataset, user, "train", template.steps, sampling, view(recipe), hindsight=hindsight, hold=True)


class _Run:
    def __init__(self, folder: Path, prepared: Stage, template: Template, recipe: Recipe) -> None:
        self.folder, self.template, self.recipe = folder, template, recipe
        self.dataset = load_dataset(prepared.folder)
        self.users = sample(self.dataset, recipe.distill.users, recipe.distill.seed)
        self.kept: dict[int, Chain] = {}
        self.rejected: dict[int, tuple[str, str]] = {}  # reason and text
        self.note: Callable[[], None] = lambda: None  # write down what was used; nothing while nobody is asked

    def go(self) -> None:
        answers = self.folder / "answers.jsonl"
        ask_all(answers, self.dataset, self.users, self._prompt, self._teacher, self._read)
        if not self.kept:  # of fewer than EARLY: a finished stage would be asked for no more
            raise self._useless()
        kept = ({"user": self.dataset.users[u], **asdict(self.kept[u])} for u in self.users if u in self.kept)
        write_rows(self.folder / "teacher.jsonl", kept)
        self._write_rejected()
        if not (self.folder / "usage.json").is_file():  # the last run was killed after the last answer
            with self._teacher():
                pass
        usage: dict[str, Any] = read_json(self.folder / "usage.json")
        write_json(
            self.folder / "summary.json",
            {
                "teacher": usage.pop("name"),
                "template": list(self.template.steps),
                "hindsight": self.recipe.distill.hindsight,
                "asked": len(self.users),
                "kept": len(self.kept),
                "rejected": dict(self._reasons().most_common()),
                "usage": {key: round(value, 6) if isinstance(value, float) else value for key, value in usage.items()},
            },
        )
        answers.unlink()
        (self.folder / "usage.json").unlink()
        why = f"; the others: {self._why()}" if self.rejected else ""
        console.print(f"  {len(self.kept)} of {len(self.users)} chains can be learnt from{escape(why)}")

    @contextmanager
    def _teacher(self) -> Iterator[Backend]:
        start, path = time.monotonic(), self.folder / "usage.json"
        told: dict[str, Any] = read_json(path) if path.is_file() else {}
        before = Usage(**{key: value for key, value in told.items() if key != "name"})
        with teacher(self.recipe, self.dataset, self.folder) as backend:

            def note() -> None:
                used = before + replace(backend.usage, seconds=time.monotonic() - start)
                write_json(path, {"name": backend.name, **asdict(used)})

            self.note = note
            try:
                yield backend
            finally:  # whatever ended it: what was paid is known
                note()

    def _prompt(self, user: int) -> Prompt:
        return question(self.dataset, user, self.template, self.recipe, hindsight=self.recipe.distill.hindsight)

    def _read(self, user: int, said: Said) -> None:
        self.note()  # this process may be killed before the next answer
        try:
            chain = said.chain(self.template.steps)
            if rationale.admission(chain) is not None:
                raise AnswerError(TOLD)
        except AnswerError as error:
            self.rejected[user] = (str(error), said.error or said.text)
            answered = len(self.kept) + len(self.rejected)
            if answered >= EARLY and len(self.kept) < HARDLY_EVER * answered:
                raise self._useless() from None
        else:
            self.kept[user] = chain

    def _useless(self) -> StageError:
        """What to say of a teacher of whom hardly anything can be learnt."""
        self._write_rejected()
        answered = len(self.kept) + len(self.rejected)
        if not self.kept and set(self._reasons()) == {NO_ANSWER}:
            *_, (_, last) = self.rejected.values()
            return StageError(f"the teacher answered none of {answered} prompts, the last one for this reason: {last}")
        return StageError(
            f"of the teacher's first {answered} chains {len(self.kept)} can be learnt from ({self._why()}); "
            f"the others are in {self.folder / 'rejected.jsonl'}: take another teacher.model, or a template "
            "that it can keep to"
        )

    def _write_rejected(self) -> None:
        rows = [(u, *self.rejected[u]) for u in self.users if u in self.rejected]
        write_rows(
            self.folder / "rejected.jsonl",
            ({"user": self.dataset.users[u], "reason": reason, "text": text} for u, reason, text in rows),
        )

    def _reasons(self) -> Counter[str]:
        return Counter(reason for reason, _ in self.rejected.values())

    def _why(self) -> str:
        return ", ".join(f"{count} x {reason}" for reason, count in self._reasons().most_common(5))
