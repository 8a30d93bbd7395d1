"""One way to measure every model: it ranks the whole catalogue for the users of a split.

What counts is where the item is that came next.

A model comes in as a `Ranker`: by scores of all items, by a list that something else has made, or by a search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from offline.errors import DataError
from offline.groups import Groups
from offline.metrics import ranks, summary
from offline.prepare import Dataset

TOP = 10
_BATCH = 512  # users whose scores of all items are held at a time, at most
_CELLS = 16_000_000  # scores that are

# Every row of a report says under which of them it was measured.
SWITCHES = ("model", "labels", "history", "reasoning", "scoring", "seed")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a split asks: users, what is known of them, and the item that came next."""

    users: NDArray[np.int64]  # [U], rows of the data set
    histories: list[NDArray[np.int32]]  # oldest first
    targets: NDArray[np.int64]  # [U]

    @classmethod
    def of(cls, dataset: Dataset, split: str, users: NDArray[np.int64]) -> Self:
        """The questions of `train`, `valid` or `test` about some users."""
        histories = [dataset.history(int(user), split) for user in users]
        return cls(users, histories, np.array([dataset.target(int(user), split) for user in users], np.int64))

    def take(self, rows: NDArray[np.int64]) -> Asked:
        """The same of some of the users."""
        return Asked(self.users[rows], [self.histories[row] for row in rows], self.targets[rows])


def drawn(count: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """`wanted` of the rows 0 to count - 1, by lot and ascending; all of them for 0, or where there are no more."""
    if 0 < wanted < count:
        return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))
    return np.arange(count)


class Ranker(Protocol):
    """Puts the catalogue in order for users."""

    @property
    def scoring(self) -> str:
        """How it finds the first ones: `full` looks at every item."""

    def rank(self, asked: Asked, *, masked: bool) -> NDArray[np.int64]:
        """The first TOP items best first, int64 [U, TOP]; with `masked` none that the user has had. 0 fills up."""


@dataclass(frozen=True, slots=True)
class ByScores:
    """Whatever gives every item a score: histories -> float32 [B, N+1], of which column 0 is ignored."""

    score: Callable[[Sequence[NDArray[np.int32]]], NDArray[np.float32]]
    num_items: int
    scoring: str = "full"

    def rank(self, asked: Asked, *, masked: bool) -> NDArray[np.int64]:
        """As `Ranker.rank`; of items that score alike, the one with the lower index comes first."""
        best = np.zeros((len(asked.histories), TOP), np.int64)
        together = at_once(self.num_items)
        for start in range(0, len(best), together):
            histories = asked.histories[start : start + together]
            scores = np.array(self.score(histories))
            if masked:
                mask(scores, histories)
            best[start : start + together] = first(scores, TOP)
        return best


def at_once(num_items: int) -> int:
    """Users whose scores of so many items may be held: few where the catalogue has millions."""
    return max(1, min(_BATCH, _CELLS // (num_items + 1)))


def mask(scores: NDArray[np.float32], histories: Sequence[NDArray[np.int32]]) -> None:
    """Let none of row b's scores [B, N+1] be of an item of history b."""
    for row, history in enumerate(histories):
        scores[row, history] = -np.inf


def first(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The `count` items that score best by each row of [B, N+1], best first; 0 fills up where the others score -inf.

    Of items that score alike, the one with the lower index comes first: a stable order does not flatter anyone.
    """
    best = np.zeros((len(scores), count), np.int64)
    for row, own in enumerate(scores[:, 1:]):
        # No order of the whole catalogue is needed for that, which would take ten times as long.
        worst = np.partition(own, -count)[-count] if len(own) > count else -np.inf
        items = np.flatnonzero((own >= worst) & (own > -np.inf))
        items = items[np.argsort(-own[items], kind="stable")[:count]]
        best[row, : len(items)] = items + 1
    return best


@dataclass(frozen=True, slots=True)
class ByList:
    """A list that was made elsewhere, history not masked, long enough that it can be masked now.

    `items` int [users of the data set, M] is best first; M is at least TOP + the longest history, or the lists are
    `complete`: they name every item, and can be no longer.
    """

    items: NDArray[np.int32]
    complete: bool = False
    scoring: str = "full"

    @classmethod
    def of(cls, items: NDArray[np.int32], dataset: Dataset) -> Self:
        """Lists int32 [U, M] of the data set's users."""
        return cls(items, complete=items.shape[1] == dataset.num_items)

    def rank(self, asked: Asked, *, masked: bool) -> NDArray[np.int64]:
        """As `Ranker.rank`. Raises DataError where the list is too short to be masked."""
        listed = self.items[asked.users].astype(np.int64)
        if not masked:
            return listed[:, :TOP]
        out = np.zeros((len(listed), TOP), np.int64)
        for row, history in enumerate(asked.histories):
            new = listed[row][~np.isin(listed[row], history)][:TOP]
            if len(new) < TOP and not self.complete:
                raise DataError(
                    f"the list of user {asked.users[row]} holds {len(new)} items that are new to them, "
                    f"{TOP} are needed: export longer lists"
                )
            out[row, : len(new)] = new
        return out


def depth(dataset: Dataset) -> int:
    """How long a list must be so that any history can be taken out of it and TOP items are left."""
    longest = max(len(np.unique(sequence)) for sequence in dataset.sequences)
    return min(dataset.num_items, TOP + longest)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a report: a model under its switches, and where it ranked each user's target."""

    model: str
    labels: str  # what was trained on or counted: "train" or "train+validation"
    history: str  # "masked" or "not masked"
    reasoning: bool  # H was read
    scoring: str
    seed: int | None  # None: nothing in it is random
    rank: NDArray[np.int64]  # [U], from 1; 0 beyond TOP

    def told(self, groups: Groups | None = None) -> dict[str, Any]:
        """Switches and metrics; with `groups`, those of each group as well."""
        row: dict[str, Any] = {name: getattr(self, name) for name in SWITCHES}
        row |= {"users": len(self.rank), **summary(self.rank)}
        if groups is not None:
            row["groups"] = groups.metrics(self.rank)
        return row


def measure(
    ranker: Ranker, asked: Asked, *, model: str, labels: str, reasoning: bool = False, seed: int | None = None
) -> list[Row]:
    """The model with the history masked, and not."""
    rows: list[Row] = []
    for masked in (True, False):
        rank = ranks(ranker.rank(asked, masked=masked), asked.targets)
        history = "masked" if masked else "not masked"
        rows.append(Row(model, labels, history, reasoning, ranker.scoring, seed, rank))
    return rows


def save_ranks(path: Path, rows: Sequence[Row], users: NDArray[np.int64]) -> None:
    """Write where each target was ranked, for comparisons of users by users.

    Arrays: `users` int64 [U] rows of the data set, `ranks` uint8 [R, U], and one of length R for each switch. Rows that
    were measured on fewer users are left out.
    """
    kept = [row for row in rows if len(row.rank) == len(users)]
    switches: dict[str, Any] = {name: np.array([_plain(getattr(row, name)) for row in kept]) for name in SWITCHES}
    np.savez_compressed(
        path,
        users=users,
        ranks=np.array([row.rank for row in kept], np.uint8).reshape(len(kept), len(users)),
        **switches,
    )


def load_ranks(path: Path) -> tuple[NDArray[np.int64], list[Row]]:
    """What `save_ranks` wrote: users and rows. Raises DataError if the file is something else."""
    try:
        with np.load(path) as arrays:
            users, table = arrays["users"], arrays["ranks"]
            columns = {name: arrays[name].tolist() for name in SWITCHES}
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} holds no ranks: {error}") from error
    rows: list[Row] = []
    for place, rank in enumerate(table):
        switches = {name: column[place] for name, column in columns.items()}
        switches["seed"] = None if switches["seed"] < 0 else switches["seed"]
        rows.append(Row(**switches, rank=rank.astype(np.int64)))
    return users, rows


def _plain(value: str | bool | int | None) -> str | bool | int:  # noqa: FBT001 - any switch
    return -1 if value is None else value
