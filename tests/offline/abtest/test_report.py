from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from rich.console import Console
from scipy import stats

from offline.abtest.attribution import Answers, Attribution
from offline.abtest.logs import Outcome, Rejected
from offline.abtest.report import _forest, analyse, show
from service.experiments.assignment import Assigned
from service.exposures.event import Exposure
from tests.service.exposures.test_exposures import exposure

START = 1_763_800_000.0  # 2025-11-22T08:26:40


def answer(user: int, variation: str, weight: float = 0.5, experiment: str = "model") -> Exposure:
    assigned = Assigned(experiment, variation, weight, 0.1, forced=False)
    return replace(exposure(user, f"u{user}"), ts=START + user, experiments=(assigned,))


def joined(shown: list[Exposure], outcomes: list[Outcome]) -> Answers:
    attribution = Attribution(outcomes, 3600)
    for one in shown:
        attribution.add(one)
    return attribution.answers({})


def analysed(answers: Answers, **options: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"control": None, "only": None, "groups": 2, "confidence": 0.95, "window": 7200.0}
    return analyse(answers, Rejected(), **usual | options)


def bought(spent: np.ndarray[Any, Any], first: int) -> list[Outcome]:
    return [
        Outcome.model_validate({"event": "purchase", "ts": START + user, "request_id": f"r{user}", "value": value})
        for user, value in enumerate(spent.tolist(), start=first)
        if value
    ]


def text(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(console, report)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_report_at_another_confidence_is_what_t_tests_say_at_that() -> None:
    random = np.random.default_rng(0)
    one, other = random.lognormal(1, 1, 40) * (random.random(40) < 0.6), random.lognormal(1.5, 1, 30)
    names, shares = ["control"] * 40 + ["scoter"] * 30, {"control": 4 / 7, "scoter": 3 / 7}
    shown = [answer(user, name, shares[name]) for user, name in enumerate(names)]
    report = analysed(joined(shown, bought(one, 0) + bought(other, 40)), confidence=0.8)
    (experiment,) = report["experiments"]
    expected = stats.ttest_ind(other, one, equal_var=False)
    (effect,) = [row for row in experiment["effects"] if row["metric"] == "gmv_per_user"]
    assert effect["p"] == pytest.approx(expected.pvalue)
    assert (effect["low"], effect["high"]) == pytest.approx(tuple(expected.confidence_interval(0.8)))
    for arm, spent in zip(experiment["arms"], (one, other), strict=True):
        told = arm["metrics"]["gmv_per_user"]
        assert (told["value"], told["users_with_event"]) == (pytest.approx(spent.mean()), (spent > 0).sum())
        interval = stats.ttest_1samp(spent, 0.0).confidence_interval(0.8)
        assert (told["low"], told["high"]) == pytest.approx(tuple(interval))
    assert list(experiment["arms"][0]["metrics"]) == ["conversion", "gmv_per_user"]  # nobody clicked or complained
    assert experiment["split"]["expected"] == pytest.approx({"control": 40, "scoter": 30})
    assert (report["from"], report["to"]) == ("2025-11-22T08:26:40+00:00", "2025-11-22T08:27:49+00:00")
    assert (report["users"], report["window_hours"], report["comparisons"]) == (70, 2, 2)
    assert "80% interval" in text(report)


def test_of_several_experiments_one_may_be_asked_for() -> None:
    shown = [answer(user, "control" if user % 2 else "new", experiment=f"e{user % 4 // 2}") for user in range(40)]
    answers = joined(shown, bought(np.ones(40), 0))
    assert [one["experiment"] for one in analysed(answers)["experiments"]] == ["e0", "e1"]
    assert [one["experiment"] for one in analysed(answers, only="e1")["experiments"]] == ["e1"]


def test_what_an_experiment_lacks_is_warned_of() -> None:
    """A single arm, shares that are not known, users in several arms; and nothing where nothing is amiss."""
    fine = [answer(user, "control" if user % 2 else "new") for user in range(40)]
    moved = [replace(answer(user, "new"), ts=START + 100) for user in (1, 3)]
    for shown, said in (
        (fine, []),
        ([one for one in fine if one.experiments[0].variation == "new"], ["only one variation"]),
        ([answer(user, "control" if user % 2 else "new", 0.0) for user in range(40)], ["shares are not known"]),
        ([*fine, *moved], ["2 users were seen in several variations"]),
    ):
        report = analysed(joined(shown, []))
        (experiment,) = report["experiments"]
        assert len(experiment["warnings"]) == len(said)
        for warning, words in zip(experiment["warnings"], said, strict=True):
            assert words in warning
            assert warning in text(report)


def test_the_interval_of_a_rare_event_is_starred() -> None:
    shown = [answer(user, "control" if user % 2 else "new") for user in range(100)]
    for count, star in ((38, "*"), (40, "")):
        spent = (np.arange(100) < count) * np.linspace(1, 2, 100)
        out = text(analysed(joined(shown, bought(spent, 0))))
        lines = [line.split() for line in out.splitlines() if line.startswith("GMV per user new")]
        assert [line[-2].endswith("*") for line in lines] == [bool(star)]


@pytest.mark.parametrize(
    "metric, ends, colour",
    [
        ("ctr", (0.1, 0.3), "#228833"),
        ("ctr", (-0.3, -0.1), "#cc3311"),
        ("ctr", (-0.1, 0.3), "#777777"),
        ("negative_rate", (0.1, 0.3), "#cc3311"),
        ("negative_rate", (-0.3, -0.1), "#228833"),
        ("negative_rate", (-0.3, 0.1), "#777777"),
    ],
)
def test_a_lift_is_green_where_it_is_for_the_better(metric: str, ends: tuple[float, float], colour: str) -> None:
    low, high = ends
    row = {"metric": metric, "variation": "new", "stratum": "all", "lift": sum(ends) / 2}
    bar, point, _ = _forest([row | {"lift_low": low, "lift_high": high}]).axes[0].lines
    assert [to_hex(str(line.get_color())) for line in (bar, point)] == [colour] * 2
    assert list(np.asarray(bar.get_xdata())) == pytest.approx([100 * low, 100 * high])
    assert list(np.asarray(point.get_xdata())) == pytest.approx([50 * (low + high)])
