"""Joins outcomes to the answers that they came from, and sums both up by user."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from sys import intern

import numpy as np
from numpy.typing import NDArray

from offline.abtest.logs import EVENTS, Outcome
from service.exposures.event import Exposure
from service.store.keys import user_tag

# Seconds that the clock of whoever names an answer may be behind the service's: the name says which came first.
SKEW = 60.0
HOLDOUT = "(holdout)"  # beside the experiments: who is kept out of all of them, against everybody else
UNSEEN = "(not in the log)"
WEIGHT_TOLERANCE = 1e-4

Part = tuple[str, str, float]  # experiment, variation, weight


@dataclass(slots=True)
class Answers:
    """Every exposure that counts, as columns; row n of each is about the same answer."""

    users: list[str]  # tags, by number
    parts: list[tuple[Part, ...]]  # what users took part in, by number
    user: NDArray[np.int64]  # number of the user
    part: NDArray[np.int64]  # number of the parts
    ts: NDArray[np.float64]
    history: NDArray[np.int64]  # history length, -1 if unknown
    reasoned: NDArray[np.bool_]
    degraded: NDArray[np.bool_]
    clicked: NDArray[np.bool_]
    disliked: NDArray[np.bool_]
    bought: NDArray[np.bool_]
    value: NDArray[np.float64]  # GMV of the attributed purchases
    counts: dict[str, int] = field(default_factory=dict)  # of what was read and what was left out


@dataclass(slots=True)
class _Shown:
    """An item and a user who did something with it: the outcomes that name no answer, and the answers that held it."""

    outcomes: list[int] = field(default_factory=list)  # numbers
    rows: list[int] = field(default_factory=list)


class Attribution:
    """Takes exposures one at a time; outcomes are known beforehand, as they are the fewer.

    An outcome goes to the answer with its request id, or else to its user's latest answer that held its item, within
    `window` seconds after that answer.
    """

    def __init__(self, outcomes: Iterable[Outcome], window: float) -> None:
        self._window = window
        self.counts = dict.fromkeys(("read", "used", "shadow", "forced", "repeated", "outcomes_repeated", "alike"), 0)
        self._by_request: dict[str, list[int]] = defaultdict(list)
        # By user and item. A user may be thousands, who have not logged in: all of his answers with all of his outcomes
        # would be too many pairs.
        self._shown: dict[str, dict[str, _Shown]] = defaultdict(dict)
        # Outcomes as columns, of which millions fit into memory.
        self._event, self._seconds, self._value = bytearray(), array("d"), array("d")
        self._item: list[str | None] = []
        self._whose: list[str | None] = []
        for number, outcome in enumerate(self._once(outcomes)):
            user, item = (None if name is None else intern(name) for name in (outcome.user(), outcome.item_id))
            self._event.append(EVENTS.index(outcome.event))
            self._seconds.append(outcome.seconds())
            self._value.append(outcome.value)
            self._item.append(item)
            self._whose.append(user)
            if outcome.request_id is not None:
                self._by_request[outcome.request_id].append(number)
            elif user is not None and item is not None:
                self._shown[user].setdefault(item, _Shown()).outcomes.append(number)
        self._named = [-1] * len(self._event)  # row of the answer that each outcome names
        self._users: dict[str, int] = {}
        self._parts: dict[tuple[Part, ...], int] = {}
        self._seen: set[int] = set()
        self._user, self._part, self._history = array("q"), array("q"), array("q")
        self._ts = array("d")
        self._reasoned, self._degraded = bytearray(), bytearray()

    def add(self, exposure: Exposure) -> None:
        """Take an exposure; shadow and forced ones, and those written twice, are counted and left out."""
        self.counts["read"] += 1
        user = exposure.user_tag or user_tag(exposure.user_id or "")
        if exposure.shadow:
            self.counts["shadow"] += 1
            return
        if any(one.forced for one in exposure.experiments):
            self.counts["forced"] += 1
            return
        identity = hash((exposure.request_id, user, exposure.ts))
        if identity in self._seen:  # a sink that failed half-way was given the batch again
            self.counts["repeated"] += 1
            return
        self._seen.add(identity)
        self.counts["used"] += 1
        parts = tuple((one.experiment, one.variation, one.weight) for one in exposure.experiments)
        parts += ((HOLDOUT, "holdout" if exposure.holdout else "experiments", 0.0),)
        row = len(self._ts)
        self._user.append(self._users.setdefault(user, len(self._users)))
        self._part.append(self._parts.setdefault(parts, len(self._parts)))
        self._ts.append(exposure.ts)
        self._history.append(-1 if exposure.history_length is None else exposure.history_length)
        self._reasoned.append(exposure.reasoning)
        self._degraded.append(bool(exposure.degraded))
        self._attribute(exposure, user, row)

    def answers(self, histories: Mapping[str, int]) -> Answers:
        """All that was taken; `histories` overrides the history lengths that were logged."""
        rows = len(self._ts)
        clicked, disliked, bought = (np.zeros(rows, np.bool_) for _ in range(3))
        value = np.zeros(rows)
        attributed = 0
        marks = {"click": clicked, "negative": disliked, "purchase": bought}
        for number, row in enumerate(self.credited()):
            if row < 0:
                continue
            attributed += 1
            event = EVENTS[self._event[number]]
            marks[event][row] = True
            if event == "purchase":
                value[row] += self._value[number]
        users = list(self._users)
        user = np.array(self._user, np.int64)
        history = np.array(self._history, np.int64)
        if histories:
            given = np.array([histories.get(tag, -1) for tag in users], np.int64)
            history = np.where(given[user] >= 0, given[user], history)
        counts = {**self.counts, "outcomes": len(self._event), "attributed": attributed}
        return Answers(
            users=users,
            parts=list(self._parts),
            user=user,
            part=np.array(self._part, np.int64),
            ts=np.array(self._ts),
            history=history,
            reasoned=np.frombuffer(bytes(self._reasoned), np.bool_),
            degraded=np.frombuffer(bytes(self._degraded), np.bool_),
            clicked=clicked,
            disliked=disliked,
            bought=bought,
            value=value,
            counts=counts,
        )

    def credited(self) -> list[int]:
        """Row of the answer that each outcome goes to, -1 for none."""
        found = self._named.copy()
        for shown in (one for items in self._shown.values() for one in items.values() if one.rows):
            rows = sorted(shown.rows, key=lambda row: (self._ts[row], -row))  # of two at one time the first counts
            times = [self._ts[row] for row in rows]
            for number in shown.outcomes:
                place = bisect_right(times, self._seconds[number]) - 1
                if place >= 0 and self._seconds[number] - times[place] <= self._window:
                    found[number] = rows[place]
        return found

    def _once(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """Leaves out what was sent again; counts purchases that may have been, as nothing tells them apart."""
        sent: set[int] = set()
        for outcome in outcomes:
            if outcome.event_id is not None:
                identity = hash((outcome.event, outcome.event_id))
                if identity in sent:
                    self.counts["outcomes_repeated"] += 1
                    continue
                sent.add(identity)
            elif outcome.event == "purchase" and outcome.value > 0:  # a click twice is no more than once
                identity = hash((outcome.user(), outcome.request_id, outcome.item_id, outcome.ts, outcome.value))
                self.counts["alike"] += identity in sent
                sent.add(identity)
            yield outcome

    def _attribute(self, exposure: Exposure, user: str, row: int) -> None:
        named = self._by_request.get(exposure.request_id, ())
        mine = self._shown.get(user)
        if not named and mine is None:
            return
        items = {item.id for item in exposure.items}
        if mine is not None:
            for shown in items & mine.keys():
                mine[shown].rows.append(row)
        for number in named:
            item, whose = self._item[number], self._whose[number]
            if whose is not None and whose != user:
                continue  # request ids come from callers, who may use one twice
            after = self._seconds[number] - exposure.ts
            if (item is not None and item not in items) or not -SKEW <= after <= self._window:
                continue
            before = self._named[number]
            if before < 0 or self._ts[before] < exposure.ts:
                self._named[number] = row


@dataclass(frozen=True, slots=True)
class Arm:
    """The users of one variation, as sums by user."""

    variation: str
    weight: float | None  # its intended share of the users; None if that is not known or has changed
    history: NDArray[np.int64]  # at the user's first answer; -1 if unknown
    answers: NDArray[np.float64]
    clicked: NDArray[np.float64]  # answers with a click
    disliked: NDArray[np.float64]  # answers with negative feedback
    buyer: NDArray[np.float64]  # 1 if the user bought
    value: NDArray[np.float64]  # GMV
    reasoned: float  # share of answers
    degraded: float  # share of answers

    def where(self, chosen: NDArray[np.bool_]) -> Arm:
        """The same for some of the users."""
        return replace(
            self,
            history=self.history[chosen],
            answers=self.answers[chosen],
            clicked=self.clicked[chosen],
            disliked=self.disliked[chosen],
            buyer=self.buyer[chosen],
            value=self.value[chosen],
        )


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment's users by variation."""

    name: str
    arms: list[Arm]
    crossed: int  # users who were seen in several variations, and are left out
    reweighted: bool  # the shares of the variations changed during the log


def experiments(answers: Answers) -> list[Experiment]:
    """Every experiment in the log; the holdout, if there is one, last."""
    names = dict.fromkeys(name for parts in answers.parts for name, _, _ in parts if name != HOLDOUT)
    found = [_experiment(answers, name) for name in names]
    holdout = _experiment(answers, HOLDOUT) if answers.parts else None
    return found + ([holdout] if holdout is not None and len(holdout.arms) > 1 else [])


def _experiment(answers: Answers, name: str) -> Experiment:
    weights: dict[str, set[float]] = defaultdict(set)
    for parts in answers.parts:
        for experiment, variation, weight in parts:
            if experiment == name:
                weights[variation].add(weight)
    variations = sorted(weights)
    number = {variation: place for place, variation in enumerate(variations)}
    table = np.full(len(answers.parts), -1)
    for place, parts in enumerate(answers.parts):
        for experiment, variation, _ in parts:
            if experiment == name:
                table[place] = number[variation]
    variation_of = table[answers.part]  # [rows], -1: not in this experiment
    inside = np.flatnonzero(variation_of >= 0)
    user, variation_of = answers.user[inside], variation_of[inside]

    order = np.lexsort((inside, answers.ts[inside]))
    known, first = np.unique(user[order], return_index=True)  # users in order, and the row of each one's first answer
    first = order[first]
    lowest = np.full(len(answers.users), len(variations))
    highest = np.full(len(answers.users), -1)
    np.minimum.at(lowest, user, variation_of)
    np.maximum.at(highest, user, variation_of)
    crossed = (lowest != highest)[known]
    reweighted = any(len(seen) > 1 for seen in weights.values())

    def by_user(column: NDArray[np.generic], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        sums = np.bincount(user[rows], column[inside[rows]].astype(np.float64), len(answers.users))
        return sums.astype(np.float64)

    arms: list[Arm] = []
    for variation in variations:
        mine = (lowest[known] == number[variation]) & ~crossed
        members = known[mine]
        rows = np.flatnonzero((variation_of == number[variation]) & ~(lowest != highest)[user])
        (weight,) = weights[variation] if not reweighted else (0.0,)
        counted = max(len(rows), 1)
        arms.append(
            Arm(
                variation=variation,
                weight=weight or None,
                history=answers.history[inside[first[mine]]],
                answers=np.bincount(user[rows], minlength=len(answers.users))[members].astype(np.float64),
                clicked=by_user(answers.clicked, rows)[members],
                disliked=by_user(answers.disliked, rows)[members],
                buyer=(by_user(answers.bought, rows)[members] > 0).astype(np.float64),
                value=by_user(answers.value, rows)[members],
                reasoned=float(answers.reasoned[inside[rows]].sum() / counted),
                degraded=float(answers.degraded[inside[rows]].sum() / counted),
            )
        )
    return Experiment(name, arms, int(crossed.sum()), reweighted)
