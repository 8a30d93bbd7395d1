from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.errors import DataError
from offline.metrics import ndcg, recall
from offline.recipe import Recipe, load_recipe
from offline.results.efficiency import efficiency
from offline.results.lines import Lines, compare, gain, paired
from offline.results.runs import keep, load_runs
from offline.results.sparsity import drawn
from offline.results.templates import plotted
from offline.results.write import write_results
from tests.offline.results.made import evaluated

ROOT = Path(__file__).parents[3]
PLAIN = {("knn", False): 0.15, ("hstu", False): 0.2, ("scoter_h", True): 0.3, ("scoter_h", False): 0.22}
STRONG = {("hstu", False): 0.5, ("scoter_h", True): 0.9}
ABLATIONS: dict[str, tuple[dict[str, Any], float]] = {
    "shuffled": ({"ablation": {"control": "shuffled"}}, 0.2),
    "successors": ({"ablation": {"control": "successors"}}, 0.25),
    "mean": ({"ablation": {"steps": "mean"}}, 0.27),
    "no-contrastive": ({"train": {"contrastive_weight": 0.0}}, 0.28),
    "lambda": ({"train": {"contrastive_weight": 0.5}}, 0.29),
    "three-step": ({"reason": {"template": "three-step"}}, 0.26),
}


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of a pair of models, and one seed of what is taken away."""
    folder = tmp_path_factory.mktemp("results")
    for seed in (1, 2, 3):
        stage = evaluated(folder / f"seed-{seed}", {"train": {"seed": seed}}, PLAIN)
        keep(stage, f"seed-{seed}", folder / "docs")
    for name, (recipe, strength) in ABLATIONS.items():
        rows = {("hstu", False): 0.2, ("scoter_h", True): strength, ("scoter_h", False): 0.2}
        stage = evaluated(folder / name, recipe, rows)
        keep(stage, name, folder / "docs")
    wide = evaluated(folder / "matched", {"ablation": {"matched": True}}, {("hstu", False): 0.24})
    keep(wide, "matched", folder / "docs")
    write_results(folder / "docs")
    return folder / "docs"


def page(docs: Path) -> str:
    return docs.with_suffix(".md").read_text(encoding="utf-8")


def row(docs: Path, section: str, start: str) -> list[str]:
    """Cells of the first line of a section that begins so."""
    text = page(docs)
    part = text[text.index(section) :]
    line = next(line for line in part.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_seeds_are_one_line_with_their_spread(docs: Path) -> None:
    lines = Lines(load_runs(docs).runs)
    (full, other) = lines.full("beauty", "scoter_h")
    assert full.draws == [(1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert other.setting.template == "three-step"
    cells = row(docs, "### Table 1: Amazon Beauty", "SCoTER-H [A], five-step")
    assert cells[1] == "3"
    spread = full.over_trainings("recall@10")
    assert cells[2].startswith(f"{spread.mean:.4f} ± {spread.sd:.4f} / "[1:].replace("± 0.", "± ."))
    assert row(docs, "### Table 1: Amazon Beauty", "co-occurrence kNN")[1] == "1"


def test_another_training_with_the_same_seed_is_a_run_and_an_ablation_is_compared_with_its_own(tmp_path: Path) -> None:
    """As on another kind of machine; a backbone that was measured again beside a variant is still one."""
    folder = tmp_path / "docs"
    there = PLAIN | {("hstu", False): 0.25, ("scoter_h", True): 0.35}
    mean = {("hstu", False): 0.25, ("scoter_h", True): 0.32}
    made: dict[str, tuple[dict[str, Any], dict[tuple[str, bool], float], float]] = {
        "one": ({}, PLAIN, 2.0),
        "again": ({}, PLAIN, 2.0),
        "there": ({}, there, 2.1),
        "mean": ({"ablation": {"steps": "mean"}}, mean, 2.1),
    }
    for name, (recipe, rows, loss) in made.items():
        keep(evaluated(tmp_path / name, recipe, rows, loss=loss), name, folder)
    lines = Lines(load_runs(folder).runs)
    (backbone,) = lines.full("beauty", "hstu")
    assert backbone.draws == [(1, 0, 0), (1, 1, 0)]
    assert backbone.trainings == 2
    (full,), (ablated,) = lines.full("beauty", "scoter_h"), lines.having("beauty", "scoter_h", "mean")
    assert ablated.draws == [(1, 1, 0)]
    assert paired(ablated, full) == (ablated.rows[0]["recall@10"], full.rows[1]["recall@10"])
    found = compare(ablated, backbone)
    assert found is not None
    assert found.second == pytest.approx(backbone.rows[1]["recall@10"])


def test_what_was_measured_twice_counts_once_and_is_compared_with_what_was_measured_beside_it(tmp_path: Path) -> None:
    """As by a later version's search: the same weights, other figures."""
    later = PLAIN | {("hstu", False): 0.21, ("scoter_h", True): 0.31}
    for name, rows in (("then", PLAIN), ("now", later)):
        keep(evaluated(tmp_path / name, {}, rows), name, tmp_path / "docs")
    lines = Lines(load_runs(tmp_path / "docs").runs)
    (full,) = lines.full("beauty", "scoter_h")
    assert full.draws == [(1, 0, 0), (1, 0, 1)]
    assert full.trainings == 1
    assert full.over_trainings("recall@10").sd is None
    assert full.mean("recall@10") == pytest.approx(np.mean([row["recall@10"] for row in full.rows]))
    assert (full.ranks()[1, 0, 0] != full.ranks()[1, 0, 1]).any()


def test_trainings_that_have_nothing_in_common_are_not_paired(tmp_path: Path) -> None:
    keep(evaluated(tmp_path / "whole", {}, PLAIN), "whole", tmp_path / "docs")
    elsewhere = {("hstu", False): 0.25, ("scoter_h", True): 0.32}
    stage = evaluated(tmp_path / "mean", {"ablation": {"steps": "mean"}}, elsewhere, loss=2.1)
    keep(stage, "mean", tmp_path / "docs")
    write_results(tmp_path / "docs")
    cells = row(tmp_path / "docs", "### Table 4: SCoTER-H on beauty", "w/o step-wise: mean")
    assert cells[4:6] == ["of different trainings", "–"]


def test_where_not_every_run_kept_ranks_a_row_says_of_how_many_its_interval_is(tmp_path: Path) -> None:
    """The relative difference is of both seeds, and so is the number of runs."""
    docs = tmp_path / "docs"
    shuffled: dict[str, Any] = {"ablation": {"control": "shuffled"}}
    for seed, share in ((1, 0.25), (2, 0.4)):
        for name, recipe, found in (("whole", {}, share), ("shuffled", shuffled, share - 0.1)):
            rows = {("hstu", False): 0.2, ("scoter_h", True): found}
            stage = evaluated(tmp_path / f"{name}-{seed}", recipe | {"train": {"seed": seed}}, rows)
            if seed == 2:
                (stage / "ranks.npz").unlink()
            keep(stage, f"{name}-{seed}", docs)
    write_results(docs)
    lines = Lines(load_runs(docs).runs)
    (full,) = lines.full("beauty", "scoter_h")
    backbone = lines.backbone(full)
    assert backbone is not None
    cells = row(docs, "With reasoning against the backbone", "SCoTER-H [A], five-step | train, masked")
    both = (np.mean([line["recall@10"] for line in one.rows]) for one in (full, backbone))
    assert cells[5] == f"{next(both) / next(both) - 1:+.1%}"
    first = full.rows[0]["recall@10"] - backbone.rows[0]["recall@10"]
    assert re.fullmatch(rf"{re.escape(f'{first:+.4f}')} \[.*\] \(1 of 2 kept ranks\)", cells[6])
    assert cells[7].endswith(" (1 of 2 kept ranks)")
    assert cells[8] == "2"
    gone = row(docs, "## Targets", "that lift with another user's H, on beauty")[2]
    assert "(A; 1 run, where their own has" in gone


def test_a_training_that_was_measured_twice_is_one_run_beside_its_backbone_too(tmp_path: Path) -> None:
    later = PLAIN | {("hstu", False): 0.21, ("scoter_h", True): 0.31}
    for name, rows in (("then", PLAIN), ("now", later)):
        keep(evaluated(tmp_path / name, {}, rows), name, tmp_path / "docs")
    write_results(tmp_path / "docs")
    assert row(tmp_path / "docs", "### Table 1: Amazon Beauty", "SCoTER-H [A], five-step")[1] == "1"
    assert row(tmp_path / "docs", "With reasoning against", "SCoTER-H [A], five-step | train, masked")[-1] == "1"


def test_runs_on_different_semantic_ids_are_counted_as_such(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for seed, collisions in ((1, 414), (2, 414), (3, 379)):
        stage = evaluated(tmp_path / f"seed-{seed}", {"train": {"seed": seed}}, PLAIN, collisions=collisions)
        keep(stage, f"seed-{seed}", docs)
    write_results(docs)
    assert row(docs, "### Table 1: Amazon Beauty", "HSTU [A]")[1] == "3, on 2 sets of semantic IDs"
    assert row(docs, "### Table 1: Amazon Beauty", "co-occurrence kNN")[1] == "1"
    assert row(docs, "## Targets", "HSTU on beauty, Recall@10")[2].endswith("(A; 3 runs, on 2 sets of semantic IDs)")
    assert row(docs, "## Ways", "**A**")[-1] == "beauty 414 (.2048) and 379 (.2048)"
    assert row(docs, "## Runs", "seed-3")[5] == "379 (.2048)"


def test_a_widened_backbone_is_another_training_than_the_one_it_is_compared_with(tmp_path: Path) -> None:
    """Though both are the first training with their seed."""
    keep(evaluated(tmp_path / "whole", {}, PLAIN), "whole", tmp_path / "docs")
    wider = evaluated(tmp_path / "matched", {"ablation": {"matched": True}}, {("hstu", False): 0.24}, loss=2.1)
    keep(wider, "matched", tmp_path / "docs")
    write_results(tmp_path / "docs")
    assert row(tmp_path / "docs", "## Controls", "beauty | HSTU")[5:7] == ["of different trainings", "–"]


def test_the_lift_is_that_of_the_same_seeds_and_users(docs: Path) -> None:
    lines = Lines(load_runs(docs).runs)
    full = lines.full("beauty", "scoter_h")[0]
    backbone = lines.backbone(full)
    assert backbone is not None
    found = compare(full, backbone)
    assert found is not None
    assert found.seeds == 3
    assert found.low > 0
    assert found.p < 0.01
    cells = row(docs, "With reasoning against the backbone", "SCoTER-H [A], five-step | train, masked")
    assert cells[5] == f"{gain(full, backbone):+.1%}"
    assert cells[-1] == "3"


def test_figures_are_not_rounded_twice(docs: Path) -> None:
    """Reports have five decimals, of which a table makes four: .028246 would become .02825 and then .0283."""
    (line,) = Lines(load_runs(docs).runs).full("beauty", "hstu")
    rank = line.ranks()[(1, 0, 0)]
    assert line.rows[0]["ndcg@10"] == ndcg(rank, 10) != round(ndcg(rank, 10), 5)
    assert line.rows[0]["recall@5"] == recall(rank, 5)


def test_a_very_small_p_is_a_bound(docs: Path) -> None:
    assert row(docs, "With reasoning against the backbone", "SCoTER-H [A], five-step | train, masked")[7] == "≤ 0.0001"
    assert not re.search(r"e-\d+ \|", page(docs))
    assert "p are not corrected for the number of rows" in page(docs)


def test_a_backbone_is_one_line_whatever_is_fused_into_its_twin(docs: Path) -> None:
    """The weight of a loss that it does not have makes no other model of it; one seed is not compared with three."""
    lines = Lines(load_runs(docs).runs)
    (backbone,) = lines.full("beauty", "hstu")
    assert backbone.draws == [(1, 0, 0), (2, 0, 0), (3, 0, 0)]
    other = lines.full("beauty", "scoter_h")[1]
    assert other.draws == [(1, 0, 0)]
    assert lines.backbone(other) is backbone
    first, second = paired(other, backbone)
    assert (first, second) == (other.mean("recall@10"), backbone.rows[0]["recall@10"])
    assert gain(other, backbone) == pytest.approx(first / second - 1)


def test_targets_say_by_how_much(docs: Path) -> None:
    assert row(docs, "## Targets", "HSTU on beauty, Recall@10")[-1] == "met"
    assert row(docs, "## Targets", "SCoTER-H over its own HSTU on beauty")[-1] == "met"
    assert row(docs, "## Targets", "SCoTER-H over its own HSTU on sports")[-1] == "not measured yet"
    gone = row(docs, "## Targets", "that lift with another user's H, on beauty")
    assert gone[-1] == "met"
    assert gone[2].startswith("+0.0%, p 1 ")


def test_the_control_of_another_model_is_not_called_that_of_the_best_lift(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    keep(evaluated(tmp_path / "best", {}, PLAIN), "best", docs)
    other: dict[str, Any] = {"model": {"dim": 32}}
    keep(evaluated(tmp_path / "other", other, PLAIN | {("scoter_h", True): 0.25}), "other", docs)
    without = {("hstu", False): 0.2, ("scoter_h", True): 0.2}
    made = evaluated(tmp_path / "other-shuffled", other | {"ablation": {"control": "shuffled"}}, without)
    keep(made, "other-shuffled", docs)
    write_results(docs)
    assert "(A; 1 run)" in row(docs, "## Targets", "SCoTER-H over its own HSTU on beauty")[2]
    gone = row(docs, "## Targets", "that lift with another user's H, on beauty")
    lift = r"where their own has \+\d\d\.\d%, p (≤ )?0\.\d+"
    assert re.fullmatch(rf"not measured for A; \+0\.0%, p 1 \(B; 1 run, {lift}\)", gone[2])
    assert gone[3] == "for B: met"
    assert "the best by this very figure on test users stands here" in page(docs)
    own = evaluated(tmp_path / "best-shuffled", {"ablation": {"control": "shuffled"}}, without)
    keep(own, "best-shuffled", docs)
    write_results(docs)
    gone = row(docs, "## Targets", "that lift with another user's H, on beauty")
    assert re.fullmatch(rf"\+0\.0%, p 1 \(A; 1 run, {lift}\)", gone[2])
    assert gone[3] == "met"


def test_a_control_stands_beside_the_lift_on_its_own_draw(tmp_path: Path) -> None:
    """The lift is the mean of three runs, and on the one with a control it is the smallest."""
    docs = tmp_path / "docs"
    for seed, share in ((1, 0.21), (2, 0.4), (3, 0.4)):
        stage = evaluated(tmp_path / f"{seed}", {"train": {"seed": seed}}, PLAIN | {("scoter_h", True): share})
        keep(stage, f"seed-{seed}", docs)
    without = {("hstu", False): 0.2, ("scoter_h", True): 0.2}
    keep(evaluated(tmp_path / "shuffled", {"ablation": {"control": "shuffled"}}, without), "shuffled", docs)
    write_results(docs)
    lines = Lines(load_runs(docs).runs)
    (full,) = lines.full("beauty", "scoter_h")
    backbone = lines.backbone(full)
    assert backbone is not None
    first = full.rows[0]["recall@10"] / backbone.rows[0]["recall@10"] - 1
    told = row(docs, "## Targets", "that lift with another user's H, on beauty")[2]
    assert f"(A; 1 run, where their own has {first:+.1%}, p 0." in told


def test_a_control_that_is_worse_than_its_backbone_is_no_gain(tmp_path: Path) -> None:
    """It differs, at any level, and the lift is gone all the same: the target says so in these words."""
    docs = tmp_path / "docs"
    keep(evaluated(tmp_path / "best", {}, PLAIN), "best", docs)
    worse = {("hstu", False): 0.2, ("scoter_h", True): 0.1}
    keep(evaluated(tmp_path / "shuffled", {"ablation": {"control": "shuffled"}}, worse), "shuffled", docs)
    write_results(docs)
    gone = row(docs, "## Targets", "that lift with another user's H, on beauty")
    assert gone[1] == "gone: no gain at 5 %"
    assert "p ≤ 0.0001" in gone[2]
    assert gone[-1] == "met"


def test_a_single_draw_is_no_headline_where_there_are_several_seeds(docs: Path, tmp_path: Path) -> None:
    copied = tmp_path / "docs"
    shutil.copytree(docs, copied)
    write_results(copied)
    before = row(copied, "## Targets", "HSTU on beauty, Recall@10")
    lucky = evaluated(
        tmp_path / "lucky", {"model": {"features": ["text"]}}, {("hstu", False): 0.5, ("scoter_h", True): 0.9}
    )
    keep(lucky, "lucky", copied)
    write_results(copied)
    assert row(copied, "## Targets", "HSTU on beauty, Recall@10") == before
    assert row(copied, "## Targets", "SCoTER-H over its own HSTU on beauty")[2].endswith("(A; 3 runs)")
    lines = Lines(load_runs(copied).runs)
    best = drawn(lines, "beauty")
    assert best is not None
    assert best[0].draws == [(1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert f"{lines.name(best[0])}, against its backbone:\n\n![Gain by group" in page(copied)


def test_a_target_names_the_way_that_reached_it(tmp_path: Path) -> None:
    wide = {"widen": [2, 2], "rerank": 0.5}
    for seed in (1, 2, 3):
        for name, search, found in (("plain", {}, 0.4), ("wide", wide, 0.6)):
            made = {"train": {"seed": seed}, "search": search}
            keep(
                evaluated(tmp_path / f"{name}-{seed}", made, {("hstu", False): found}),
                f"{name}-{seed}",
                tmp_path / "docs",
            )
    write_results(tmp_path / "docs")
    reached = row(tmp_path / "docs", "## Targets", "HSTU on beauty, Recall@10")
    assert reached[2].endswith("(B; 3 runs)")
    way = row(tmp_path / "docs", "## Ways", "**B**")
    assert (way[1], way[5]) == ("HSTU", "first levels x2 x2, rerank 0.5")


def test_what_is_taken_away_stands_beside_the_whole(docs: Path) -> None:
    section = "### Table 4: SCoTER-H on beauty"
    whole, mean = row(docs, section, "SCoTER-H"), row(docs, section, "w/o step-wise: mean")
    assert whole[-1] == "*.1187 / .0621*"
    assert mean[-1] == "*.1105 / .0597*"
    assert mean[3].startswith("-")
    assert row(docs, section, "w/o contrastive")[-1] == "*.1091 / .0590*"
    assert row(docs, section, "HSTU")[-1] == "*.0930 / .0502*"
    assert row(docs, "## Controls", "beauty | SCoTER-H [A], five-step, kNN successors")[-1] == "1"
    wider = row(docs, "## Controls", "beauty | HSTU [A], as many parameters as with fusion")
    assert wider[4].startswith("+")  # though no backbone was measured beside it
    assert wider[-1] == "1"


def test_an_ablation_is_shown_though_nobody_measured_the_whole_of_its_way(tmp_path: Path) -> None:
    """And compared with it as soon as somebody has."""
    docs, section = tmp_path / "docs", "### Table 4: SCoTER-H on beauty"
    mean, aligned = {"ablation": {"steps": "mean"}}, {"alignment": {"dim": 8}}
    for name, recipe, share in (("whole", {}, 0.3), ("mean", mean, 0.27), ("aligned-mean", mean | aligned, 0.28)):
        keep(evaluated(tmp_path / name, recipe, {("hstu", False): 0.2, ("scoter_h", True): share}), name, docs)
    write_results(docs)
    assert row(docs, section, "w/o step-wise: mean")[3].startswith("-")
    assert row(docs, section, "SCoTER-H [B], five-step, w/o step-wise: mean")[3:6] == ["no whole of this way", "–", "–"]
    asked = page(docs)[page(docs).index(section) :]
    assert "No run yet: the whole (by the recipe as it is), w/o position" in asked[: asked.index("###", 3)]
    assert asked.index("beauty-scoter-h-full.toml") < asked.index("beauty-scoter-h-no-position.toml")
    keep(evaluated(tmp_path / "aligned", aligned, PLAIN), "aligned", docs)
    packaged = load_recipe("beauty").model_dump(mode="json")
    keep(evaluated(tmp_path / "packaged", packaged, PLAIN), "packaged", docs)
    write_results(docs)
    asked = page(docs)[page(docs).index(section) :]
    part = asked[: asked.index("###", 3)]
    assert "no whole of this way" not in part
    assert part.count("| w/o step-wise: mean") == 2
    assert "No run yet: w/o position" in part


def test_h_withheld_is_a_row_of_what_was_trained_with_it_and_has_no_figures_of_the_paper(tmp_path: Path) -> None:
    """Of a fusion that stands on its trained backbone it is the backbone's own ranking, and no row."""
    docs = tmp_path / "docs"
    keep(evaluated(tmp_path / "joint", {}, PLAIN), "joint", docs)
    keep(evaluated(tmp_path / "stands", {"train": {"start": "backbone"}}, PLAIN), "stands", docs)
    write_results(docs)
    table = "### Table 1: Amazon Beauty"
    assert row(docs, table, "HSTU [A, B]")[-1] == "*.0930 / .0502*"
    assert row(docs, table, "SCoTER-H [A], five-step |")[-1] == "*.1187 / .0621*"
    withheld = [line for line in page(docs).splitlines() if line.startswith("| SCoTER-H") and "withheld" in line]
    assert {line.split(" | ")[0] for line in withheld} == {"| SCoTER-H [A], five-step, H withheld at test time"}
    assert len(withheld) == 2  # at 10 and at 5
    assert all(line.endswith("| – |") for line in withheld)


def test_a_control_is_shown_though_nobody_measured_its_backbone(tmp_path: Path) -> None:
    wider = evaluated(tmp_path / "matched", {"ablation": {"matched": True}}, {("hstu", False): 0.24})
    keep(wider, "matched", tmp_path / "docs")
    write_results(tmp_path / "docs")
    cells = row(tmp_path / "docs", "## Controls", "beauty | HSTU [A], as many parameters as with fusion")
    assert cells[3:] == ["–", "–", "no backbone of this way", "–", "1"]


def test_weights_groups_and_templates_have_their_figures(docs: Path) -> None:
    for name in ("lifts", "figure-4", "figure-5-beauty", "figure-3-scoter_h"):
        assert (docs / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert f"results/{name}.svg" in page(docs)
    assert not (docs / "figure-8.svg").exists()
    heavy = row(docs, "## Figure 5", "0.5")
    assert heavy[1] == "1"
    assert heavy[3].startswith("-")
    assert 0 <= float(heavy[5]) <= 1
    assert len(re.findall(r"^\| user group \d: \d+ to \d+ items in the history", page(docs), re.MULTILINE)) == 16
    assert row(docs, "## Figure 3", "SCoTER-H [A], three-step")[1] == "1"
    assert row(docs, "## Table 9", "beauty | HSTU")[1:7] == ["HSTU [A]", "1", "4", "2", "2", "7"]


def test_of_several_ways_to_make_a_model_figure_3_takes_the_one_with_most_runs(tmp_path: Path) -> None:
    """Not the first that was kept."""
    narrow = {"model": {"dim": 32}}
    keep(evaluated(tmp_path / "narrow", narrow, STRONG), "narrow", tmp_path / "docs")
    for seed in (1, 2):
        stage = evaluated(tmp_path / f"seed-{seed}", {"train": {"seed": seed}}, PLAIN)
        keep(stage, f"seed-{seed}", tmp_path / "docs")
    write_results(tmp_path / "docs")
    assert [line.trainings for line, _ in plotted(Lines(load_runs(tmp_path / "docs").runs), "scoter_h").values()] == [2]
    assert row(tmp_path / "docs", "## Figure 3", "SCoTER-H [B], five-step")[1] == "2"
    ways = [row(tmp_path / "docs", "## Ways", f"**{letter}**") for letter in "AB"]
    assert ways[1][1:] == ["SCoTER-H on HSTU, of other sizes or training", *ways[0][2:]]


def test_seeds_that_are_left_are_asked_for(docs: Path, tmp_path: Path) -> None:
    assert "HSTU and SCoTER-H with seed" not in page(docs)
    keep(evaluated(tmp_path / "work", {"train": {"seed": 2}}, PLAIN), "two", tmp_path / "docs")
    text = write_results(tmp_path / "docs").read_text(encoding="utf-8")
    assert "No run yet: HSTU and SCoTER-H with seeds 1 and 3." in text


def stage(folder: Path, name: str, file: str, body: dict[str, Any]) -> Path:
    made = folder / f"{name}-000000000000"
    made.mkdir(parents=True)
    (made / "stage.json").write_text(json.dumps({"stage": name, "upstream": []}))
    (made / file).write_text(json.dumps(body))
    return made


def test_what_discover_and_compare_measured_is_shown(tmp_path: Path) -> None:
    found = {
        "dataset": "beauty",
        "backend": "analyst",
        "panels": {"explore": 500, "choose": 200, "judge": 200},
        "recall@20": {"mined": 0.14, "five-step": 0.02},
    }
    keep(stage(tmp_path, "discover", "summary.json", found), "mined", tmp_path / "docs")
    who = {"who": "distilled", "query": "last step", "history": "masked", "recall@20": 0.0312, "ndcg@20": 0.0123}
    interval = {"low": 0.0149, "high": 0.0642}
    body = {"dataset": "beauty", "users": 200, "results": [who | interval, who | {"who": "earlier"}]}
    keep(stage(tmp_path, "compare", "results.json", body), "compared", tmp_path / "docs")
    docs = tmp_path / "docs"
    write_results(docs)
    assert row(docs, "## Tables 2 and 3", "mined") == ["mined", ".1400", "[.0987, .1949]"]
    assert "200 users who had no part in finding templates" in page(docs)
    assert row(docs, "## Table 11", "distilled")[3:] == [".0312", "[.0149, .0642]", ".0123"]
    assert row(docs, "## Table 11", "earlier")[3:] == [".0312", "–", ".0123"]
    assert "stands in every table" not in page(docs)
    part = page(docs)[page(docs).index("## Table 11") :]
    assert "No run yet" not in part


def test_a_template_is_shown_where_it_was_found_and_where_it_was_used(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    for name, data, template in (
        ("clustered", "beauty", "discovered"),
        ("best", "beauty", "somewhere/top-k.json"),
        ("carried", "sports", "beauty.json"),
    ):
        stage = evaluated(tmp_path / name, {"reason": {"template": template}}, PLAIN, name=data)
        keep(stage, name, docs)
    write_results(docs)
    tables = "## Tables 2 and 3"
    assert row(docs, tables, "the best cluster, beauty [A]")[-1] == "*.1187 / .0621*"
    assert row(docs, tables, "the ten best single chains, beauty [A]")[1] == "1"
    assert row(docs, tables, "found on beauty, used on sports [A]")[-1] == "*.0860 / .0469*"
    assert row(docs, tables, "found on sports, used on beauty")[1:3] == ["0", "–"]
    told = page(docs)[page(docs).index(tables) :]
    assert "No run yet: a model on beauty under sports.json, on sports under discovered.\n" in told


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    keep(evaluated(tmp_path / "whole", {}, PLAIN), "whole", docs)
    with (docs / "runs.toml").open("a", encoding="utf-8") as out:
        out.write('[[unmeasurable]]\nwhat = "undistilled"\nwhy = "the student writes nothing."\n')
    write_results(docs)
    for part in ("## Controls", "### Table 4: SCoTER-H on beauty"):
        told = page(docs)[page(docs).index(part) :]
        assert "w/o student distillation: the student writes nothing." in told[: told.index("No run yet")]


def test_a_stage_that_does_not_say_whose_it_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not say which data set"):
        keep(stage(tmp_path, "distill", "summary.json", {"kept": 1}), "a", tmp_path / "docs")


def test_the_same_runs_give_the_same_bytes(docs: Path, tmp_path: Path) -> None:
    shutil.copytree(docs, tmp_path / "docs")
    (tmp_path / "docs" / "figure-8.svg").write_text("of runs that are gone")
    write_results(tmp_path / "docs")
    assert (tmp_path / "docs.md").read_bytes() == docs.with_suffix(".md").read_bytes()
    drawn = {path.name: path.read_bytes() for path in docs.glob("*.svg")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "docs").glob("*.svg")} == drawn


def test_nothing_is_claimed_where_nothing_was_run(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    text = write_results(tmp_path / "docs").read_text(encoding="utf-8")
    assert text.count("not measured yet") == 7
    for title in (
        "Table 1: Amazon Sports",
        "Controls",
        "Table 10",
        "Tables 2 and 3",
        "Figure 5",
        "Table 9",
        "Figure 8",
    ):
        part = text[text.index(title) :]
        assert "No run yet" in part[: part.index("</details>")]


def test_the_commands_of_the_page_make_recipes_that_can_be_read(tmp_path: Path) -> None:
    """Every `sed` of a page without runs: its output is a recipe, and says what its name says."""
    (tmp_path / "docs").mkdir()
    text = write_results(tmp_path / "docs").read_text(encoding="utf-8")
    edits = [line for line in text.splitlines() if line.startswith("sed ")]
    assert len(edits) > 30
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline" / "recipes").symlink_to(ROOT / "offline" / "recipes")
    subprocess.run(["bash", "-euc", "\n".join(edits)], cwd=tmp_path, check=True)
    recipes = {path.stem: Recipe.model_validate(tomllib.loads(path.read_text())) for path in tmp_path.glob("*.toml")}
    assert recipes["beauty-scoter-h-mean"].ablation.steps == "mean"
    assert recipes["beauty-scoter-h-matched"].ablation.matched
    assert recipes["beauty-scoter-h-matched"].models == ["hstu"]
    assert recipes["beauty-scoter-t-full"].models == ["tiger", "scoter_t"]
    assert recipes["beauty-lambda-0.5"].train.contrastive_weight == 0.5
    assert recipes["beauty-scoter-t-no-contrastive"].tiger.train.contrastive_weight == 0
    assert recipes["beauty-scoter-t-no-contrastive"].models == ["tiger", "scoter_t"]
    assert recipes["sports-baselines"].baselines.models == ["LightGCN", "Caser", "HGN", "BERT4Rec", "SASRec"]
    assert recipes["sports-baselines"].evaluate.refit
    assert recipes["beauty-top-k-template"].reason.template == "top-k.json"
    assert recipes["sports-beauty-template"].reason.template == "beauty.json"


def test_the_time_of_a_widened_backbone_is_not_that_of_the_usual_one(tmp_path: Path) -> None:
    for name, recipe, loss in (("usual", {}, 2.0), ("wide", {"ablation": {"matched": True}}, 3.0)):
        keep(evaluated(tmp_path / name, recipe, {("hstu", False): 0.2}, loss=loss), name, tmp_path / "docs")
    runs = load_runs(tmp_path / "docs").runs
    assert "| beauty | HSTU [A] | 1 |" in efficiency(runs, Lines(runs), {"efficiency": {}})


@pytest.mark.timeout(600)  # a minute on an idle core
def test_the_page_in_the_repository_is_what_its_runs_give(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    page = write_results(tmp_path / "results").read_text(encoding="utf-8")
    kept = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == kept, "docs/results.md is not what its runs give: run `scoter results write`"
    figures = {path.name for path in (ROOT / "docs" / "results").glob("*.svg")}
    assert {path.name for path in (tmp_path / "results").glob("*.svg")} == figures
