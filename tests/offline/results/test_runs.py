from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from offline.errors import DataError
from offline.results.lines import Lines
from offline.results.runs import keep, load_runs
from tests.offline.results.made import evaluated

STRENGTH = {("hstu", False): 0.2, ("scoter_h", True): 0.3}


def test_a_run_is_kept_with_its_figures_and_without_weights(tmp_path: Path) -> None:
    stage = evaluated(tmp_path / "work", {}, STRENGTH)
    docs = tmp_path / "docs"
    keep(stage, "first", docs)
    assert sorted(path.name for path in docs.rglob("*") if path.is_file()) == ["first.json", "first.npz", "runs.toml"]
    (run,) = load_runs(docs).runs
    assert (run.name, run.stage, run.dataset) == ("first", "evaluate", "beauty")
    assert list(run.results()) == json.loads((stage / "report.json").read_text())["results"]
    assert [epoch["loss"] for epoch in run.curves["train-hstu"]] == [2.0, 1.0]
    assert run.summaries["train-hstu"] == {"best_epoch": 2, "validation": {"recall@10": 0.2, "ndcg@10": 0.1}}
    assert run.recipe["train"]["seed"] == 1
    assert len(run.ranks) == 4


def test_of_two_trainings_of_one_name_the_one_that_was_measured_is_kept(tmp_path: Path) -> None:
    """As of a widened HSTU, beside a model that stands on the usual one."""
    stage = evaluated(tmp_path / "work", {"ablation": {"matched": True}}, STRENGTH)
    (measured,) = json.loads((stage / "stage.json").read_text())["upstream"]
    for name, upstream in (("train-hstu-usual", []), ("train-scoter_h-1", ["train-hstu-usual"])):
        shutil.copytree(stage.parent / measured, stage.parent / name)
        (stage.parent / name / "epochs.jsonl").write_text('{"epoch": 1, "loss": 9.0, "seconds": 1.0}\n')
        (stage.parent / name / "stage.json").write_text(json.dumps({"stage": name, "upstream": upstream}))
    (stage / "stage.json").write_text(json.dumps({"stage": "evaluate", "upstream": [measured, "train-scoter_h-1"]}))
    keep(stage, "one", tmp_path / "docs")
    (run,) = load_runs(tmp_path / "docs").runs
    losses = {name: [epoch["loss"] for epoch in epochs] for name, epochs in run.curves.items()}
    assert losses == {"train-hstu": [2.0, 1.0], "train-scoter_h": [9.0]}


def test_a_work_folder_stands_for_its_only_evaluation(tmp_path: Path) -> None:
    evaluated(tmp_path / "work", {}, STRENGTH)
    keep(tmp_path / "work", "one", tmp_path / "docs")
    evaluated(tmp_path / "work", {}, STRENGTH)
    with pytest.raises(DataError, match=r"holds 2 evaluations \(evaluate-0+, evaluate-0+1\): name the folder"):
        keep(tmp_path / "work", "two", tmp_path / "docs")


def test_keeping_twice_changes_nothing_and_other_figures_need_another_name(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    stage = evaluated(tmp_path / "work", {}, STRENGTH)
    keep(stage, "a", docs)
    before = {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    keep(stage, "a", docs)
    assert {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()} == before
    other = evaluated(tmp_path / "work", {}, {("hstu", False): 0.5})
    with pytest.raises(DataError, match="holds other figures"):
        keep(other, "a", docs)
    assert {path: path.read_bytes() for path in docs.rglob("*") if path.is_file()} == before


def test_addresses_and_folders_of_a_machine_are_not_kept(tmp_path: Path) -> None:
    teacher = {"backend": "endpoint", "model": "/models/big", "base_url": "http://10.0.0.1/v1"}
    recipe = {"teacher": teacher, "reason": {"template": "/somewhere/mined.json"}}
    keep(evaluated(tmp_path / "work", recipe, STRENGTH), "a", tmp_path / "docs")
    kept = (tmp_path / "docs" / "runs" / "a.json").read_text()
    assert "10.0.0.1" not in kept
    assert "/somewhere" not in kept
    assert "/models" not in kept
    assert '"template": "mined.json"' in kept


def test_void_rows_are_not_read(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    keep(evaluated(tmp_path / "work", {}, STRENGTH | {("knn", False): 0.1}), "a", docs)
    with (docs / "runs.toml").open("a") as out:
        out.write('[[run.void]]\nmodels = ["hstu"]\nlabels = "train"\nwhy = "other IDs"\n')
    (run,) = load_runs(docs).runs
    assert {row["model"] for row in run.results()} == {"scoter_h", "knn"}


def test_rows_are_void_under_the_labels_that_are_named(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    keep(evaluated(tmp_path / "one", {}, STRENGTH), "a", docs)
    keep(evaluated(tmp_path / "two", {}, STRENGTH, labels="train+validation"), "b", docs)
    with (docs / "runs.toml").open("a") as out:
        out.write('[[run.void]]\nlabels = "train"\nwhy = "of b, which has none of them"\n')
    assert [len(list(run.results())) for run in load_runs(docs).runs] == [4, 4]
    (docs / "runs.toml").write_text(
        '[[run]]\nname = "b"\n[[run]]\nname = "a"\n[[run.void]]\nlabels = "train"\nwhy = "x"\n'
    )
    assert [len(list(run.results())) for run in load_runs(docs).runs] == [4, 0]


def test_what_version_0_1_0_left_out_of_a_report_is_found_beside_it(tmp_path: Path) -> None:
    """Its recipe stood beside the weights alone, its seed in the recipe, and collisions had another name."""
    stage = evaluated(tmp_path / "work", {"train": {"seed": 7}}, STRENGTH, collisions=5)
    report = json.loads((stage / "report.json").read_text())
    del report["settings"], report["dataset"]
    report["results"] = [{key: value for key, value in row.items() if key != "seed"} for row in report["results"]]
    (stage / "report.json").write_text(json.dumps(report))
    summary = stage.parent / "tokenize-000000000000" / "summary.json"
    summary.write_text(json.dumps({"collisions_repaired": 5, "reconstruction_error": 0.25}))
    with pytest.raises(DataError, match="does not say which data set it is of"):
        keep(stage, "a", tmp_path / "docs")
    prepare = stage.parent / "prepare-000000000000"
    prepare.mkdir()
    (prepare / "stage.json").write_text(json.dumps({"stage": "prepare", "upstream": []}))
    (prepare / "summary.json").write_text(json.dumps({"name": "beauty"}))
    (summary.parent / "stage.json").write_text(json.dumps({"stage": "tokenize", "upstream": [prepare.name]}))
    keep(stage, "a", tmp_path / "docs")
    (run,) = load_runs(tmp_path / "docs").runs
    assert (run.dataset, run.ids) == ("beauty", "5 (.2500)")
    assert {line.draws[0] for line in Lines([run])} == {(7, 0, 0)}


def test_an_evaluation_that_is_not_done_is_none(tmp_path: Path) -> None:
    stage = evaluated(tmp_path / "work", {}, STRENGTH)
    shutil.copytree(stage, stage.with_name("evaluate-0.partial"))
    assert keep(tmp_path / "work", "one", tmp_path / "docs").is_file()


@pytest.mark.parametrize(
    "text, message",
    [
        ("[[run]]\nname = 1\n", "cannot be read"),
        ("[[run]", "cannot be read"),
        ('[[run]]\nname = "a"\nstrange = 1\n', "cannot be read"),
        ('[[run]]\nname = "absent"\n', r"absent\.json cannot be read"),
        ("", "does not list a"),
    ],
)
def test_a_list_at_fault_is_named(tmp_path: Path, text: str, message: str) -> None:
    docs = tmp_path / "docs"
    keep(evaluated(tmp_path / "work", {}, STRENGTH), "a", docs)
    (docs / "runs.toml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_runs(docs)


def test_what_holds_no_figures_is_refused(tmp_path: Path) -> None:
    stage = evaluated(tmp_path / "work", {}, STRENGTH)
    with pytest.raises(DataError, match="cannot name a run"):
        keep(stage, "../a", tmp_path / "docs")
    (stage / "report.json").unlink()
    with pytest.raises(DataError, match="no figures to keep"):
        keep(stage, "a", tmp_path / "docs")
    assert not (tmp_path / "docs").exists()
