import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offline.chains.template import Template
from offline.distill import teach as module
from offline.distill.teach import EARLY, load_chains, sample, teach
from offline.errors import LLMError, StageError
from offline.llm.base import Prompt, Rationale
from offline.prepare import load_dataset
from offline.recipe import Recipe
from offline.stage import Stage
from tests.offline.distill.scripted import Reply, Scripted, chain_of, good

Teacher = Callable[[Reply], Scripted]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _with(recipe: Recipe, **changes: object) -> Recipe:
    return recipe.model_copy(update={"distill": recipe.distill.model_copy(update=changes)})


def test_every_sampled_user_has_a_chain(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    backend = teacher(good)
    stage = teach(tmp_path / "work", prepared, template, recipe, [prepared])
    dataset = load_dataset(prepared.folder)
    users = sample(dataset, 40, recipe.distill.seed)
    assert [chain.user for chain in load_chains(stage.folder, dataset)] == users
    assert len(set(users)) == len(backend.asked) == 40
    assert backend.closed == 1
    assert {path.name for path in stage.folder.iterdir()} == {
        "teacher.jsonl",
        "rejected.jsonl",
        "summary.json",
        "stage.json",
    }
    summary = json.loads((stage.folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["teacher"], summary["asked"], summary["kept"], summary["rejected"]) == ("scripted", 40, 40, {})
    assert summary["usage"]["requests"] == 40


def test_the_teacher_knows_the_target_only_with_hindsight(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    dataset = load_dataset(prepared.folder)
    told = teacher(good)
    teach(tmp_path / "work", prepared, template, recipe, [prepared])
    untold = teacher(good)
    teach(tmp_path / "work", prepared, template, _with(recipe, hindsight=False), [prepared])
    users = sample(dataset, 40, recipe.distill.seed)
    for backend, targets in (
        (told, [dataset.target(user, "train") for user in users]),
        (untold, [None] * len(users)),
    ):
        tasks = [prompt.task for prompt in reversed(backend.asked)]
        assert [task.target for task in tasks if isinstance(task, Rationale)] == targets
        for user, task in zip(users, tasks, strict=True):
            assert isinstance(task, Rationale)
            assert list(task.history) == dataset.history(user, "train").tolist()[-3:]
            assert not set(task.history) & set(dataset.sequences[user][-3:].tolist())


def test_what_cannot_be_learnt_from_is_kept_apart_with_its_reason(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    def reply(number: int, prompt: Prompt) -> str | None:
        text = chain_of(prompt)
        return {
            3: "Buy soap.",
            7: text.replace("in short", "As we were told, in short"),
            9: text.rpartition("\n\n")[0],
            11: None,
        }.get(number, text)

    teacher(reply)
    stage = teach(tmp_path / "work", prepared, template, recipe, [prepared])
    rejected = _rows(stage.folder / "rejected.jsonl")
    cut = "no 'Summary': the answer ends before it, as max_tokens may have it"
    reasons = {"no 'Overall Analysis'", "says that it was told", cut, "no answer"}
    assert {row["reason"] for row in rejected} == reasons
    assert {row["text"] for row in rejected} >= {"Buy soap.", "status 500"}
    kept = {row["user"] for row in _rows(stage.folder / "teacher.jsonl")}
    assert len(kept) == 36
    assert not kept & {row["user"] for row in rejected}
    summary = json.loads((stage.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["rejected"] == dict.fromkeys(reasons, 1)


def test_an_endpoint_that_dies_costs_nothing_that_it_said(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    teacher(good)
    whole = teach(tmp_path / "whole", prepared, template, recipe, [prepared])

    dying = teacher(lambda number, prompt: LLMError("nobody listens") if number == 15 else good(number, prompt))
    with pytest.raises(LLMError, match="nobody listens"):
        teach(tmp_path / "cut", prepared, template, recipe, [prepared])
    assert (len(dying.asked), dying.closed) == (15, 1)
    partial = next((tmp_path / "cut").glob("*.partial"))
    with (partial / "answers.jsonl").open("ab") as torn:  # and the machine dies, too
        torn.write(b'{"user": "user-1", "te\xc3')

    def no_answer_to_two(number: int, prompt: Prompt) -> str | None:
        return None if number in {0, 1} else good(number, prompt)

    flaky = teacher(lambda n, prompt: LLMError("again") if n == 5 else no_answer_to_two(n, prompt))
    with pytest.raises(LLMError, match="again"):
        teach(tmp_path / "cut", prepared, template, recipe, [prepared])
    assert len(flaky.asked) == 5
    revived = teacher(good)
    cut = teach(tmp_path / "cut", prepared, template, recipe, [prepared])
    assert len(revived.asked) == 40 - 15 - 3  # the two without an answer once more
    for name in ("teacher.jsonl", "rejected.jsonl"):
        assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    summary = json.loads((cut.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["usage"]["requests"] == 15 + 5 + 22


def test_what_was_used_is_on_disk_with_every_answer(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    """Whoever is killed has no time to write it down."""
    noted: list[int] = []

    def looking(number: int, prompt: Prompt) -> str:
        bills = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.partial/usage.json")]
        noted.extend([bill["requests"] for bill in bills] or [0])
        return good(number, prompt)

    teacher(looking)
    teach(tmp_path, prepared, template, recipe, [prepared])
    assert noted == list(range(40))


def test_a_run_that_is_killed_before_its_bill_is_written_goes_on(
    prepared: Stage,
    template: Template,
    recipe: Recipe,
    teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(path: Path, rows: object) -> None:
        raise KeyboardInterrupt

    teacher(good)
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            teach(tmp_path, prepared, template, recipe, [prepared])
    (next(tmp_path.glob("*.partial")) / "usage.json").unlink()
    silent = teacher(good)
    stage = teach(tmp_path, prepared, template, recipe, [prepared])
    assert silent.asked == []
    assert json.loads((stage.folder / "summary.json").read_text(encoding="utf-8"))["asked"] == 40


def test_a_teacher_that_never_answers_is_stopped_early_with_its_reason(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    teacher(lambda number, prompt: None)
    with pytest.raises(
        StageError, match=rf"the teacher answered none of {EARLY} prompts, the last one for this reason"
    ):
        teach(tmp_path, prepared, template, _with(recipe, users=60), [prepared])


def test_few_users_whom_no_answer_came_for_are_asked_about_again(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    """A stage that is finished without a chain would have stayed so when the teacher was well again."""
    few = _with(recipe, users=EARLY - 1)
    teacher(lambda number, prompt: None)
    with pytest.raises(StageError, match=rf"the teacher answered none of {EARLY - 1} prompts, the last one for"):
        teach(tmp_path, prepared, template, few, [prepared])
    backend = teacher(good)
    teach(tmp_path, prepared, template, few, [prepared])
    assert len(backend.asked) == EARLY - 1


def test_a_teacher_of_nonsense_is_stopped_early_and_named(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    backend = teacher(lambda number, prompt: "Como modelo de lenguaje, no puedo." if number % 2 else "")
    with pytest.raises(StageError) as stopped:
        teach(tmp_path / "work", prepared, template, _with(recipe, users=60), [prepared])
    assert len(backend.asked) == EARLY
    message = str(stopped.value)
    assert "20 x an empty answer, 20 x no 'Overall Analysis'" in message
    assert "teacher.model" in message
    rejected = Path(message.partition("the others are in ")[2].partition(":")[0])
    assert len(_rows(rejected)) == EARLY
    with pytest.raises(StageError):  # and is not paid for saying it again
        teach(tmp_path / "work", prepared, template, _with(recipe, users=60), [prepared])
    assert len(backend.asked) == EARLY


def test_no_validation_or_test_item_reaches_the_teacher(
    prepared: Stage, changed: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    """The scripted chain is made of every byte of the prompt and its task."""
    folders = []
    for name, stage in (("before", prepared), ("after", changed)):
        teacher(good)
        folders.append(teach(tmp_path / name, stage, template, _with(recipe, users=60), [stage]).folder)
    before, after = ((folder / "teacher.jsonl").read_bytes() for folder in folders)
    assert before == after


def test_patience_and_budget_are_no_other_chains(
    prepared: Stage, template: Template, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    teacher(good)
    first = teach(tmp_path, prepared, template, recipe, [prepared])
    richer = recipe.teacher.model_copy(update={"budget": 5.0, "timeout": 9.0, "retries": 1, "concurrency": 2})
    assert teach(tmp_path, prepared, template, recipe.model_copy(update={"teacher": richer}), [prepared]) == first
    other = recipe.teacher.model_copy(update={"model": "another"})
    assert teach(tmp_path, prepared, template, recipe.model_copy(update={"teacher": other}), [prepared]) != first
