"""The shared store: Redis as one server, behind sentinels or as a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.maint_notifications import MaintNotificationsConfig

from service.errors import StoreError, StoreTimeout, StoreUnavailable
from service.settings import RedisSettings
from service.store.address import Address, parse_address
from service.store.base import Change
from service.store.cluster import Cluster
from service.store.sentinels import Sentinels
from service.store.tls import SentinelTlsConnection, TlsConnection

_T = TypeVar("_T")
Command = tuple[str | bytes | int, ...]

PIPELINE = 500  # commands sent at once, so that a bulk load never holds the server for long

# A value that is already there is a swap whose reply was lost. A Redis at its `maxmemory` refuses a script's first
# write if it may take memory, and would refuse `gc` and `rollback` when they are needed most: the values that they put
# are hardly longer than those before, which make room for them here. 24 bytes are less than an event takes.
SWAP = """
local now = redis.call('GET', KEYS[1])
if now == ARGV[1] then return 1 end
if now ~= (ARGV[2] or false) then return 0 end
if now and #ARGV[1] <= #now + 24 then redis.call('UNLINK', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""


class RedisStore:
    """A user store on Redis.

    Every command is bounded by the sockets' own timeouts and runs in a task of its own, so that a caller that is
    cancelled, or gives up, never leaves a connection with an unread reply for the next caller to mistake for its own.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._reads = Client(settings, settings.read_timeout_ms)
        self._writes = Client(settings, settings.write_timeout_ms)  # connects on the first write, if ever

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys`, in order, by one MGET; by pipelined GETs if they lie in several slots of a cluster."""
        if not keys:
            return []
        if self._reads.clustered and len({_tag(key) for key in keys}) > 1:
            return cast("list[bytes | None]", await self._reads.pipelined(("GET", key) for key in keys))
        return cast("list[bytes | None]", await self._reads.run(("MGET", *keys)))

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Write pairs by pipelined SETs."""
        await self._written(self._writes.pipelined(("SET", key, value) for key, value in pairs))

    async def swap(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        """Compare and set by a script, which the server runs alone."""
        return bool(await self._written(self._writes.run(_swap(key, old, new))))

    async def swap_all(self, changes: Iterable[Change]) -> list[bool]:
        """Compare and set by pipelined scripts."""
        swaps = (_swap(*change) for change in changes)
        return [bool(reply) for reply in await self._written(self._writes.pipelined(swaps))]

    async def delete(self, keys: Iterable[bytes]) -> None:
        """Remove keys by pipelined UNLINKs."""
        await self._written(self._writes.pipelined(("UNLINK", key) for key in keys))

    async def ping(self) -> None:
        """Return if the server (of a cluster: every master) answers a PING in time."""
        await self._reads.run(("PING",))

    async def close(self) -> None:
        """Close every connection, once abandoned commands have met their timeouts."""
        await self._reads.close()
        await self._writes.close()

    async def _written(self, work: Awaitable[_T]) -> _T:
        """What a write returns. Where a replica has refused it, reads look for the master again, too."""
        try:
            return await work
        except ReadOnly:
            await self._reads.renew()
            raise


class ReadOnly(StoreUnavailable):
    """The server is a replica, and most likely was the master when it was connected to."""


class Client:
    """One pool of connections to one Redis, whose commands give up after `timeout_ms` without an answer."""

    def __init__(self, settings: RedisSettings, timeout_ms: float) -> None:
        address = parse_address(settings.url.get_secret_value())
        self.clustered = address.kind == "cluster"
        self._patience = (settings.connect_timeout_ms + timeout_ms) / 1000
        self._redis, self._sentinel = _connect(address, settings, timeout_ms)
        # The library's pools refuse who comes when all connections are busy; here they wait.
        self._turns = asyncio.Semaphore(settings.connections)
        self._running: set[asyncio.Task[Any]] = set()  # the loop itself holds tasks only weakly

    async def run(self, command: Command) -> object:
        """One command's reply. Raises StoreTimeout or StoreUnavailable."""
        send: Callable[..., Awaitable[object]] = self._redis.execute_command
        return await self._bounded(lambda: send(*command), self._patience)

    async def pipelined(self, commands: Iterable[Command]) -> list[object]:
        """The replies to many commands, sent a few hundred at a time. Raises StoreTimeout or StoreUnavailable."""
        waiting = iter(commands)
        replies: list[object] = []
        while batch := list(islice(waiting, PIPELINE)):
            replies += await self._bounded(lambda batch=batch: self._send(batch), None)  # type: ignore[misc]
        return replies

    async def renew(self) -> None:
        """Have every connection made anew before its next use, to wherever the address leads then."""
        if not isinstance(self._redis, Cluster):  # which follows its map
            pool = self._redis.connection_pool
            await pool.update_active_connections_for_reconnect()
            with suppress(RedisError, OSError):  # closed it is
                await pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Close every connection, once what runs has ended."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await (self._redis.end() if isinstance(self._redis, Cluster) else self._redis.aclose())
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _send(self, batch: list[Command]) -> list[object]:
        pipeline = self._redis.pipeline(transaction=False)
        async with pipeline:
            for command in batch:
                pipeline.execute_command(*command)
            return cast("list[object]", await pipeline.execute())

    async def _bounded(self, start: Callable[[], Awaitable[_T]], seconds: float | None) -> _T:
        try:
            async with asyncio.timeout(seconds):  # also bounds the wait for a free connection
                await self._turns.acquire()
                task = asyncio.ensure_future(self._sent(start))
                self._running.add(task)
                task.add_done_callback(self._done)
                try:
                    return await asyncio.shield(task)
                finally:
                    del task  # it may hold an exception, whose traceback holds this frame
        except TimeoutError as error:
            raise StoreTimeout(f"Redis did not answer within {1000 * (seconds or 0):.0f} ms") from error

    async def _sent(self, start: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await _translated(start)
        except ReadOnly:
            await self.renew()
            raise

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._turns.release()
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more


def _swap(key: bytes, old: bytes | None, new: bytes) -> Command:
    return ("EVAL", SWAP, 1, key, new) if old is None else ("EVAL", SWAP, 1, key, new, old)


def _tag(key: bytes) -> bytes:
    """What decides the key's slot: the user, of a user's keys."""
    start = key.find(b"{")
    return key[start : key.find(b"}", start)] if start >= 0 else key


def _connect(address: Address, settings: RedisSettings, timeout_ms: float) -> tuple[Redis | Cluster, Sentinels | None]:
    options: dict[str, Any] = {
        "socket_connect_timeout": settings.connect_timeout_ms / 1000,
        "socket_timeout": timeout_ms / 1000,
        "protocol": 3,
        # While these are on, redis-py does not check that a connection taken from the pool is alive and has nothing
        # left to read.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        # A retry would double the wait of a request that can do without; the pool already replaces dead connections.
        "retry": Retry(NoBackoff(), 0),
    }
    files: dict[str, Any] = {
        "ssl_ca_certs": address.ca_file,
        "ssl_certfile": address.cert_file,
        "ssl_keyfile": address.key_file,
        "ssl_check_hostname": address.check_hostname,
    }
    tls = files if address.tls else {}
    flag: dict[str, Any] = {"ssl": True} if address.tls else {}
    who: dict[str, Any] = {"username": address.username, "password": address.password}
    room: dict[str, Any] = {"max_connections": settings.connections}
    match address.kind:
        case "socket":
            where: dict[str, Any] = {"connection_class": UnixDomainSocketConnection, "path": address.path}
            return Redis.from_pool(ConnectionPool(**where, db=address.db, **options, **who, **room)), None
        case "server":
            host, port = address.hosts[0]
            where = {"connection_class": TlsConnection if address.tls else Connection, "host": host, "port": port}
            return Redis.from_pool(ConnectionPool(**where, db=address.db, **options, **who, **room, **tls)), None
        case "sentinel":
            asks = {"username": address.sentinel_username, "password": address.sentinel_password}
            # A sentinel answers in the time of a connection, however patient the commands themselves may be.
            quick = options | {"socket_timeout": settings.connect_timeout_ms / 1000}
            sentinel = Sentinels(address.hosts, sentinel_kwargs=quick | asks | tls | flag)  # type: ignore[no-untyped-call]
            kind: dict[str, Any] = {"connection_class": SentinelTlsConnection} if address.tls else {}
            client = sentinel.master_for(address.service, db=address.db, **options, **who, **room, **tls, **kind)
            return client, sentinel
        case "cluster":
            # One more try, on the map as it is after the failure. A map read anew because of redirections would cost
            # the connections in use; they correct it slot by slot as well.
            options |= {"retry": Retry(NoBackoff(), 1), "reinitialize_steps": 0}
            room = {"max_connections": 2 * settings.connections}  # those being closed are counted
            nodes = [ClusterNode(host, port) for host, port in address.hosts]
            return Cluster(startup_nodes=nodes, **options, **who, **room, **tls, **flag), None


async def _translated(start: Callable[[], Awaitable[_T]]) -> _T:
    try:
        return await start()
    except (RedisTimeout, TimeoutError) as error:
        failure: StoreError = StoreTimeout(f"Redis did not answer in time: {error}")
    except (RedisError, OSError) as error:
        # Anywhere in it, as Redis 6 says so of scripts.
        demoted = isinstance(error, ReadOnlyError) or "-READONLY" in str(error)
        failure = (ReadOnly if demoted else StoreUnavailable)(f"Redis failed: {error}")
    except Exception as error:  # noqa: BLE001
        # While a cluster changes, its client looks up nodes and slots that are gone: IndexError, KeyError and the like.
        failure = StoreUnavailable(f"Redis failed: {error!r}")
    # Not from the library's own, whose frames hold this very task, and not held by this one: see `_bounded`.
    try:
        raise failure
    finally:
        del failure
