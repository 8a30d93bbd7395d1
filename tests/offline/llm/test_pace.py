from __future__ import annotations

import time
from email.utils import formatdate

import anyio
import pytest

from offline.llm.pace import LONGEST_WAIT, Pace, asked_wait, backoff, spent_wait


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "120", "retry-after": "9"}, 0.12),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "nan", "retry-after": "2"}, 2.0),
        ({"retry-after": "Sun, 31 Dec 99999 23:59:59 GMT"}, None),
        ({}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m2s"}, 62.0),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1m2s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "tomorrow"}, None),
        ({"x-ratelimit-remaining-tokens": "99", "x-ratelimit-reset-tokens": "20s"}, 20.0),
        ({"x-ratelimit-remaining-tokens": "100", "x-ratelimit-reset-tokens": "20s"}, None),
    ],
)
def test_a_refusal_says_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait(headers, 100) == (seconds if seconds is None else pytest.approx(seconds))


def test_a_refusal_may_name_a_date() -> None:
    wait = asked_wait({"retry-after": formatdate(time.time() + 30, usegmt=True)}, 100)
    assert wait is not None
    assert 25 < wait <= 30


@pytest.mark.parametrize(
    "text, seconds", [("20ms", 0.02), ("6m0s", 360.0), ("1h2m3s", 3723.0), ("1.5s", 1.5), ("7", 7)]
)
def test_an_answer_says_when_its_limit_is_used_up(text: str, seconds: float) -> None:
    headers = {"x-ratelimit-remaining-tokens": "99", "x-ratelimit-reset-tokens": text}
    assert spent_wait(headers, tokens=100) == pytest.approx(seconds)
    assert spent_wait(headers, tokens=99) is None
    assert spent_wait({"x-ratelimit-remaining-tokens": "many", "x-ratelimit-reset-tokens": text}, tokens=100) is None


def test_backoff_doubles_up_to_a_bound_and_half_of_it_is_chance() -> None:
    for retry, longest in ((0, 0.5), (1, 1.0), (4, 8.0), (50, LONGEST_WAIT)):
        waits = [backoff(retry) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert len(set(waits)) > 100


@pytest.mark.anyio
async def test_what_one_is_told_holds_for_all_and_a_stop_ends_the_wait() -> None:
    pace, stopped = Pace(), anyio.Event()
    pace.hold(0.2)
    pace.hold(0.01)  # a shorter wait does not undo a longer one
    start = time.monotonic()
    await pace.turn(stopped)
    assert time.monotonic() - start >= 0.2
    pace.hold(60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pace.turn, stopped)
        stopped.set()
    assert pace.wait > 50
