"""Lines of a table: the same model under the same switches, over all trainings of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.metrics import CUTOFFS, gains, hits, ndcg, recall
from offline.ranking import TOP
from offline.results.draws import Drawn, Draws
from offline.results.runs import Run
from offline.results.settings import BACKBONE, ORDER, Setting, Way, setting
from offline.results.ways import Ways
from offline.significance import Difference, Spread, difference, spread

# The switches that a single figure is quoted under.
LABELS, HISTORY = "train", "masked"
RUNS = 3  # that a headline wants
SWITCHES = [
    ("train", "masked"),
    ("train", "not masked"),
    ("train+validation", "masked"),
    ("train+validation", "not masked"),
]


@dataclass(frozen=True, slots=True)
class Line:
    """Rows that differ in nothing but the draw, in the order of the runs."""

    dataset: str
    setting: Setting
    labels: str
    history: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    draws: list[Drawn | None] = field(default_factory=list)  # of each row; None: nothing in it is random
    names: set[str] = field(default_factory=set)  # of all runs that have such a row

    @property
    def trainings(self) -> int:
        """How many runs a table says it is the mean of."""
        return trainings(self.draws)

    @property
    def ids(self) -> list[str]:
        """The sets of semantic IDs that these runs stand on, in their order, of those that kept theirs."""
        return list(dict.fromkeys(run.ids for run in self.runs if run.ids))

    def over_trainings(self, metric: str) -> Spread:
        """Of `recall@5`, `ndcg@5`, `recall@10` or `ndcg@10`; what was measured twice counts once."""
        found: dict[tuple[int, ...] | None, list[float]] = {}
        for row, draw in zip(self.rows, self.draws, strict=True):
            found.setdefault(draw and draw[:2], []).append(row[metric])
        return spread([float(np.mean(values)) for values in found.values()])

    def mean(self, metric: str) -> float:
        """Over trainings."""
        return self.over_trainings(metric).mean

    def among(self, draws: Sequence[Drawn | None]) -> Line:
        """The same over those draws alone; as it is where there are none."""
        if not draws:
            return self
        kept = [place for place, draw in enumerate(self.draws) if draw in draws]
        rows, runs = [self.rows[place] for place in kept], [self.runs[place] for place in kept]
        return replace(self, rows=rows, runs=runs, draws=[self.draws[place] for place in kept])

    def group(self, name: str, metric: str, draws: Sequence[Drawn | None]) -> NDArray[np.float64] | None:
        """Mean over draws of the metric in each group of `users` or `items`, float64 [groups], if runs have it."""
        rows = [row for row, draw in zip(self.rows, self.draws, strict=True) if draw in draws]
        found = [row["groups"][name][metric] for row in rows if "groups" in row]
        return np.mean(found, axis=0) if found else None

    def ranks(self) -> dict[Drawn | None, NDArray[np.int64]]:
        """Where each user's target was ranked, by draw, of the runs that kept that."""
        found: dict[Drawn | None, NDArray[np.int64]] = {}
        for row, run, draw in zip(self.rows, self.runs, self.draws, strict=True):
            rank = _rank(run, row)
            if rank is not None:
                found[draw] = rank
        return found


class Lines:
    """All lines of all runs: of each data set those of the most users, as a sample of them has other figures."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._lines: dict[tuple[str, ...], Line] = {}
        measured = [(run, _by_all(run)) for run in runs if run.stage in {"evaluate", "baselines"}]
        most: dict[str, int] = {}
        for run, rows in measured:
            most[run.dataset] = max([most.get(run.dataset, 0), *(row["users"] for row in rows)])
        # Names of runs that were measured on fewer users than others of their data set: in no line.
        self.sampled: set[str] = set()
        draws = Draws()
        for run, rows in measured:
            if any(row["users"] < most[run.dataset] for row in rows):
                self.sampled.add(run.name)
                continue
            for row in rows:
                how = setting(run.recipe, row)
                key = (run.dataset, how.key, row["labels"], row["history"])
                line = self._lines.setdefault(key, Line(run.dataset, how, row["labels"], row["history"]))
                line.names.add(run.name)
                draw = draws.of(run, rows, row)
                if draw not in line.draws:  # a backbone is measured again beside each of its variants
                    line.draws.append(draw)
                    line.rows.append(_unrounded(run, row))
                    line.runs.append(run)
        self.ways = Ways([line.setting for line in self])

    def name(self, line: Line) -> str:
        """As a table calls it."""
        return self.ways.name(line.setting)

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def datasets(self) -> list[str]:
        """Names, in the order of the runs."""
        return list(dict.fromkeys(line.dataset for line in self))

    def of(self, dataset: str, labels: str = LABELS, history: str = HISTORY) -> list[Line]:
        """Lines of a data set under those switches, in the order of Table 1."""
        found = [line for line in self if (line.dataset, line.labels, line.history) == (dataset, labels, history)]
        return sorted(found, key=lambda line: (ORDER.index(line.setting.model), line.setting.what != "full"))

    def ids(self, way: Way) -> str:
        """The semantic IDs of models that were made so, by data set: `beauty 414 (.2048)`."""
        found: dict[str, dict[str, None]] = {}
        for line in self:
            if line.setting.way == way:
                found.setdefault(line.dataset, {}).update(dict.fromkeys(line.ids))
        return "; ".join(f"{dataset} {' and '.join(ids)}" for dataset, ids in found.items() if ids)

    def same(self, line: Line, labels: str, history: str) -> Line | None:
        """The same model under other switches."""
        return self._lines.get((line.dataset, line.setting.key, labels, history))

    def full(self, dataset: str, model: str, labels: str = LABELS, history: str = HISTORY) -> list[Line]:
        """A model as it is, with nothing taken away; several where chains differ."""
        return self.having(dataset, model, "full", labels, history)

    def having(self, dataset: str, model: str, what: str, labels: str = LABELS, history: str = HISTORY) -> list[Line]:
        """A model with that taken away."""
        return [
            line
            for line in self.of(dataset, labels, history)
            if line.setting.model == model and line.setting.what == what
        ]

    def backbone(self, line: Line) -> Line | None:
        """The backbone alone, under the same switches and from the same runs.

        Of a backbone that was changed, which is measured by itself: the one of the same recipe otherwise.
        """
        found = self.full(line.dataset, BACKBONE[line.setting.model], line.labels, line.history)
        beside = next((other for other in found if line.names & other.names), None)
        return beside or next((other for other in found if other.setting.base == line.setting.base), None)


def _by_all(run: Run) -> list[dict[str, Any]]:
    """Rows that may be read, but for exact scoring, which is of some of the users that the run asks about."""
    return [row for row in run.results() if row["scoring"] != "exact"]


def _rank(run: Run, row: dict[str, Any]) -> NDArray[np.int64] | None:
    """Where each user's target was ranked [U], if the run kept it."""
    switches = {key: row[key] for key in ("model", "labels", "history", "reasoning", "scoring")}
    return next(
        (kept.rank for kept in run.ranks if all(getattr(kept, key) == value for key, value in switches.items())), None
    )


def _unrounded(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """The row with its metrics from the ranks, if they were kept: reports round, and what is rounded twice is off."""
    rank = _rank(run, row)
    if rank is None:
        return row
    return row | {f"{name}@{k}": of(rank, k) for k in CUTOFFS for name, of in (("recall", recall), ("ndcg", ndcg))}


def trainings(draws: Iterable[Drawn | None]) -> int:
    """How many these are; what was measured twice counts once."""
    return len({draw and draw[:2] for draw in draws})


def repeated(found: list[Line]) -> list[Line]:
    """Lines of enough draws for a headline, or all where none has: a single lucky one is no result."""
    return [line for line in found if line.trainings >= RUNS] or found


def shared(lines: Iterable[Line]) -> list[Drawn]:
    """Draws that all of them have: what more than two are told apart on. None at all where a line lacks every one."""
    every = [line.draws for line in lines]
    return [draw for draw in every[0] if draw is not None and all(draw in draws for draws in every)]


def common(first: Line, second: Line) -> list[Drawn | None]:
    """The draws that both have."""
    return [draw for draw in first.draws if draw in second.draws]


def ranked(first: Line, second: Line) -> list[Drawn | None]:
    """Those of them of which both kept ranks: what `compare` is about."""
    ours, theirs = first.ranks(), second.ranks()
    return [draw for draw in ours if draw in theirs]


def paired(first: Line, second: Line, metric: str = f"recall@{TOP}") -> tuple[float, float]:
    """Means of both over the draws that they share; over all of their own where they share none."""
    both = common(first, second)
    if not both:
        return first.mean(metric), second.mean(metric)
    ours, theirs = (
        float(np.mean([line.rows[line.draws.index(draw)][metric] for draw in both])) for line in (first, second)
    )
    return ours, theirs


def gain(first: Line, second: Line, metric: str = f"recall@{TOP}") -> float:
    """Of the first over the second, relative, with the same draws paired; 0 where the second is 0."""
    ours, theirs = paired(first, second, metric)
    return ours / theirs - 1 if theirs else 0.0


def compare(first: Line, second: Line, metric: str = f"recall@{TOP}") -> Difference | None:
    """First against second over the same users, with the same draws paired; None where runs kept no ranks."""
    of_user = hits if metric.startswith("recall") else gains
    ours, theirs = first.ranks(), second.ranks()
    draws = [draw for draw in ours if draw in theirs]
    if not draws:
        return None
    both = [np.stack([ranks[draw] for draw in draws]) for ranks in (ours, theirs)]
    if both[0].shape != both[1].shape:
        return None
    return difference(of_user(both[0], TOP), of_user(both[1], TOP))
