"""Stage `evaluate` (section 4): what the models are worth on the test split, beside untrained baselines.

Output folder:

    report.json   every result with the switches it was measured under, and how often the beam is exact
    report.html   the same as a page with plots

Switches: `labels` (training items only, or validation items too), `history` (masked: no item the user has had is
ranked; or not), `reasoning` (whether H was read), `scoring` (beam, or exact over the whole catalogue).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.cooccurrence import Neighbours
from offline.metrics import ranks, summary
from offline.page import write_page
from offline.prepare import Dataset, dataset_name, load_dataset
from offline.reason.output import load_reasoning
from offline.recipe import EvaluateRecipe, Recipe
from offline.scoring import History, score_beam, score_exact
from offline.stage import Stage, console, run_stage, stage_seconds, write_json
from offline.train import load_model, training_log

VERSION = 1
TOP = 10


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model to evaluate."""

    variant: str
    labels: str  # "train" or "train+validation"
    stage: Stage


def evaluate(
    work: Path, prepared: Stage, tokens: Stage, reasoned: Stage, trained: Sequence[Trained], recipe: Recipe
) -> Stage:
    """Run the stage."""
    upstream = [prepared, tokens, reasoned, *(t.stage for t in trained)]

    def build(folder: Path) -> None:
        dataset = load_dataset(prepared.folder)
        users = _users(dataset, recipe.evaluate.users)
        results = _baselines(dataset, users)
        exactness: list[dict[str, Any]] = []
        for model in trained:
            found, exact = _model(model, dataset, users, tokens, reasoned, recipe)
            results += found
            exactness.append(exact)
        report = {
            "dataset": dataset_name(prepared.folder),
            "recipe": recipe.name,
            "split": "test",
            "users": len(users),
            "items": dataset.num_items,
            "results": results,
            "beam": exactness,
            "seconds": {s.name: stage_seconds(s) for s in upstream},
        }
        write_json(folder / "report.json", report)
        curves = {t.stage.name: training_log(t.stage.folder) for t in trained}
        write_page(folder / "report.html", report, curves)
        _show(results, exactness)

    settings: dict[str, Any] = {"recipe": recipe.evaluate.model_dump(), "name": recipe.name}
    if recipe.search.widen:  # left out otherwise, so that evaluations from before there was a choice stay valid
        settings["search"] = recipe.search.model_dump()
    return run_stage(work, "evaluate", VERSION, settings, upstream, build)


def _users(dataset: Dataset, wanted: int) -> NDArray[np.int64]:
    everyone = np.arange(len(dataset.users))
    if 0 < wanted < len(everyone):
        return np.sort(np.random.default_rng(1).choice(everyone, wanted, replace=False))
    return everyone


def _baselines(dataset: Dataset, users: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Popularity and the untrained co-occurrence kNN, under every switch."""
    histories = [dataset.history(int(u), "test") for u in users]
    targets = np.array([dataset.target(int(u), "test") for u in users])
    results: list[dict[str, Any]] = []
    for labels, known in (
        ("train", [dataset.training(u) for u in range(len(dataset.users))]),
        ("train+validation", [s[:-1] for s in dataset.sequences]),
    ):
        neighbours = Neighbours.fit(known, dataset.num_items)
        popularity = neighbours.frequency.astype(np.float32)
        for masked in (True, False):
            knn = np.concatenate(
                [
                    _top(neighbours.score(part), part, masked=masked)
                    for part in (histories[i : i + 512] for i in range(0, len(histories), 512))
                ]
            )
            popular = np.concatenate(
                [
                    _top(np.tile(popularity, (len(part), 1)), part, masked=masked)
                    for part in (histories[i : i + 512] for i in range(0, len(histories), 512))
                ]
            )
            for name, items in (("popularity", popular), ("knn", knn)):
                results.append(_row(name, labels, "full", ranks(items, targets), masked=masked, reasoning=False))
    return results


def _top(scores: NDArray[np.float32], histories: list[NDArray[np.int32]], *, masked: bool) -> NDArray[np.int64]:
    scores[:, 0] = -np.inf
    if masked:
        for row, history in enumerate(histories):
            scores[row, history] = -np.inf
    # Of items that score alike, the one with the lower index: a stable order does not flatter anyone.
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP]


def _model(
    trained: Trained,
    dataset: Dataset,
    users: NDArray[np.int64],
    tokens: Stage,
    reasoned: Stage,
    recipe: Recipe,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    model = load_model(trained.stage.folder, tokens)
    reads = model.adapter is not None
    reasoning = load_reasoning(reasoned.folder, "test") if reads else None
    history = History.of(dataset, "test", users, recipe.model.length, reasoning)
    settings: EvaluateRecipe = recipe.evaluate
    results: list[dict[str, Any]] = []
    served: NDArray[np.int64] | None = None
    for masked in (True, False):
        for use in (True, False) if reads else (False,):
            scored = score_beam(
                model,
                history,
                recipe.model.beam,
                mask_history=masked,
                use_reasoning=use,
                widen=recipe.search.widen,
                batch=settings.batch,
                progress=f"{trained.variant} beam",
            )
            rank = ranks(scored.items[:, :TOP], history.targets)
            scoring = f"beam {recipe.model.beam}" + "".join(f" x{times}" for times in recipe.search.widen)
            results.append(_row(trained.variant, trained.labels, scoring, rank, masked=masked, reasoning=use))
            if served is None:
                served = scored.items[:, :TOP]
    assert served is not None
    sample = np.arange(len(users))
    if 0 < settings.exact_users < len(sample):
        sample = np.sort(np.random.default_rng(2).choice(sample, settings.exact_users, replace=False))
    exact = score_exact(
        model, history.take(sample), TOP, mask_history=True, use_reasoning=reads, progress=f"{trained.variant} exact"
    )
    rank = ranks(exact, history.targets[sample])
    results.append(
        _row(trained.variant, trained.labels, "exact", rank, masked=True, reasoning=reads) | {"users": len(sample)}
    )
    same = (served[sample] == exact).all(1)
    return results, {
        "model": trained.variant,
        "labels": trained.labels,
        "users": len(sample),
        "beam_equals_exact": round(float(same.mean()), 4),
        "beam_recall@10_same_users": summary(ranks(served[sample], history.targets[sample]))["recall@10"],
        "exact_recall@10": summary(rank)["recall@10"],
    }


def _row(
    model: str, labels: str, scoring: str, rank: NDArray[np.int64], *, masked: bool, reasoning: bool
) -> dict[str, Any]:
    return {
        "model": model,
        "labels": labels,
        "history": "masked" if masked else "not masked",
        "reasoning": reasoning,
        "scoring": scoring,
        "users": len(rank),
        **summary(rank),
    }


def _show(results: list[dict[str, Any]], exactness: list[dict[str, Any]]) -> None:
    """The lines one looks for first; all of them are in the report."""
    from rich.table import Table  # noqa: PLC0415 - only when there is something to show

    table = Table(title="Test split: Recall@10 / NDCG@10, history masked")
    for column in ("model", "labels", "scoring", "users", "recall@10", "ndcg@10"):
        table.add_column(column, justify="right" if column in {"users", "recall@10", "ndcg@10"} else "left")
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
    for row in exactness:
        console.print(
            f"  {row['model']}: top {TOP} of the beam equals the exact top {TOP} for "
            f"{row['beam_equals_exact']:.1%} of {row['users']} users"
        )
