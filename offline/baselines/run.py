"""Stage `baselines` (Table 1): RecBole's models on our split, tuned alike, and measured by our evaluator.

Output folder:

    report.json   every result with its switches and groups, and every choice of parameters that was tried
    ranks.npz     where each user's target was ranked (`offline.ranking.load_ranks`)

Each model is trained with every combination of its grid; the one with the best NDCG@10 on the validation split, history
masked, by the evaluator that everything is measured by, is tested. Nothing looks at the test split before.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from offline.baselines.environment import environment
from offline.baselines.exchange import read_lists
from offline.baselines.train import train_baseline, trained
from offline.evaluate import about, show
from offline.groups import Groups
from offline.measure import chosen
from offline.metrics import ranks, summary
from offline.prepare import Dataset, load_dataset, prepare
from offline.ranking import Asked, ByList, Row, depth, measure, save_ranks
from offline.recipe import BaselineName, Recipe
from offline.stage import Stage, console, run_stage, stage_seconds, write_json

VERSION = 1


def run_baselines(work: Path, data: Path, recipe: Recipe, folder: Path) -> Path:
    """From RecBole files in `data` to the stage's folder, with RecBole's environment in `folder`.

    Every training is a stage of its own, so that a run that was cut off goes on from there.
    """
    prepared = prepare(work, data, recipe.prepare)
    interpreter = environment(folder)
    dataset = load_dataset(prepared.folder)
    tested: list[tuple[BaselineName, str, Stage]] = []
    tuning: list[dict[str, Any]] = []
    for model in recipe.baselines.models:
        best, rows = _tuned(work, prepared, dataset, model, recipe, interpreter)
        tuning += rows
        tested.append((model, "train", best))
        if recipe.evaluate.refit:
            found = trained(best)
            again = train_baseline(
                work,
                prepared,
                model,
                found["parameters"],
                recipe,
                interpreter,
                refit_epochs=found["best_epoch"],
                title=f"{model}, validation items too",
            )
            tested.append((model, "train+validation", again))
    return _measured(work, prepared, dataset, tested, tuning, recipe).folder


def combinations(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value for each parameter; of no parameters, the one empty choice."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _tuned(
    work: Path, prepared: Stage, dataset: Dataset, model: BaselineName, recipe: Recipe, interpreter: Path
) -> tuple[Stage, list[dict[str, Any]]]:
    """The training with the best validation, and one row for each that was tried."""
    asked = Asked.of(dataset, "valid", np.arange(len(dataset.users)))
    tried = combinations(recipe.baselines.grid.get(model, {}))
    best: tuple[float, Stage] | None = None
    rows: list[dict[str, Any]] = []
    for place, parameters in enumerate(tried, start=1):
        title = f"{model} {place}/{len(tried)}"
        stage = train_baseline(work, prepared, model, parameters, recipe, interpreter, title=title)
        lists = ByList.of(read_lists(stage.folder / "valid.npy", dataset, depth(dataset)), dataset)
        found = summary(ranks(lists.rank(asked, masked=True), asked.targets))
        told = trained(stage)
        rows.append({"model": model, "parameters": parameters, "best_epoch": told["best_epoch"], **found})
        console.print(f"  {title}: validation NDCG@10 {found['ndcg@10']:.4f}, epoch {told['best_epoch']}, {parameters}")
        if best is None or found["ndcg@10"] > best[0]:
            best = found["ndcg@10"], stage
    assert best is not None
    return best[1], rows


def _measured(
    work: Path,
    prepared: Stage,
    dataset: Dataset,
    tested: list[tuple[BaselineName, str, Stage]],
    tuning: list[dict[str, Any]],
    recipe: Recipe,
) -> Stage:
    upstream = [prepared, *(stage for _, _, stage in tested)]

    def build(folder: Path) -> None:
        asked = Asked.of(dataset, "test", chosen(dataset, recipe.evaluate.users))
        groups = Groups.of(dataset, asked.histories, asked.targets)
        rows: list[Row] = []
        for model, labels, stage in tested:
            lists = ByList.of(read_lists(stage.folder / "test.npy", dataset, depth(dataset)), dataset)
            rows += measure(lists, asked, model=model, labels=labels, seed=recipe.baselines.seed)
        report = {
            **about(prepared, dataset, asked, groups, recipe),
            "results": [row.told(groups) for row in rows],
            "tuning": tuning,
            "curves": {stage.name: trained(stage)["epochs"] for _, _, stage in tested},
            "seconds": {stage.name: stage_seconds(stage) for stage in upstream},
        }
        save_ranks(folder / "ranks.npz", rows, asked.users)
        write_json(folder / "report.json", report)
        show(report["results"])

    settings: dict[str, Any] = {"users": recipe.evaluate.users, "tuning": tuning, "name": recipe.name}
    return run_stage(work, "baselines", VERSION, settings, upstream, build)
