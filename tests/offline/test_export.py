from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline import export as module
from offline.export import Parts, export
from offline.prepare import Dataset, ItemText
from offline.publish import latest_release
from offline.recipe import Recipe
from offline.stage import Stage
from service.schemas import RecommendRequest


def test_the_release_that_was_asked_for_last_is_the_latest_though_it_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path /= "work [v2]"
    for name, seconds in (("a", 100), ("b", 200)):
        (tmp_path / f"export-{name}").mkdir(parents=True)
        (tmp_path / f"export-{name}" / "release").write_text(name * 16 + "\n", encoding="ascii")
        os.utime(tmp_path / f"export-{name}" / "release", (seconds, seconds))
        (tmp_path / "releases" / (name * 16)).mkdir(parents=True)
    monkeypatch.setattr(module, "run_stage", lambda *_: Stage("export", "a", tmp_path / "export-a"))
    stage = Stage("any", "one", tmp_path)
    parts = Parts(prepared=stage, tokens=stage, reasoned=stage, trained={}, evaluated=stage)
    assert export(tmp_path, parts, Recipe(name="test")).name == "a" * 16
    assert latest_release(tmp_path).name == "a" * 16
    assert f"({tmp_path}/releases/{'a' * 16})\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "user,item,attributes,length",
    [
        ("u", "a", {"brand": ["x"]}, 4),
        ("u" * 257, "a", {}, 4),
        ("u", "a" * 257, {}, 4),
        ("u", "a", {"features": ["x" * 257]}, 4),
        ("u", "a", {"c" * 65: ["x"]}, 4),
        ("u", "a", {}, 10_001),
    ],
    ids=["usual", "user", "item", "value", "column", "history"],
)
def test_the_service_takes_every_warm_up_request(
    tmp_path: Path, user: str, item: str, attributes: dict[str, list[str]], length: int
) -> None:
    """Whatever the data hold: it would serve no release whose own requests it refuses."""
    items = [ItemText(item, "A", "", attributes), ItemText("b", "B", "", {})]
    sequence = np.array([2, 1] * (length // 2) + [1], np.int32)
    dataset = Dataset([user, *(f"u{n}" for n in range(9))], items, [sequence] * 10)
    module._write_warmup(tmp_path, dataset, 10)
    with (tmp_path / "warmup" / "requests.jsonl").open(encoding="utf-8") as lines:
        requests = [RecommendRequest.model_validate(json.loads(line)) for line in lines]
    assert len(requests) >= 3
    if len(user) <= 256 and len(item) <= 256:
        assert sum(request.history is not None for request in requests) >= 4


def test_what_an_export_that_was_killed_left_behind_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = tmp_path / "releases"

    def write(release: Path, *_: object) -> None:
        assert release.parent == releases  # on the same disk, so that it appears there by one rename
        assert not release.exists()
        (release / "models").mkdir(parents=True)
        raise KeyboardInterrupt

    def run_stage(work: Path, *rest: Any) -> Stage:
        build: Callable[[Path], None] = rest[-1]
        build(work / "export-a.partial")
        raise AssertionError("not reached")

    monkeypatch.setattr(module, "_write_release", write)
    monkeypatch.setattr(module, "run_stage", run_stage)
    stage = Stage("any", "one", tmp_path)
    parts = Parts(prepared=stage, tokens=stage, reasoned=stage, trained={}, evaluated=stage)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, parts, Recipe(name="test"))
    assert list(releases.iterdir()) == []
    left = releases / ".export-a.partial" / "models"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half of it")
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, parts, Recipe(name="test"))
    assert list(releases.iterdir()) == []
