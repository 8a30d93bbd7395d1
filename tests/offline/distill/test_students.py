from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.chains.rationale import View
from offline.distill.students import Students, about, describe, fold_of, learns_from, student
from offline.errors import StageError


def test_the_fold_of_a_user_never_changes() -> None:
    assert [fold_of(user, 5) for user in ("A1B2", "ann", "ödön", "")] == [3, 3, 4, 3]


@given(st.text(), st.integers(min_value=2, max_value=50))
def test_a_user_is_kept_from_the_student_of_the_users_own_fold_alone(user: str, folds: int) -> None:
    fold = fold_of(user, folds)
    assert 0 <= fold < folds
    assert [other for other in range(folds) if not learns_from(other, user, folds)] == [fold]


def test_folds_are_of_like_size() -> None:
    sizes = [sum(fold_of(f"user-{n}", 4) == fold for n in range(4000)) for fold in range(4)]
    assert min(sizes) > 900


def test_a_single_student_learns_from_all() -> None:
    assert all(learns_from(0, f"user-{n}", 1) for n in range(50))


def test_what_is_said_of_students_is_read_again(tmp_path: Path) -> None:
    students = Students("smollm2", "lora", 3, ("A", "B"), View(7, 20), hindsight=True)
    describe(tmp_path, students)
    assert about(tmp_path) == students
    assert student(tmp_path, 2) == tmp_path / "student-2"
    with pytest.raises(StageError, match="scoter distill"):
        about(tmp_path / "elsewhere")
