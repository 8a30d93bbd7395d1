"""What callers get when the wall clock jumps: nothing else than before."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import libfaketime
import pytest

from tests.failures.scenario import Clients, run
from tests.service.conftest import published_settings
from tests.service.server import PATIENT, Server, serving
from tests.service.tiny_release import WRITTEN, TinyRelease

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

HOUR = 3_600
(PRELOAD,) = Path(libfaketime.__file__).parent.glob("vendor/libfaketime/src/libfaketime.so*")


@dataclass
class Clock:
    """The wall clock of one process, ahead of everybody else's; that of deadlines goes on as it is."""

    file: Path

    def ahead(self, seconds: int) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.rename(self.file)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(PRELOAD),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds until it sees another offset
            "DONT_FAKE_MONOTONIC": "1",
        }


@dataclass
class World:
    clock: Clock
    service: Server
    release: TinyRelease


@pytest.fixture(scope="module")
def running(tiny: TinyRelease, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("clock")
    published_settings(tiny, folder / "store")
    clock = Clock(folder / "ahead")
    clock.ahead(0)
    environment = {**PATIENT, **clock.environment, "SCOTER_POLL_SECONDS": "0.2"}
    with serving(tiny.path.parent, folder / "store", folder, environment=environment) as service:
        yield World(clock, service, tiny)


@pytest.fixture
async def world(running: World) -> World:
    """A service whose clock is right, whatever the test before has made of it."""
    running.clock.ahead(0)
    async with asyncio.timeout(30):
        while abs(await age(running) - (time.time() - WRITTEN)) > 60:
            await asyncio.sleep(0.1)
    return running


@pytest.mark.parametrize("seconds", [HOUR, -HOUR, -40 * 365 * 24 * HOUR], ids=["ahead", "back", "long-back"])
async def test_jumps_change_no_answer(world: World, seconds: int) -> None:
    """The last of them lies before the reasoning was written: its age is 0, not less."""
    before = await age(world)
    ages: list[int] = []

    async def mend() -> None:
        ages.append(await age(world))
        world.clock.ahead(0)

    answers = await run(
        f"wall clock jumps by {dt.timedelta(seconds=abs(seconds))} {'ahead' if seconds > 0 else 'back'}",
        # The preloaded library makes the service several times slower, now and then by hundreds of milliseconds.
        Clients(world.service, world.release, number=2, headers={"X-Deadline-Ms": "9000"}),
        lambda: world.clock.ahead(seconds),
        mend,
        seconds=2.5,
    )
    assert all(answer.whole for answer in answers)
    assert ages[0] == pytest.approx(max(0, before + seconds), abs=60)  # the service did live at that time
    assert world.service.metric("scoter_breakers_open") == 0
    assert "Traceback" not in "\n".join(world.service.lines())


async def age(world: World) -> int:
    async with httpx2.AsyncClient(base_url=world.service.address) as client:
        answer = await client.post("/recommend", json={"user_id": world.release.users[0].id})
        seconds: int = answer.json()["reasoning"]["age_seconds"]
        assert seconds >= 0
        return seconds


async def test_the_future_is_what_the_service_says(world: World) -> None:
    """An event of half an hour from now is refused, taken by a service that is an hour ahead, and is not lost when
    that clock is put right."""
    user = "somebody new"
    events = [{"event_id": "e-1", "item_id": "item-1", "timestamp": time.time() + HOUR / 2}]
    async with httpx2.AsyncClient(base_url=world.service.address) as client:

        async def append() -> httpx2.Response:
            return await client.post("/events", json={"user_id": user, "events": events})

        refused = await append()
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "/events/0/timestamp"
        world.clock.ahead(HOUR)
        async with asyncio.timeout(30):
            while (taken := await append()).status_code == 422:
                await asyncio.sleep(0.1)
        assert taken.json()["accepted"] == 1
        world.clock.ahead(0)
        answer = (await client.post("/recommend", json={"user_id": user, "k": 3})).json()
        assert answer["history"] == {"source": "stored", "used": 1, "unknown": 0, "excluded": 1}
