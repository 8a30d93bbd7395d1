"""Users by the length of their history and targets by popularity, in four groups (Figures 4 and 8).

Group 0 is the sparsest. Those with the same length or popularity are in the same group, so groups are as equal in size
as that permits; users are counted for the first, items of the catalogue for the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from offline.metrics import ndcg, recall
from offline.prepare import Dataset

GROUPS = 4
K = 10


@dataclass(frozen=True, slots=True)
class Groups:
    """Which group each user, and each user's target, is in."""

    users: NDArray[np.int64]  # [U]
    items: NDArray[np.int64]  # [U], of the target
    user_bounds: list[tuple[int, int]]  # shortest and longest history of each group
    item_bounds: list[tuple[int, int]]  # fewest and most training interactions of each group's items

    @classmethod
    def of(cls, dataset: Dataset, histories: Sequence[NDArray[np.int32]], targets: NDArray[np.int64]) -> Self:
        """Groups of users with those histories and targets; popularity is counted over the training parts."""
        lengths = np.array([len(history) for history in histories])
        training = np.concatenate(dataset.trainings())
        popularity = np.bincount(training, minlength=dataset.num_items + 1)
        user_bounds, item_bounds = quartiles(lengths), quartiles(popularity[1:])
        return cls(_placed(lengths, user_bounds), _placed(popularity[targets], item_bounds), user_bounds, item_bounds)

    def metrics(self, rank: NDArray[np.int64]) -> dict[str, dict[str, list[float]]]:
        """Recall and NDCG at 10 of each group."""
        return {
            name: {
                f"{metric.__name__}@{K}": [
                    round(metric(rank[member == group], K), 5) if (member == group).any() else 0.0
                    for group in range(len(bounds))
                ]
                for metric in (recall, ndcg)
            }
            for name, member, bounds in self._both()
        }

    def told(self) -> dict[str, list[dict[str, Any]]]:
        """The bounds, and how many users were tested in each group."""
        return {
            name: [
                {"group": group, "from": low, "to": high, "users": int((member == group).sum())}
                for group, (low, high) in enumerate(bounds)
            ]
            for name, member, bounds in self._both()
        }

    def _both(self) -> list[tuple[str, NDArray[np.int64], list[tuple[int, int]]]]:
        return [("users", self.users, self.user_bounds), ("items", self.items, self.item_bounds)]


def quartiles(values: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Smallest and largest value of each of four groups; fewer, where there are fewer different values."""
    different, counts = np.unique(values, return_counts=True)
    share = np.cumsum(counts) / len(values)
    groups = min(GROUPS, len(different))
    cuts: list[int] = []  # the place of each group's largest value
    for group in range(1, groups):
        first, last = (cuts[-1] + 1 if cuts else 0), len(different) - 1 - (groups - group)
        choices = np.arange(first, last + 1)
        cuts.append(int(choices[np.argmin(np.abs(share[choices] - group / groups))]))
    starts, ends = [0, *(cut + 1 for cut in cuts)], [*cuts, len(different) - 1]
    return [(int(different[start]), int(different[end])) for start, end in zip(starts, ends, strict=True)]


def _placed(values: NDArray[np.integer], bounds: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    return np.searchsorted([high for _, high in bounds[:-1]], values).astype(np.int64)
