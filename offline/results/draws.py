"""Which rows stand on the same training of a backbone: such rows are compared user by user, others are samples.

A recipe and a seed give the same weights on one kind of machine. On another, whose embeddings of texts give other
semantic IDs, or with the IDs of another version, they are another draw; so is another backbone, whatever its seed.
Nobody has to say so: the backbone that stands beside a model tells, by how it was made, by the losses of its training,
and by its figures, which a later version's search may have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offline.results.runs import Run
from offline.results.settings import BACKBONE, setting

Drawn = tuple[int, int, int]  # a seed, which training with it, and which measurement of that, in the order of the runs
_FIGURES = ("labels", "history", "recall@5", "ndcg@5", "recall@10", "ndcg@10")


class Draws:
    """Trainings that were met so far."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}

    def of(self, run: Run, rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> Drawn | None:
        """What one of a run's rows was drawn with; None where nothing in it is random.

        Its backbone's losses and its first figures in `rows` tell; without a backbone there, its own.
        """
        seed = _seed(run, row)
        if seed is None:
            return None
        backbone = BACKBONE.get(row["model"], row["model"])
        beside = next((other for other in rows if other["model"] == backbone), row)
        made = setting(run.recipe, beside).key  # another backbone is another training, whatever the seed
        key = (run.dataset, seed)
        figures = tuple(beside[name] for name in _FIGURES)
        losses = tuple(epoch["loss"] for epoch in run.curves.get(f"train-{beside['model']}", []))
        training = self._place(key, (made, *(losses or figures)))
        return seed, training, self._place((*key, training), figures)

    def _place(self, key: tuple[Any, ...], what: tuple[Any, ...]) -> int:
        """Which it is of those with that key, from 0."""
        known = self._known.setdefault(key, [])
        if what not in known:
            known.append(what)
        return known.index(what)


def _seed(run: Run, row: dict[str, Any]) -> int | None:
    """What the row was trained with; reports of version 0.1.0 leave it to the recipe."""
    if row["model"] not in BACKBONE or "seed" in row:
        seed = row.get("seed")
    else:
        section = run.recipe["tiger" if BACKBONE[row["model"]] == "tiger" else "train"]
        seed = section["train"]["seed"] if "train" in section else section["seed"]
    return None if seed is None else int(seed)
