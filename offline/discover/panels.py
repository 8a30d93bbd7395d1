"""Which users are asked about what.

Three panels without a user in common, drawn by lot: one whose answers paths are found in, one that chooses among the
best paths, and one that judges the templates, the mined one among them. Whoever chose does not judge: the best of many
paths on a panel is flattered by that panel.

Of every user only the training split is read: the history up to t-3, and the target t-2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offline.errors import StageError
from offline.prepare import Dataset

SPLIT = "train"


@dataclass(frozen=True, slots=True)
class Panels:
    """Rows of the data set's users."""

    explore: list[int]
    choose: list[int]
    judge: list[int]


@dataclass(frozen=True, slots=True)
class Shopper:
    """What may be known of a user."""

    history: tuple[int, ...]  # item indices, oldest first, as far as a prompt shows it
    seen: frozenset[int]  # all of it
    own: tuple[int, ...]  # all training items, to be left out of statistics
    target: int


def draw(users: int, explore: int, choose: int, judge: int, seed: int) -> Panels:
    """Panels of these sizes; where there are fewer users, each panel is smaller by the same share.

    Raises StageError when there are fewer than three.
    """
    wanted = (explore, choose, judge)
    if users < len(wanted):
        raise StageError(f"discover compares users with others, and there are {users}: bring at least 3")
    if sum(wanted) > users:
        first, second = (max(1, size * users // sum(wanted)) for size in wanted[:2])
        first = min(first, users - 2)
        second = min(second, users - 1 - first)
        wanted = (first, second, users - first - second)
    order: list[int] = np.random.default_rng(seed).permutation(users)[: sum(wanted)].tolist()
    first, second, _ = wanted
    return Panels(order[:first], order[first : first + second], order[first + second :])


def shopper(dataset: Dataset, user: int, length: int) -> Shopper:
    """A user of a panel, of whom prompts show the latest `length` items."""
    history: list[int] = dataset.history(user, SPLIT).tolist()
    own: list[int] = dataset.training(user).tolist()
    return Shopper(tuple(history[-length:]), frozenset(history), tuple(own), dataset.target(user, SPLIT))
