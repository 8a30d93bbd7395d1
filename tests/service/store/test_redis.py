from __future__ import annotations

import asyncio
import random
import socket
import time

import pytest
from redis import Redis

from service.errors import StoreTimeout, StoreUnavailable
from service.store.redis import RedisStore
from tests.conftest import redis_settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def admin(redis_port: int) -> Redis:
    return Redis(port=redis_port)


async def test_replies_never_change_hands_when_callers_are_cancelled(redis_port: int, admin: Redis) -> None:
    store = RedisStore(redis_settings(redis_port, connections=4))
    await store.put((f"k{i}".encode(), f"k{i}".encode() * (1 + i % 50)) for i in range(200))
    connected = admin.info()["total_connections_received"]
    rng = random.Random(7)
    cancelled = answered = 0

    async def ask(number: int) -> None:
        nonlocal cancelled, answered
        key = f"k{number % 200}".encode()
        task = asyncio.create_task(store.get([key]))
        if rng.random() < 0.7:
            await asyncio.sleep(rng.random() * 0.003)
            task.cancel()
        try:
            (value,) = await task
        except asyncio.CancelledError:
            cancelled += 1
            return
        assert value == key * (1 + (number % 200) % 50)
        answered += 1

    for start in range(0, 3000, 60):
        await asyncio.gather(*(ask(start + i) for i in range(60)))
    assert cancelled > 300
    assert answered > 300
    # Abandoned replies were read to their end: no connection had to be thrown away.
    assert admin.info()["total_connections_received"] - connected <= 4
    await store.close()
    admin.close()


async def test_a_late_server_is_a_timeout_and_the_connection_is_not_used_again(redis_port: int, admin: Redis) -> None:
    store = RedisStore(redis_settings(redis_port, connect_timeout_ms=500, read_timeout_ms=150))
    patient = RedisStore(redis_settings(redis_port))
    await patient.put([(b"a", b"A"), (b"b", b"B")])
    assert await patient.get([b"a"]) == [b"A"]
    admin.client_pause(800)
    with pytest.raises(StoreTimeout):
        await store.get([b"a"])
    assert await patient.get([b"a"]) == [b"A"]  # waits out the pause
    assert await store.get([b"b"]) == [b"B"]
    await store.close()
    await patient.close()
    admin.close()


async def test_a_server_that_never_answers_costs_tens_of_milliseconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = RedisStore(redis_settings(silent.getsockname()[1], connect_timeout_ms=50, read_timeout_ms=20))
        started = time.perf_counter()
        with pytest.raises(StoreTimeout):
            await store.get([b"a"])
        assert time.perf_counter() - started < 1.0
        with pytest.raises(StoreTimeout):
            await store.ping()
        await store.close()


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    store = RedisStore(redis_settings(port))
    with pytest.raises(StoreUnavailable):
        await store.get([b"a"])
    with pytest.raises(StoreUnavailable):
        await store.put([(b"a", b"1")])
    with pytest.raises(StoreUnavailable):
        await store.delete([b"a"])
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.close()


async def test_a_refusal_by_the_server_is_translated(redis_port: int, admin: Redis) -> None:
    store = RedisStore(redis_settings(redis_port))
    await store.get([b"a"])
    admin.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="Redis failed"):
            await store.put([(b"a", b"1")])
    finally:
        admin.config_set("maxmemory", 0)
    await store.close()
    admin.close()


async def test_it_recovers_when_its_connections_are_killed(redis_port: int, admin: Redis) -> None:
    store = RedisStore(redis_settings(redis_port))
    await store.put([(b"a", b"1")])
    assert await store.get([b"a"]) == [b"1"]
    admin.client_kill_filter(_type="normal", skipme=True)
    await asyncio.sleep(0.05)
    assert await store.get([b"a"]) == [b"1"]
    await store.close()
    admin.close()


async def test_many_more_callers_than_connections_are_all_answered(redis_port: int) -> None:
    store = RedisStore(redis_settings(redis_port, connections=2))
    await store.put([(b"a", b"1")])
    assert await asyncio.gather(*(store.get([b"a"]) for _ in range(300))) == [[b"1"]] * 300
    await store.close()
