"""Asking a backend about many users, one row on disk for each answer: what was paid for once is never asked again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline.chains import rationale
from offline.chains.rationale import Chain
from offline.errors import AnswerError
from offline.llm.base import Backend, Prompt
from offline.prepare import Dataset
from offline.progress import progress
from offline.stage import write_rows

NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True)
class Said:
    """What a user's prompt got: a text, or the reason why there is none."""

    text: str = ""
    error: str | None = None

    def chain(self, template: Sequence[str]) -> Chain:
        """What was said, as a chain under the template. Raises AnswerError: NO_ANSWER, or what `parse` refuses."""
        if self.error is not None:
            raise AnswerError(NO_ANSWER)
        return rationale.parse(self.text, template)


def ask_all(
    path: Path,
    dataset: Dataset,
    users: Sequence[int],
    prompt: Callable[[int], Prompt],
    opened: Callable[[], AbstractContextManager[Backend]],
    each: Callable[[int, Said], None] | None = None,
) -> dict[int, Said]:
    """Answers by user, in the order of `users`. `path` keeps those that came: a later run asks for the others only.

    `opened` is entered only when something is missing; `each` hears of every answer, those on disk first. What had no
    answer is not on disk and is asked for again. Raises LLMError when the backend does; what it said before is kept.
    """
    rows = {row["user"]: Said(row["text"]) for row in whole_rows(path)}
    write_rows(path, ({"user": user, "text": said.text} for user, said in rows.items()))
    known = {user: rows[name] for user in users if (name := dataset.users[user]) in rows}
    missing = [user for user in users if user not in known]
    for user, said in known.items():
        if each is not None:
            each(user, said)
    if missing:
        with (
            opened() as backend,
            path.open("a", encoding="utf-8") as out,
            progress() as bars,
        ):
            task = bars.add_task(f"chains by {backend.name}", total=len(users), completed=len(known))
            for answer in backend.answer([prompt(user) for user in missing]):
                user = missing[answer.index]
                if answer.error is None and answer.texts:
                    said = Said(answer.texts[0])
                    out.write(json.dumps({"user": dataset.users[user], "text": said.text}, ensure_ascii=False) + "\n")
                    out.flush()
                else:
                    said = Said(error=answer.error or "the backend gave none")
                known[user] = said
                bars.advance(task)
                if each is not None:
                    each(user, said)
    return {user: known.get(user, Said(error="the backend passed it over")) for user in users}


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file of JSON lines but one that a crash cut off; none if there is no file."""
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def validity(said: Sequence[Said], template: Sequence[str]) -> dict[str, Any]:
    """How many answers are chains under the template, why the others are not, and how long they are, in words."""
    reasons: Counter[str] = Counter()
    lengths: list[int] = []
    steps: list[int] = []
    for one in said:
        lengths.append(len(one.text.split()))
        try:
            chain = one.chain(template)
        except AnswerError as error:
            reasons[str(error)] += 1
        else:
            steps.extend(len(step.split()) for step in chain.steps)
    return {
        "chains": len(said),
        "valid": round(1 - reasons.total() / max(len(said), 1), 4),
        "words": round(sum(lengths) / max(len(lengths), 1), 1),
        "words_of_a_step": round(sum(steps) / max(len(steps), 1), 1),
        "invalid": dict(reasons.most_common()),
    }
