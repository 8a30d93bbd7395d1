from __future__ import annotations

import numpy as np
import pytest

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


def test_p_is_that_of_random_signs() -> None:
    """Five users better and none worse: 2 of 32 choices of signs are as far from 0."""
    first = np.zeros((1, 100))
    first[0, :5] = 1.0
    assert difference(first, np.zeros((1, 100))).p == pytest.approx(2 / 32)


def test_one_user_who_differs_proves_nothing() -> None:
    one, other = np.zeros((1, 50)), np.zeros((1, 50))
    one[0, 3] = 1.0
    found = difference(one, other)
    assert found.p == 1.0
    assert found.low == 0.0 < found.value < found.high


def test_one_user_in_all_is_no_interval() -> None:
    found = difference(np.ones((2, 1)), np.zeros((2, 1)))
    assert (found.value, found.low, found.high, found.p) == (1.0, 1.0, 1.0, 1.0)
