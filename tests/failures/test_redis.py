"""What callers get when Redis fails, on a real server that is killed, paused, slowed, filled, locked and emptied."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from service.store.redis import RedisStore
from tests.conftest import redis_settings
from tests.failures.scenario import Answer, Clients, run
from tests.redis_server import PLAIN, Server, standalone, start, wait_for
from tests.service.server import Server as Service
from tests.service.server import serving
from tests.service.tiny_release import TinyRelease, publish

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@dataclass
class World:
    """A service and the Redis behind it."""

    redis: Server
    service: Service
    release: TinyRelease
    folder: Path

    async def publish(self) -> None:
        store = RedisStore(redis_settings(self.redis.port))
        await publish(self.release, store)
        await store.close()

    async def restart(self) -> None:
        """The same server again, empty, and then filled."""
        self.redis = start(self.folder, *PLAIN, port=self.redis.port)
        wait_for(lambda: bool(self.redis.admin.ping()))
        await self.publish()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    with standalone(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def world(redis: Server, tiny: TinyRelease, tmp_path: Path) -> AsyncIterator[World]:
    made = World(redis, None, tiny, tmp_path / "redis")  # type: ignore[arg-type] # set two lines on
    await made.publish()
    environment = {"SCOTER_POLL_SECONDS": "0.3", "SCOTER_LIMITS__STORED_HISTORY": "50"}
    with serving(tiny.path.parent, f"redis://127.0.0.1:{redis.port}/0", tmp_path, environment=environment) as service:
        made.service = service
        yield made
    if made.redis is not redis:
        made.redis.stop()


def quietly(command: Callable[[], object]) -> Callable[[], None]:
    """The command without its reply."""

    def run_it() -> None:
        command()

    return run_it


def check_lesser(answers: list[Answer], *reasons: str) -> None:
    """Every answer came, for one of these reasons without reasoning, or popular where the history was in the store."""
    assert {answer.status for answer in answers} == {200}
    assert any(answer.source == "model" for answer in answers)  # the history came with the request
    for answer in answers:
        if not answer.whole:
            assert set(answer.degraded) <= {*reasons, "no_history"}
            assert not answer.reasoned


async def test_killed(world: World) -> None:
    broken = await run("Redis killed", Clients(world.service, world.release), world.redis.kill, world.restart)
    check_lesser(broken, "store_unavailable", "store_timeout")


async def test_paused(world: World) -> None:
    broken = await run(
        "Redis paused",
        Clients(world.service, world.release),
        lambda: world.redis.process.send_signal(signal.SIGSTOP),
        lambda: world.redis.process.send_signal(signal.SIGCONT),
    )
    check_lesser(broken, "store_timeout", "store_unavailable")


async def test_slow(world: World) -> None:
    stop = asyncio.Event()

    async def stall() -> None:
        """Busy for 100 ms of every 150 ms, as a server with a slow script is."""
        while not stop.is_set():
            await asyncio.to_thread(world.redis.admin.execute_command, "DEBUG", "SLEEP", "0.1")
            await asyncio.sleep(0.05)

    tasks: list[asyncio.Task[None]] = []

    async def mend() -> None:
        stop.set()
        await asyncio.gather(*tasks)

    broken = await run(
        "Redis slow (100 ms stalls)",
        Clients(world.service, world.release),
        lambda: tasks.append(asyncio.create_task(stall())),
        mend,
    )
    check_lesser(broken, "store_timeout", "store_unavailable")
    assert any(answer.degraded for answer in broken)


async def test_wrong_password(world: World) -> None:
    admin = world.redis.admin

    def lock() -> None:
        admin.config_set("requirepass", "changed")
        admin.execute_command("AUTH", "changed")
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    broken = await run(
        "Redis password changed",
        Clients(world.service, world.release),
        lock,
        quietly(lambda: admin.config_set("requirepass", "")),
    )
    check_lesser(broken, "store_unavailable", "store_timeout")
    refused = sum("store_unavailable" in answer.degraded for answer in broken)
    assert refused > 0.8 * len([answer for answer in broken if not answer.whole])  # a busy machine may be late
    assert not any("changed" in line for line in world.service.lines())


async def test_flushed(world: World) -> None:
    broken = await run(
        "Redis flushed",
        Clients(world.service, world.release),
        quietly(world.redis.admin.flushall),
        world.publish,
    )
    assert {answer.status for answer in broken} == {200}
    assert {answer.source for answer in broken} == {"model", "popular"}
    assert {answer.degraded for answer in broken if not answer.whole} <= {(), ("no_history",)}


async def test_full(world: World) -> None:
    """Reads go on; an event is refused, not acknowledged and lost."""
    admin = world.redis.admin
    event = {"event_id": "e-1", "item_id": "item-1", "timestamp": 1_748_800_000}
    body = {"user_id": world.release.users[0].id, "events": [event]}
    refused: list[int] = []

    async def fill() -> None:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1")
        async with httpx2.AsyncClient(base_url=world.service.address, timeout=30) as client:
            refused.append((await client.post("/events", json=body)).status_code)

    broken = await run(
        "Redis full",
        Clients(world.service, world.release),
        fill,
        quietly(lambda: admin.config_set("maxmemory", "0")),
        seconds=0.5,
    )
    assert refused == [503]
    assert all(answer.whole for answer in broken)
    async with httpx2.AsyncClient(base_url=world.service.address, timeout=30) as client:
        accepted = await client.post("/events", json=body)
        assert accepted.status_code == 200
        assert accepted.json()["accepted"] == 1
