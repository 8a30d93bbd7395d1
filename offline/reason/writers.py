"""Who writes the chains (`reason.writer`), what it may know, and how it is opened.

- `teacher`: whatever the recipe's `[teacher]` is. As `analyst` it is no language model but statistics of the training
  part of all *other* users, with this user's own part taken out for every split alike (`offline.analyst`). As a
  language model it is shown the history before the split's target, and is told no target here.
- `student`: distilled from a teacher (`scoter distill`). A user's chains, of all splits, come from the student of the
  fold that the user is in, which has learnt from no chain of that fold: a teacher's chain may have been written with
  hindsight, so that whoever learnt it has seen the target. One and the same student for all splits keeps their H alike.
- `undistilled`: the student's base model as it comes, asked in the same words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from offline.analyst.engine import BACKEND
from offline.chains.rationale import View
from offline.distill.students import Students, about, fold_of, open_student, student
from offline.distill.teach import view
from offline.errors import RecipeError, StageError
from offline.llm.base import Backend
from offline.llm.model import model_place, weights_digest
from offline.llm.open import ANSWERS, open_backend
from offline.prepare import Dataset
from offline.recipe import Recipe, TeacherRecipe

BATCHES = 32  # of a local model in a chunk; it sorts that many prompts by length


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes, and how to come by him; it is sent to other processes, what it opens is not."""

    name: str  # for the summary
    identity: str  # of two writers that may write differently, this differs
    view: View | None  # what of a history is shown; None to statistics, which read the task, and what everybody bought
    chunk: int  # chains asked for at a time
    # The model of a fold, closed at the end. Raises OfflineError.
    open: Callable[[int, Dataset], AbstractContextManager[Backend]]
    folds: int = 1
    alone: bool = False  # has to be asked by one process, as whoever keeps a budget or a rate
    held: bool = False  # to the format as it writes; a student has learnt it

    def fold(self, user_id: str) -> int:
        """Which of its models writes for this user."""
        return fold_of(user_id, self.folds)


def writer(work: Path, recipe: Recipe, template: tuple[str, ...], students: Path | None) -> Writer:
    """Who writes by a recipe; `students` is a distill stage's folder, if they are to write.

    Raises RecipeError if they were taught another template, StageError if the folder holds none.
    """
    if recipe.reason.writer == "teacher":
        return _teacher(work, recipe)
    if recipe.reason.writer == "undistilled":
        return _undistilled(recipe)
    if students is None:
        raise RecipeError("reason.writer = 'student' needs students: run `scoter distill`, or name reason.students")
    return _student(recipe, template, students)


def _teacher(work: Path, recipe: Recipe) -> Writer:
    teacher = recipe.teacher
    identity = json.dumps(["teacher", teacher.words()], sort_keys=True)
    opening = partial(_open_teacher, teacher, work / ANSWERS)
    if teacher.backend == "analyst":
        return Writer(BACKEND, identity, None, 512, opening)
    name = f"{teacher.backend} {teacher.model}"
    if teacher.backend == "local":
        identity += _weights(teacher.model)
        return Writer(name, identity, view(recipe), BATCHES * teacher.batch, opening, held=True)
    # So many that those who wait for a chunk's slowest answer do not matter.
    held = teacher.structured != "none"
    return Writer(name, identity, view(recipe), 64 * teacher.concurrency, opening, alone=True, held=held)


def _student(recipe: Recipe, template: tuple[str, ...], folder: Path) -> Writer:
    found = about(folder)
    if found.template != template:
        raise RecipeError(
            f"the students in {folder} write {len(found.template)} steps ({' -> '.join(found.template)}), "
            f"reason.template has {len(template)} ({' -> '.join(template)}): take the template that they were taught"
        )
    folders = [student(folder, fold) for fold in range(found.folds)]
    if missing := next((path for path in folders if not path.is_dir()), None):
        raise StageError(f"{missing} is missing: run `scoter distill` again")
    base = [_weights(found.base)] if found.method == "lora" else []
    return Writer(
        f"student of {found.base} ({found.method}, {found.folds} folds)",
        json.dumps(["student", base, [*map(weights_digest, folders)], recipe.distill.precision, recipe.distill.seed]),
        found.view,
        BATCHES * recipe.reason.batch,
        partial(_open_student, folder, found, recipe),
        found.folds,
    )


def _undistilled(recipe: Recipe) -> Writer:
    distill = recipe.distill
    return Writer(
        f"{distill.student}, not distilled",
        json.dumps(["undistilled", _weights(distill.student), distill.precision, distill.seed]),
        view(recipe),
        BATCHES * recipe.reason.batch,
        partial(_open_undistilled, recipe),
    )


def _open_teacher(
    recipe: TeacherRecipe, answers: Path, _fold: int, dataset: Dataset
) -> AbstractContextManager[Backend]:
    return open_backend(recipe, dataset, answers)


def _open_student(
    folder: Path, students: Students, recipe: Recipe, fold: int, _dataset: Dataset
) -> AbstractContextManager[Backend]:
    return open_student(students.base, students.method, student(folder, fold), recipe)


def _open_undistilled(recipe: Recipe, _fold: int, _dataset: Dataset) -> AbstractContextManager[Backend]:
    return open_student(recipe.distill.student, recipe.distill.method, None, recipe)


def _weights(model: str) -> str:
    """Digest of a model on this machine; of one from a hub, its name."""
    place = model_place(model)
    return weights_digest(place) if isinstance(place, Path) else place
