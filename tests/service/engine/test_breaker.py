from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.breaker import Breaker
from service.settings import BreakerSettings


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(BreakerSettings(failures=3, open_ms=1000), clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allows()
        breaker.failed()


def test_failures_in_a_row_open_it(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert not breaker.open
    fail(breaker, 1)
    assert breaker.open
    assert not breaker.allows()


def test_a_success_between_failures_keeps_it_closed(breaker: Breaker) -> None:
    for _ in range(10):
        fail(breaker, 2)
        assert breaker.allows()
        breaker.succeeded()
    assert not breaker.open


def test_one_probe_at_a_time_once_it_has_rested(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 0.99
    assert not breaker.allows()
    clock.now = 1.0
    assert breaker.allows()
    assert not breaker.allows()  # somebody is probing
    breaker.succeeded()
    assert not breaker.open
    assert breaker.allows()


def test_a_failed_probe_opens_it_for_as_long_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 1.5
    fail(breaker, 1)
    clock.now = 2.4
    assert not breaker.allows()
    clock.now = 2.5
    assert breaker.allows()


def test_an_abandoned_probe_leaves_its_place_to_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 1.0
    assert breaker.allows()
    breaker.abandoned()
    assert breaker.open
    assert breaker.allows()


@given(st.lists(st.tuples(st.sampled_from(["ok", "bad", "left"]), st.floats(0, 3)), max_size=60))
def test_it_never_locks_out_for_good(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=3, open_ms=1000), clock)
    for outcome, seconds in steps:
        clock.now += seconds
        if breaker.allows():
            {"ok": breaker.succeeded, "bad": breaker.failed, "left": breaker.abandoned}[outcome]()
    clock.now += 1.0
    assert breaker.allows()
