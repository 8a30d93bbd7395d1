"""Which rows stand on the same training of a backbone: such rows are compared user by user, others are samples.

A recipe and a seed give the same weights on one kind of machine. On another, or with semantic IDs that another version
made, they are another draw. Nobody has to say so: the backbone that was measured beside a model tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offline.results.runs import Run
from offline.results.settings import BACKBONE, setting

Drawn = tuple[int, int]  # a seed, and which training with it, in the order of the runs
_FIGURES = ("labels", "history", "recall@5", "ndcg@5", "recall@10", "ndcg@10")


class Draws:
    """Trainings that were met so far."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], list[tuple[Any, ...]]] = {}

    def of(self, run: Run, rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> Drawn | None:
        """What one of a run's rows was drawn with; None where nothing in it is random.

        Its backbone's first figures in `rows` tell one training from another; without any, its own.
        """
        seed = _seed(run, row)
        if seed is None:
            return None
        backbone = BACKBONE.get(row["model"], row["model"])
        beside = next((other for other in rows if other["model"] == backbone), row)
        key = (run.dataset, setting(run.recipe, beside).key, seed)
        known, figures = self._known.setdefault(key, []), tuple(beside[name] for name in _FIGURES)
        if figures not in known:
            known.append(figures)
        return seed, known.index(figures)


def _seed(run: Run, row: dict[str, Any]) -> int | None:
    """What the row was trained with; reports of version 0.1.0 leave it to the recipe."""
    if row["model"] not in BACKBONE or "seed" in row:
        seed = row.get("seed")
    else:
        section = run.recipe["tiger" if BACKBONE[row["model"]] == "tiger" else "train"]
        seed = section["train"]["seed"] if "train" in section else section["seed"]
    return None if seed is None else int(seed)
