from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest
from scipy import stats

from loadtest.arrivals import pace, poisson


@pytest.mark.parametrize("rate", [5.0, 400.0])
def test_times_between_arrivals_are_exponential(rate: float) -> None:
    times = poisson(rate, 20_000 / rate, np.random.default_rng(1))
    between = np.diff(times)
    assert stats.kstest(between, "expon", args=(0, 1 / rate)).pvalue > 0.001
    assert np.corrcoef(between[:-1], between[1:])[0, 1] == pytest.approx(0, abs=0.03)


def test_counts_vary_like_a_poisson_distribution() -> None:
    rng = np.random.default_rng(2)
    counts = [len(poisson(10, 4, rng)) for _ in range(2_000)]
    assert np.mean(counts) == pytest.approx(40, rel=0.03)
    assert np.var(counts) == pytest.approx(40, rel=0.12)


def test_a_seed_repeats_the_arrivals() -> None:
    first, second = (poisson(100, 5, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.min() >= 0
    assert first.max() < 5


@pytest.mark.anyio
async def test_every_arrival_is_handed_over_once_in_order_and_never_early() -> None:
    times = poisson(500, 0.6, np.random.default_rng(3))
    calls: list[tuple[int, float, float]] = []
    begun = await pace(times, lambda number, due: calls.append((number, due, perf_counter())))
    assert [number for number, _, _ in calls] == list(range(len(times)))
    assert np.allclose([due - begun for _, due, _ in calls], times)
    assert all(now >= due for _, due, now in calls)


@pytest.mark.anyio
async def test_no_arrivals_are_no_work() -> None:
    await pace(np.empty(0), lambda _number, _due: pytest.fail("nothing was due"))
