"""The command as it is typed: a simulated shop, the analyst, the bundled encoder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from offline.chains.template import Template
from offline.cli import main

RECIPE = """
name = "small"
[tokenize]
levels = 2
codebook = 64
iterations = 5
[discover]
users = 30
chains = 2
clusters = [2, 3, 4]
candidates = 3
path_users = 20
"""


@pytest.mark.slow
def test_a_template_is_discovered_and_compared_with_one_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scoter(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["scoter", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        assert left.value.code == 0, shown.err
        return shown.out

    recipe, data, work = tmp_path / "small.toml", tmp_path / "data", tmp_path / "work"
    recipe.write_text(RECIPE, encoding="utf-8")
    scoter("sample", data, "--users", "150", "--items", "80")
    discover = ("discover", recipe, "--data", data, "--work", work)
    assert "Recall@20" in scoter(*discover)
    (folder,) = work.glob("discover-????????????")
    body = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert body["backend"].startswith("analyst")
    assert body["generate"]["readable"] == 60
    assert body["generate"]["unreadable"] == 0
    assert body["mined"]["by_backend"]
    assert Template.load(folder / "template.json").steps == tuple(body["mined"]["steps"])
    assert "No language model took part" in (folder / "report.html").read_text(encoding="utf-8")
    # What the analyst suggests are items, in words: the encoder finds them again.
    assert body["generate"]["different_items"] > 0.8 * body["generate"]["recommendations"]
    assert "up to date" in scoter(*discover)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"steps": ["Look back", "Recommend items"], "dataset": "elsewhere"}), encoding="utf-8")
    scoter(*discover, "--also", other)
    (compared,) = {*work.glob("discover-????????????")} - {folder}
    assert "from elsewhere" in (compared / "report.html").read_text(encoding="utf-8")
