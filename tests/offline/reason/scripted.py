"""A writer and an encoder whose every word can be foretold, that log what they were asked, and that die when told to.

They are sent to other processes, as real ones are, so all they share is files.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline.chains import rationale
from offline.chains.rationale import View
from offline.chains.template import MANUAL
from offline.errors import LLMError
from offline.llm.base import Answer, Backend, Prompt, Rationale, Usage
from offline.prepare import Dataset
from offline.reason import stage
from offline.reason.chains import Asking
from offline.reason.engines import Engine, Job, Local
from offline.reason.writers import Writer

TEMPLATE = MANUAL["three-step"].steps
D = 6


@dataclass(frozen=True)
class Script:
    """What to write: it names the fold, and everything that was shown."""

    log: Path  # a line for every question
    view: View | None = field(default_factory=View)
    identity: str = "scripted"
    folds: int = 1
    chunk: int = 7
    alone: bool = False
    nonsense: str = ""  # an answer to a question that holds this is none, on the first try and the second
    clumsy: str = ""  # the same, on the first try only
    silent: str = ""  # no answer comes to a question that holds this
    cached: int = 0  # questions whose answers are there already and cost nothing
    dead_after: int = sys.maxsize  # questions, then the endpoint is dead
    killed_after: int = sys.maxsize  # questions, then the process is killed; once

    def writer(self) -> Writer:
        name = f"a script ({self.folds} folds)"
        return Writer(name, self.identity, self.view, self.chunk, partial(_open, self), self.folds, self.alone)


def _open(script: Script, fold: int, _: Dataset) -> AbstractContextManager[Backend]:
    return closing(ScriptedBackend(script, fold))


class ScriptedBackend:
    """What writes by a Script."""

    def __init__(self, script: Script, fold: int) -> None:
        self.name = "script"
        self.usage = Usage(model="script")
        self._script, self._fold = script, fold
        append(script.log.with_name("opened"), str(os.getpid()))

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        for index in reversed(range(len(prompts))):  # in another order than asked
            yield self._one(index, prompts[index])

    def close(self) -> None:
        pass

    def _one(self, index: int, prompt: Prompt) -> Answer:
        script, shown = self._script, question(prompt)
        greedy = prompt.sampling.temperature == 0
        if self.usage.cached < script.cached:
            self.usage.cached += 1
        else:
            self.usage.requests += 1
            self.usage.prompt_tokens += 100
            self.usage.completion_tokens += 10
            self.usage.cost += 0.25
        if self.usage.requests > script.dead_after:
            raise LLMError("the endpoint is dead")
        die(script.log.with_name("killed"), self.usage.requests > script.killed_after)
        append(script.log, f"{self._fold} {'first' if greedy else 'again'} {digest(shown)}")
        if script.silent and script.silent in shown:
            return Answer(index, error="it timed out")
        if script.nonsense and script.nonsense in shown:
            return Answer(index, ("Sorry, as a language model I cannot.",))
        if script.clumsy and script.clumsy in shown and greedy:
            return Answer(index, ("Overall Analysis: this ends too",))
        return Answer(index, (rationale.write(chain(self._fold, shown, prompt), steps_of(prompt)),))


def chain(fold: int, shown: str, prompt: Prompt) -> rationale.Chain:
    mark = digest(shown)
    steps = [f"Step {k} by writer {fold} of {mark}." for k in range(len(steps_of(prompt)) - 1)]
    # Some texts are the same for many users.
    return rationale.Chain(
        "An overall view.", (*steps, f"Recommend number {int(mark, 16) % 5} to them."), "So much in summary."
    )


def steps_of(prompt: Prompt) -> tuple[str, ...]:
    assert isinstance(prompt.task, Rationale)
    return prompt.task.template


def question(prompt: Prompt) -> str:
    """All that whoever answers can see of it: the messages of a language model, of others the task."""
    return repr(prompt.messages or prompt.task)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True)
class Characters:
    """Says how to come by an encoder that makes vectors of a text's characters."""

    log: Path  # a line for every text
    identity: str = "characters"
    killed_after: int = sys.maxsize  # texts, then the process is killed; once

    def open(self) -> CharacterEncoder:
        return CharacterEncoder(self)


@dataclass(frozen=True)
class Niceness:
    """Says how to come by an encoder whose vectors tell how much it gives way to other processes."""

    identity: str = "niceness"

    def open(self) -> Niceness:
        return self

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        return np.full((len(texts), D), os.nice(0), np.float32)


class CharacterEncoder:
    """What Characters opens."""

    def __init__(self, characters: Characters) -> None:
        self._characters = characters
        self._count = 0

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        self._count += len(texts)
        die(self._characters.log.with_name("killed"), self._count > self._characters.killed_after)
        append(self._characters.log, *texts)
        return np.stack([vector(text) for text in texts])


def vector(text: str) -> NDArray[np.float32]:
    found = np.random.default_rng(list(text.encode())).standard_normal(D)
    return (found / np.linalg.norm(found)).astype(np.float32)


def append(path: Path, *lines: str) -> None:
    """Whole, whichever process writes at the same time."""
    out = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(out, "".join(f"{line}\n" for line in lines).encode())
    os.close(out)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def die(marker: Path, due: bool) -> None:
    """As a machine that loses its power does, unless it has happened before."""
    if due and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def build(folder: Path, kept: Path, prepared: Path, script: Script, characters: Characters, engine: Engine) -> None:
    """A whole stage in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    asking = Asking(TEMPLATE, 320)
    stage.build(folder, kept, Job(prepared, folder / "chunks", script.writer(), asking, characters), engine)


def build_and_die(folder: Path, prepared: Path, log: Path, questions: int, texts: int, small: int) -> None:
    """Like `build`, in a process that is killed on the way."""
    stage.TEXTS = small
    script = Script(log / "questions", killed_after=questions)
    build(folder, folder.parent / "kept", prepared, script, Characters(log / "texts", killed_after=texts), Local())
