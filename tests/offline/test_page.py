"""Parts of the report that a whole run does not show."""

from __future__ import annotations

import json
from pathlib import Path

from offline.page import write_page
from offline.recipe import Recipe

CURVES = {"train-hstu": [{"epoch": 1, "loss": 2.0, "ndcg@10": 0.1}]}


def report(ablation: dict[str, object]) -> dict[str, object]:
    settings = Recipe.model_validate({"name": "r", "ablation": ablation}).model_dump()
    groups = {"users": {"recall@10": [0.1]}, "items": {"recall@10": [0.1]}}
    row = {"model": "knn", "labels": "train", "history": "masked", "scoring": "scores", "reasoning": False}
    return {
        "dataset": "d",
        "recipe": "r",
        "split": "test",
        "users": 3,
        "items": 4,
        "settings": json.loads(json.dumps(settings)),
        "groups": {"users": [{"group": 0, "from": 1, "to": 2}], "items": [{"group": 0, "from": 1, "to": 2}]},
        "results": [row | {"recall@10": 0.1, "groups": groups}],
        "against_backbone": [],
        "beam": [],
        "seconds": {},
    }


def test_the_page_says_what_was_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, report({"control": "shuffled", "position": False}), CURVES)
    assert "Ablation: control = shuffled, position = False." in path.read_text(encoding="utf-8")
    write_page(path, report({}), CURVES)
    assert "Ablation" not in path.read_text(encoding="utf-8")
