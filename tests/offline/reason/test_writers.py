import pickle
from pathlib import Path

import pytest

from offline.analyst.engine import BACKEND
from offline.chains.rationale import View
from offline.chains.template import MANUAL
from offline.distill.students import Students, describe, fold_of, student
from offline.errors import RecipeError, StageError
from offline.reason.writers import writer
from offline.recipe import Recipe

FIVE, THREE = MANUAL["five-step"].steps, MANUAL["three-step"].steps


def recipe(**sections: object) -> Recipe:
    return Recipe.model_validate({"name": "test", **sections})


@pytest.fixture
def students(tmp_path: Path) -> Path:
    folder = tmp_path / "distill"
    folder.mkdir()
    describe(folder, Students("smollm2", "lora", 2, FIVE, View(7, 30), hindsight=True))
    for fold in range(2):
        student(folder, fold).mkdir()
        (student(folder, fold) / "adapter_model.safetensors").write_bytes(bytes([fold]))
    return folder


STUDENT = recipe(reason={"writer": "student"})


def test_the_analyst_is_no_language_model_and_sees_whole_histories(tmp_path: Path) -> None:
    found = writer(tmp_path, recipe(), FIVE, None)
    assert (found.name, found.view, found.folds, found.alone) == (BACKEND, None, 1, False)


def test_an_endpoint_is_asked_by_one_process_and_its_patience_is_no_part_of_what_it_says(tmp_path: Path) -> None:
    endpoint = {"backend": "endpoint", "model": "m", "base_url": "http://localhost:1/v1"}
    found = writer(tmp_path, recipe(teacher=endpoint), FIVE, None)
    assert found.alone
    assert found.view == View(10, 80)
    patient = writer(
        tmp_path, recipe(teacher={**endpoint, "retries": 9, "budget": 3.0, "prompt_price": 1.0}), FIVE, None
    )
    assert patient.identity == found.identity
    other = writer(tmp_path, recipe(teacher={**endpoint, "model": "n"}), FIVE, None)
    assert other.identity != found.identity


def test_students_see_what_they_were_taught_with_and_write_for_their_fold(tmp_path: Path, students: Path) -> None:
    found = writer(tmp_path, STUDENT, FIVE, students)
    assert found.view == View(7, 30)
    assert [found.fold(f"u{row}") for row in range(9)] == [fold_of(f"u{row}", 2) for row in range(9)]
    assert pickle.loads(pickle.dumps(found)).identity == found.identity  # noqa: S301 - our own


def test_other_weights_are_another_writer_and_another_place_is_not(tmp_path: Path, students: Path) -> None:
    first = writer(tmp_path, STUDENT, FIVE, students)
    moved = students.rename(tmp_path / "moved")
    assert writer(tmp_path, STUDENT, FIVE, moved).identity == first.identity
    (student(moved, 1) / "adapter_model.safetensors").write_bytes(b"better")
    assert writer(tmp_path, STUDENT, FIVE, moved).identity != first.identity


def test_students_of_another_template_are_refused(tmp_path: Path, students: Path) -> None:
    with pytest.raises(RecipeError, match=r"write 5 steps .*reason\.template has 3 .*take the template"):
        writer(tmp_path, STUDENT, THREE, students)


def test_students_that_are_not_there(tmp_path: Path, students: Path) -> None:
    with pytest.raises(RecipeError, match="run `scoter distill`"):
        writer(tmp_path, STUDENT, FIVE, None)
    with pytest.raises(StageError, match="holds no students"):
        writer(tmp_path, STUDENT, FIVE, tmp_path)
    (student(students, 1) / "adapter_model.safetensors").unlink()
    student(students, 1).rmdir()
    with pytest.raises(StageError, match="student-1 is missing"):
        writer(tmp_path, STUDENT, FIVE, students)


def test_the_undistilled_model_is_asked_as_students_are(tmp_path: Path, students: Path) -> None:
    settings = {"reason": {"writer": "undistilled"}, "distill": {"items": 7, "text_chars": 30}}
    found = writer(tmp_path, recipe(**settings), FIVE, None)
    assert found.view == writer(tmp_path, STUDENT, FIVE, students).view
    assert (found.name, found.folds) == ("smollm2, not distilled", 1)
