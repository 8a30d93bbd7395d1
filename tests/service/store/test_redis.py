from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from redis import Redis
from redis.crc import key_slot

from service.errors import StoreError, StoreTimeout, StoreUnavailable
from service.release.blob import BlobFormat, Layout, Reasoning, decode, encode
from service.settings import RedisSettings
from service.store.keys import history_key, reasoning_key, user_tag
from service.store.redis import Client, RedisStore
from tests.conftest import Connect, redis_settings
from tests.ports import free_port
from tests.redis_server import (
    FAILOVER_MS,
    PLAIN,
    ClusterServers,
    Server,
    cluster,
    sentinels,
    standalone,
    start,
    wait_for,
)

pytestmark = pytest.mark.anyio
T = TypeVar("T")


@pytest.fixture
def admin(redis_port: int) -> Iterator[Redis]:
    with Redis(port=redis_port) as client:
        yield client


async def patiently(step: Callable[[], Awaitable[T]]) -> T:
    """The outcome of what a store is too impatient for while the test machine stops."""
    for _ in range(2):
        with suppress(StoreError):
            return await step()
    return await step()


async def cancelled_under_load(store: RedisStore, blobs: dict[str, bytes], fmt: BlobFormat, requests: int) -> int:
    """Ask for many users' reasoning, most of the callers leaving at random moments; how many were answered."""
    rng = random.Random(7)
    users = list(blobs)
    outcomes = {"cancelled": 0, "answered": 0}

    async def ask(user: str) -> None:
        tag = user_tag(user)
        task = asyncio.create_task(store.get([history_key(tag), reasoning_key(tag, fmt.release_id, "h")]))
        if rng.random() < 0.7:
            await asyncio.sleep(rng.random() * 0.003)
            task.cancel()
        try:
            history, blob = await task
        except asyncio.CancelledError:
            outcomes["cancelled"] += 1
            return
        assert isinstance(decode(blob, fmt, user), Reasoning)  # by the hash of the user in the blob
        assert history == user.encode()
        outcomes["answered"] += 1

    for first in range(0, requests, 60):
        await asyncio.gather(*(ask(users[(first + number) % len(users)]) for number in range(60)))
    assert outcomes["cancelled"] > requests / 10
    return outcomes["answered"]


def reasoned(users: int) -> tuple[BlobFormat, dict[str, bytes]]:
    fmt = BlobFormat("r" * 16, Layout.projected, "float16", 5, 64)
    rng = np.random.default_rng(3)
    return fmt, {
        f"user-{n}": encode(rng.normal(size=(5, 64)).astype(np.float32), fmt, f"user-{n}", history_length=1, written=1)
        for n in range(users)
    }


async def test_replies_never_change_hands_when_callers_are_cancelled(
    connect: Connect, any_redis: RedisSettings
) -> None:
    store = connect(any_redis.model_copy(update={"connections": 4}))
    fmt, blobs = reasoned(200)
    await store.put((reasoning_key(user_tag(user), fmt.release_id, "h"), blob) for user, blob in blobs.items())
    await store.put((history_key(user_tag(user)), user.encode()) for user in blobs)
    assert await cancelled_under_load(store, blobs, fmt, 4800) > 300


async def test_abandoned_replies_are_read_to_their_end(connect: Connect, redis_port: int, admin: Redis) -> None:
    store = connect(redis_settings(redis_port, connections=4))
    fmt, blobs = reasoned(50)
    await store.put((reasoning_key(user_tag(user), fmt.release_id, "h"), blob) for user, blob in blobs.items())
    await store.put((history_key(user_tag(user)), user.encode()) for user in blobs)
    connected = admin.info()["total_connections_received"]
    await cancelled_under_load(store, blobs, fmt, 1200)
    # No connection had to be thrown away.
    assert admin.info()["total_connections_received"] - connected <= 4


async def test_a_late_server_is_a_timeout_and_the_connection_is_not_used_again(
    connect: Connect, redis_port: int, admin: Redis
) -> None:
    store = connect(redis_settings(redis_port, connect_timeout_ms=500, read_timeout_ms=150))
    patient = connect(redis_settings(redis_port))
    await patient.put([(b"a", b"A"), (b"b", b"B")])
    assert await patient.get([b"a"]) == [b"A"]
    for _ in range(3):  # a test machine that stops may sleep through the pause
        admin.client_pause(800)
        try:
            await store.get([b"a"])
        except StoreTimeout:
            break
    else:
        pytest.fail("it waited for a server that was late")
    assert await patient.get([b"a"]) == [b"A"]  # waits out the pause
    assert await patiently(lambda: store.get([b"b"])) == [b"B"]


async def test_a_write_may_take_longer_than_a_read(connect: Connect, redis_port: int, admin: Redis) -> None:
    """A publication moves megabytes at once; a read that takes as long is done without."""
    store = connect(redis_settings(redis_port, read_timeout_ms=100))
    admin.client_pause(700, all=False)  # writes alone
    await store.put([(b"k", b"1")])
    admin.client_pause(700, all=False)
    assert await store.swap(b"k", b"1", b"2")
    async with asyncio.timeout(10):
        while True:
            with suppress(StoreTimeout):  # the machine may stop for a moment
                assert await store.get([b"k"]) == [b"2"]
                break


async def test_a_server_that_never_answers_costs_tens_of_milliseconds(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = connect(redis_settings(silent.getsockname()[1], connect_timeout_ms=50, read_timeout_ms=20))
        times = []
        for _ in range(3):  # a busy test machine may stop for a while
            started = time.perf_counter()
            with pytest.raises(StoreTimeout):
                await store.get([b"a"])
            times.append(time.perf_counter() - started)
        assert min(times) < 0.3
        with pytest.raises(StoreTimeout):
            await store.ping()


async def test_nobody_listens(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    store = connect(redis_settings(port))
    with pytest.raises(StoreUnavailable):
        await store.get([b"a"])
    with pytest.raises(StoreUnavailable):
        await store.put([(b"a", b"1")])
    with pytest.raises(StoreUnavailable):
        await store.delete([b"a"])
    with pytest.raises(StoreUnavailable):
        await store.ping()


async def test_a_refusal_by_the_server_is_translated(connect: Connect, redis_port: int, admin: Redis) -> None:
    store = connect(redis_settings(redis_port))
    await store.get([b"a"])
    admin.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="Redis failed"):
            await store.put([(b"a", b"1")])
    finally:
        admin.config_set("maxmemory", 0)


async def test_it_recovers_when_its_connections_are_killed(connect: Connect, redis_port: int, admin: Redis) -> None:
    store = connect(redis_settings(redis_port))
    await store.put([(b"a", b"1")])
    assert await store.get([b"a"]) == [b"1"]
    admin.client_kill_filter(_type="normal", skipme=True)
    await asyncio.sleep(0.05)
    assert await store.get([b"a"]) == [b"1"]


async def test_many_more_callers_than_connections_are_all_answered(connect: Connect, redis_port: int) -> None:
    store = connect(redis_settings(redis_port, connections=2))
    await store.put([(b"a", b"1")])
    assert await asyncio.gather(*(store.get([b"a"]) for _ in range(300))) == [[b"1"]] * 300


async def test_a_swap_that_nobody_waits_for_still_happens(connect: Connect, any_redis: RedisSettings) -> None:
    store = connect(any_redis)
    await store.delete([b"swapped"])
    for number in range(20):
        old = None if not number else str(number - 1).encode()
        task = asyncio.create_task(store.swap(b"swapped", old, str(number).encode()))
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(*store._writes._running, task, return_exceptions=True)
    assert await store.get([b"swapped"]) == [b"19"]


async def test_a_wrong_password_is_unavailable_and_not_told(connect: Connect, sentinel_url: str, tls_url: str) -> None:
    for url in (sentinel_url.replace("//:s3cret@", "//:hunter2@"), tls_url.replace(":p%40ss", ":hunter2")):
        assert "hunter2" in url
        store = connect(redis_settings(url))
        with pytest.raises(StoreUnavailable) as caught:
            await store.get([b"a"])
        assert "hunter2" not in str(caught.value)


async def test_sentinels_have_a_password_of_their_own(connect: Connect, sentinel_url: str) -> None:
    store = connect(redis_settings(sentinel_url.partition("?")[0]))
    with pytest.raises(StoreUnavailable):
        await store.get([b"a"])


async def test_a_certificate_that_nobody_vouches_for_is_refused(connect: Connect, tls_url: str) -> None:
    store = connect(redis_settings(tls_url.partition("?")[0]))
    with pytest.raises(StoreUnavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate"):
        await store.get([b"a"])


async def test_a_server_that_wants_a_certificate_gets_one(connect: Connect, tls_url: str) -> None:
    store = connect(redis_settings(tls_url.partition("&ssl_certfile")[0]))
    with pytest.raises(StoreUnavailable):
        await store.get([b"a"])


async def test_files_that_are_not_there_are_unavailable(connect: Connect, tls_url: str) -> None:
    store = connect(redis_settings(tls_url.replace("ca.pem", "gone.pem")))
    with pytest.raises(StoreUnavailable):
        await store.get([b"a"])


async def test_a_socket_on_this_machine(connect: Connect, tmp_path: Path) -> None:
    # The path of a socket may hold a hundred bytes and no more.
    with tempfile.TemporaryDirectory() as short, standalone(tmp_path, "--unixsocket", f"{short}/r.sock"):
        store = connect(redis_settings(f"unix://{short}/r.sock?db=3"))
        await store.put([(b"a", b"1")])
        assert await store.get([b"a"]) == [b"1"]


async def test_it_speaks_the_third_protocol_by_hiredis(connect: Connect, redis_port: int) -> None:
    store = connect(redis_settings(redis_port))
    connection = await store._reads._redis.connection_pool.get_connection()  # type: ignore[union-attr]
    assert type(connection._parser).__name__ == "_AsyncHiredisParser"
    assert connection.get_protocol() == 3
    await store._reads._redis.connection_pool.release(connection)  # type: ignore[union-attr]


async def heals(store: RedisStore, key: bytes, value: bytes, seconds: float) -> float:
    """Seconds until the store reads and writes again.

    Sentinels for which time has jumped by two seconds look on for half a minute before they do anything.
    """
    started = time.monotonic()
    while True:
        before = time.monotonic()
        try:
            assert await store.get([key]) == [value]
            await store.put([(key, value)])
            return time.monotonic() - started
        except StoreError:
            assert time.monotonic() - started < seconds
            assert time.monotonic() - before < 8  # a put is patient, and never endless
        await asyncio.sleep(0.05)


async def test_many_connections_ask_a_sentinel_once(connect: Connect, tmp_path: Path) -> None:
    with sentinels(tmp_path) as group:

        def connections() -> int:
            return sum(sentinel.admin.info("clients")["connected_clients"] for sentinel in group.sentinels)

        before = connections()
        store = connect(redis_settings(group.url))
        assert await asyncio.gather(*(store.get([b"a"]) for _ in range(200))) == [[None]] * 200
        assert group.servers[0].admin.info("clients")["connected_clients"] > 20  # of the store, made at the same time
        assert connections() - before < 10  # sentinels connect to each other meanwhile


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_master_that_dies_is_followed_to_the_one_that_takes_over(connect: Connect, tmp_path: Path) -> None:
    with sentinels(tmp_path, node_timeout_ms=FAILOVER_MS) as group:
        store = connect(redis_settings(group.url))
        await store.put([(b"a", b"1")])
        master, replica = group.servers
        wait_for(lambda: replica.admin.get("a") == b"1")
        assert await asyncio.gather(*(store.get([b"a"]) for _ in range(40))) == [[b"1"]] * 40
        master.kill()
        with pytest.raises(StoreError):
            await store.get([b"a"])
        await heals(store, b"a", b"1", 90)
        assert replica.admin.get("a") == b"1"
        assert await store.swap(b"a", b"1", b"2")
        assert replica.admin.get("a") == b"2"


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_master_that_hangs_is_left_too(connect: Connect, tmp_path: Path) -> None:
    with sentinels(tmp_path, node_timeout_ms=FAILOVER_MS) as group:
        store = connect(redis_settings(group.url, read_timeout_ms=1000, connect_timeout_ms=1000, write_timeout_ms=1000))
        await patiently(lambda: store.put([(b"a", b"1")]))
        master, replica = group.servers
        wait_for(lambda: replica.admin.get("a") == b"1")
        master.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreTimeout):
                await store.get([b"a"])
            await heals(store, b"a", b"1", 90)
        finally:
            master.process.send_signal(signal.SIGCONT)
        await patiently(lambda: store.put([(b"a", b"2")]))
        wait_for(lambda: replica.admin.get("a") == b"2")  # not on the master that was


def lead(address: Path, server: str) -> None:
    """Have an address lead to a server."""
    address.unlink(missing_ok=True)
    address.symlink_to(server)


async def test_a_master_that_became_a_replica_is_left_for_the_one_that_the_address_leads_to(tmp_path: Path) -> None:
    # As behind the name of a managed Redis: it leads elsewhere, and open connections stay where they were.
    with (
        tempfile.TemporaryDirectory() as short,
        standalone(tmp_path / "one", "--unixsocket", f"{short}/one") as one,
        standalone(tmp_path / "other", "--unixsocket", f"{short}/other") as other,
    ):
        address = Path(short, "redis")
        lead(address, "one")
        other.admin.replicaof("127.0.0.1", str(one.port))
        wait_for(lambda: other.admin.info("replication")["master_link_status"] == "up")
        store = RedisStore(redis_settings(f"unix://{address}"))
        sink = Client(redis_settings(f"unix://{address}"), 10_000)
        await asyncio.gather(*(store.put([(f"k{number}".encode(), b"1")]) for number in range(20)))
        await sink.run(("XADD", "stream", "*", "a", "1"))
        assert await store.get([b"k1"]) == [b"1"]
        other.admin.execute_command("REPLICAOF", "NO", "ONE")
        one.admin.replicaof("127.0.0.1", str(free_port()))  # of nobody, and hears nothing any more
        lead(address, "other")
        with pytest.raises(StoreUnavailable, match="read only replica"):
            await store.swap(b"k1", b"1", b"2")
        with pytest.raises(StoreUnavailable, match="read only replica"):
            await sink.run(("XADD", "stream", "*", "a", "2"))
        assert await store.swap(b"k1", b"1", b"2")
        await store.put([(b"k2", b"2")])
        assert await store.get([b"k1", b"k2"]) == [b"2", b"2"]
        await sink.run(("XADD", "stream", "*", "a", "2"))
        assert other.admin.xlen("stream") == 2
        await sink.close()
        await store.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_cluster_node_that_dies_costs_its_slots_until_its_replica_takes_over(
    connect: Connect, tmp_path: Path
) -> None:
    with cluster(tmp_path, replica=True, node_timeout_ms=FAILOVER_MS) as group:
        store = connect(redis_settings(group.url))
        keys = [f"k{number}".encode() for number in range(60)]
        await store.put((key, key) for key in keys)
        dead = [key for key in keys if key_slot(key) in group.slots_of_first()]
        alive = [key for key in keys if key not in dead]
        wait_for(lambda: group.servers[3].admin.info("keyspace")["db0"]["keys"] == len(dead))
        group.servers[0].kill()
        with pytest.raises(StoreError):
            await store.get(dead[:1])
        failed = asked = 0
        started = time.monotonic()
        promoted = None
        while promoted is None:
            answers = await asyncio.gather(*(store.get([key]) for key in keys), return_exceptions=True)
            assert all(isinstance(a, StoreError) or a == [key] for key, a in zip(keys, answers, strict=True))
            asked += len(alive)
            failed += sum(isinstance(a, StoreError) for key, a in zip(keys, answers, strict=True) if key in alive)
            if not any(isinstance(answer, StoreError) for answer in answers):
                promoted = time.monotonic() - started
            assert time.monotonic() - started < 90
            await asyncio.sleep(0.02)
        assert failed < asked / 5  # the other nodes go on answering; a busy test machine may be late now and then
        await heals(store, dead[0], dead[0], 30)
        assert await store.get(keys) == keys


async def test_a_late_answer_of_a_cluster_costs_its_own_connection(connect: Connect, tmp_path: Path) -> None:
    with cluster(tmp_path) as group:
        store = connect(redis_settings(group.url, read_timeout_ms=2_000, connections=8))
        keys = [f"k{number}".encode() for number in range(60)]

        def open_ones() -> list[set[str]]:
            return [{client["id"] for client in server.admin.client_list()} for server in group.servers]

        await patiently(lambda: asyncio.gather(*(store.get([key]) for key in keys)))
        before = open_ones()
        late = next(key for key in keys if key_slot(key) in group.slots_of_first())
        held = asyncio.create_task(asyncio.to_thread(group.servers[0].admin.execute_command, "DEBUG", "SLEEP", "2.5"))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        await store.get([late])  # tried again once
        assert time.monotonic() - started > 2
        await held
        await asyncio.sleep(0.3)
        for _ in range(2):
            await patiently(lambda: asyncio.gather(*(store.get([key]) for key in keys)))
        lost = [len(first - after) for first, after in zip(before, open_ones(), strict=True)]
        assert lost == [1, 0, 0]


@asynccontextmanager
async def leading(to: list[int]) -> AsyncIterator[int]:
    """A port that leads to the last one of a list, as the name of a service does."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65_536):
                writer.write(chunk)
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", to[-1])
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_cluster_whose_nodes_all_have_new_addresses_is_found_by_its_url(
    connect: Connect, tmp_path: Path
) -> None:
    leads: list[int] = []
    async with leading(leads) as port:
        store = connect(redis_settings(f"redis+cluster://127.0.0.1:{port}"))
        with cluster(tmp_path / "one") as group:
            leads.append(group.servers[0].port)
            await store.put([(b"a", b"1")])
            assert await store.get([b"a"]) == [b"1"]
        with cluster(tmp_path / "other") as group:
            leads.append(group.servers[0].port)
            with pytest.raises(StoreUnavailable):
                await store.get([b"a"])
            started = time.monotonic()
            while True:
                with suppress(StoreUnavailable):
                    await store.put([(b"a", b"2")])
                    assert await store.get([b"a"]) == [b"2"]
                    break
                assert time.monotonic() - started < 30
                await asyncio.sleep(0.1)
            await store.close()


def holder(group: ClusterServers, slot: int) -> Server:
    """The master that has the slot at first."""
    return next(server for server, end in zip(group.servers, (5461, 10923, 16384), strict=False) if slot < end)


def begin_to_move(slot: int, old: Server, new: Server) -> None:
    """From now on both answer for the slot, each for the keys that it has."""
    old_id, new_id = (server.admin.execute_command("CLUSTER", "MYID").decode() for server in (old, new))
    new.admin.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
    old.admin.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)


@pytest.mark.parametrize("is_new", [False, True], ids=["to a master", "to a node without slots"])
async def test_a_slot_that_moves_costs_nobody_an_answer(connect: Connect, tmp_path: Path, is_new: bool) -> None:
    history, steps, absent = (f"scoter:{{a}}:{name}".encode() for name in ("history", "steps:r", "reasoning:r:h"))
    slot = key_slot(history)
    with cluster(tmp_path, spare=is_new) as group:
        old = holder(group, slot)
        new = group.servers[3] if is_new else next(server for server in group.servers if server is not old)
        store = connect(redis_settings(group.url, connections=4))
        await store.put([(history, b"1"), (steps, b"1")])
        # Several connections to each: ASKING holds for what comes next on its own.
        others = [f"k{number}".encode() for number in range(60)]
        await asyncio.gather(*(store.get([key]) for key in others), *(store.put([(key, b"1")]) for key in others))
        begin_to_move(slot, old, new)
        old.admin.execute_command("MIGRATE", "127.0.0.1", new.port, steps, 0, 5000)
        for _ in range(3):
            assert await store.get([history, steps, absent]) == [b"1", b"1", None]
        old.admin.execute_command("MIGRATE", "127.0.0.1", new.port, history, 0, 5000)
        for number in range(1, 4):
            before, after = str(number).encode(), str(number + 1).encode()
            assert await store.get([history, absent, steps]) == [before, None, before]
            assert await store.swap(history, before, after)
            assert await store.swap_all([(steps, before, after)]) == [True]
        await store.put([(absent, b"1")])
        assert await store.get([absent]) == [b"1"]
        await store.delete([absent])
        for server in (new, old):
            new_id = new.admin.execute_command("CLUSTER", "MYID").decode()
            server.admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)
        assert await store.get([history, steps]) == [b"4", b"4"]
        assert await store.swap(history, b"4", b"5")
        await store.ping()


async def test_the_user_of_the_page_reaches_a_cluster_whose_slots_move(connect: Connect, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "store.md").read_text(encoding="utf-8")
    rules = re.findall(r"ACL SETUSER scoter (on .*)|in a cluster `(.*?)` besides", page)
    keys = [b"scoter:{a}:history", b"scoter:{a}:steps:r"]
    slot = key_slot(keys[0])
    with cluster(tmp_path) as group:
        for server in group.servers:
            server.admin.execute_command("ACL", "SETUSER", "scoter", *" ".join(map("".join, rules)).split())
        old = holder(group, slot)
        new = next(server for server in group.servers if server is not old)
        store = connect(redis_settings(group.url.replace("://", "://scoter:password@")))
        await store.put([(key, b"1") for key in keys])
        begin_to_move(slot, old, new)
        old.admin.execute_command("MIGRATE", "127.0.0.1", new.port, "", 0, 5000, "KEYS", *keys)
        assert await store.get(keys) == [b"1", b"1"]
        assert await store.swap(keys[0], b"1", b"2")
        await store.put([(keys[1], b"2")])
        assert await store.get(keys) == [b"2", b"2"]
        await store.delete(keys)
        await store.ping()


async def test_a_server_that_restarts_is_found_again(connect: Connect, tmp_path: Path) -> None:
    with standalone(tmp_path / "one") as first:
        store = connect(redis_settings(first.port))
        await store.put([(b"a", b"1")])
        await asyncio.gather(*(store.get([b"a"]) for _ in range(40)))
        first.kill()
        with pytest.raises(StoreUnavailable):
            await store.get([b"a"])
        again = start(tmp_path / "one", *PLAIN, port=first.port)
        try:
            wait_for(lambda: bool(again.admin.ping()))
            assert await asyncio.gather(*(store.get([b"a"]) for _ in range(40))) == [[None]] * 40
            await store.put([(b"a", b"2")])
            assert await store.get([b"a"]) == [b"2"]
        finally:
            again.stop()
