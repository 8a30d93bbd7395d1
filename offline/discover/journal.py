"""Answers on disk as they come, so that nothing is asked twice.

One line of JSON for each prompt: `{"key", "user", "texts"}`, or `{"key", "user", "error"}` for one that no answer came
for, which the next run asks again. A run that is cut off leaves at most a torn last line, and that one is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline.chains.explore import ANSWER_CHARS
from offline.llm.base import Answer, Backend, Prompt


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt about a user; `user` is None where it is about nobody."""

    user: int | None
    prompt: Prompt

    @property
    def key(self) -> str:
        """Tells it from all others: the same words about two users are two questions."""
        sampling = self.prompt.sampling
        said = [[message.role, message.content] for message in self.prompt.messages]
        body = [self.user, said, sampling.n, sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for a question."""

    texts: tuple[str, ...]
    error: str | None = None


class Journal:
    """The answers in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] = {}  # where in the file a question's latest line begins
        self._errors: set[str] = set()
        if path.exists():
            self._read()

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """Those without an answer, each different one once."""
        different = {question.key: question for question in questions}
        return [q for key, q in different.items() if key not in self._places or key in self._errors]

    def ask(self, questions: Sequence[Question], backend: Backend, after: Callable[[Question, Reply], None]) -> None:
        """Have the missing ones answered; `after` hears of each. Raises LLMError, with all answers before it kept."""
        missing = self.missing(questions)
        if not missing:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                for answer in backend.answer([question.prompt for question in missing]):
                    question = missing[answer.index]
                    row = _line(question, answer)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    after(question, _reply(row))
        finally:
            self._read()

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Question by question what came back, one at a time from disk; no texts where it was not asked yet."""
        with ExitStack() as stack:
            file = stack.enter_context(self._path.open("rb")) if self._places else None
            for question in questions:
                place = self._places.get(question.key)
                if file is None or place is None:
                    yield question, Reply(())
                else:
                    file.seek(place)
                    yield question, _reply(json.loads(file.readline()))

    def _read(self) -> None:
        self._places.clear()
        self._errors.clear()
        place = 0
        with self._path.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(place)
                    break
                row: dict[str, Any] = json.loads(line)
                if "error" not in row or row["key"] not in self._places:
                    self._places[row["key"]] = place
                (self._errors.add if "error" in row else self._errors.discard)(row["key"])
                place += len(line)


def _reply(row: dict[str, Any]) -> Reply:
    return Reply(tuple(row.get("texts", ())), row.get("error"))


def _line(question: Question, answer: Answer) -> dict[str, Any]:
    row: dict[str, Any] = {"key": question.key, "user": question.user}
    if answer.error is not None or not answer.texts:
        return row | {"error": (answer.error or "no answer came")[:500]}
    return row | {"texts": [text[:ANSWER_CHARS] for text in answer.texts]}
