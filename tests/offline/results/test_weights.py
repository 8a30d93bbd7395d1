from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from offline.recipe import load_recipe
from offline.results.lines import Lines
from offline.results.plots import plots
from offline.results.runs import keep, load_runs
from offline.results.weights import by_weight, same_draws, weights
from tests.offline.results.made import evaluated

ALIKE = dict.fromkeys((0.02, 0.05, 0.1, 0.5), 0.3)
DIFFERENT = {0.05: 0.26, 0.1: 0.28, 0.2: 0.3}


def made(folder: Path, found: dict[float, float], name: str, **sections: Any) -> None:
    """SCoTER-H with that Recall@10 at each weight."""
    for weight, share in found.items():
        recipe = {"train": {"contrastive_weight": weight}, **sections}
        stage = evaluated(folder / f"{name}-{weight}", recipe, {("hstu", False): 0.2, ("scoter_h", True): share})
        keep(stage, f"{name}-{weight}", folder / "docs")


def test_a_way_in_which_weights_change_nothing_is_not_the_one_that_is_plotted(tmp_path: Path) -> None:
    """Though it has more weights and was kept first: what is the same model says nothing about them."""
    made(tmp_path, ALIKE, "alike")
    made(tmp_path, DIFFERENT, "different", model={"dim": 32})
    lines = Lines(load_runs(tmp_path / "docs").runs)
    assert set(by_weight(lines, "beauty")) == {0.05, 0.1, 0.2}
    told = weights(lines, {"figure-5-beauty"})
    plotted, _, others = told.partition("![Recall@10")
    assert plotted.count("\n| 0.") == 3
    assert "SCoTER-H [A], five-step, with λ of 0.02, 0.05, 0.1 or 0.5 is one model: validation kept" in others
    assert others.count("is one model") == 1
    assert others[others.index("Made in other ways") :].count("\n| 0.") == 4


def seeds(folder: Path, weight: float, shares: dict[int, float]) -> None:
    """SCoTER-H at one weight with several seeds."""
    for seed, share in shares.items():
        recipe = {"train": {"contrastive_weight": weight, "seed": seed}}
        stage = evaluated(folder / f"{weight}-{seed}", recipe, {("hstu", False): 0.2, ("scoter_h", True): share})
        keep(stage, f"{weight}-{seed}", folder / "docs")


def test_a_curve_is_of_the_draws_that_all_its_weights_have(tmp_path: Path) -> None:
    """One weight was measured with three seeds: their mean is no point beside those of a single one."""
    seeds(tmp_path, 0.1, {1: 0.25, 2: 0.4, 3: 0.5})
    seeds(tmp_path, 0.5, {1: 0.3})
    lines = Lines(load_runs(tmp_path / "docs").runs)
    usual, heavy = (by_weight(lines, "beauty")[weight].rows[0]["recall@10"] for weight in (0.1, 0.5))
    told = weights(lines, set())
    assert "SCoTER-H [A], five-step, on beauty, seed 1:" in told
    cells = [line.split(" | ") for line in told.splitlines() if line.startswith("| 0.")]
    assert [(row[1], row[2].split(" / ")[0]) for row in cells] == [
        ("1", f"{value:.4f}".removeprefix("0")) for value in (usual, heavy)
    ]
    figure = plots(lines, {"overall": {}})["figure-5-beauty"]
    curve = figure.axes[0].lines[0]
    assert list(np.asarray(curve.get_ydata())) == [usual, heavy]
    assert curve.get_linestyle() == "-"
    assert len(figure.axes[0].containers) == 1  # the bar of the one that differs
    plt.close("all")


def test_points_of_different_draws_are_not_joined(tmp_path: Path) -> None:
    seeds(tmp_path, 0.1, {1: 0.25})
    seeds(tmp_path, 0.5, {2: 0.3})
    lines = Lines(load_runs(tmp_path / "docs").runs)
    assert [line.trainings for line in same_draws(by_weight(lines, "beauty")).values()] == [1, 1]
    assert "each over runs of its own" in weights(lines, set())
    figure = plots(lines, {"overall": {}})["figure-5-beauty"]
    assert figure.axes[0].lines[0].get_linestyle() == "None"
    plt.close("all")


def test_weights_of_a_way_that_nobody_measured_as_it_is_are_shown(tmp_path: Path) -> None:
    made(tmp_path, {0.5: 0.3}, "heavy")
    lines = Lines(load_runs(tmp_path / "docs").runs)
    told = weights(lines, set())
    assert "SCoTER-H [A], five-step, on beauty, seed 1:" in told
    assert "| 0.5 | 1 | ." in told
    assert "no whole of this way | – | – | – | – | –" in told


def test_weights_are_asked_for_until_the_recipe_itself_has_them(tmp_path: Path) -> None:
    made(tmp_path, DIFFERENT, "different")
    asked = "No run yet: λ of 0.1, 0.02, 0.5 on beauty."
    assert asked in weights(Lines(load_runs(tmp_path / "docs").runs), set())
    packaged = load_recipe("beauty").model_dump(mode="json")
    for weight in (0.02, 0.1, 0.5):
        recipe = packaged | {"train": packaged["train"] | {"contrastive_weight": weight}}
        strength = {("hstu", False): 0.2, ("scoter_h", True): 0.3}
        keep(evaluated(tmp_path / f"packaged-{weight}", recipe, strength), f"packaged-{weight}", tmp_path / "docs")
    told = weights(Lines(load_runs(tmp_path / "docs").runs), set())
    assert "No run yet" not in told
    assert "SCoTER-H [B], five-step, on beauty, seed 1:" in told
