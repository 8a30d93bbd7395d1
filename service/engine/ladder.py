"""Who ranks when the engine fails: the engine, else the fallback engine, else nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from service.deadline import Deadline
from service.degraded import EngineFailure
from service.engine.base import Engine, ModelInput, Ranking
from service.engine.breaker import Breaker
from service.errors import EngineError, EngineOverloaded, EngineTimeout, EngineUnavailable
from service.settings import BreakerSettings

_T = TypeVar("_T")

REPLY_SECONDS = 0.002  # kept back for writing the answer, so that one without a ranking is still in time
GRACE_SECONDS = 0.01  # for an engine to end by itself what took too long
UNKNOWN_SECONDS = 0.01  # what an answer takes, before there was one
READY_SECONDS = 1.0  # for an engine to say that it is ready: whoever probes the service waits for two seconds


@dataclass(frozen=True, slots=True)
class Outcome(Generic[_T]):
    """What came of asking the engines in turn."""

    result: _T | None  # None: no engine answered
    reasons: list[EngineFailure]  # why it is less than the first engine's answer; empty if it is not


@dataclass(slots=True)
class _Lane:
    """One model on one engine: it may hang alone, while the engine answers for others."""

    breaker: Breaker
    answered: float = 0.0  # when it last answered, by the monotonic clock
    took: float = UNKNOWN_SECONDS  # seconds that this answer took
    silent: float | None = None  # when the first timeout was counted since then
    hurried: int = 0  # timeouts since then that might be their callers' fault

    def succeeded(self, began: float) -> None:
        """Note an answer to a request that began at that time."""
        self.answered = monotonic()
        self.took, self.hurried, self.silent = self.answered - began, 0, None
        self.breaker.succeeded()

    def timed_out(self, began: float, seconds: float, settings: BreakerSettings) -> None:
        """Note that a request had no answer in so many seconds.

        A busy model, which meanwhile answers others, is not out of order, nor is one whose caller was in a hurry. But
        where all callers are, a model that hangs must be noticed, too: one such timeout says little, a row of them
        without an answer says enough. Less time than its last answer took says nothing however often it comes, or one
        caller with absurd deadlines would keep the model from all others. Whoever waited when the first timeout was
        counted waited for the same batch: one stall is one failure, however many it keeps waiting.
        """
        excused = self.answered > began or (self.silent is not None and self.silent > began)
        if not excused and seconds * 1000 < settings.slow_ms:
            ample = seconds >= self.took
            self.hurried += ample
            excused = not ample or self.hurried <= settings.failures
        if not excused and self.silent is None:
            self.silent = monotonic()
        (self.breaker.abandoned if excused else self.breaker.failed)()


@dataclass(slots=True)
class _Rung:
    engine: Engine
    lanes: dict[str, _Lane] = field(default_factory=dict)  # by model


class Ladder:
    """Engines in order of preference, each behind a circuit breaker per model."""

    def __init__(self, engines: Sequence[Engine], settings: BreakerSettings) -> None:
        self._rungs = [_Rung(engine) for engine in engines]
        self._settings = settings

    async def infer(
        self, model: str, request: ModelInput, deadline: Deadline, accept: Callable[[Ranking], _T]
    ) -> Outcome[_T]:
        """The first answer that `accept` takes (it raises EngineUnavailable at one that cannot be).

        Raises EngineOverloaded at once: another replica may have room, and a fallback would only share the load.
        """
        reasons: list[EngineFailure] = []
        for number, rung in enumerate(self._rungs):
            last = number == len(self._rungs) - 1
            seconds = deadline.left() - (REPLY_SECONDS if last else self._settings.reserve_ms / 1000)
            lane = rung.lanes.get(model)
            if lane is None:
                lane = rung.lanes[model] = _Lane(Breaker(self._settings))
            if seconds <= 0:
                _note(reasons, "engine_timeout")
                continue
            if not lane.breaker.allows():
                _note(reasons, "engine_unavailable")
                continue
            began = monotonic()
            try:
                async with asyncio.timeout(seconds + GRACE_SECONDS):  # whatever an engine promises of its own
                    result = accept(await rung.engine.infer(model, request, seconds))
            except (EngineTimeout, TimeoutError):
                lane.timed_out(began, seconds, self._settings)
                _note(reasons, "engine_timeout")
            except EngineUnavailable:
                lane.breaker.failed()
                _note(reasons, "engine_unavailable")
            except BaseException:  # overloads, callers that left, and what nobody foresaw: a probe must be given back
                lane.breaker.abandoned()
                raise
            else:
                lane.succeeded(began)
                if number:
                    reasons.append("engine_fallback")
                return Outcome(result, reasons)
        return Outcome(None, reasons)

    def broken(self) -> int:
        """Circuit breakers that are open."""
        return sum(lane.breaker.open for rung in self._rungs for lane in rung.lanes.values())

    async def ready(self, model: str, probe: ModelInput) -> list[bool]:
        """Per engine, whether it would answer for the model now; one that does not say so soon would not.

        Of a model whose breaker is open its engine's word is not enough: it has to answer the probe. Without that, a
        replica that gets no requests because it is not ready would never be found to be well again, and a model that
        nobody asks any more would be counted as broken for good.
        """
        return await asyncio.gather(*(_ready(rung, model, probe) for rung in self._rungs))

    @property
    def local(self) -> bool:
        """Whether an engine of this process is among them."""
        return any(rung.engine.local for rung in self._rungs)

    async def close(self) -> None:
        """Finish what is running and give everything back."""
        for rung in self._rungs:
            await rung.engine.close()


async def _ready(rung: _Rung, model: str, probe: ModelInput) -> bool:
    lane = rung.lanes.get(model)
    try:
        async with asyncio.timeout(READY_SECONDS):
            ready = await rung.engine.ready(model)
            if ready and lane is not None and lane.breaker.open:
                await rung.engine.infer(model, probe, READY_SECONDS)
                lane.breaker.recovered()
            return ready
    except EngineOverloaded:  # it has more to do than it can
        return True
    except (EngineError, TimeoutError):
        return False


def _note(reasons: list[EngineFailure], reason: EngineFailure) -> None:
    if reason not in reasons:
        reasons.append(reason)
