"""What arms are worth against a control: values, differences, lifts, and whether the split is the intended one.

Users are what was randomised, so users are what varies: each is one observation, however many answers he got. The
rate of a metric is the ratio of two sums over users; its variance is that of the users' influence on the ratio (the
delta method), which for a denominator of 1 is the variance of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from offline.abtest.attribution import UNSEEN, WEIGHT_TOLERANCE, Arm, Experiment

MISMATCH = 0.001  # a split as uneven as this is a broken experiment, not bad luck
FEW = 20  # users with an event below which a normal approximation is no more than a hint

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """A rate: the sum of one column over the sum of another."""

    name: str
    label: str
    numerator: Callable[[Arm], Column]
    denominator: Callable[[Arm], Column]
    percent: bool = True
    better: Literal["higher", "lower"] = "higher"


def _answers(arm: Arm) -> Column:
    return arm.answers


def _each_user(arm: Arm) -> Column:
    return np.ones(len(arm.answers))


METRICS = (
    Metric("ctr", "CTR", lambda arm: arm.clicked, _answers),
    Metric("conversion", "Conversion", lambda arm: arm.buyer, _each_user),
    Metric("gmv_per_user", "GMV per user", lambda arm: arm.value, _each_user, percent=False),
    Metric("negative_rate", "Negative feedback", lambda arm: arm.disliked, _answers, better="lower"),
)


@dataclass(frozen=True, slots=True)
class Rate:
    """A metric of one arm."""

    value: float | None  # None: no users
    variance: float | None  # of the value; None with fewer than two users
    users: int
    events: int  # users with a numerator above 0


@dataclass(frozen=True, slots=True)
class Effect:
    """A metric of one arm against the control's. None where there is too little to say."""

    metric: str
    variation: str
    stratum: str
    control: float | None
    value: float | None
    difference: float | None
    low: float | None
    high: float | None
    lift: float | None  # relative to the control
    lift_low: float | None
    lift_high: float | None
    p: float | None  # two-sided, Welch's t
    few: bool  # so few events that the interval is a hint


@dataclass(frozen=True, slots=True)
class Split:
    """Whether users were divided as intended."""

    observed: dict[str, int]
    expected: dict[str, float]
    p: float

    @property
    def mismatch(self) -> bool:
        """Whether nothing below can be trusted."""
        return self.p < MISMATCH


def rate(metric: Metric, arm: Arm) -> Rate:
    """The metric of an arm with its variance by the delta method."""
    top, bottom = metric.numerator(arm), metric.denominator(arm)
    users = len(top)
    events = int((top > 0).sum())
    if users == 0 or bottom.sum() == 0:
        return Rate(None, None, users, events)
    value = float(top.sum() / bottom.sum())
    if users < 2:
        return Rate(value, None, users, events)
    influence = (top - value * bottom) / bottom.mean()
    return Rate(value, float(influence.var(ddof=1) / users), users, events)


def interval(found: Rate, confidence: float) -> tuple[float | None, float | None]:
    """Confidence interval of one arm's rate."""
    if found.value is None or found.variance is None:
        return None, None
    margin = float(stats.t.ppf((1 + confidence) / 2, found.users - 1)) * math.sqrt(found.variance)
    return found.value - margin, found.value + margin


def effect(metric: Metric, control: Arm, arm: Arm, stratum: str, confidence: float) -> Effect:
    """An arm against the control."""
    base, mine = rate(metric, control), rate(metric, arm)
    few = min(base.events, mine.events) < FEW
    nothing = Effect(
        metric.name, arm.variation, stratum, base.value, mine.value, None, None, None, None, None, None, None, few
    )
    if base.value is None or mine.value is None or base.variance is None or mine.variance is None:
        return nothing
    difference = mine.value - base.value
    spread = base.variance + mine.variance
    if spread == 0:
        return nothing
    # Welch and Satterthwaite: the arms' variances differ, and so may their sizes.
    freedom = spread**2 / (base.variance**2 / (base.users - 1) + mine.variance**2 / (mine.users - 1))
    quantile = float(stats.t.ppf((1 + confidence) / 2, freedom))
    margin = quantile * math.sqrt(spread)
    p = float(2 * stats.t.sf(abs(difference) / math.sqrt(spread), freedom))
    lift = lift_low = lift_high = None
    if base.value > 0:
        lift = difference / base.value
    if lift is not None and mine.events:  # where nothing happened, the method is sure of -100 %
        # The control's own uncertainty is in the lift as well: delta method on the ratio of the two rates.
        spread_of_lift = mine.variance / base.value**2 + mine.value**2 * base.variance / base.value**4
        lift_low = lift - quantile * math.sqrt(spread_of_lift)
        lift_high = lift + quantile * math.sqrt(spread_of_lift)
    return Effect(
        metric=metric.name,
        variation=arm.variation,
        stratum=stratum,
        control=base.value,
        value=mine.value,
        difference=difference,
        low=difference - margin,
        high=difference + margin,
        lift=lift,
        lift_low=lift_low,
        lift_high=lift_high,
        p=p,
        few=few,
    )


def split(experiment: Experiment) -> Split | None:
    """Chi-square test of the users by variation; None if the intended shares are not known or changed."""
    if experiment.reweighted or any(arm.weight is None for arm in experiment.arms):
        return None
    observed = {arm.variation: len(arm.answers) for arm in experiment.arms}
    shares = {arm.variation: arm.weight or 0.0 for arm in experiment.arms}
    missing = 1 - sum(shares.values())
    if missing < -WEIGHT_TOLERANCE:
        return None  # variations came and went
    if missing > WEIGHT_TOLERANCE:  # a variation that nobody is logged for
        observed[UNSEEN], shares[UNSEEN] = 0, missing
    users = sum(observed.values())
    if users == 0 or len(shares) < 2:
        return None
    total = sum(shares.values())
    expected = {variation: share / total * users for variation, share in shares.items()}
    return Split(observed, expected, float(stats.chisquare(list(observed.values()), list(expected.values())).pvalue))


def adjusted(values: Sequence[float | None]) -> list[float | None]:
    """Each p-value, adjusted for the number of those that are known (Benjamini and Hochberg)."""
    known = [p for p in values if p is not None]
    found = iter(stats.false_discovery_control(known).tolist() if known else ())
    return [None if p is None else float(next(found)) for p in values]


def strata(experiment: Experiment, groups: int) -> list[tuple[str, list[Arm]]]:
    """Users by history length at their first answer, cut into groups of about equal size, the sparsest first.

    Each is named with the lengths in it. Two groups are called sparse and dense, as in the paper's Table 5; its
    Figure 4 has four. Users with histories of one length stay together; those whose history is not known are in none.
    """
    lengths = np.concatenate([arm.history for arm in experiment.arms]) if experiment.arms else np.zeros(0, np.int64)
    distinct, counts = np.unique(lengths[lengths >= 0], return_counts=True)
    if groups < 2 or len(distinct) < 2:
        return []
    # A group ends after the length that brings the share of users nearest to what it should be.
    share = np.cumsum(counts)[:-1] / counts.sum()
    ends = {int(np.abs(share - wanted / groups).argmin()) for wanted in range(1, groups)}
    edges = [0, *(int(distinct[end]) + 1 for end in sorted(ends)), int(distinct[-1]) + 1]
    found = list(pairwise(edges))
    named: list[tuple[str, list[Arm]]] = []
    for number, (low, high) in enumerate(found):
        name = ("sparse", "dense")[number] if groups == 2 else f"group {number}"
        span = f"≤ {high - 1}" if number == 0 else f"≥ {low}" if number == len(found) - 1 else f"{low}-{high - 1}"
        arms = [arm.where((arm.history >= low) & (arm.history < high)) for arm in experiment.arms]
        named.append((f"{name} ({span})", arms))
    return named
