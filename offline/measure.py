"""Stage `measure-VARIANT`: where one trained model ranks the target of each test user (section 4.1).

It stands apart from `evaluate`, which puts models side by side: what compares one backbone with ten variants of its
fusion ranks with the backbone once, and a comparison that was cut off goes on with the next model.

Output folder:

    ranks.npz       by the beam, history masked and not; with H and with H withheld, for models that read it
    exact.npz       exactly, on the users whose beam was compared with that (both: `offline.ranking.load_ranks`)
    exactness.json  how often the beam is exact
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.metrics import ranks, summary
from offline.models.recommender import Recommender
from offline.prepare import Dataset, load_dataset
from offline.ranking import TOP, Asked, Ranker, Row, drawn, load_ranks, measure, save_ranks
from offline.reason.output import load_reasoning
from offline.recipe import Recipe, Variant, reads_reasoning
from offline.scoring import History, score_beam, score_exact
from offline.stage import Stage, read_json, run_stage, write_json
from offline.train import load_model

VERSION = 2


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model to measure."""

    variant: Variant
    labels: str  # "train" or "train+validation"
    stage: Stage


def measure_model(
    work: Path, prepared: Stage, tokens: Stage, reasoned: Stage | None, trained: Trained, recipe: Recipe
) -> Stage:
    """Run the stage. A backbone alone needs nothing `reasoned`."""
    upstream = [prepared, tokens, trained.stage]
    if reads_reasoning(trained.variant):
        assert reasoned is not None
        upstream.append(reasoned)

    def build(folder: Path) -> None:
        dataset = load_dataset(prepared.folder)
        asked = Asked.of(dataset, "test", chosen(dataset, recipe.evaluate.users))
        rows, exact, sample = _measured(trained, asked, tokens, reasoned, recipe)
        save_ranks(folder / "ranks.npz", rows, asked.users)
        save_ranks(folder / "exact.npz", [exact.row], asked.users[sample])
        write_json(folder / "exactness.json", exact.told)

    # `evaluate.batch` changes nothing but the memory it takes.
    settings: dict[str, Any] = {
        "users": recipe.evaluate.users,
        "exact_users": recipe.evaluate.exact_users,
        "search": recipe.search.model_dump(),
        "labels": trained.labels,
    }
    return run_stage(work, f"measure-{trained.variant}", VERSION, settings, upstream, build)


def load_measured(folder: Path) -> list[Row]:
    """Every result of the model; the last one, by exact scoring, may be of fewer users."""
    return load_ranks(folder / "ranks.npz")[1] + load_ranks(folder / "exact.npz")[1]


def load_exactness(folder: Path) -> dict[str, Any]:
    """Model, labels, and on how many of `users` the beam's first ones are the exact ones."""
    told: dict[str, Any] = read_json(folder / "exactness.json")
    return told


def chosen(dataset: Dataset, wanted: int) -> NDArray[np.int64]:
    """Rows of the users to test: a fixed sample of that many, or everyone for 0."""
    return drawn(len(dataset.users), wanted, seed=1)


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
        found = scored.items[:, :TOP]
        return np.pad(found, ((0, 0), (0, TOP - found.shape[1])))  # a narrower beam fills less: 0 is no item


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


@dataclass(frozen=True, slots=True)
class _Exact:
    row: Row
    told: dict[str, Any]


def _measured(
    trained: Trained, asked: Asked, tokens: Stage, reasoned: Stage | None, recipe: Recipe
) -> tuple[list[Row], _Exact, NDArray[np.int64]]:
    """Results by the beam, by exact scoring, and which of the users [S] the latter is about."""
    model = load_model(trained.stage.folder, tokens)
    name, labels, seed = trained.variant, trained.labels, recipe.training(trained.variant).seed
    reads = model.adapter is not None
    assert reasoned is not None or not reads
    reasoning = load_reasoning(reasoned.folder, "test") if reasoned is not None and reads else None
    history = History.of(asked, recipe.model.length, reasoning)
    rows: list[Row] = []
    served = _Kept(ByBeam(model, history, recipe, reads, name))
    rows += measure(served, asked, model=name, labels=labels, reasoning=reads, seed=seed)
    if reads:
        withheld = ByBeam(model, history, recipe, False, name)  # noqa: FBT003 - a field of a dataclass
        rows += measure(withheld, asked, model=name, labels=labels, seed=seed)
    assert served.masked is not None
    sample = drawn(len(asked.users), recipe.evaluate.exact_users, seed=2)
    exact = score_exact(model, history.take(sample), TOP, use_reasoning=reads, progress=f"{name} exact")
    rank = ranks(exact, asked.targets[sample])
    row = Row(name, labels, "masked", reads, "exact", seed, rank)
    beam = served.masked[sample]
    if model.searched(recipe.search).rerank:  # exact is what decodes best
        searched = recipe.search.model_copy(update={"rerank": 0.0})
        plain = ByBeam(model, history.take(sample), recipe.model_copy(update={"search": searched}), reads, name)
        beam = plain.rank(asked.take(sample), masked=True)
    told = {
        "model": name,
        "labels": labels,
        "users": len(sample),
        "beam_equals_exact": round(float((beam == exact).all(1).mean()), 4),
        "beam_recall@10_same_users": summary(ranks(beam, asked.targets[sample]))["recall@10"],
        "exact_recall@10": summary(rank)["recall@10"],
    }
    return rows, _Exact(row, told), sample
