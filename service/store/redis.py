"""The shared store: one Redis server, one client per process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.maint_notifications import MaintNotificationsConfig

from service.errors import StoreTimeout, StoreUnavailable
from service.settings import RedisSettings

_T = TypeVar("_T")

PIPELINE = 500  # commands sent at once, so that a bulk load never holds the server for long


class RedisStore:
    """A user store on Redis.

    Reads are bounded by the sockets' own timeouts and run in a task of their own, so that a caller that is
    cancelled, or gives up, never leaves a connection with an unread reply for the next caller to mistake for its own.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._patience = (settings.connect_timeout_ms + settings.read_timeout_ms) / 1000
        self._reads = connect(settings, settings.read_timeout_ms)
        self._writes = connect(settings, settings.write_timeout_ms)  # connects on the first write, if ever
        self._running: set[asyncio.Task[Any]] = set()  # the loop itself holds tasks only weakly

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys`, in order, by one MGET."""
        if not keys:
            return []
        task = asyncio.ensure_future(_translated(self._reads.mget(*keys)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(self._patience):  # also bounds the wait for a free connection
                return cast("list[bytes | None]", await asyncio.shield(task))
        except TimeoutError as error:
            raise StoreTimeout(f"Redis did not answer within {self._patience * 1000:.0f} ms") from error

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Write pairs by pipelined SETs."""
        await self._pipelined(("SET", key, value) for key, value in pairs)

    async def delete(self, keys: Iterable[bytes]) -> None:
        """Remove keys by pipelined UNLINKs."""
        await self._pipelined(("UNLINK", key) for key in keys)

    async def ping(self) -> None:
        """Return if the server answers a PING in time."""
        await _translated(cast("Awaitable[object]", self._reads.ping()))

    async def close(self) -> None:
        """Close every connection, once abandoned reads have met their timeouts."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._reads.aclose()
        await self._writes.aclose()

    async def _pipelined(self, commands: Iterator[tuple[str | bytes, ...]]) -> None:
        while batch := list(islice(commands, PIPELINE)):
            async with self._writes.pipeline(transaction=False) as pipeline:
                for command in batch:
                    pipeline.execute_command(*command)
                await _translated(pipeline.execute())


def connect(settings: RedisSettings, read_timeout_ms: float) -> Redis:
    """A client with its own pool of connections, made as they are needed; reads give up after `read_timeout_ms`."""
    pool = BlockingConnectionPool.from_url(
        settings.url.get_secret_value(),
        max_connections=settings.connections,
        timeout=(settings.connect_timeout_ms + read_timeout_ms) / 1000,
        socket_connect_timeout=settings.connect_timeout_ms / 1000,
        socket_timeout=read_timeout_ms / 1000,
        protocol=3,
        # While these are on, redis-py does not check that a connection taken from the pool is alive and has nothing
        # left to read.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        # A retry would double the wait of a request that can do without; the pool already replaces dead connections.
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


async def _translated(reply: Awaitable[_T]) -> _T:
    try:
        return await reply
    except (RedisTimeout, TimeoutError) as error:
        raise StoreTimeout(f"Redis did not answer in time: {error}") from error
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis failed: {error}") from error
