import tracemalloc
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from offline import cooccurrence
from offline.cooccurrence import UNIT, Neighbours, Weights, ages, flatten

Sequences = list[NDArray[np.int32]]
N = 8
sequences = st.lists(
    st.lists(st.integers(1, N), min_size=1, max_size=7).map(lambda items: np.array(items, np.int32)),
    min_size=1,
    max_size=6,
)
WEIGHTS = Weights(window=3, backward=0.5, source_power=0.5, target_power=0.25, recency=0.5)


def _counts(data: Sequence[NDArray[np.int32]], weights: Weights) -> dict[tuple[int, int], int]:
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for items in data:
        for p, early in enumerate(items.tolist()):
            for q in range(p + 1, min(p + weights.window, len(items) - 1) + 1):
                late = int(items[q])
                if early != late:
                    counts[early, late] += round(UNIT / (q - p))
                    counts[late, early] += round(UNIT * weights.backward / (q - p))
    return counts


def _score(data: Sequence[NDArray[np.int32]], history: NDArray[np.int32], weights: Weights) -> NDArray[np.float64]:
    counts, frequency = _counts(data, weights), np.bincount(np.concatenate([[0], *data]), minlength=N + 1)
    scores = np.zeros(N + 1)
    for age, item in enumerate(reversed(history.tolist())):
        for other in range(1, N + 1):
            value = counts.get((item, other), 0) / UNIT * weights.recency**age
            value /= max(frequency[item], 1) ** weights.source_power
            scores[other] += value / max(frequency[other], 1) ** weights.target_power
    return scores


@given(sequences)
def test_counts_match_a_count_by_hand(data: Sequences) -> None:
    counts = Neighbours.fit(data, N, WEIGHTS).counts.toarray()
    expected = np.zeros((N + 1, N + 1), np.int64)
    for (i, j), value in _counts(data, WEIGHTS).items():
        expected[i, j] = value
    np.testing.assert_array_equal(counts, expected)


@given(sequences, st.integers(1, 9))
def test_counts_do_not_depend_on_how_many_are_counted_together(data: Sequences, together: int) -> None:
    whole = Neighbours.fit(data, N, WEIGHTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "_TOGETHER", together)
        parts = Neighbours.fit(iter(data), N, WEIGHTS)
    assert parts.counts.has_sorted_indices
    for one, other in ((parts.counts.indptr, whole.counts.indptr), (parts.counts.indices, whole.counts.indices)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(parts.counts.data, whole.counts.data)
    np.testing.assert_array_equal(parts.frequency, whole.frequency)


@given(sequences, st.integers(1, 40), st.booleans())
def test_scores_do_not_depend_on_how_many_are_looked_up_together(data: Sequences, pairs: int, leave: bool) -> None:
    known = Neighbours.fit(data, N, WEIGHTS)
    own = data if leave else None
    whole = known.score_sparse(data, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "_PAIRS", pairs)
        parts = known.score_sparse(data, own)
    assert (parts.shape, parts.dtype, parts.has_sorted_indices) == (whole.shape, whole.dtype, True)
    for one, other in ((parts.indptr, whole.indptr), (parts.indices, whole.indices), (parts.data, whole.data)):
        np.testing.assert_array_equal(one, other)


def test_memory_goes_with_the_pairs_and_not_with_the_users() -> None:
    def peak(users: int) -> int:
        random = np.random.default_rng(0)
        tracemalloc.start()
        Neighbours.fit((random.integers(1, 51, 8).astype(np.int32) for _ in range(users)), 50)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(64_000) < peak(8_000) * 1.1


@given(sequences, st.data())
def test_scores_with_a_user_left_out_are_those_of_counts_made_without_him(data: Sequences, draw: st.DataObject) -> None:
    users = draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=4))
    histories = [data[user][: draw.draw(st.integers(0, len(data[user])))] for user in users]
    left_out = Neighbours.fit(data, N, WEIGHTS).score(histories, [data[user] for user in users])
    assert left_out.shape == (len(users), N + 1)
    assert left_out.dtype == np.float32
    for row, user in enumerate(users):
        others = data[:user] + data[user + 1 :]
        np.testing.assert_array_equal(left_out[row], Neighbours.fit(others, N, WEIGHTS).score([histories[row]])[0])
        np.testing.assert_allclose(left_out[row], _score(others, histories[row], WEIGHTS), rtol=1e-5)


@given(sequences)
def test_scores_with_nothing_left_out_match_a_sum_by_hand(data: Sequences) -> None:
    scores = Neighbours.fit(data, N, WEIGHTS).score(data)
    for row, history in enumerate(data):
        np.testing.assert_allclose(scores[row], _score(data, history, WEIGHTS), rtol=1e-5)


def test_what_comes_next_counts_more_than_what_came_before_and_the_near_more_than_the_far() -> None:
    neighbours = Neighbours.fit([np.array([1, 2, 3], np.int32)], 3)
    scores = neighbours.score([np.array([2], np.int32), np.array([1], np.int32)])
    assert scores[0, 3] > scores[0, 1] > 0
    assert scores[1, 2] > scores[1, 3] > 0


def test_the_only_buyer_of_an_item_leaves_no_trace_when_left_out() -> None:
    data = [np.array([1, 2, 3], np.int32), np.array([1, 4], np.int32)]
    kept = Neighbours.fit(data, 4).score_sparse([data[0][:2]], [data[0]])
    assert kept.indices.tolist() == [4]  # not even a stored zero for item 3


@pytest.mark.parametrize("histories", [[], [np.zeros(0, np.int32)]])
def test_no_history_scores_nothing(histories: Sequences) -> None:
    scores = Neighbours.fit([np.array([1, 2], np.int32)], 2).score(histories, histories)
    assert scores.shape == (len(histories), 3)
    assert not scores.any()


def test_sequences_of_one_item_have_no_pairs() -> None:
    neighbours = Neighbours.fit([np.array([1], np.int32), np.array([1], np.int32)], 2)
    assert neighbours.counts.nnz == 0
    assert neighbours.frequency.tolist() == [0, 2, 0]


@given(sequences)
def test_the_others_sales_are_all_sales_without_one_s_own(data: Sequences) -> None:
    everyone = Neighbours.fit(data, N)
    for user, sold in enumerate(everyone.sold(data)):
        others = Neighbours.fit([items for other, items in enumerate(data) if other != user], N)
        assert sold.tolist() == others.frequency.tolist()


def test_the_latest_item_of_each_sequence_has_the_age_of_0() -> None:
    some = [np.array(items, np.int32) for items in ([5, 5, 2], [], [1], [], [3, 4], [])]
    assert ages(flatten(some)[1]).tolist() == [2, 1, 0, 0, 1, 0]
    assert ages(flatten([])[1]).tolist() == []
