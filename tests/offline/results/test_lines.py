from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offline.results.lines import Lines, gain
from offline.results.runs import keep, load_runs
from offline.results.write import write_results
from tests.offline.results import made
from tests.offline.results.made import evaluated

PAIR = {("hstu", False): 0.2, ("scoter_h", True): 0.3}


def test_exact_scoring_of_some_of_the_users_is_no_line_and_no_part_of_one(tmp_path: Path) -> None:
    """Though it stands before the beam's row in the report."""
    stage = evaluated(tmp_path / "work", {}, PAIR)
    report = json.loads((stage / "report.json").read_text())
    beam = report["results"]
    exact = [row | {"scoring": "exact", "users": 40, "recall@10": 0.9} for row in beam]
    (stage / "report.json").write_text(json.dumps(report | {"results": exact + beam}))
    keep(stage, "run", tmp_path / "docs")
    lines = Lines(load_runs(tmp_path / "docs").runs)
    assert [[row["scoring"] for row in line.rows] for line in lines] == [["beam 20"]] * 4
    assert all(line.mean("recall@10") < 0.9 for line in lines)


def test_each_model_is_compared_with_the_backbone_of_its_own_way(tmp_path: Path) -> None:
    """In whatever order they were kept: two ways to make HSTU, and SCoTER-H on each."""
    ways: dict[str, tuple[dict[str, Any], dict[tuple[str, bool], float]]] = {
        "wide": ({}, PAIR),
        "narrow": ({"model": {"dim": 32}}, {("hstu", False): 0.5, ("scoter_h", True): 0.55}),
    }
    for name, (recipe, strength) in ways.items():
        keep(evaluated(tmp_path / name, recipe, strength), name, tmp_path / "docs")
    lines = Lines(load_runs(tmp_path / "docs").runs)
    found = {line.runs[0].name: (line, lines.backbone(line)) for line in lines.full("beauty", "scoter_h")}
    for name in ways:
        line, backbone = found[name]
        assert backbone is not None
        assert backbone.names == {name}
        assert gain(line, backbone) == pytest.approx(line.mean("recall@10") / backbone.mean("recall@10") - 1)


def test_a_sample_of_the_users_is_not_averaged_with_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ranks could not even be stacked: no page at all was written."""
    docs = tmp_path / "docs"
    keep(evaluated(tmp_path / "all", {}, PAIR), "all", docs)
    alone = told(docs)
    monkeypatch.setattr(made, "USERS", 100)
    keep(evaluated(tmp_path / "some", {"evaluate": {"users": 100}}, PAIR), "some", docs)
    both = told(docs)
    assert "measured on some of the users, others on more: in no table" in both
    assert both.split("## Runs")[0].split("## Table 9")[0] == alone.split("## Runs")[0].split("## Table 9")[0]
    lines = Lines(load_runs(docs).runs)
    assert lines.sampled == {"some"}
    assert all([row["users"] for row in line.rows] == [400] for line in lines)


def told(docs: Path) -> str:
    return write_results(docs).read_text(encoding="utf-8")
