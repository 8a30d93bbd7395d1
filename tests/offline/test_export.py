from __future__ import annotations

import os
from pathlib import Path

import pytest

from offline import export as module
from offline.export import Parts, export
from offline.publish import latest_release
from offline.recipe import Recipe
from offline.stage import Stage


def test_the_release_that_was_asked_for_last_is_the_latest_though_it_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("a", 100), ("b", 200)):
        (tmp_path / f"export-{name}").mkdir()
        (tmp_path / f"export-{name}" / "release").write_text(name * 16 + "\n", encoding="ascii")
        os.utime(tmp_path / f"export-{name}" / "release", (seconds, seconds))
        (tmp_path / "releases" / (name * 16)).mkdir(parents=True)
    monkeypatch.setattr(module, "run_stage", lambda *_: Stage("export", "a", tmp_path / "export-a"))
    stage = Stage("any", "one", tmp_path)
    parts = Parts(prepared=stage, tokens=stage, reasoned=stage, trained={}, evaluated=stage)
    assert export(tmp_path, parts, Recipe(name="test")).name == "a" * 16
    assert latest_release(tmp_path).name == "a" * 16
