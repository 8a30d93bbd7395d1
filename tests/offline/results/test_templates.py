from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.results.lines import Lines, gain, shared
from offline.results.runs import keep, load_runs
from offline.results.templates import alike, plotted, templates
from tests.offline.results.made import evaluated

PAPER: dict[str, Any] = {"templates": {"scoter_h": {"five-step": 0.217}, "scoter_t": {}}}


def kept(folder: Path, name: str, share: float, recipe: dict[str, Any]) -> None:
    """A run in which SCoTER-H has that Recall@10, and HSTU .2."""
    keep(evaluated(folder / name, recipe, {("hstu", False): 0.2, ("scoter_h", True): share}), name, folder / "docs")


def cells(told: str, start: str) -> list[str]:
    line = next(line for line in told.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_templates_are_compared_over_the_draws_that_all_of_them_have(tmp_path: Path) -> None:
    """Five steps were measured with three seeds, two with one."""
    for seed, share in ((1, 0.25), (2, 0.4), (3, 0.5)):
        kept(tmp_path, f"seed-{seed}", share, {"train": {"seed": seed}})
    kept(tmp_path, "two-step", 0.3, {"reason": {"template": "two-step"}})
    lines = Lines(load_runs(tmp_path / "docs").runs)
    found = plotted(lines, "scoter_h")
    assert list(found) == ["two-step", "five-step"]
    assert shared(line for pair in found.values() for line in pair) == [(1, 0, 0)]
    (line, backbone) = found["five-step"]
    first = line.rows[0]["recall@10"] / backbone.rows[0]["recall@10"] - 1
    assert gain(*alike(found)["five-step"]) == pytest.approx(first)
    told = templates(lines, PAPER, set())
    five = cells(told, "SCoTER-H [A], five-step")
    assert five[1:3] == ["1", "1"]
    assert five[3].startswith(f"{line.rows[0]['recall@10']:.4f}".removeprefix("0") + " / ")
    assert "±" not in five[3]
    assert (five[4], five[6]) == (f"{first:+.1%}", "*+21.7%*")
    assert cells(told, "SCoTER-H [A], two-step")[1:3] == ["1", "1"]


def test_every_way_is_listed_and_the_one_with_most_templates_plotted(tmp_path: Path) -> None:
    kept(tmp_path, "narrow", 0.9, {"model": {"dim": 32}})
    kept(tmp_path, "wide", 0.3, {})
    kept(tmp_path, "two-step", 0.3, {"reason": {"template": "two-step"}})
    lines = Lines(load_runs(tmp_path / "docs").runs)
    told = templates(lines, PAPER, {"figure-3-scoter_h"})
    assert [cells(told, f"SCoTER-H [{way}")[0] for way in "AB"] == ["SCoTER-H [A], five-step", "SCoTER-H [B], two-step"]
    assert "Those of SCoTER-H [B]:" in told
    assert "No run yet: three-step (SCoTER-H and SCoTER-T), discovered (SCoTER-H and SCoTER-T), two-step (SC" in told
