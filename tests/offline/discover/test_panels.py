from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.discover.panels import draw, shopper
from offline.errors import StageError
from offline.prepare import Dataset, load_dataset
from tests.offline.discover.scripted import make_data


@given(st.integers(3, 200), st.integers(1, 300), st.integers(1, 300))
def test_panels_share_no_user_and_none_is_empty(users: int, explore: int, others: int) -> None:
    found = draw(users, explore, others, others, seed=7)
    everyone = [*found.explore, *found.choose, *found.judge]
    assert len(set(everyone)) == len(everyone) <= users
    assert set(everyone) <= set(range(users))
    assert min(len(found.explore), len(found.choose), len(found.judge)) >= 1
    if explore + 2 * others <= users:
        assert (len(found.explore), len(found.choose), len(found.judge)) == (explore, others, others)
    else:
        assert len(everyone) == users


def test_two_users_are_too_few() -> None:
    with pytest.raises(StageError, match="at least 3"):
        draw(2, 1, 1, 1, 7)


def test_nothing_of_a_shopper_depends_on_validation_and_test_items(tmp_path: Path) -> None:
    dataset = load_dataset(make_data(tmp_path)[0].folder)
    changed = [np.concatenate([sequence[:-2], [1, 2]]).astype(np.int32) for sequence in dataset.sequences]
    other = Dataset(dataset.users, dataset.items, changed)
    for user in range(len(dataset.users)):
        found = shopper(dataset, user, 3)
        assert found == shopper(other, user, 3)
        assert found.target == dataset.sequences[user][-3]
        assert found.history == tuple(dataset.sequences[user][:-3][-3:])
        assert found.seen == set(dataset.sequences[user][:-3])
        assert found.own == tuple(dataset.sequences[user][:-2])
