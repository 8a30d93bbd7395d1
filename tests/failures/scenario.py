"""One failure: a load of checked requests before, while something is broken, and after it has been mended."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.service.server import Server
from tests.service.tiny_release import TinyRelease

DEADLINE_MS = 250
LATE_MS = 50  # no answer may come later after its deadline, whatever is broken
START_SECONDS = 20.0
RECOVERY_SECONDS = 20.0
# Milliseconds by which this process, which has little to do, is late when the whole test machine has stopped.
PAUSE_MS = 50.0
AFTERMATH_SECONDS = 0.3  # in which the service catches up with a pause

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to."""

    at: float  # when it was answered, seconds by the monotonic clock
    milliseconds: float
    served: float  # milliseconds by the service's own clock, which a busy caller does not prolong
    status: int | str  # HTTP status, or the name of the error of a connection that broke
    degraded: tuple[str, ...]
    source: str  # "model" or "popular"; "" if it was not answered
    reasoned: bool

    @property
    def whole(self) -> bool:
        """Whether it is all that it can be."""
        return self.status == 200 and not self.degraded and self.source == "model" and self.reasoned


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of failures."""

    failure: str
    answers: int
    statuses: str
    got: str
    p50: float  # milliseconds, while broken
    worst: float
    recovery: float  # seconds from mending to the first whole answer after which all were whole


TABLE: list[Row] = []


@dataclass(slots=True)
class Machine:
    """Whether this process, which has little to do, is woken when it should be: all others stop when it does."""

    late: float = 0.0  # milliseconds at most since `clear`
    running: float = 0.0  # seconds since `clear`, pauses left out
    _pauses: list[tuple[float, float]] = field(default_factory=list)  # by the monotonic clock

    async def watch(self) -> None:
        """Watch until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            now = time.monotonic()
            late = (now - before) * 1000 - 5
            self.late = max(self.late, late)
            self.running += min(now - before, PAUSE_MS / 1000)
            if late > PAUSE_MS:
                self._pauses.append((before, now))

    def clear(self) -> None:
        """Look at the next phase alone."""
        self.late = self.running = 0.0

    def paused(self, answer: Answer) -> bool:
        """Whether the machine stopped while that request was under way, or just before it."""
        began = answer.at - answer.milliseconds / 1000
        return any(stop < answer.at and began < end + AFTERMATH_SECONDS for stop, end in self._pauses)

    def judged(self, answers: list[Answer]) -> list[Answer]:
        """The answers that no pause of the machine can excuse."""
        return [answer for answer in answers if not self.paused(answer)]


@dataclass(slots=True)
class Clients:
    """Callers that never stop asking; with their history in every other request."""

    server: Server
    release: TinyRelease
    number: int = 6
    headers: dict[str, str] = field(default_factory=lambda: {"X-Deadline-Ms": str(DEADLINE_MS)})
    answers: list[Answer] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Ask until `stop`."""
        async with asyncio.TaskGroup() as group:
            for first in range(self.number):
                group.create_task(self._ask(first))

    def stop(self) -> None:
        """Let everybody finish."""
        self._stop.set()

    async def _ask(self, number: int) -> None:
        async with httpx2.AsyncClient(base_url=self.server.address, timeout=30, headers=self.headers) as client:
            while not self._stop.is_set():
                user = self.release.users[number % len(self.release.users)]
                body: Body = {"user_id": user.id, "k": 5}
                if (number // self.number) % 2:
                    body["history"] = user.history
                number += self.number
                started = time.monotonic()
                try:
                    response = await client.post("/recommend", json=body)
                except httpx2.TransportError as error:
                    self._note(started, type(error).__name__, {}, None)
                    await asyncio.sleep(0.02)
                    continue
                answer = response.json() if response.status_code == 200 else {}
                if answer:
                    check(self.release, body, answer)
                self._note(started, response.status_code, answer, response.headers["server-timing"])
                await asyncio.sleep(0.005)

    def _note(self, started: float, status: int | str, answer: Body, timing: str | None) -> None:
        now = time.monotonic()
        taken = (now - started) * 1000
        served = taken if timing is None else float(timing.rpartition("total;dur=")[2])
        degraded = tuple(answer.get("degraded", ()))
        reasoned = bool(answer and answer["reasoning"]["used"])
        source = answer.get("source", "")
        self.answers.append(Answer(now, taken, served, status, degraded, source, reasoned))


def check(release: TinyRelease, request: Body, answer: Body) -> None:
    """Fails unless the answer is the one that this user must get, given what the answer says was at hand."""
    user = next(user for user in release.users if user.id == request["user_id"])
    known = request.get("history") is not None or answer["history"]["source"] == "stored"
    ids = [item["id"] for item in answer["items"]]
    assert len(set(ids)) == len(ids) == request["k"]
    if known:
        assert not set(ids) & set(user.history), answer
    if answer["source"] == "model":
        assert known
        seen = [int(item.removeprefix("item-")) for item in user.history]
        matrix = user.matrix if answer["reasoning"]["used"] else None
        expected = release.expected(seen, matrix, set(seen), request["k"])
        assert ids == [f"item-{index}" for index, _ in expected], answer


async def run(
    failure: str,
    clients: Clients,
    break_it: Callable[[], Awaitable[None] | None],
    mend: Callable[[], Awaitable[None] | None],
    *,
    seconds: float = 1.5,
    well_before: bool = True,
) -> list[Answer]:
    """The answers while it was broken, after checking that all was well before and is again by itself.

    Not `well_before` is for what is broken from the start. Answers during which the whole machine stopped are not
    among them, and it is broken for so many seconds in which the machine runs.
    """
    running = asyncio.create_task(clients.run())
    machine = Machine()
    watching = asyncio.create_task(machine.watch())
    try:
        await _begun(clients, machine, whole=well_before)
        broken_at = time.monotonic()
        machine.clear()
        await _done(break_it())
        while machine.running < seconds:
            await asyncio.sleep(0.02)
        delay = machine.late
        broken = machine.judged([answer for answer in clients.answers if answer.at > broken_at])
        await _done(mend())
        mended_at = time.monotonic()
        recovered = await _recovered(clients, mended_at)
    finally:
        watching.cancel()
        clients.stop()
        await running
    assert broken, "nobody was answered while it was broken"
    times = sorted(answer.milliseconds for answer in broken)
    statuses = Counter(str(answer.status) for answer in broken)
    TABLE.append(
        Row(
            failure,
            len(broken),
            ", ".join(f"{status} x{count}" for status, count in statuses.most_common()),
            _got(broken),
            times[len(times) // 2],
            times[-1],
            recovered,
        )
    )
    slowest = max(answer.served for answer in broken)
    # A machine that has no core for us for so long would delay any service by as much.
    allowed = float(clients.headers["X-Deadline-Ms"]) + LATE_MS
    assert slowest <= allowed + delay, f"{failure}: an answer took {slowest:.0f} ms, {delay:.0f} ms of them lost"
    return broken


async def _begun(clients: Clients, machine: Machine, *, whole: bool) -> None:
    """Wait for five answers per caller in a row; if `whole`, such answers. A busy machine may be late at first."""
    end = time.monotonic() + START_SECONDS
    few = 5 * clients.number
    while len(before := machine.judged(clients.answers)[-few:]) < few or (whole and not all(a.whole for a in before)):
        assert time.monotonic() < end, f"not well at the start: {Counter((a.status, a.degraded) for a in before)}"
        await asyncio.sleep(0.02)


async def _done(step: Awaitable[None] | None) -> None:
    if step is not None:
        await step


async def _recovered(clients: Clients, since: float) -> float:
    """Seconds from `since` until every answer of half a second was whole. Fails if that never comes."""
    end = since + RECOVERY_SECONDS
    while time.monotonic() < end:
        await asyncio.sleep(0.1)
        late = [answer for answer in clients.answers if answer.at > since]
        lesser = [answer.at for answer in late if not answer.whole]
        first = max(lesser, default=since)
        if late and time.monotonic() - first > 0.5 and late[-1].at > first:
            return first - since
    worst = Counter((answer.status, answer.degraded) for answer in clients.answers if answer.at > since)
    raise AssertionError(f"not well again {RECOVERY_SECONDS:.0f} s after mending: {worst}")


def _got(answers: list[Answer]) -> str:
    """What the callers got, most frequent first."""
    kinds = Counter(
        ("ranked, with reasoning" if answer.reasoned else "ranked, no reasoning")
        if answer.source == "model"
        else "popular items"
        if answer.source == "popular"
        else "turned away"
        if isinstance(answer.status, int)
        else "no answer"
        for answer in answers
    )
    reasons = Counter(reason for answer in answers for reason in answer.degraded)
    told = f" ({', '.join(reason for reason, _ in reasons.most_common())})" if reasons else ""
    return ", ".join(kind for kind, _ in kinds.most_common()) + told
