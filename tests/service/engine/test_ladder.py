from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import numpy as np
import pytest

from service.deadline import Deadline
from service.engine.base import ModelInput, Ranking
from service.engine.breaker import Breaker
from service.engine.ladder import READY_SECONDS, Ladder, Outcome
from service.errors import EngineError, EngineOverloaded, EngineTimeout, EngineUnavailable
from service.settings import BreakerSettings
from tests import virtual_time

pytestmark = pytest.mark.anyio

REQUEST = ModelInput(np.array([1]), None, np.array([], np.int64))
SETTINGS = BreakerSettings(failures=2, open_ms=60_000, slow_ms=20, reserve_ms=50)
HURRIED = SETTINGS.model_copy(update={"slow_ms": 500})  # everybody is in a hurry then


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    return virtual_time.BACKEND


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of tens of milliseconds, kept to the microsecond on a machine that stops for seconds."""
    for module in ("service.deadline", "service.engine.ladder"):
        monkeypatch.setattr(f"{module}.monotonic", virtual_time.clock)
    monkeypatch.setattr("service.engine.ladder.Breaker", partial(Breaker, clock=virtual_time.clock))


class Scripted:
    """An engine that fails as it is told to, or answers with its own number."""

    local = True

    def __init__(self, number: int, failure: EngineError | None = None, slow: float = 0.0) -> None:
        self.number = number
        self.failure = failure
        self.slow = slow  # seconds
        self.given: list[float] = []  # seconds that each call was given
        self.closed = False

    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        self.given.append(seconds)
        slow = self.slow
        await asyncio.sleep(min(slow, seconds))
        if self.failure is not None:
            raise self.failure
        if slow > seconds:
            raise EngineTimeout(f"{model} was late")
        return Ranking(np.array([self.number]), np.zeros(1, np.float32), np.ones(1, np.bool_))

    async def ready(self, model: str) -> bool:
        return self.failure is None

    async def close(self) -> None:
        self.closed = True


def number(ranking: Ranking) -> int:
    return int(ranking.items[0])


async def ask(ladder: Ladder, seconds: float = 1.0, model: str = "hstu") -> Outcome[int]:
    return await ladder.infer(model, REQUEST, Deadline(seconds), number)


async def test_the_first_engine_answers_and_keeps_time_for_the_fallback() -> None:
    first, second = Scripted(1), Scripted(2)
    assert await ask(Ladder([first, second], SETTINGS)) == Outcome(1, [])
    assert second.given == []
    assert 0.9 < first.given[0] <= 0.95
    alone = Scripted(1)
    await ask(Ladder([alone], SETTINGS))
    assert 0.99 < alone.given[0] < 1
    # Whoever needs nearly all of the time that is given is not cut off.
    assert await ask(Ladder([Scripted(1, slow=0.045)], SETTINGS), 0.05) == Outcome(1, [])


async def test_the_fallback_answers_when_the_engine_fails_or_is_late() -> None:
    broken = Ladder([Scripted(1, EngineUnavailable("gone")), Scripted(2)], SETTINGS)
    assert await ask(broken) == Outcome(2, ["engine_unavailable", "engine_fallback"])
    late = Ladder([Scripted(1, slow=5), Scripted(2)], SETTINGS)
    assert await ask(late, 0.2) == Outcome(2, ["engine_timeout", "engine_fallback"])


async def test_no_engine_is_left_is_an_outcome_not_an_error() -> None:
    ladder = Ladder([Scripted(1, EngineUnavailable("gone")), Scripted(2, EngineUnavailable("gone too"))], SETTINGS)
    assert await ask(ladder) == Outcome(None, ["engine_unavailable"])
    assert await ask(Ladder([Scripted(1, slow=5)], SETTINGS), 0.05) == Outcome(None, ["engine_timeout"])


async def test_an_answer_that_cannot_be_is_a_failure_of_that_engine() -> None:
    def picky(ranking: Ranking) -> int:
        if number(ranking) == 1:
            raise EngineUnavailable("no such item")
        return number(ranking)

    ladder = Ladder([Scripted(1), Scripted(2)], SETTINGS)
    for _ in range(2):
        assert (await ladder.infer("hstu", REQUEST, Deadline(1), picky)).result == 2
    assert ladder.broken() == 1


async def test_an_engine_that_keeps_failing_is_left_alone_per_model() -> None:
    first = Scripted(1, EngineUnavailable("gone"))
    ladder = Ladder([first, Scripted(2)], SETTINGS)
    for _ in range(5):
        assert (await ask(ladder)).result == 2
    assert len(first.given) == 2
    assert ladder.broken() == 1
    await ask(ladder, model="scoter_h")
    assert len(first.given) == 3


async def test_a_caller_in_a_hurry_opens_no_breaker() -> None:
    first = Scripted(1, slow=5)
    ladder = Ladder([first], SETTINGS)
    for _ in range(4):
        await ask(ladder, 0.01)
    assert ladder.broken() == 0
    for _ in range(2):
        await ask(ladder, 0.05)
    assert ladder.broken() == 1


async def test_a_model_that_hangs_is_noticed_though_all_its_callers_are_in_a_hurry() -> None:
    ladder = Ladder([Scripted(1, slow=5), Scripted(2)], HURRIED)
    for _ in range(HURRIED.failures):  # 50 ms are left of 100, with 50 kept back for the fallback
        assert await ask(ladder, 0.1) == Outcome(2, ["engine_timeout", "engine_fallback"])
    for _ in range(HURRIED.failures):
        assert ladder.broken() == 0
        await ask(ladder, 0.1)
    assert ladder.broken() == 1
    assert await ask(ladder, 0.1) == Outcome(2, ["engine_unavailable", "engine_fallback"])


async def test_callers_in_a_hurry_with_an_answer_between_them_open_no_breaker() -> None:
    first = Scripted(1)
    ladder = Ladder([first], HURRIED)
    for _ in range(4):
        first.slow = 5
        for _ in range(HURRIED.failures + 1):
            await ask(ladder, 0.05)
        first.slow = 0
        assert await ask(ladder) == Outcome(1, [])
    assert ladder.broken() == 0


async def test_less_time_than_a_healthy_model_takes_says_nothing_however_often() -> None:
    ladder = Ladder([Scripted(1, slow=0.08)], HURRIED)
    assert await ask(ladder) == Outcome(1, [])
    for _ in range(10):
        assert (await ask(ladder, 0.05)).reasons == ["engine_timeout"]
    assert ladder.broken() == 0


async def test_a_model_that_hangs_is_noticed_while_the_engine_answers_for_another() -> None:
    class Partly(Scripted):
        async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
            self.slow = 5.0 if model == "hstu" else 0.001
            return await super().infer(model, request, seconds)

    ladder = Ladder([Partly(1)], SETTINGS)
    for _ in range(SETTINGS.failures):
        late, quick = await asyncio.gather(ask(ladder, 0.05), ask(ladder, 0.05, "scoter_h"))
        assert (late.reasons, quick.reasons) == (["engine_timeout"], [])
    assert ladder.broken() == 1
    assert await ask(ladder, 0.05) == Outcome(None, ["engine_unavailable"])
    assert await ask(ladder, 0.05, "scoter_h") == Outcome(1, [])


async def test_a_model_that_answers_others_meanwhile_is_busy_not_broken() -> None:
    class Uneven(Scripted):
        async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
            self.slow = 0.0 if self.slow else 5.0  # every other request is late
            return await super().infer(model, request, seconds)

    ladder = Ladder([Uneven(1)], SETTINGS)
    for _ in range(3):
        late, quick = await asyncio.gather(ask(ladder, 0.05), ask(ladder, 0.05))
        assert (late.reasons, quick.reasons) == (["engine_timeout"], [])
    assert ladder.broken() == 0
    # None of those counts towards the failures in a row: it takes as many others as ever.
    ladder = Ladder([Uneven(1)], BreakerSettings(failures=1, open_ms=60_000, slow_ms=20))
    late, quick = await asyncio.gather(ask(ladder, 0.05), ask(ladder, 0.05))
    assert (late.reasons, quick.reasons) == (["engine_timeout"], [])
    assert ladder.broken() == 0
    assert (await ask(ladder, 0.05)).reasons == ["engine_timeout"]
    assert ladder.broken() == 1


async def test_an_overload_is_passed_on_at_once_and_is_no_failure() -> None:
    second = Scripted(2)
    ladder = Ladder([Scripted(1, EngineOverloaded("full")), second], SETTINGS)
    for _ in range(5):
        with pytest.raises(EngineOverloaded):
            await ask(ladder)
    assert second.given == []
    assert ladder.broken() == 0


async def test_an_engine_that_hangs_or_breaks_in_a_new_way_locks_nobody_out() -> None:
    class Odd(Scripted):
        async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
            if self.failure is None:
                return await super().infer(model, request, seconds)
            if isinstance(self.failure, EngineTimeout):
                await asyncio.sleep(60)  # past what it was given
            raise RuntimeError("unforeseen")

    first = Odd(1, EngineTimeout("hangs"))
    ladder = Ladder([first], BreakerSettings(failures=2, open_ms=1, slow_ms=20))
    for _ in range(3):
        async with asyncio.timeout(1):
            assert await ask(ladder, 0.05) == Outcome(None, ["engine_timeout"])
        await asyncio.sleep(0.005)
    first.failure = EngineUnavailable("breaks")
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await ask(ladder)
    first.failure = None
    assert await ask(ladder) == Outcome(1, [])
    assert ladder.broken() == 0


async def test_no_time_left_asks_nobody() -> None:
    first = Scripted(1)
    assert await ask(Ladder([first], SETTINGS), -1) == Outcome(None, ["engine_timeout"])
    assert first.given == []


async def test_a_cancelled_caller_is_no_failure() -> None:
    ladder = Ladder([Scripted(1, slow=5)], SETTINGS)
    for _ in range(3):
        task = asyncio.create_task(ask(ladder))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ladder.broken() == 0


async def test_an_engine_that_hangs_is_not_ready_in_time_for_a_probe() -> None:
    class Hanging(Scripted):
        async def ready(self, model: str) -> bool:
            await asyncio.sleep(60)
            return True

    started = virtual_time.clock()
    assert await Ladder([Hanging(1), Hanging(2), Scripted(3)], SETTINGS).ready("hstu", REQUEST) == [False, False, True]
    assert virtual_time.clock() - started < 2 * READY_SECONDS


async def test_readiness_and_closing_reach_every_engine() -> None:
    engines = [Scripted(1, EngineUnavailable("gone")), Scripted(2)]
    ladder = Ladder(engines, SETTINGS)
    assert await ladder.ready("hstu", REQUEST) == [False, True]
    await ladder.close()
    assert [engine.closed for engine in engines] == [True, True]


async def test_whether_an_engine_of_this_process_is_among_them() -> None:
    class Remote(Scripted):
        local = False

    assert Ladder([Remote(1), Scripted(2)], SETTINGS).local
    assert not Ladder([Remote(1), Remote(2)], SETTINGS).local


async def test_one_stall_is_one_failure_however_many_wait_for_it() -> None:
    first = Scripted(1)
    ladder = Ladder([first], SETTINGS)
    assert await ask(ladder) == Outcome(1, [])
    for _ in range(3):
        first.slow = 5
        answers = await asyncio.gather(*(ask(ladder, 0.1) for _ in range(8)))
        assert answers == [Outcome(None, ["engine_timeout"])] * 8
        first.slow = 0
        assert await ask(ladder) == Outcome(1, [])


async def test_a_model_that_hangs_is_given_up_within_two_deadlines() -> None:
    ladder = Ladder([Scripted(1, slow=5)], BreakerSettings(failures=5, open_ms=60_000))
    for _ in range(2):
        assert ladder.broken() == 0
        await asyncio.gather(*(ask(ladder, 0.1) for _ in range(8)))
    assert ladder.broken() == 1


async def test_a_model_that_was_given_up_has_to_answer_to_be_ready() -> None:
    class Loaded(Scripted):
        async def ready(self, model: str) -> bool:
            return True

    engine = Loaded(1, EngineUnavailable("bad allocation"))
    ladder = Ladder([engine], SETTINGS)
    assert await ladder.ready("hstu", REQUEST) == [True]
    assert not engine.given  # while nobody complains it is not asked
    for _ in range(SETTINGS.failures):
        await ask(ladder)
    assert await ladder.ready("hstu", REQUEST) == [False]
    assert await ladder.ready("scoter_h", REQUEST) == [True]
    engine.failure = EngineOverloaded("more to do than it can")
    assert await ladder.ready("hstu", REQUEST) == [True]
    engine.failure = None
    assert await ladder.ready("hstu", REQUEST) == [True]
    assert ladder.broken() == 1  # its callers are kept away for as long as the settings say
    await asyncio.sleep(SETTINGS.open_ms / 1000)
    assert await ask(ladder) == Outcome(1, [])
    asked = len(engine.given)
    assert await ladder.ready("hstu", REQUEST) == [True]
    assert len(engine.given) == asked  # its word is enough again


async def broken() -> tuple[Scripted, Ladder]:
    """An engine that has failed until its breaker opened, long enough ago for it to be tried again."""
    engine = Scripted(1, EngineUnavailable("gone"))
    ladder = Ladder([engine], SETTINGS)
    for _ in range(SETTINGS.failures):
        await ask(ladder)
    await asyncio.sleep(SETTINGS.open_ms / 1000)
    return engine, ladder


async def test_a_model_that_nobody_asks_any_more_does_not_stay_broken() -> None:
    engine, ladder = await broken()
    assert await ladder.ready("hstu", REQUEST) == [False]
    assert ladder.broken() == 1
    engine.failure = None
    assert await ladder.ready("hstu", REQUEST) == [True]
    assert ladder.broken() == 0
    # A probe is the least that can be asked: what callers ask may fail as before, and need not do so often.
    engine.failure = EngineUnavailable("bad allocation")
    await ask(ladder)
    assert ladder.broken() == 1


async def test_a_probe_beside_a_callers_leaves_it_to_that_one() -> None:
    engine, ladder = await broken()
    engine.failure, engine.slow = None, 0.5
    asking = asyncio.create_task(ask(ladder))
    await asyncio.sleep(0.1)
    engine.slow = 0.0
    assert await ladder.ready("hstu", REQUEST) == [True]
    assert ladder.broken() == 1
    assert await asking == Outcome(1, [])
    assert ladder.broken() == 0
