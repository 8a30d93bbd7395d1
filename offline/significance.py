"""How sure a difference is: over seeds, and between two models on the same users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_CONFIDENCE = 0.95
FLOOR = 1e-4  # a smaller p is told as a bound: so far out the data are not all that it depends on
_CELLS = 2**16  # of the grid on which resampled sums are counted
_WIDE = 24.0  # deviations that such a grid spans at least
_SAME = 1e-9  # what differs by less is rounding
_FEW = 2**16  # sums that signs can come to, up to which all of them are tried
_TURNS = 200.0  # how far a characteristic function is followed, in 1 / deviation: it is nothing long before that


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
    other users of this kind would see the difference, not whether another seed would. Nothing is drawn: interval and p
    are what ever more resamples and random signs would come to.
    """
    assert first.shape == second.shape
    by_user = (first - second).mean(0)
    value = float(by_user.mean())
    ours, theirs = float(first.mean()), float(second.mean())
    low, high, p = value, value, 1.0
    if len(by_user) > 1 and by_user.any():
        step = 1.0 / len(first)
        if not np.allclose(by_user, np.rint(by_user / step) * step, atol=1e-9):
            step = 0.0  # no hits, of which there is a whole number in all seeds
        low, high = _interval(by_user, step)
        # Users whom both serve alike keep their zero whatever its sign.
        p = _by_signs(by_user[np.abs(by_user) > _SAME], step)
    return Difference(ours, theirs, value, low, high, p, first.shape[1], len(first))


def _interval(values: NDArray[np.float64], step: float) -> tuple[float, float]:
    """The percentile bootstrap's, of the mean of [U] values that are multiples of `step`, if that is not 0.

    The sum of U draws is distributed as one draw convolved U times with itself: on a grid, by a power of its transform.
    """
    users, mean = len(values), float(values.mean())
    spans = _WIDE * float(np.sqrt(users) * values.std())
    if spans < _SAME:
        return mean, mean
    cells = _CELLS
    if step:
        while cells * step < spans:
            cells *= 2
    else:
        step = spans / cells
    places = np.rint(values / step).astype(np.int64)
    once = np.bincount(places % cells, minlength=cells) / users
    sums = np.fft.irfft(np.fft.rfft(once) ** users, cells)
    first = int(places.sum()) - cells // 2  # the grid is a ring, cut opposite to where the sums are
    below = np.cumsum(np.roll(sums, -(first % cells)))
    ends = first + np.searchsorted(below, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    low, high = mean + (ends / users - places.mean()) * step  # without what rounding to the grid did to the mean
    return float(low), float(high)


def _by_signs(changed: NDArray[np.float64], step: float) -> float:
    """How often random signs take the sum of [C] values as far from 0, which are multiples of `step` if that is not 0.

    The characteristic function of the sum is the product of cos(size x turn) over values. Ties that are no multiples
    count by half, which are next to none where values are of many sizes; of few sizes, all sums are tried.
    """
    changed = changed.round(12)  # as one are those that differ by what was lost on the way
    sizes, counts = np.unique(np.abs(changed), return_counts=True)
    reached = abs(float(changed.sum()))
    if step:
        sizes = np.rint(sizes / step)
        cells = 2 * int(counts @ sizes) + 2
        turns = np.linspace(0.0, np.pi, cells // 2 + 1)
        chances = np.fft.irfft(_transform(sizes, counts, turns), cells)  # of sums 0, 1, ..., -2, -1
        least = round(reached / step)
        return float(np.clip(chances[least : cells - least + 1].sum(), 0.0, 1.0))
    if np.log2(counts + 1.0).sum() <= np.log2(_FEW):
        sums, chances = np.zeros(1), np.ones(1)
        for size, count in zip(sizes, counts, strict=True):
            up = np.arange(count + 1)  # how many of that size have a plus
            sums = np.add.outer(sums, size * (2 * up - count)).ravel()
            chances = np.multiply.outer(chances, stats.binom.pmf(up, count, 0.5)).ravel()
        return float(np.clip(chances[np.abs(sums) >= reached - _SAME].sum(), 0.0, 1.0))
    deviation = float(np.sqrt(counts @ sizes**2))
    half = reached + 9 * deviation  # no sum lies farther out: the wave below, of twice that length, sees each once
    turns = np.arange(1.0, _TURNS / deviation * half / np.pi + 2) * (np.pi / half)
    wave = np.sin(turns * reached) / (turns * half) * _transform(sizes, counts, turns)
    return float(np.clip(1 - reached / half - 2 * wave.sum(), 0.0, 1.0))


def _transform(
    sizes: NDArray[np.float64], counts: NDArray[np.int64], turns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Characteristic function [T] of a sum of so many values of each size, the signs of which are random."""
    found = np.ones_like(turns)
    for size, count in zip(sizes, counts, strict=True):
        found *= np.cos(turns * size) ** count
    return found
