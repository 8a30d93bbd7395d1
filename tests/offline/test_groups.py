from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.groups import Groups, quartiles
from offline.prepare import Dataset, ItemText


def test_groups_are_as_equal_as_ties_permit() -> None:
    assert quartiles(np.arange(1, 9)) == [(1, 2), (3, 4), (5, 6), (7, 8)]
    # Half of all are alike: they stay together, and the rest is split among the other groups.
    assert quartiles(np.array([4, 4, 4, 4, 5, 6, 7, 8])) == [(4, 4), (5, 5), (6, 6), (7, 8)]
    assert quartiles(np.array([3, 3, 9])) == [(3, 3), (9, 9)]
    assert quartiles(np.array([5, 5])) == [(5, 5)]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_every_value_is_in_one_group(values: list[int]) -> None:
    bounds = quartiles(np.array(values))
    assert len(bounds) == min(4, len(set(values)))
    assert [sum(low <= value <= high for low, high in bounds) for value in values] == [1] * len(values)
    assert bounds == sorted(bounds)
    assert {value for pair in bounds for value in pair} <= set(values)


def dataset() -> Dataset:
    """Item i is in the training part of i users; validation and test items count for nothing."""
    users = 8
    training = [[item for item in range(1, users + 1) if user < item] for user in range(users)]
    sequences = [np.array([*items, 1, 1], np.int32) for items in training]
    items = [ItemText(f"i{i}", "", "", {}) for i in range(1, users + 1)]
    return Dataset([f"u{u}" for u in range(users)], items, sequences)


def test_targets_are_grouped_by_what_was_trained_on_alone() -> None:
    made = dataset()
    histories = [np.ones(length, np.int32) for length in (1, 2, 3, 4)]
    groups = Groups.of(made, histories, np.array([1, 3, 8, 5]))
    assert groups.user_bounds == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert groups.item_bounds == [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert groups.items.tolist() == [0, 1, 3, 2]
    told = groups.told()
    assert [one["users"] for one in told["items"]] == [1, 1, 1, 1]
    assert told["users"][3] == {"group": 3, "from": 4, "to": 4, "users": 1}


def test_the_groups_together_are_everyone() -> None:
    histories = [np.ones(length, np.int32) for length in (1, 1, 2, 3, 4, 4)]
    groups = Groups.of(dataset(), histories, np.array([1, 3, 8, 5, 6, 7]))
    rank = np.array([1, 0, 2, 10, 0, 3])
    found = groups.metrics(rank)
    for name in ("users", "items"):
        sizes = [one["users"] for one in groups.told()[name]]
        assert np.dot(found[name]["recall@10"], sizes) / 6 == pytest.approx(4 / 6, abs=1e-4)
    assert found["users"]["ndcg@10"][0] == pytest.approx(0.5)
