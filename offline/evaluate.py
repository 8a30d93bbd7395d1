"""Stage `evaluate` (section 4): what the models are worth on the test split, beside untrained baselines.

Output folder:

    report.json   every result with the switches it was measured under, by groups of users and items too, each model
                  with reasoning against its own backbone, and how often the beam is exact
    ranks.npz     where each user's target was ranked in each of these results (`offline.ranking.load_ranks`)
    report.html   the same as a page with plots

Switches: `labels` (training items only, or validation items too), `history` (masked: no item the user has had is
ranked; or not), `reasoning` (whether H was read), `scoring` (beam, or exact over the whole catalogue), `seed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offline.groups import Groups
from offline.measure import Trained, chosen, load_exactness, load_measured, measure_model
from offline.metrics import gains, hits
from offline.page import write_page
from offline.prepare import Dataset, dataset_name, load_dataset
from offline.ranking import TOP, Asked, Row, save_ranks
from offline.recipe import BACKBONES, Recipe
from offline.significance import difference
from offline.stage import Stage, console, run_stage, stage_seconds, write_json
from offline.train import training_log
from offline.untrained import load_untrained, measure_untrained

VERSION = 4


def evaluate(
    work: Path, prepared: Stage, tokens: Stage, reasoned: Stage | None, trained: Sequence[Trained], recipe: Recipe
) -> Stage:
    """Run the stage, after measuring whatever is not measured yet. Backbones alone need nothing `reasoned`."""
    counted = measure_untrained(work, prepared, recipe)
    measured = [measure_model(work, prepared, tokens, reasoned, model, recipe) for model in trained]

    def build(folder: Path) -> None:
        dataset = load_dataset(prepared.folder)
        asked = Asked.of(dataset, "test", chosen(dataset, recipe.evaluate.users))
        groups = Groups.of(dataset, asked.histories, asked.targets)
        rows = load_untrained(counted.folder)
        exactness: list[dict[str, Any]] = []
        for stage in measured:
            rows += load_measured(stage.folder)
            exactness.append(load_exactness(stage.folder))
        stood_on = [prepared, tokens, *([reasoned] if reasoned is not None else []), *(t.stage for t in trained)]
        seconds = {stage.name: stage_seconds(stage) for stage in stood_on}
        for model, stage in zip(trained, measured, strict=True):
            seconds[f"evaluate {model.stage.name}"] = stage_seconds(stage)
        report = {
            **about(prepared, dataset, asked, groups, recipe),
            "results": [row.told(groups if len(row.rank) == len(asked.users) else None) for row in rows],
            "against_backbone": against_backbone(rows),
            "beam": exactness,
            "seconds": seconds,
        }
        save_ranks(folder / "ranks.npz", rows, asked.users)
        write_json(folder / "report.json", report)
        curves = {t.stage.name: training_log(t.stage.folder) for t in trained}
        write_page(folder / "report.html", report, curves)
        show(report["results"])
        _show_exactness(exactness)

    settings: dict[str, Any] = {"recipe": recipe.evaluate.model_dump(), "name": recipe.name}
    return run_stage(work, "evaluate", VERSION, settings, [prepared, counted, *measured], build)


def about(prepared: Stage, dataset: Dataset, asked: Asked, groups: Groups, recipe: Recipe) -> dict[str, Any]:
    """What every report begins with, whoever's models it is about."""
    return {
        "dataset": dataset_name(prepared.folder),
        "recipe": recipe.name,
        "split": "test",
        "users": len(asked.users),
        "items": dataset.num_items,
        "settings": recipe.model_dump(),
        "groups": groups.told(),
    }


def against_backbone(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every model that read H against its own backbone under the same switches, user by user."""
    backbone = {str(variant): str(alone) for variant, alone in BACKBONES.items()}
    alone = {(row.model, row.labels, row.history, row.scoring): row for row in rows}
    found: list[dict[str, Any]] = []
    for row in rows:
        if not row.reasoning or row.scoring == "exact":
            continue
        other = alone.get((backbone[row.model], row.labels, row.history, row.scoring))
        if other is None:
            continue
        for metric, of_user in ((f"recall@{TOP}", hits), (f"ndcg@{TOP}", gains)):
            one = difference(of_user(row.rank[None], TOP), of_user(other.rank[None], TOP))
            told = {key: round(value, 5) for key, value in asdict(one).items() if isinstance(value, float)}
            switches = {"model": row.model, "backbone": other.model, "labels": row.labels, "history": row.history}
            found.append({**switches, "metric": metric, **told, "relative": round(one.relative, 5)})
    return found


def show(results: Sequence[dict[str, Any]]) -> None:
    """The lines one looks for first; all of them are in the report."""
    from rich.table import Table  # noqa: PLC0415 - only when there is something to show

    table = Table(title="Test split: Recall@10 / NDCG@10, history masked")
    for column in ("model", "labels", "scoring", "users", "recall@10", "ndcg@10"):
        number = column in {"users", "recall@10", "ndcg@10"}
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in results:
        if row["history"] == "masked":
            table.add_row(
                row["model"] + (" + H" if row["reasoning"] else ""),
                row["labels"],
                row["scoring"],
                f"{row['users']:,}",
                f"{row['recall@10']:.4f}",
                f"{row['ndcg@10']:.4f}",
            )
    console.print(table)


def _show_exactness(exactness: Sequence[dict[str, Any]]) -> None:
    for row in exactness:
        console.print(
            f"  {row['model']}: top {TOP} of the beam equals the exact top {TOP} for "
            f"{row['beam_equals_exact']:.1%} of {row['users']} users"
        )
