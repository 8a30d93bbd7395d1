"""Estimates of shares, with what they leave open."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
_SCARCE = 1e-3  # expected hits, or misses, below which a Beta's quantiles are no interval any more
_Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A against B on the same users."""

    value: float  # mean of A - B
    low: float
    high: float
    p: float  # two-sided: that as many users differ one way rather than the other by chance
    users: int


def wilson(hits: int, n: int) -> Estimate:
    """A share with Wilson's interval; without observations it may be anything."""
    if n == 0:
        return Estimate(0.0, 0.0, 1.0)
    found = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, "wilson")
    return Estimate(hits / n, float(found.low), float(found.high))


def posterior(value: float, weight: float) -> Estimate:
    """A share that is known as well as from `weight` observations: the mean of a Beta, and its central 95%.

    Where every observation was the same, or there is hardly one, Wilson's interval.
    """
    if min(value, 1 - value) * weight < _SCARCE:
        plain = wilson(round(value * round(weight)), round(weight))
        return Estimate(value, min(plain.low, value), max(plain.high, value))
    tail = (1 - CONFIDENCE) / 2
    a, b = value * weight, (1 - value) * weight
    low, high = float(stats.beta.ppf(tail, a, b)), float(stats.beta.ppf(1 - tail, a, b))
    return Estimate(value, min(low, value), max(high, value))


def paired(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Difference:
    """Hits [n] of A against hits [n] of B: Bonett and Price's interval, McNemar's exact test."""
    n = len(a)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if n == 0:
        return Difference(0.0, -1.0, 1.0, 1.0, 0)
    up, down = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = _Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    low, high = max(up - down - half, -1.0), min(up - down + half, 1.0)
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Difference((only_a - only_b) / n, low, high, p, n)


def mean_difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> Difference:
    """Gains [n] of A against gains [n] of B on the same users: Student's t."""
    difference = a - b
    n = len(difference)
    value = float(difference.mean()) if n else 0.0
    if n < 2 or not np.ptp(difference):  # nothing to judge by, or the same difference for everyone
        return Difference(value, value, value, 0.0 if n > 1 and value else 1.0, n)
    found = stats.ttest_rel(a, b)
    low, high = found.confidence_interval(CONFIDENCE)
    return Difference(value, float(low), float(high), float(found.pvalue), n)
