from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from service.errors import ReleaseCorrupt, StoreTimeout, StoreUnavailable
from service.metrics import Metrics
from service.pointer import PATIENCE_CEILING, START_PAUSES, Follower, published, published_at_start
from service.store.keys import RELEASE_POINTER

pytestmark = pytest.mark.anyio

GOOD, BAD, BETTER = "a" * 16, "b" * 16, "c" * 16
EVERY = 5.0


class Stage:
    """A store that holds a pointer alone, a clock, and a swap that refuses what it is told to."""

    def __init__(self) -> None:
        self.pointer: bytes | None = GOOD.encode()
        self.down = False
        self.now = 0.0
        self.bad = {BAD}
        self.tried: list[str] = []
        self.registry = CollectorRegistry()
        self.follower = Follower(cast("Any", self), self.swap, GOOD, EVERY, Metrics(self.registry), lambda: self.now)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        assert keys == [RELEASE_POINTER]
        if self.down:
            raise StoreUnavailable("the store is down")
        return [self.pointer]

    async def swap(self, release: str) -> None:
        self.tried.append(release)
        if release in self.bad:
            raise ReleaseCorrupt("half of it is missing")

    async def look(self, release: str | None, seconds: float = EVERY) -> list[str]:
        """What a look after so many seconds tries to serve."""
        self.pointer = None if release is None else release.encode()
        self.now += seconds
        before = len(self.tried)
        await self.follower.look()
        return self.tried[before:]

    def refused(self) -> float | None:
        return self.registry.get_sample_value("scoter_swaps_total", {"outcome": "refused"})


async def test_a_refused_release_is_tried_ever_more_rarely() -> None:
    stage = Stage()
    waits = []
    last = 0.0
    for _ in range(400):
        if await stage.look(BAD):
            waits.append(stage.now - last)
            last = stage.now
    assert waits[:6] == [5, 10, 20, 40, 80, 160]
    assert set(waits[6:]) == {PATIENCE_CEILING}
    stage.bad.clear()  # repaired where it lies
    for _ in range(60):
        await stage.look(BAD)
    assert stage.tried[-1] == BAD
    assert await stage.look(BAD, 1000) == []  # it is served


@pytest.mark.parametrize("pointer", [b"", b"a" * 15, b"a" * 17, b"A" * 16, b"../../etc/passwd", "ä".encode() * 8])
async def test_a_pointer_that_is_no_release_id_is_refused(pointer: bytes) -> None:
    stage = Stage()
    stage.pointer = pointer
    with pytest.raises(ReleaseCorrupt, match="no release id"):
        await published(cast("Any", stage))
    stage.pointer = b"0123456789abcdef"
    assert await published(cast("Any", stage)) == "0123456789abcdef"


async def test_what_the_pointer_names_after_a_refused_release_is_served_at_the_next_look() -> None:
    stage = Stage()
    for _ in range(100):
        await stage.look(BAD)
    assert await stage.look(BETTER) == [BETTER]
    assert await stage.look(BAD) == [BAD]  # named anew
    assert await stage.look(BAD) == []
    assert await stage.look(BETTER) == []  # it has been served all along
    assert await stage.look(BAD) == [BAD]


async def test_a_hurried_look_gives_a_refused_release_another_chance() -> None:
    stage = Stage()
    for _ in range(100):
        await stage.look(BAD)
    stage.follower.hurry()
    assert await stage.look(BAD, 0) == [BAD]
    assert await stage.look(BAD, 0) == []


async def test_a_lost_or_damaged_pointer_is_told_and_counted_once() -> None:
    stage = Stage()
    with capture_logs() as logs:
        for pointer in (None, None, "nonsense", "nonsense", "nonsense", GOOD, None):
            assert await stage.look(pointer) == []
    assert [line["event"] for line in logs] == ["release_pointer_unread"] * 3
    assert "names no live release" in logs[0]["error"]
    assert "'nonsense'" in logs[1]["error"]
    assert stage.refused() == 3
    assert await stage.look(BETTER) == [BETTER]


async def test_a_pointer_that_stays_lost_is_counted_again_so_that_an_alert_lasts() -> None:
    stage = Stage()
    for _ in range(round(3600 / EVERY)):
        await stage.look(None)
    assert stage.refused() == 3600 / PATIENCE_CEILING


async def test_a_store_that_is_down_is_told_once_and_has_refused_nothing() -> None:
    stage = Stage()
    stage.down = True
    with capture_logs() as logs:
        for _ in range(5):
            assert await stage.look(BETTER) == []
    assert len(logs) == 1
    assert stage.refused() == 0
    stage.down = False
    assert await stage.look(BETTER) == [BETTER]


@pytest.mark.parametrize("late", [1, len(START_PAUSES), len(START_PAUSES) + 1])
async def test_a_start_outlasts_a_store_that_is_late_for_a_moment(monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    monkeypatch.setattr("service.pointer.START_PAUSES", (0.0,) * len(START_PAUSES))
    stage = Stage()
    left = [StoreTimeout("Redis did not answer within 70 ms")] * late
    whole = stage.get

    async def get(keys: Sequence[bytes]) -> list[bytes | None]:
        if left:
            raise left.pop()
        return await whole(keys)

    monkeypatch.setattr(stage, "get", get)
    if late <= len(START_PAUSES):
        assert await published_at_start(cast("Any", stage)) == GOOD
    else:
        with pytest.raises(StoreTimeout):
            await published_at_start(cast("Any", stage))


async def test_it_looks_again_whatever_happens() -> None:
    stage = Stage()
    real = stage.swap

    async def odd(release: str) -> None:
        stage.follower._swap = real
        raise RuntimeError("unforeseen")

    stage.follower._swap = odd
    stage.follower._seconds = 0.001
    stage.pointer = BETTER.encode()
    running = asyncio.create_task(stage.follower.run())
    async with asyncio.timeout(5):
        while not stage.tried:
            await asyncio.sleep(0.001)
    running.cancel()
    assert stage.tried == [BETTER]
