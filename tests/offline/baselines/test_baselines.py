"""The whole command, on lists that RecBole has really exported: its own environment takes minutes to install."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.baselines.environment import environment
from offline.baselines.run import run_baselines
from offline.errors import StageError
from offline.ranking import load_ranks
from offline.recipe import Recipe
from offline.sample import write_sample

ROOT = Path(__file__).parents[3]
EXPORTED = Path(__file__).with_name("exported")
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"length": 8},
    "baselines": {
        "models": ["LightGCN", "SASRec"],
        "epochs": 3,
        "batch": 64,
        "grid": {"SASRec": {"n_layers": [1, 2]}, "LightGCN": {"n_layers": [1]}},
    },
    "evaluate": {"refit": True},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_sample(tmp_path / "data", users=80, items=50)
    return tmp_path / "data"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An environment that is up to date, whose interpreter plays what RecBole exported."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    interpreter = folder / "bin" / "python"
    player = Path(__file__).with_name("player.py")
    interpreter.write_text(f'#!/bin/sh\ntest "$1" = -I\nexec {sys.executable} {player} "$3"\n')
    interpreter.chmod(0o755)
    pinned = (files("offline.baselines") / "requirements.txt").read_bytes()
    (folder / "scoter-baselines").write_text(hashlib.sha256(pinned).hexdigest())
    return folder


def recipe(**grid: list[int]) -> Recipe:
    baselines = {**RECIPE["baselines"], **({"models": ["SASRec"], "grid": {"SASRec": grid}} if grid else {})}
    return Recipe.model_validate({**RECIPE, "baselines": baselines})


def test_what_recbole_exported_is_measured_by_our_evaluator(data: Path, own: Path, tmp_path: Path) -> None:
    folder = run_baselines(tmp_path / "work", data, recipe(), own)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    expected = json.loads((EXPORTED / "report.json").read_text(encoding="utf-8"))
    assert [{k: v for k, v in row.items() if k != "groups"} for row in report["results"]] == expected["results"]
    assert report["tuning"] == expected["tuning"]
    # The better of the two on the validation split is the one that is tested, refitted for as long as it took.
    assert [row["parameters"]["n_layers"] for row in report["tuning"]] == [1, 1, 2]
    best = max(report["tuning"][1:], key=lambda row: row["ndcg@10"])
    assert best["parameters"]["n_layers"] == 1
    assert (tmp_path / "work").joinpath("data").exists() is False
    users, rows = load_ranks(folder / "ranks.npz")
    assert [(row.model, row.labels, row.history) for row in rows][:2] == [
        ("LightGCN", "train", "masked"),
        ("LightGCN", "train", "not masked"),
    ]
    assert len(rows) == 8
    masked = {(row.model, row.labels): row for row in rows if row.history == "masked"}
    assert np.mean(masked["SASRec", "train"].rank > 0) == pytest.approx(expected["results"][4]["recall@10"], abs=1e-4)
    assert len(users) == report["users"]
    assert set(report["curves"]) == {
        f"baseline-{model}{refit}" for model in ("LightGCN", "SASRec") for refit in ("", "-refit")
    }
    assert not list((tmp_path / "work").rglob("scratch"))


def test_a_run_that_failed_goes_on_where_it_was(data: Path, own: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"SASRec 2/2 ended with 1: ValueError: no layers \(all of it in .*recbole.log"
    ):
        run_baselines(tmp_path / "work", data, recipe(n_layers=[1, 0]), own)
    (kept,) = (path for path in (tmp_path / "work").glob("baseline-SASRec-*") if path.suffix != ".partial")
    before = (kept / "test.npy").stat().st_mtime_ns
    run_baselines(tmp_path / "work", data, recipe(n_layers=[1]), own)
    assert (kept / "test.npy").stat().st_mtime_ns == before


def test_a_training_that_was_cut_off_finds_what_it_left(data: Path, own: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="SASRec 1/1 ended with 1: cut off"):
        run_baselines(tmp_path / "work", data, recipe(n_layers=[8]), own)
    # What it left names the folder that it was in: elsewhere it is of no use.
    (tmp_path / "work").rename(tmp_path / "moved")
    with pytest.raises(StageError, match="SASRec 1/1 ended with 1: cut off"):
        run_baselines(tmp_path / "moved", data, recipe(n_layers=[8]), own)
    with pytest.raises(StageError, match="SASRec, validation items too ended with 1: cut off"):  # the first is over
        run_baselines(tmp_path / "moved", data, recipe(n_layers=[8]), own)
    run_baselines(tmp_path / "moved", data, recipe(n_layers=[8]), own)
    assert not list((tmp_path / "moved").rglob("scratch"))


@pytest.mark.slow
@pytest.mark.timeout(300)  # a process of its own that imports torch
def test_an_interrupt_ends_recbole_too(data: Path, own: Path, tmp_path: Path) -> None:
    text = recipe(n_layers=[9]).model_dump_json(include={"name", "model", "baselines"})
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from pathlib import Path;"
        "from offline.baselines.run import run_baselines; from offline.recipe import Recipe;"
        f"run_baselines(Path({str(tmp_path / 'work')!r}), Path({str(data)!r}),"
        f" Recipe.model_validate_json({text!r}), Path({str(own)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (started := list((tmp_path / "work").rglob("pid"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        (written,) = started
        child = int(_when_written(written))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
    assert not Path(f"/proc/{child}").exists()


def _when_written(path: Path) -> str:
    while not (text := path.read_text(encoding="ascii")):
        time.sleep(0.01)
    return text


def test_an_environment_is_made_once_and_nothing_else_is_removed(own: Path, tmp_path: Path) -> None:
    assert environment(own) == own / "bin" / "python"
    precious = tmp_path / "photographs"
    precious.mkdir()
    (precious / "one.jpg").write_bytes(b"1")
    with pytest.raises(StageError, match="is no virtual environment: name another folder"):
        environment(precious)
    assert (precious / "one.jpg").exists()


def test_every_package_of_the_environment_is_pinned() -> None:
    lines = (files("offline.baselines") / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert all("==" in line for line in packages)
    assert packages == sorted(packages)
    assert "recbole==1.2.1" in packages


def test_a_model_that_recbole_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"baselines\.models"):
        Recipe.model_validate({"name": "x", "baselines": {"models": ["GPT"]}})
