"""The shared store: Redis as one server, behind sentinels or as a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Any, TypeVar, cast

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode, NodesManager, PipelineCommand
from redis.asyncio.connection import Connection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    MaxConnectionsError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisDisconnected
from redis.exceptions import TimeoutError as RedisTimeout
from redis.maint_notifications import MaintNotificationsConfig

from service.errors import StoreError, StoreTimeout, StoreUnavailable
from service.settings import RedisSettings
from service.store.address import Address, parse_address
from service.store.base import Change
from service.store.sentinels import Sentinels
from service.store.tls import SentinelTlsConnection, TlsConnection

_T = TypeVar("_T")
Command = tuple[str | bytes | int, ...]

PIPELINE = 500  # commands sent at once, so that a bulk load never holds the server for long
REFRESH_SECONDS = 0.25  # between two readings of a cluster's map
REDIRECTIONS = 8  # of one command by a cluster; a key that moves takes two

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


class Cluster(RedisCluster):
    """A cluster's client whose healthy nodes do not feel that another one is down.

    Whenever a node has failed, the library reads the cluster's map and its list of commands before the next command,
    everyone waiting, and when the cluster says that it is down, it cuts all connections, those in use too. Here one
    command reads the map, four times a second at most, while the others go on by the map there is. And one late answer
    costs the connection that it was due on, of all that the library would make anew, to every node.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the library's own
        super().__init__(**options)
        if "ssl" in options:
            self.connection_kwargs["connection_class"] = TlsConnection
            for node in self.startup_nodes:
                node.connection_class = TlsConnection
        self.nodes_manager = ClusterMap(self.startup_nodes, True, self.connection_kwargs)  # noqa: FBT003 - covered whole
        self._ready = False  # there is a map to go by
        self._first = asyncio.Lock()
        self._reading = False
        self._read_at = float("-inf")

    async def initialize(self, *args: Any, **names: Any) -> RedisCluster:  # noqa: ANN401 - the library's own
        """Read the map, unless somebody is at it or has just been."""
        if not self._ready:
            async with self._first:
                await self._begin()
        elif self._initialize and not self._reading and not self._just_read():
            self._reading = True
            try:
                await self.nodes_manager.initialize(*args, **names)
                self._initialize = False
            except (RedisError, RedisClusterException, OSError):
                # Nobody could tell: the map there is, and the next try in a moment, also where the URL leads to. The
                # library forgets that, and a cluster whose nodes all have new addresses would never be found again.
                for node in self.startup_nodes:
                    self.nodes_manager.startup_nodes.setdefault(node.name, node)
            finally:
                self._reading = False
                self._read_at = monotonic()
        return self

    async def execute_command(self, *args: Any, **names: Any) -> Any:  # noqa: ANN401 - the library's own
        """As the library does, which without a map asks any node, the dead one too."""
        if not self._ready:
            await self.initialize()
        return await super().execute_command(*args, **names)

    async def _execute_command(self, target_node: ClusterNode, *args: Any, **names: Any) -> Any:  # noqa: ANN401 - the library's own
        """Send a command to a node, and on to where that node says.

        Of a slot that moves, the library sends ASKING and the command over two connections as soon as it has two, which
        is to say nothing; it asks in vain for nodes that have no slot yet; and it waits for half a second if of several
        keys some have moved.
        """
        node, asking = target_node, False
        for _ in range(REDIRECTIONS):
            try:
                return await (_asked(node, args) if asking else node.execute_command(*args, **names))
            except MovedError as error:
                await self.nodes_manager.move_slot(error)
                node, asking = self._named(error), False
            except AskError as error:
                node, asking = self._named(error), True
            except TryAgainError:
                if args[0] != "MGET":  # nothing else here has several keys
                    raise
                return await asyncio.gather(*(self._execute_command(target_node, "GET", key) for key in args[1:]))
            except (MaxConnectionsError, BusyLoadingError):
                raise  # the map is right
            except (RedisDisconnected, RedisTimeout) as error:
                if isinstance(error, RedisDisconnected):  # and so, most likely, are those that nobody uses just now
                    await node.disconnect_free_connections()
                self.nodes_manager.move_node_to_end_of_cached_nodes(node.name)
                error.last_failed_node_name = node.name  # type: ignore[union-attr] # the map is asked of others first
                self._initialize = True
                raise
            except ClusterDownError:
                self._initialize = True
                raise
        raise ClusterError(f"the cluster sent a command on {REDIRECTIONS} times")

    def _named(self, error: AskError) -> ClusterNode:
        """The node that a redirection names; the map has none that has no slot yet."""
        node = self.get_node(error.host, error.port)
        if node is None:
            node = ClusterNode(error.host, error.port, PRIMARY, **self.connection_kwargs)
            self.nodes_manager.set_nodes(self.nodes_manager.nodes_cache, {node.name: node})
        return node

    async def _begin(self) -> None:
        if self._ready:
            return
        if self._just_read():
            raise RedisClusterException("no node of the cluster could be asked a moment ago")
        try:
            await self.nodes_manager.initialize()
            await self._learn_commands()
            self._ready, self._initialize = True, False
        finally:
            self._read_at = monotonic()

    async def _learn_commands(self) -> None:
        """Where commands have their keys, from the first master that answers; the library asks one, dead or alive."""
        failed: Exception = RedisClusterException("the cluster has no master")
        for node in self.get_primaries():
            try:
                await self.commands_parser.initialize(node)
                return
            except (RedisError, OSError) as error:
                failed = error
        raise failed

    def _just_read(self) -> bool:
        return monotonic() - self._read_at < REFRESH_SECONDS

    async def aclose(self) -> None:
        """What the library calls when the map is in doubt: have it read again."""
        self._initialize = True

    async def end(self) -> None:
        """Close every connection."""
        self._initialize = False  # or else the library closes nothing
        await super().aclose()
        self._ready = False


class ClusterMap(NodesManager):
    """Which nodes there are, and who has which slots. Nodes that stay keep their connections."""

    def set_nodes(self, old: dict[str, ClusterNode], new: dict[str, ClusterNode], remove_old: bool = False) -> None:  # noqa: FBT001, FBT002 - the library's own
        """Make `old` like `new`; without `remove_old`, keep what `new` has not."""
        if remove_old:
            super().set_nodes({name: old.pop(name) for name in [*old] if name not in new}, {}, remove_old=True)
        for name, node in new.items():
            old.setdefault(name, node).server_type = node.server_type


async def _asked(node: ClusterNode, command: Sequence[Any]) -> object:
    """The reply of a node that a slot is moving to: ASKING holds for the next command on its connection."""
    commands = [PipelineCommand(0, "ASKING"), PipelineCommand(1, *command)]
    await node.execute_pipeline(commands)
    for each in commands:
        if isinstance(each.result, Exception):
            raise each.result
    return cast("object", commands[1].result)


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
