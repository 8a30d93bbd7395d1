"""What untrained recommenders find for the same users: the scale that a template's Recall@20 is read on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offline.cooccurrence import Neighbours
from offline.discover.evidence import CUTOFF, Applied
from offline.discover.panels import SPLIT
from offline.metrics import ranks
from offline.prepare import Dataset
from offline.ranking import at_once, first, mask


def untrained(dataset: Dataset, users: Sequence[int]) -> list[Applied]:
    """Co-occurrence kNN and popular items, both counted on the training parts of other users."""
    training = dataset.trainings()
    neighbours = Neighbours.fit(training, dataset.num_items)
    knn: list[NDArray[np.int64]] = []
    popular: list[NDArray[np.int64]] = []
    together = at_once(dataset.num_items)
    for start in range(0, len(users), together):
        part = users[start : start + together]
        histories, own = [dataset.history(user, SPLIT) for user in part], [training[user] for user in part]
        targets = np.array([dataset.target(user, SPLIT) for user in part])
        knn.append(_ranks(neighbours.score(histories, own), histories, targets))
        popular.append(_ranks(neighbours.sold(own).astype(np.float32), histories, targets))
    found = {"co-occurrence kNN": np.concatenate(knn, 1), "popular items": np.concatenate(popular, 1)}
    return [Applied(name, (), plain, masked) for name, (plain, masked) in found.items()]


def _ranks(
    scores: NDArray[np.float32], histories: Sequence[NDArray[np.int32]], targets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Ranks of the targets [2, users]: among all items that anything speaks for, and past those of the history."""
    scores[scores <= 0] = -np.inf
    plain = ranks(first(scores, CUTOFF), targets)
    mask(scores, histories)
    return np.stack([plain, ranks(first(scores, CUTOFF), targets)])
