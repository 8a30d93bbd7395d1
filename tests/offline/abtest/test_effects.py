"""The statistics, on users drawn from known distributions: many experiments, as fast as numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from offline.abtest.attribution import UNSEEN, Arm, Experiment
from offline.abtest.effects import METRICS, Effect, adjusted, effect, interval, rate, split, strata

CTR, CONVERSION, GMV, NEGATIVE = METRICS


def drawn(rng: np.random.Generator, users: int, lift: float = 0.0, name: str = "control") -> Arm:
    """Users with tastes and numbers of answers of their own: answers of one user are far from independent."""
    answers = 1 + rng.poisson(3, users).astype(float)
    taste = np.minimum(0.9, 0.15 * rng.gamma(2, 0.5, users) * (1 + lift))
    clicked = rng.binomial(answers.astype(int), taste).astype(float)
    buyer = (rng.random(users) < np.minimum(0.9, 0.1 * (1 + lift))).astype(float)
    value = buyer * rng.lognormal(3, 1, users)
    return Arm(name, 0.5, rng.geometric(0.1, users), answers, clicked, np.zeros(users), buyer, value, 0.0, 0.0)


def plain(counts: list[int], weights: list[float | None]) -> Experiment:
    arms = []
    for number, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        ones = np.ones(count)
        arms.append(Arm(str(number), weight, ones.astype(np.int64), ones, ones, ones, ones, ones, 0.0, 0.0))
    return Experiment("e", arms, 0, reweighted=False)


def repeated(lift: float, repeats: int, users: int, seed: int) -> list[list[Effect]]:
    rng = np.random.default_rng(seed)
    return [
        [
            effect(metric, control, treated, "all", 0.95)
            for control, treated in [(drawn(rng, users), drawn(rng, users, lift, "scoter"))]
            for metric in (CTR, CONVERSION, GMV)
        ]
        for _ in range(repeats)
    ]


def test_without_a_difference_one_in_twenty_is_significant() -> None:
    repeats = 1000
    found = repeated(0.0, repeats, 800, seed=1)
    for place in range(3):
        ps = [one[place].p for one in found]
        positives = sum(p is not None and p < 0.05 for p in ps)
        # A binomial of 1,000 draws at .05 lies outside of 26 to 78 one time in 10,000.
        assert 25 < positives < 79
        assert stats.kstest([p for p in ps if p is not None], "uniform").pvalue > 0.001


def test_intervals_hold_the_true_lift_as_often_as_they_say() -> None:
    # The chance to buy is not capped, so that the lift of conversions and GMV is what it is set to.
    found = repeated(0.2, 1000, 800, seed=2)
    for place in (1, 2):
        held = sum(
            one[place].lift_low is not None and one[place].lift_low <= 0.2 <= (one[place].lift_high or 0)  # type: ignore[operator]
            for one in found
        )
        assert 0.925 < held / len(found) < 0.975


def test_power_is_that_of_theory() -> None:
    users, lift = 4000, 0.25
    found = repeated(lift, 250, users, seed=3)
    powered = sum(one[1].p is not None and one[1].p < 0.05 for one in found) / len(found)
    spread = math.sqrt((0.1 * 0.9 + 0.125 * 0.875) / users)
    expected = float(stats.norm.sf(1.96 - 0.025 / spread))
    assert abs(powered - expected) < 0.08
    assert expected > 0.9


def test_taking_answers_for_independent_would_find_what_is_not_there() -> None:
    # Why users are the unit: the same data, each answer counted as if it were a user.
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(400):
        one, other = drawn(rng, 800), drawn(rng, 800)
        table = [[arm.clicked.sum(), (arm.answers - arm.clicked).sum()] for arm in (one, other)]
        false += int(stats.chi2_contingency(table, correction=False).pvalue < 0.05)
    assert false > 400 * 0.08


def test_the_delta_method_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(5)
    arm = drawn(rng, 3000)
    found = rate(CTR, arm)
    draws = []
    for _ in range(1000):
        picked = rng.integers(0, 3000, 3000)
        draws.append(arm.clicked[picked].sum() / arm.answers[picked].sum())
    assert found.variance is not None
    assert math.sqrt(found.variance) == pytest.approx(np.std(draws), rel=0.1)
    low, high = interval(found, 0.95)
    assert low is not None
    assert high is not None
    assert low < np.quantile(draws, 0.5) < high


def test_a_mean_is_what_a_t_test_says() -> None:
    rng = np.random.default_rng(6)
    one, other = drawn(rng, 500), drawn(rng, 300, 0.3, "scoter")
    expected = stats.ttest_ind(other.value, one.value, equal_var=False)
    found = effect(GMV, one, other, "all", 0.95)
    assert found.p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)


def test_the_interval_of_an_arm_is_that_of_a_mean() -> None:
    arm = drawn(np.random.default_rng(11), 40)
    for confidence in (0.8, 0.95):
        low, high = stats.ttest_1samp(arm.value, 0.0).confidence_interval(confidence)
        assert interval(rate(GMV, arm), confidence) == pytest.approx((low, high))
    for users in (0, 1):
        assert interval(rate(GMV, drawn(np.random.default_rng(11), users)), 0.95) == (None, None)


@pytest.mark.parametrize("buyers, few", [((19, 40), True), ((40, 19), True), ((20, 20), False)])
def test_an_interval_on_fewer_than_twenty_users_with_an_event_is_a_hint(buyers: tuple[int, int], few: bool) -> None:
    whole = drawn(np.random.default_rng(12), 100)
    control, arm = (replace(whole, buyer=(np.arange(100) < count).astype(float)) for count in buyers)
    assert effect(CONVERSION, control, arm, "all", 0.95).few is few


def test_too_little_to_say_is_said() -> None:
    rng = np.random.default_rng(7)
    some, nobody, one = drawn(rng, 50), drawn(rng, 0), drawn(rng, 1)
    for arm in (nobody, one):
        found = effect(CTR, some, arm, "all", 0.95)
        assert (found.p, found.lift, found.few) == (None, None, True)
    silent = effect(NEGATIVE, some, drawn(rng, 50), "all", 0.95)
    assert (silent.value, silent.p) == (0.0, None)


def test_an_arm_in_which_nothing_happened_has_no_certain_lift() -> None:
    rng = np.random.default_rng(10)
    silent = drawn(rng, 500, name="scoter")
    some = replace(silent, variation="control", disliked=(np.arange(500) < 3).astype(float))
    found = effect(NEGATIVE, some, silent, "all", 0.95)
    assert (found.lift, found.lift_low, found.lift_high, found.few) == (-1.0, None, None, True)
    assert found.p is not None
    assert found.p > 0.05
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high


@pytest.mark.parametrize(
    "counts, weights, mismatch",
    [
        ([5000, 5000], [0.5, 0.5], False),
        ([5080, 4920], [0.5, 0.5], False),
        ([5300, 4700], [0.5, 0.5], True),
        ([9000, 1000], [0.9, 0.1], False),
        ([8500, 1500], [0.9, 0.1], True),
    ],
)
def test_a_split_that_is_not_the_intended_one_is_found(
    counts: list[int], weights: list[float | None], mismatch: bool
) -> None:
    found = split(plain(counts, weights))
    assert found is not None
    assert found.mismatch is mismatch


def test_the_check_of_the_split_rarely_cries_wolf() -> None:
    rng = np.random.default_rng(8)
    found = [split(plain([n, 3000 - n], [0.3, 0.7])) for n in rng.binomial(3000, 0.3, 1500).tolist()]
    assert sum(one is not None and one.mismatch for one in found) < 8
    assert stats.kstest([one.p for one in found if one is not None], "uniform").pvalue > 0.0001


def test_a_variation_that_nobody_is_logged_for_is_a_mismatch() -> None:
    found = split(plain([5000], [0.5]))
    assert found is not None
    assert found.mismatch
    assert found.observed[UNSEEN] == 0


def test_an_unknown_split_is_not_checked() -> None:
    assert split(plain([10, 20], [None, 0.5])) is None
    assert split(plain([10, 20], [0.7, 0.7])) is None


def test_p_values_are_adjusted_for_their_number() -> None:
    rng = np.random.default_rng(9)
    some = effect(CTR, drawn(rng, 100), drawn(rng, 100), "all", 0.95)
    none = effect(CTR, drawn(rng, 100), drawn(rng, 0), "all", 0.95)
    assert adjusted([some.p, none.p, some.p]) == [some.p, None, some.p]
    assert adjusted([none.p]) == [None]
    # Of four in order of size: 4/1, 4/2, 4/3 and 4/4 of each, and none more than a larger one's.
    assert adjusted([0.03, 0.8, None, 0.001, 0.029]) == pytest.approx([0.04, 0.8, None, 0.004, 0.04])


def lengths(*values: int) -> Experiment:
    history: NDArray[np.int64] = np.array(values, np.int64)
    ones = np.ones(len(values))
    return Experiment("e", [Arm("a", 1.0, history, ones, ones, ones, ones, ones, 0.0, 0.0)], 0, reweighted=False)


def test_strata_are_of_about_equal_size_and_keep_equal_histories_together() -> None:
    (sparse, few), (dense, many) = strata(lengths(*range(1, 101)), 2)
    assert (sparse, dense) == ("sparse (≤ 50)", "dense (≥ 51)")
    assert (len(few[0].answers), len(many[0].answers)) == (50, 50)
    four = strata(lengths(*range(1, 101)), 4)
    assert [name for name, _ in four] == ["group 0 (≤ 25)", "group 1 (26-50)", "group 2 (51-75)", "group 3 (≥ 76)"]
    (_, few), (_, many) = strata(lengths(*[5] * 70, *[9] * 30), 2)
    assert (len(few[0].answers), len(many[0].answers)) == (70, 30)


def test_there_are_no_strata_without_different_histories() -> None:
    assert strata(lengths(5, 5, 5), 2) == []
    assert strata(lengths(-1, -1), 2) == []
    assert strata(lengths(1, 2, 3), 1) == []
    (_, few), (_, many) = strata(lengths(-1, 1, 2, 3, 4), 2)
    assert len(few[0].answers) + len(many[0].answers) == 4
