from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.errors import DataError
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
