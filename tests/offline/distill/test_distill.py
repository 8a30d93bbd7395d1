import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offline.chains.template import Template
from offline.distill import run as module
from offline.distill.answers import Said, validity
from offline.distill.compare import compare
from offline.distill.run import distill
from offline.distill.students import about, fold_of, student
from offline.distill.teach import teach
from offline.errors import LLMError, RecipeError, StageError
from offline.prepare import load_dataset
from offline.recipe import DistillRecipe, Recipe, load_recipe
from offline.stage import Stage
from tests.offline.distill.scripted import Reply, Scripted, chain_of, good

Teacher = Callable[[Reply], Scripted]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _with(recipe: Recipe, **changes: object) -> Recipe:
    return recipe.model_copy(update={"distill": recipe.distill.model_copy(update=changes)})


@pytest.mark.slow
def test_students_are_cross_fitted_and_measured_before_and_after(
    prepared: Stage, changed: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    teacher(good)
    stage = distill(tmp_path / "work", prepared, template, recipe, [])
    students = about(stage.folder)
    assert (students.base, students.method, students.folds) == (recipe.distill.student, "lora", 2)
    assert (students.template, students.view.items, students.view.text_chars) == (template.steps, 3, 0)
    assert students.hindsight
    held: set[str] = {row["user"] for row in _rows(stage.folder / "written-undistilled.jsonl")}
    for fold in range(2):
        assert (student(stage.folder, fold) / "adapter_config.json").is_file()
        learnt = {row["user"] for row in _rows(stage.folder / f"examples-{fold}.jsonl")}
        assert len(learnt) >= 8
        assert all(fold_of(user, 2) != fold for user in learnt)
        assert not learnt & held
    summary = json.loads((stage.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["after"]["loss"] < summary["before"]["loss"]
    assert summary["before"]["valid"] == 0.0  # it has read nothing but the alphabet
    assert summary["before"]["chains"] == summary["after"]["chains"] == len(held) == 4
    assert summary["chains"] == {"asked": 40, "kept": 40, "rejected": {}, "too_long": 0}
    assert {row["fold"] for row in _rows(stage.folder / "curve.jsonl")} == {0, 1}
    page = (stage.folder / "report.html").read_text(encoding="utf-8")
    assert "<img" in page
    assert "undistilled" in page
    assert {path.name for path in stage.folder.iterdir()} == {
        *("students.json", "student-0", "student-1", "examples-0.jsonl", "examples-1.jsonl", "left-out.jsonl"),
        *("curve.jsonl", "written-undistilled.jsonl", "written-distilled.jsonl", "summary.json", "report.html"),
        "stage.json",
    }

    # Other validation and test items: the same students, to the byte.
    teacher(good)
    other = distill(tmp_path / "other", changed, template, recipe, [])
    for fold in range(2):
        weights = [student(folder, fold) / "adapter_model.safetensors" for folder in (stage.folder, other.folder)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    for name in ("examples-0.jsonl", "examples-1.jsonl", "written-distilled.jsonl"):
        assert (stage.folder / name).read_bytes() == (other.folder / name).read_bytes()

    compared = compare(tmp_path / "work", prepared, stage, recipe)
    results = json.loads((compared.folder / "results.json").read_text(encoding="utf-8"))
    assert results["users"] == 12
    known = {
        row["user"] for row in (*_rows(stage.folder / "examples-0.jsonl"), *_rows(stage.folder / "examples-1.jsonl"))
    }
    asked = {row["user"] for row in _rows(compared.folder / "said-teacher.jsonl")}
    assert len(asked) == 12
    assert not asked & (known | held)
    names = {"teacher", "undistilled", "distilled", "latest purchase", "popularity", "co-occurrence kNN"}
    assert {row["who"] for row in results["results"]} == names
    for row in results["results"]:
        assert 0 <= row["low"] <= row["recall@20"] <= row["high"] <= 1
        if row["who"] == "undistilled" and row["query"] == "last step":
            assert row["recall@20"] == row["valid"] == 0


@pytest.mark.slow
def test_what_was_trained_is_not_trained_again(
    prepared: Stage,
    template: Template,
    recipe: Recipe,
    teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from offline.distill import tune as tuning

    trained: list[str] = []
    real = tuning.tune

    def recorded(out: Path, *rest: Any) -> tuning.Tuned:
        if len(trained) == 1 and out.name == "student-1":
            trained.append("interrupted")
            raise KeyboardInterrupt
        trained.append(out.name)
        return real(out, *rest)

    backend = teacher(good)
    monkeypatch.setattr(tuning, "tune", recorded)
    with pytest.raises(KeyboardInterrupt):
        distill(tmp_path / "work", prepared, template, recipe, [])
    stage = distill(tmp_path / "work", prepared, template, recipe, [])
    assert trained == ["student-0", "interrupted", "student-1"]
    assert len(backend.asked) == 40
    assert not list(stage.folder.glob("*.checkpoints"))
    # Another student costs no other chains.
    teach(tmp_path / "work", prepared, template, _with(recipe, rank=4, epochs=5, student="another"), [prepared])
    assert len(backend.asked) == 40


def test_too_few_chains_are_an_error_with_counts_and_reasons(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    teacher(lambda number, prompt: "Soap." if number % 3 else chain_of(prompt))
    with pytest.raises(StageError) as few:
        distill(tmp_path / "work", prepared, template, _with(recipe, users=30), [])
    message = str(few.value)
    assert "it needs 8: of 30 that the teacher was asked for 10 can be learnt from" in message
    assert "20 x no 'Overall Analysis'" in message


def test_chains_that_are_too_long_are_recorded(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    teacher(good)
    with pytest.raises(StageError, match=r"40 are longer than distill\.max_length, the shortest has \d{3} tokens"):
        distill(tmp_path / "work", prepared, template, _with(recipe, max_length=64), [])
    left_out = next((tmp_path / "work").glob("distill-*.partial")) / "left-out.jsonl"
    assert len(_rows(left_out)) == 40


def test_a_student_that_is_not_there_is_named(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    teacher(good)
    with pytest.raises(LLMError, match="no-such-student"):
        distill(tmp_path / "work", prepared, template, _with(recipe, student=str(tmp_path / "no-such-student")), [])


def test_a_single_fold_is_refused_with_hindsight(tmp_path: Path) -> None:
    assert DistillRecipe(folds=1, hindsight=False).folds == 1
    path = tmp_path / "one.toml"
    path.write_text('name = "one"\n[distill]\nfolds = 1\n', encoding="utf-8")
    with pytest.raises(RecipeError, match="take folds = 2 or more, or hindsight = false"):
        load_recipe(str(path))


def test_validity_counts_chains_and_names_what_is_none(template: Template) -> None:
    from offline.chains.rationale import Chain, write

    chain = write(
        Chain("bought two things", tuple(f"step {n} has words" for n in range(3)), "and that is all"), template.steps
    )
    measured = validity([Said(chain), Said("Soap."), Said(error="cut off"), Said(chain)], template.steps)
    assert measured["chains"] == 4
    assert measured["valid"] == 0.5
    assert measured["words_of_a_step"] == 4
    assert measured["invalid"] == {"no 'Overall Analysis'": 1, "no answer": 1}


def test_nobody_left_to_compare_on_is_an_error(prepared: Stage, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"lower distill\.users"):
        compare(tmp_path, prepared, Stage("distill", "0", tmp_path), _with(recipe, users=60))


def test_the_module_is_light(prepared: Stage) -> None:
    """`scoter --help` and other stages import it: torch and trl come only with a training."""
    import subprocess
    import sys

    code = (
        f"import sys, {module.__name__}; print(sorted({{'torch', 'trl', 'transformers', 'peft'}} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert len(load_dataset(prepared.folder).users) == 60
