"""Small logs of few users who share items and ids of requests, against every answer held to every outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.abtest.attribution import SKEW, Arm, Attribution, experiments
from offline.abtest.logs import Outcome
from service.experiments.assignment import Assigned
from service.exposures.event import ExposedItem, Exposure
from service.store.keys import user_tag
from tests.service.exposures.test_exposures import exposure

WINDOW = 30.0
USERS = ["u0", "u1", "u2", "u3"]
ITEMS = ["a", "b", "c"]
REQUESTS = ["r0", "r1", "r2"]
CONTROL, TREATED = (Assigned("model", name, 0.5, 0.1, forced=False) for name in ("control", "treated"))


@st.composite
def answers(draw: st.DrawFn) -> Exposure:
    """Users keep to their variation, but for u3, who is seen in both; some answers are in no experiment."""
    user = draw(st.sampled_from(USERS))
    mine = {"u0": [CONTROL], "u1": [TREATED], "u2": [CONTROL], "u3": [CONTROL, TREATED]}[user]
    shown = draw(st.lists(st.sampled_from(ITEMS), unique=True, min_size=1))
    return replace(
        exposure(0, user),
        request_id=draw(st.sampled_from(REQUESTS)),
        ts=float(draw(st.integers(100, 200))),
        experiments=draw(st.sampled_from([(), *((one,) for one in mine)])),
        items=tuple(ExposedItem(item, place, 0.0) for place, item in enumerate(shown, start=1)),
        history_length=draw(st.sampled_from([None, 0, 3, 8])),
        reasoning=draw(st.booleans()),
        degraded=draw(st.sampled_from([(), ("store_timeout",)])),
    )


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    """What names an answer may leave out user and item, what names none may not."""
    request = draw(st.sampled_from([None, *REQUESTS]))
    optional = [] if request is None else [None]
    user = draw(st.sampled_from([*USERS, *optional]))
    tagged = draw(st.booleans()) and user is not None
    return Outcome.model_validate(
        {
            "event": draw(st.sampled_from(["click", "negative", "purchase"])),
            "ts": draw(st.integers(30, 240)),
            "event_id": draw(st.sampled_from([None, None, 1, 2])),
            "item_id": draw(st.sampled_from([*ITEMS, *optional])),
            "request_id": request,
            "user_id": None if tagged else user,
            "user_tag": user_tag(str(user)) if tagged else None,
            "value": draw(st.sampled_from([0.0, 1.0, 2.5])),  # some exports have the item's price in every row
        }
    )


def credited(log: Sequence[Exposure], outcome: Outcome) -> int | None:
    """The answer that an outcome goes to: of all that can have led to it the latest, of two at one time the first."""
    fitting = []
    for row, one in enumerate(log):
        after = outcome.seconds() - one.ts
        earliest = 0.0 if outcome.request_id is None else -SKEW
        if (
            earliest <= after <= WINDOW
            and outcome.request_id in {None, one.request_id}
            and outcome.user() in {None, user_tag(str(one.user_id))}
            and outcome.item_id in {None, *(item.id for item in one.items)}
        ):
            fitting.append(row)
    return max(fitting, key=lambda row: (log[row].ts, -row), default=None)


def by_hand(
    log: Sequence[Exposure], done: Sequence[Outcome], lengths: Mapping[str, int]
) -> tuple[dict[str, dict[str, Any]], int]:
    """Of each variation, by user, what an `Arm` has as columns; and how many users were seen in several."""
    led: dict[int, list[Outcome]] = {row: [] for row in range(len(log))}
    for one in done:
        row = credited(log, one)
        if row is not None:
            led[row].append(one)
    inside = [row for row, one in enumerate(log) if one.experiments]
    arms: dict[str, dict[str, Any]] = {}
    crossed = 0
    for user in dict.fromkeys(one.user_id for one in log):
        mine = [row for row in inside if log[row].user_id == user]
        seen = {log[row].experiments[0].variation for row in mine}
        crossed += len(seen) > 1
        if len(seen) != 1:
            continue
        events = [[one.event for one in led[row]] for row in mine]
        first = min(mine, key=lambda row: (log[row].ts, row))
        known = log[first].history_length
        arm = arms.setdefault(seen.pop(), {"users": [], "rows": []})
        arm["users"].append(
            {
                "history": lengths.get(user_tag(str(user)), -1 if known is None else known),
                "answers": len(mine),
                "clicked": sum("click" in one for one in events),
                "disliked": sum("negative" in one for one in events),
                "buyer": float(any("purchase" in one for one in events)),
                "value": sum(one.value for row in mine for one in led[row] if one.event == "purchase"),
            }
        )
        arm["rows"] += mine
    return arms, crossed


def columns(arm: Arm) -> list[dict[str, float]]:
    """The users of an arm, one after the other."""
    names = ("history", "answers", "clicked", "disliked", "buyer", "value")
    return [
        dict(zip(names, one, strict=True)) for one in zip(*(getattr(arm, name).tolist() for name in names), strict=True)
    ]


@settings(max_examples=60)
@given(
    shown=st.lists(answers(), max_size=14),
    done=st.lists(outcomes(), max_size=14),
    lengths=st.dictionaries(st.sampled_from(USERS), st.integers(0, 9), max_size=2),
)
def test_arms_are_what_holding_every_answer_to_every_outcome_gives(
    shown: list[Exposure], done: list[Outcome], lengths: dict[str, int]
) -> None:
    joined = Attribution(done, WINDOW)
    for one in shown:
        joined.add(one)
    log = list({(one.request_id, one.user_id, one.ts): one for one in reversed(shown)}.values())
    log = [one for one in shown if any(one is kept for kept in log)]
    named: dict[Any, Outcome] = {}  # of those that bear an id, the first
    for outcome in done:
        if outcome.event_id is not None:
            named.setdefault((outcome.event, outcome.event_id), outcome)
    once = [one for one in done if one.event_id is None or named[one.event, one.event_id] is one]
    tags = {user_tag(user): length for user, length in lengths.items()}
    found = joined.answers(tags)
    expected, crossed = by_hand(log, once, tags)
    assert found.counts["used"] == len(log)
    assert found.counts["repeated"] == len(shown) - len(log)
    assert found.counts["outcomes"] == len(once)
    assert found.counts["outcomes_repeated"] == len(done) - len(once)
    assert found.counts["attributed"] == sum(credited(log, one) is not None for one in once)
    sales = [
        (one.user(), one.request_id, one.item_id, one.seconds(), one.value)
        for one in done
        if one.event_id is None and one.event == "purchase" and one.value > 0
    ]
    assert found.counts["alike"] == len(sales) - len(set(sales))
    told = experiments(found)
    if not any(one.experiments for one in log):
        assert told == []
        return
    (experiment,) = told
    assert experiment.crossed == crossed
    for arm in experiment.arms:
        mine = expected.get(arm.variation, {"users": [], "rows": []})
        assert columns(arm) == mine["users"]
        answered = max(len(mine["rows"]), 1)
        assert arm.reasoned == pytest.approx(sum(log[row].reasoning for row in mine["rows"]) / answered)
        assert arm.degraded == pytest.approx(sum(bool(log[row].degraded) for row in mine["rows"]) / answered)


def test_purchases_alone_are_told_of_as_alike() -> None:
    """Though an export has the item's price in the rows of clicks, too, one of which is of the purchase's second."""
    row = {"ts": 100, "user_id": "u0", "item_id": "a", "value": 12.9}
    clicks = [Outcome.model_validate({"event": "click", **row})] * 2
    sale = Outcome.model_validate({"event": "purchase", **row})
    assert Attribution([*clicks, sale], WINDOW).counts["alike"] == 0
    assert Attribution([*clicks, sale, sale], WINDOW).counts["alike"] == 1
