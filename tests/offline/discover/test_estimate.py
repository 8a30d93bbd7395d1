from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from offline.discover.estimate import mean_difference, paired, posterior, wilson


@given(st.integers(1, 500), st.data())
def test_a_share_of_users_lies_in_its_interval(n: int, data: st.DataObject) -> None:
    found = wilson(data.draw(st.integers(0, n)), n)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_nothing_seen_is_nothing_known() -> None:
    found = wilson(0, 0)
    assert (found.low, found.high) == (0, 1)


@given(st.floats(0, 1), st.floats(0, 1000))
def test_a_share_lies_in_its_interval(value: float, weight: float) -> None:
    found = posterior(value, weight)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_more_answers_leave_less_open() -> None:
    few, many = posterior(0.1, 20), posterior(0.1, 2000)
    assert few.low < many.low < 0.1 < many.high < few.high
    assert posterior(0.0, 10).high == wilson(0, 10).high > 0


def test_a_difference_is_told_by_the_users_that_differ() -> None:
    a, b = np.zeros(400, np.bool_), np.zeros(400, np.bool_)
    a[:30], b[20:30] = True, True
    found = paired(a, b)
    assert found.value == pytest.approx(0.05)
    # Bonett and Price: 21 / 402 - 1 / 402 ± 1.96 sqrt((22 / 402 - (20 / 402)²) / 402)
    assert (found.low, found.high) == pytest.approx((0.027406, 0.072096), abs=1e-5)
    assert found.p == pytest.approx(stats.binomtest(20, 20).pvalue)
    back = paired(b, a)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_an_interval_of_a_difference_ends_where_differences_do() -> None:
    one, other = np.array([True]), np.array([False])
    assert paired(one, other).high == 1
    assert paired(other, one).low == -1
    assert (paired(one[:0], one[:0]).low, paired(one[:0], one[:0]).high) == (-1, 1)


def test_no_difference_and_no_users_are_no_evidence() -> None:
    same = np.array([True, False, True])
    assert paired(same, same).p == 1
    assert paired(same[:0], same[:0]).users == 0
    assert mean_difference(np.zeros(0), np.zeros(0)).p == 1
    assert mean_difference(np.ones(5), np.ones(5)).p == 1


def test_the_same_difference_for_everyone_is_certain() -> None:
    found = mean_difference(np.ones(5), np.zeros(5))
    assert (found.value, found.low, found.high, found.p) == (1, 1, 1, 0)
    assert mean_difference(np.ones(1), np.zeros(1)).p == 1
