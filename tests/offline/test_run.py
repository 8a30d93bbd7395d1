from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offline import run as module
from offline.recipe import ReasonRecipe, Recipe
from offline.run import run
from offline.stage import Stage

STEPS = ["Look back", "Find what goes with it", "Recommend items"]


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...]]]:
    """The stages up to `reason`, which only note what they were given."""
    calls: list[tuple[str, tuple[Any, ...]]] = []
    (tmp_path / "template.json").write_text(json.dumps({"steps": STEPS}), encoding="utf-8")

    def stage(name: str) -> Any:
        def called_with(*arguments: Any) -> Stage:
            calls.append((name, arguments))
            return Stage(name, "0", tmp_path)

        return called_with

    for name in ("prepare", "tokenize", "discover", "reason"):
        monkeypatch.setattr(module, name, stage(name))
    return calls


def test_chains_are_written_under_the_template_that_was_discovered(
    tmp_path: Path, called: list[tuple[str, tuple[Any, ...]]]
) -> None:
    run(tmp_path, tmp_path, Recipe(name="toy", reason=ReasonRecipe(template="discovered")), "reason")
    assert [name for name, _ in called] == ["prepare", "tokenize", "discover", "reason"]
    written = next(a for a in called[-1][1] if isinstance(a, ReasonRecipe | Recipe))
    reason = written.reason if isinstance(written, Recipe) else written
    assert reason.template == " -> ".join(STEPS)


def test_nothing_is_discovered_that_nobody_asked_for(tmp_path: Path, called: list[tuple[str, tuple[Any, ...]]]) -> None:
    run(tmp_path, tmp_path, Recipe(name="toy"), "reason")
    assert [name for name, _ in called] == ["prepare", "tokenize", "reason"]
    called.clear()
    assert run(tmp_path, tmp_path, Recipe(name="toy"), "discover", [tmp_path / "other.json"]) == tmp_path
    assert [name for name, _ in called] == ["prepare", "tokenize", "discover"]
    assert called[-1][1][-1] == [tmp_path / "other.json"]
