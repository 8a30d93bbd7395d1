"""What a pause of the test machine excuses, and what it does not."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.failures.scenario import PAUSE_MS, Answer, Machine


def answer(began: float, at: float) -> Answer:
    return Answer(at, (at - began) * 1000, 1.0, 200, ("engine_timeout",), "popular", reasoned=False)


@pytest.mark.anyio
async def test_answers_are_judged_unless_the_machine_stopped_meanwhile() -> None:
    machine = Machine()
    watching = asyncio.create_task(machine.watch())
    await asyncio.sleep(0.05)
    stopped = time.monotonic()
    time.sleep(4 * PAUSE_MS / 1000)  # noqa: ASYNC251 - as if everything stood still
    went_on = time.monotonic()
    await asyncio.sleep(0.05)
    watching.cancel()
    assert machine.late > PAUSE_MS
    assert machine.running < 0.2
    before = answer(stopped - 9, stopped - 8)  # a real pause may come on top
    after = answer(went_on + 8, went_on + 9)
    caught = [answer(stopped - 0.1, went_on + 0.1), answer(went_on, went_on + 0.2)]
    assert machine.judged([before, *caught, after]) == [before, after]
