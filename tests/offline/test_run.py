from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offline import run as module
from offline.chains.template import MANUAL, Template
from offline.discover import stage as discovery
from offline.recipe import AblationRecipe, ReasonRecipe, Recipe
from offline.run import run
from offline.stage import Stage

STEPS = ("Look back", "Find what goes with it", "Recommend items")
Called = list[tuple[str, tuple[Any, ...]]]


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Called:
    """Stages that only note what they were given."""
    calls: Called = []
    (tmp_path / "template.json").write_text(json.dumps({"steps": STEPS}), encoding="utf-8")

    def stage(name: str) -> Any:
        def called_with(*arguments: Any, **_: Any) -> Stage:
            calls.append((name, arguments))
            return Stage(name, "0", tmp_path)

        return called_with

    for name in ("prepare", "tokenize", "distill", "reason", "train", "evaluate", "export"):
        monkeypatch.setattr(module, name, stage(name))
    monkeypatch.setattr(discovery, "discover", stage("discover"))
    return calls


def test_chains_are_written_under_the_template_that_was_discovered(tmp_path: Path, called: Called) -> None:
    run(tmp_path, tmp_path, Recipe(name="toy", reason=ReasonRecipe(template="discovered")), "reason")
    assert [name for name, _ in called] == ["prepare", "tokenize", "discover", "reason"]
    assert called[-1][1][-1] == Template(STEPS)


def test_nothing_is_discovered_that_nobody_asked_for(tmp_path: Path, called: Called) -> None:
    run(tmp_path, tmp_path, Recipe(name="toy"), "reason")
    assert [name for name, _ in called] == ["prepare", "tokenize", "reason"]
    assert called[-1][1][-1] == MANUAL["five-step"]
    called.clear()
    assert run(tmp_path, tmp_path, Recipe(name="toy"), "discover", also=[tmp_path / "other.json"]) == tmp_path
    assert [name for name, _ in called] == ["prepare", "tokenize", "discover"]
    assert called[-1][1][-1] == [tmp_path / "other.json"]


def test_a_student_is_distilled_when_it_is_to_write(tmp_path: Path, called: Called) -> None:
    run(tmp_path, tmp_path, Recipe(name="toy", reason=ReasonRecipe(writer="student")), "reason")
    assert [name for name, _ in called] == ["prepare", "tokenize", "distill", "reason"]


@pytest.mark.parametrize("last", ["train", "evaluate"])
def test_no_chain_is_written_for_a_backbone_alone(tmp_path: Path, called: Called, last: module.Last) -> None:
    run(tmp_path, tmp_path, Recipe(name="toy", models=["hstu"]), last)
    assert "reason" not in [name for name, _ in called]
    called.clear()
    run(tmp_path, tmp_path, Recipe(name="toy", models=["hstu", "scoter_h"]), last)
    assert "reason" in [name for name, _ in called]


def test_a_release_of_a_backbone_alone_has_chains(tmp_path: Path, called: Called) -> None:
    run(tmp_path, tmp_path, Recipe(name="toy", models=["hstu"]))
    assert [name for name, _ in called] == ["prepare", "tokenize", "reason", "train", "evaluate", "export"]


def test_a_backbone_as_large_as_with_fusion_has_chains_to_be_as_large_as(tmp_path: Path, called: Called) -> None:
    run(tmp_path, tmp_path, Recipe(name="toy", models=["hstu"], ablation=AblationRecipe(matched=True)), "train")
    assert [name for name, _ in called] == ["prepare", "tokenize", "reason", "train"]
