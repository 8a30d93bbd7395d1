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

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.cooccurrence import Neighbours
from offline.groups import Groups
from offline.metrics import gains, hits, ranks, summary
from offline.models.recommender import Recommender
from offline.page import write_page
from offline.prepare import Dataset, dataset_name, load_dataset
from offline.ranking import TOP, Asked, ByScores, Ranker, Row, measure, save_ranks
from offline.reason.output import load_reasoning
from offline.recipe import BACKBONES, Recipe, Variant, reads_reasoning
from offline.scoring import History, score_beam, score_exact
from offline.significance import difference
from offline.stage import Stage, console, run_stage, stage_seconds, write_json
from offline.train import load_model, training_log

VERSION = 2


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model to evaluate."""

    variant: Variant
    labels: str  # "train" or "train+validation"
    stage: Stage


def evaluate(
    work: Path, prepared: Stage, tokens: Stage, reasoned: Stage | None, trained: Sequence[Trained], recipe: Recipe
) -> Stage:
    """Run the stage. Backbones alone need nothing `reasoned`."""
    read = [reasoned] if reasoned is not None and any(reads_reasoning(t.variant) for t in trained) else []
    upstream = [prepared, tokens, *read, *(t.stage for t in trained)]

    def build(folder: Path) -> None:
        dataset = load_dataset(prepared.folder)
        asked = Asked.of(dataset, "test", chosen(dataset, recipe.evaluate.users))
        groups = Groups.of(dataset, asked.histories, asked.targets)
        rows = untrained(dataset, asked)
        exactness: list[dict[str, Any]] = []
        seconds = {stage.name: stage_seconds(stage) for stage in upstream}
        for model in trained:
            start = time.monotonic()
            found, exact = _model(model, dataset, asked, tokens, reasoned, recipe)
            seconds[f"evaluate {model.stage.name}"] = round(time.monotonic() - start, 1)
            rows += found
            exactness.append(exact)
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
    # Left out where it is the default, so that evaluations from before there was a choice stay valid.
    if search := recipe.search.model_dump(exclude_defaults=True):
        settings["search"] = search
    return run_stage(work, "evaluate", VERSION, settings, upstream, build)


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


def chosen(dataset: Dataset, wanted: int) -> NDArray[np.int64]:
    """Rows of the users to test: a fixed sample of that many, or everyone for 0."""
    everyone = np.arange(len(dataset.users))
    if 0 < wanted < len(everyone):
        return np.sort(np.random.default_rng(1).choice(everyone, wanted, replace=False))
    return everyone


def untrained(dataset: Dataset, asked: Asked) -> list[Row]:
    """Popularity and the untrained co-occurrence kNN, under every switch."""
    rows: list[Row] = []
    for labels, known in (
        ("train", [dataset.training(u) for u in range(len(dataset.users))]),
        ("train+validation", [s[:-1] for s in dataset.sequences]),
    ):
        neighbours = Neighbours.fit(known, dataset.num_items)
        rows += measure(ByScores(_popular(neighbours)), asked, model="popularity", labels=labels)
        rows += measure(ByScores(neighbours.score), asked, model="knn", labels=labels)
    return rows


def _popular(neighbours: Neighbours) -> Callable[[Sequence[NDArray[np.int32]]], NDArray[np.float32]]:
    """Scores that are the same for every user."""
    frequency = neighbours.frequency.astype(np.float32)
    return lambda histories: np.tile(frequency, (len(histories), 1))


@dataclass(frozen=True, slots=True)
class ByBeam:
    """A trained model as it serves: by the trie beam, in which no masked item is ever a candidate."""

    model: Recommender
    history: History
    recipe: Recipe
    use_reasoning: bool
    name: str

    @property
    def scoring(self) -> str:
        """The beam's width, how much wider its first levels are, and the share of item vectors in the order."""
        search = self.model.searched(self.recipe.search)
        rerank = f" rerank {search.rerank:g}" if search.rerank else ""
        return f"beam {self.recipe.model.beam}" + "".join(f" x{times}" for times in search.widen) + rerank

    def rank(self, asked: Asked, *, masked: bool) -> NDArray[np.int64]:
        """As `Ranker.rank`, of the users that the history is of."""
        assert len(asked.users) == len(self.history.targets)
        scored = score_beam(
            self.model,
            self.history,
            self.recipe.model.beam,
            mask_history=masked,
            use_reasoning=self.use_reasoning,
            search=self.recipe.search,
            batch=self.recipe.evaluate.batch,
            progress=f"{self.name} beam",
        )
        return scored.items[:, :TOP]


@dataclass(slots=True)
class _Kept:
    """A ranker that remembers what it said, for who would ask twice: the beam takes minutes."""

    ranker: Ranker
    masked: NDArray[np.int64] | None = None

    @property
    def scoring(self) -> str:
        return self.ranker.scoring

    def rank(self, asked: Asked, *, masked: bool) -> NDArray[np.int64]:
        items = self.ranker.rank(asked, masked=masked)
        if masked:
            self.masked = items
        return items


def _model(
    trained: Trained, dataset: Dataset, asked: Asked, tokens: Stage, reasoned: Stage | None, recipe: Recipe
) -> tuple[list[Row], dict[str, Any]]:
    model = load_model(trained.stage.folder, tokens)
    name, labels, seed = trained.variant, trained.labels, recipe.training(trained.variant).seed
    reads = model.adapter is not None
    assert reasoned is not None or not reads
    reasoning = load_reasoning(reasoned.folder, "test") if reasoned is not None and reads else None
    history = History.of(dataset, "test", asked.users, recipe.model.length, reasoning)
    rows: list[Row] = []
    served = _Kept(ByBeam(model, history, recipe, reads, name))
    rows += measure(served, asked, model=name, labels=labels, reasoning=reads, seed=seed)
    if reads:
        withheld = ByBeam(model, history, recipe, False, name)  # noqa: FBT003 - a field of a dataclass
        rows += measure(withheld, asked, model=name, labels=labels, seed=seed)
    assert served.masked is not None
    sample = np.arange(len(asked.users))
    if 0 < recipe.evaluate.exact_users < len(sample):
        sample = np.sort(np.random.default_rng(2).choice(sample, recipe.evaluate.exact_users, replace=False))
    exact = score_exact(
        model, history.take(sample), TOP, mask_history=True, use_reasoning=reads, progress=f"{name} exact"
    )
    rank = ranks(exact, asked.targets[sample])
    rows.append(Row(name, labels, "masked", reads, "exact", seed, rank))
    beam = served.masked[sample]
    if model.searched(recipe.search).rerank:  # exact is what decodes best
        searched = recipe.search.model_copy(update={"rerank": 0.0})
        plain = ByBeam(model, history.take(sample), recipe.model_copy(update={"search": searched}), reads, name)
        beam = plain.rank(asked.take(sample), masked=True)
    return rows, {
        "model": name,
        "labels": labels,
        "users": len(sample),
        "beam_equals_exact": round(float((beam == exact).all(1).mean()), 4),
        "beam_recall@10_same_users": summary(ranks(beam, asked.targets[sample]))["recall@10"],
        "exact_recall@10": summary(rank)["recall@10"],
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


def _show_exactness(exactness: Sequence[dict[str, Any]]) -> None:
    for row in exactness:
        console.print(
            f"  {row['model']}: top {TOP} of the beam equals the exact top {TOP} for "
            f"{row['beam_equals_exact']:.1%} of {row['users']} users"
        )
