"""Which student may write for whom, and where it is: all that stage `reason` needs to know of stage `distill`."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from offline.chains.rationale import View
from offline.errors import StageError
from offline.llm.base import Backend
from offline.recipe import Recipe
from offline.stage import read_json, write_json

Method = Literal["lora", "full"]
_FILE = "students.json"


@dataclass(frozen=True, slots=True)
class Students:
    """What the students of a finished stage are."""

    base: str  # name of the model they were made from
    method: Method  # `lora`: an adapter for `base`; `full`: a model of its own
    folds: int
    template: tuple[str, ...]
    view: View  # of a history: a student is to be asked as it was taught
    hindsight: bool  # whether the chains it learnt from were written by a teacher who knew the target


def fold_of(user_id: str, folds: int) -> int:
    """The fold of a user, from 0: of the id alone, so that it is the same everywhere and for ever.

    Student `fold_of(user)` has learnt from no chain of that fold, and is the one to write that user's chains.
    """
    return int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8, person=b"scoter fold").digest()) % folds


def learns_from(fold: int, user_id: str, folds: int) -> bool:
    """Whether the student of a fold may see this user's chain. With a single fold there is nobody to keep apart."""
    return folds == 1 or fold_of(user_id, folds) != fold


def student(folder: Path, fold: int) -> Path:
    """The student of a fold: a peft adapter's folder, or a whole model's (`about(folder).method` says which)."""
    return folder / f"student-{fold}"


def checkpoints(student: Path) -> Path:
    """What going on with a student's training needs, kept until it is written down how that went."""
    return student.with_name(f"{student.name}.checkpoints")


def open_student(base: str, method: Method, path: Path | None, recipe: Recipe) -> AbstractContextManager[Backend]:
    """The student at `path`, made from `base` by `method`, in this process; the base as it comes if `path` is None."""
    from offline.llm.local import LocalBackend  # noqa: PLC0415 - imports torch

    distill, lora = recipe.distill, method == "lora"
    return closing(
        LocalBackend(
            base if path is None or lora else path,
            adapter=path if lora else None,
            batch=recipe.reason.batch,
            precision=distill.precision,
            seed=distill.seed,
        )
    )


def about(folder: Path) -> Students:
    """What the students in a stage's folder are. Raises StageError if it holds none."""
    try:
        body: dict[str, Any] = read_json(folder / _FILE)
        body["template"], body["view"] = tuple(body["template"]), View(**body["view"])
        return Students(**body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(f"{folder} holds no students: {error}; run `scoter distill`") from error


def describe(folder: Path, students: Students) -> None:
    """Write what `about` reads."""
    write_json(folder / _FILE, asdict(students))
