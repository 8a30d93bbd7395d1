"""Stage `measure-untrained`: popularity and the co-occurrence kNN, which stand beside every model and learn nothing.

Output: ranks.npz, under every switch (`offline.ranking.load_ranks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline.cooccurrence import Neighbours
from offline.measure import chosen
from offline.prepare import Dataset, load_dataset
from offline.ranking import Asked, ByScores, Row, load_ranks, measure, save_ranks
from offline.recipe import Recipe
from offline.stage import Stage, run_stage

VERSION = 2


def measure_untrained(work: Path, prepared: Stage, recipe: Recipe) -> Stage:
    """Run the stage for the users that the recipe tests."""

    def build(folder: Path) -> None:
        dataset = load_dataset(prepared.folder)
        asked = Asked.of(dataset, "test", chosen(dataset, recipe.evaluate.users))
        save_ranks(folder / "ranks.npz", _measured(dataset, asked), asked.users)

    return run_stage(work, "measure-untrained", VERSION, {"users": recipe.evaluate.users}, [prepared], build)


def load_untrained(folder: Path) -> list[Row]:
    """Its results."""
    return load_ranks(folder / "ranks.npz")[1]


def _measured(dataset: Dataset, asked: Asked) -> list[Row]:
    rows: list[Row] = []
    items = dataset.num_items
    for labels in ("train", "train+validation"):
        neighbours = Neighbours.fit(dataset.trainings(include_validation=labels != "train"), items)
        rows += measure(ByScores(_popular(neighbours), items), asked, model="popularity", labels=labels)
        rows += measure(ByScores(neighbours.score, items), asked, model="knn", labels=labels)
    return rows


def _popular(neighbours: Neighbours) -> Callable[[Sequence[NDArray[np.int32]]], NDArray[np.float32]]:
    """Scores that are the same for every user."""
    frequency = neighbours.frequency.astype(np.float32)
    return lambda histories: np.tile(frequency, (len(histories), 1))
