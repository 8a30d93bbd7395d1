from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from offline.metrics import gains, hits
from offline.significance import difference, spread


def test_a_single_seed_has_no_interval() -> None:
    found = spread([0.1])
    assert (found.mean, found.sd, found.low, found.high, found.seeds) == (0.1, None, None, None, 1)


def test_the_interval_over_draws_is_student_s() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.sd) == (2.0, 1.0)
    assert found.low == pytest.approx(2 - 4.303 / np.sqrt(3), abs=1e-3)  # t of 2 degrees of freedom
    assert found.high == pytest.approx(2 + 4.303 / np.sqrt(3), abs=1e-3)
    alike = spread([0.5, 0.5])
    assert (alike.sd, alike.low, alike.high) == (0.0, 0.5, 0.5)


def test_a_difference_that_is_there_is_found_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    second = (random.random((2, 4000)) < 0.10).astype(float)
    better = np.maximum(second, random.random((2, 4000)) < 0.02)
    found = difference(better, second)
    assert found.low > 0
    assert found.low < found.value < found.high
    assert found.p < 0.01
    assert found.value == pytest.approx(found.first - found.second)
    assert found.relative == pytest.approx(found.value / found.second)
    assert (found.users, found.seeds) == (4000, 2)
    other = (random.random((2, 4000)) < 0.10).astype(float)
    noise = difference(other, second)
    assert noise.low < 0 < noise.high
    assert noise.p > 0.05


def test_the_same_ranks_give_the_same_figures() -> None:
    random = np.random.default_rng(1)
    first, second = random.random((2, 1, 500))
    assert difference(first, second) == difference(first, second)


def test_no_difference_is_certain() -> None:
    same = np.ones((1, 10))
    found = difference(same, same)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert difference(same, 0 * same).relative == 0.0  # of nothing, nothing is a share


def test_the_interval_is_that_of_a_mean() -> None:
    """Of many users alike to the normal one, which needs no resampling."""
    random = np.random.default_rng(3)
    found = difference(random.normal(0.2, 1, (1, 5000)), np.zeros((1, 5000)))
    assert found.low == pytest.approx(found.value - 1.96 / np.sqrt(5000), abs=2e-3)
    assert found.high == pytest.approx(found.value + 1.96 / np.sqrt(5000), abs=2e-3)


def test_p_is_that_of_random_signs() -> None:
    """Five users better and none worse: 2 of 32 choices of signs are as far from 0."""
    first = np.zeros((1, 100))
    first[0, :5] = 1.0
    assert difference(first, np.zeros((1, 100))).p == pytest.approx(2 / 32)


def test_p_of_hits_is_mcnemar_s() -> None:
    """Random signs, 2,000 of them, told .0013 as "at most .001" and .0019 as .005."""
    first, second = np.zeros((2, 1, 22_000))
    first[0, :300] = 1.0
    second[0, 300:541] = 1.0
    assert difference(first, second).p == pytest.approx(binomtest(241, 541).pvalue, rel=1e-9)
    assert difference(first[:, :400], second[:, :400]).p == pytest.approx(binomtest(100, 400).pvalue, abs=1e-12)


@pytest.mark.parametrize("of_user", [hits, gains])
@pytest.mark.parametrize("seeds", [1, 3])
def test_interval_and_p_are_those_of_very_many_draws(
    of_user: Callable[[NDArray[np.int64], int], NDArray[np.float64]], seeds: int
) -> None:
    random = np.random.default_rng(3)
    before = np.where(random.random((seeds, 5000)) < 0.1, random.integers(1, 11, (seeds, 5000)), 0)
    other = np.where(random.random((seeds, 5000)) < 0.125, random.integers(1, 11, (seeds, 5000)), 0)
    after = np.where(random.random((seeds, 5000)) < 0.2, other, before)
    first, second = of_user(after, 10), of_user(before, 10)
    found = difference(first, second)
    values, counts = np.unique((first - second).mean(0).round(12), return_counts=True)
    resampled = random.multinomial(5000, counts / 5000, 20_000) @ values / 5000
    spread_of = resampled.std()
    assert [found.low, found.high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.05 * spread_of)
    changed = counts[values != 0]
    signs = 2 * random.binomial(changed, 0.5, (20_000, len(changed))) - changed
    at_least = np.abs(signs @ values[values != 0]) >= abs((first - second).mean(0).sum()) - 1e-9
    assert 0.01 < found.p < 0.5
    assert found.p == pytest.approx(at_least.mean(), abs=4 * np.sqrt(at_least.mean() / 20_000))


def test_all_users_alike_leave_no_interval_and_few_are_tried_one_by_one() -> None:
    certain = difference(np.full((1, 40), 0.63), np.zeros((1, 40)))
    assert (certain.low, certain.high) == pytest.approx((0.63, 0.63))
    few = difference(np.array([[0.63, 0.5, 0.0, 0.43, 0.0]]), np.array([[0.0, 0.0, 0.0, 0.5, 0.0]]))
    assert few.p == pytest.approx(4 / 8)  # .63 + .5 with the third either way, or both taken away


def test_ties_of_values_of_few_sizes_count_in_full() -> None:
    """Users who all came to the same place, or went from it: McNemar's, whatever the place; it was .045 for .064."""
    first, second = np.zeros((2, 1, 300))
    first[0, :17] = second[0, 17:24] = 0.63
    assert difference(first, second).p == pytest.approx(binomtest(7, 24).pvalue)
    first[0, 24:60] = second[0, 60:100] = 0.5  # and a second size
    ups, others = (np.random.default_rng(0).binomial(count, 0.5, 400_000) for count in (24, 76))
    sums = 0.63 * (2 * ups - 24) + 0.5 * (2 * others - 76)
    assert difference(first, second).p == pytest.approx(np.mean(np.abs(sums) >= 0.63 * 10 - 0.5 * 4 - 1e-9), abs=4e-3)


def test_one_user_who_differs_proves_nothing() -> None:
    one, other = np.zeros((1, 50)), np.zeros((1, 50))
    one[0, 3] = 1.0
    found = difference(one, other)
    assert found.p == 1.0
    assert found.low == 0.0 < found.value < found.high


def test_one_user_in_all_is_no_interval() -> None:
    found = difference(np.ones((2, 1)), np.zeros((2, 1)))
    assert (found.value, found.low, found.high, found.p) == (1.0, 1.0, 1.0, 1.0)
