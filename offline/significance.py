"""How sure a difference is: over seeds, and between two models on the same users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_RESAMPLES = 2000
_SEED = 7  # the same ranks give the same figures
_CONFIDENCE = 0.95
FLOOR = 2 / (_RESAMPLES + 1)  # no p is smaller: none of the random signs gave as much, on either side


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over seeds; the interval is Student's t and absent for a single seed."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True, slots=True)
class Difference:
    """First model minus second, over the same users: bootstrap interval, and p of a permutation of signs."""

    first: float
    second: float
    value: float
    low: float
    high: float
    p: float
    users: int
    seeds: int

    @property
    def relative(self) -> float:
        """Of the second; 0 where that is 0."""
        return self.value / self.second if self.second else 0.0


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and 95% interval of one metric over seeds."""
    found = np.asarray(values, np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return Spread(mean, None, None, None, len(found))
    sd = float(found.std(ddof=1))
    if sd == 0.0:
        return Spread(mean, 0.0, mean, mean, len(found))
    low, high = stats.t.interval(_CONFIDENCE, len(found) - 1, loc=mean, scale=sd / np.sqrt(len(found)))
    return Spread(mean, sd, float(low), float(high), len(found))


def difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> Difference:
    """Compare two models by a metric of each user, [S, U] each: row s of both was trained with the same seed.

    A user's values are averaged over seeds first, so the test is about users for the seeds at hand: it says whether
    other users of this kind would see the difference, not whether another seed would.
    """
    assert first.shape == second.shape
    by_user = (first - second).mean(0)
    value = float(by_user.mean())
    ours, theirs = float(first.mean()), float(second.mean())
    if len(by_user) < 2 or not by_user.any():
        return Difference(ours, theirs, value, value, value, 1.0, first.shape[1], len(first))
    interval = stats.bootstrap(
        (by_user,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=100,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    # Users whom both serve alike keep their zero whatever its sign.
    changed = by_user[by_user != 0]
    p = 1.0  # of one user either sign is as likely
    if len(changed) > 1:
        p = stats.permutation_test(
            (changed,),
            np.sum,
            permutation_type="samples",
            n_resamples=_RESAMPLES,
            batch=100,
            rng=np.random.default_rng(_SEED),
        ).pvalue
    low, high = float(interval.low), float(interval.high)
    return Difference(ours, theirs, value, low, high, float(p), first.shape[1], len(first))
