from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from offline.batches import left_pad, prefix_rows, training_rows
from offline.prepare import Dataset, ItemText

lengths = st.lists(st.integers(4, 30), min_size=1, max_size=20)


def dataset(sizes: list[int]) -> Dataset:
    """Sequences in which every interaction is an item of its own, so that each can be told apart."""
    ends = np.cumsum(sizes)
    sequences = [np.arange(end - size + 1, end + 1, dtype=np.int32) for size, end in zip(sizes, ends, strict=True)]
    items = [ItemText(str(i), f"item {i}", "", {}) for i in range(1, int(ends[-1]) + 1)]
    return Dataset([f"u{i}" for i in range(len(sizes))], items, sequences)


@given(lengths, st.integers(2, 25))
def test_training_rows_pair_every_item_with_the_next_and_stop_before_validation(sizes: list[int], length: int) -> None:
    data = dataset(sizes)
    rows = training_rows(data, length)
    for user, sequence in enumerate(data.sequences):
        known = sequence[:-2]
        pairs = list(pairwise(known))[-length:]
        present = rows.inputs[user] > 0
        assert list(zip(rows.inputs[user][present], rows.targets[user][present], strict=True)) == pairs
        assert (rows.targets[user] > 0).tolist() == present.tolist()
        assert rows.lengths[user] == len(pairs)
        assert rows.targets[user, -1] == sequence[-3]
        assert not {int(sequence[-1]), int(sequence[-2])} & set(rows.targets[user].tolist())


@given(lengths, st.integers(2, 25))
def test_prefix_rows_pair_every_training_target_with_its_history(sizes: list[int], length: int) -> None:
    data = dataset(sizes)
    rows = prefix_rows(data, length)
    expected = [
        (user, known[:end].tolist()[-length:], int(known[end]), end == len(known) - 1)
        for user, known in enumerate(s[:-2] for s in data.sequences)
        for end in range(1, len(known))
    ]
    found = [
        (int(user), row[row > 0].tolist(), int(target), bool(latest))
        for user, row, target, latest in zip(rows.users, rows.inputs, rows.targets[:, -1], rows.latest, strict=True)
    ]
    assert found == expected
    assert not rows.targets[:, :-1].any()
    assert (rows.lengths == (rows.inputs > 0).sum(1)).all()
    assert rows.latest.sum() == len(sizes)


@given(lengths)
def test_a_refit_trains_on_validation_items_and_never_on_test_items(sizes: list[int]) -> None:
    data = dataset(sizes)
    rows = training_rows(data, 20, include_validation=True)
    assert rows.targets[:, -1].tolist() == [int(s[-2]) for s in data.sequences]
    tests = {int(s[-1]) for s in data.sequences}
    assert not tests & set(rows.targets.flatten().tolist())
    assert not tests & set(rows.inputs.flatten().tolist())


@given(st.lists(st.integers(4, 30), min_size=1, max_size=60), st.integers(1, 8), st.integers(0, 99))
def test_an_epoch_visits_every_user_once(sizes: list[int], batch: int, seed: int) -> None:
    rows = training_rows(dataset(sizes), 20)
    visited = [u for group in rows.batches(batch, np.random.default_rng(seed)) for u in group.tolist()]
    assert sorted(visited) == list(range(len(sizes)))
    again = [u for group in rows.batches(batch, np.random.default_rng(seed)) for u in group.tolist()]
    assert again == visited


def test_padding_keeps_the_most_recent_items() -> None:
    padded = left_pad([np.array([1, 2, 3], np.int32), np.array([], np.int32), np.array([4], np.int32)], 2)
    assert padded.tolist() == [[2, 3], [0, 0], [0, 4]]
