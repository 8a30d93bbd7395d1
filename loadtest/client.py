"""An HTTP/1.1 client that costs little: keep-alive connections in a pool that grows, requests made up beforehand.

The generator shares its cores with the service more often than not, so each microsecond here is one off the service.
"""

from __future__ import annotations

import asyncio
import errno
import math
import resource
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools
import typer

OWN_ERRORS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL}  # this machine has no descriptor or port to connect with
SPARE_FILES = 64  # beside those of connections


@dataclass(frozen=True)
class Target:
    """A service to ask."""

    name: str
    host: str
    port: int
    tls: bool = False
    prefix: str = ""  # path before /recommend
    headers: tuple[str, ...] = ()  # "Name: value"

    @classmethod
    def parse(cls, text: str, headers: tuple[str, ...] = ()) -> Target:
        """The target of a command line: `http://host:port/prefix` or `name=http://...`. Raises BadParameter."""
        name, mark, address = text.partition("=http")
        url = urlsplit("http" + address if mark else text)
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r}: {error}") from error
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise typer.BadParameter(f"{text!r}: must be http://host:port, or name=http://host:port")
        return cls(
            name if mark else url.netloc, url.hostname, port, url.scheme == "https", url.path.rstrip("/"), headers
        )

    def post(self, path: str, body: bytes) -> bytes:
        """A whole request with a JSON body."""
        lines = [
            f"POST {self.prefix}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *self.headers,
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Request(NamedTuple):
    """What a caller sends."""

    message: bytes  # head and body
    patience: float  # seconds until the caller hangs up
    kind: str = ""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what became of it. Times are those of `perf_counter`, in seconds."""

    request: Request
    due: float  # when it was meant to be sent: latency and patience count from here, whatever came between
    handed: float = math.nan  # when the generator got round to it
    done: float = math.nan
    status: int = 0  # HTTP status; 0: no answer
    failure: str = ""  # why there is no answer
    server_timing: bytes = b""
    body: bytes = b""
    then: Callable[[Exchange], None] | None = None  # called with it when it is done
    connection: _Connection | None = None
    waited: bool = False  # the generator had no connection for it: the pool's limit, or the machine's
    sent_again: bool = False
    timer: asyncio.TimerHandle | None = None

    @property
    def latency(self) -> float:
        """Seconds from when the request was due until its answer was there, or until it was given up."""
        return self.done - self.due

    @property
    def lag(self) -> float:
        """Seconds by which the generator itself was late."""
        return self.handed - self.due


@dataclass(slots=True)
class Pool:
    """Connections to one target. A request takes one that is free, or has another one opened, up to `limit`."""

    target: Target
    limit: int
    opened: int = 0  # connections ever
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _idle: list[_Connection] = field(default_factory=list)  # the one used last is taken first
    _all: set[_Connection] = field(default_factory=set)
    _opening: set[asyncio.Task[None]] = field(default_factory=set)
    _waiting: deque[Exchange] = field(default_factory=deque)
    _outstanding: int = 0
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, exchange: Exchange) -> None:
        """Send a request as soon as there is a connection; `exchange.then` is called when it is done."""
        exchange.handed = perf_counter()
        self._outstanding += 1
        exchange.timer = self._loop.call_later(
            max(0.0, exchange.due + exchange.request.patience - exchange.handed), self._give_up, exchange
        )
        self._assign(exchange)

    async def ask(self, request: Request) -> Exchange:
        """Send a request now and wait until it is done."""
        done = self._loop.create_future()
        exchange = Exchange(request, perf_counter(), then=lambda _: done.set_result(None))
        self.send(exchange)
        await done
        return exchange

    async def drained(self) -> None:
        """Wait until every request is done."""
        while self._outstanding:
            self._quiet.clear()
            await self._quiet.wait()

    async def close(self) -> None:
        """Hang up."""
        for task in self._opening:
            task.cancel()
        for connection in [*self._all]:
            connection.transport.abort()
        await asyncio.gather(*self._opening, return_exceptions=True)
        await asyncio.sleep(0)  # transports report that they are closed in the next turn of the loop

    def free(self, connection: _Connection) -> None:
        """A connection has brought its answer."""
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.failure:  # or its caller has lost patience
                connection.send(exchange)
                return
        self._idle.append(connection)

    def made(self, connection: _Connection) -> None:
        """A connection is there."""
        self.opened += 1
        self._all.add(connection)
        self.free(connection)

    def lost(self, connection: _Connection, exchange: Exchange | None, *, stale: bool) -> None:
        """A connection is gone; `stale` if the server had hung up before the request reached it."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if exchange is None:
            self._grow()
        elif stale and not exchange.sent_again:
            exchange.sent_again = True
            self._assign(exchange)
        else:
            self.settle(exchange, "the service hung up")

    def settle(self, exchange: Exchange, failure: str = "") -> None:
        """A request is done."""
        exchange.done = perf_counter()
        exchange.failure = failure
        exchange.connection = None
        if exchange.timer is not None:
            exchange.timer.cancel()
            exchange.timer = None
        self._outstanding -= 1
        if self._outstanding == 0:
            self._quiet.set()
        if exchange.then is not None:
            exchange.then(exchange)

    def _assign(self, exchange: Exchange) -> None:
        if self._idle:
            self._idle.pop().send(exchange)
            return
        self._waiting.append(exchange)
        if not self._grow():
            exchange.waited = True

    def _grow(self) -> bool:
        """Open another connection if somebody waits for one; False if there are as many as there may be."""
        if len(self._opening) >= len(self._waiting):
            return True
        if len(self._all) + len(self._opening) >= self.limit:
            return False
        task = self._loop.create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._attempted)
        return True

    def _attempted(self, task: asyncio.Task[None]) -> None:
        """An attempt to connect is over; who came between its failure and now counted on it."""
        self._opening.discard(task)
        if not task.cancelled():
            self._grow()

    async def _open(self) -> None:
        secure = ssl.create_default_context() if self.target.tls else None
        try:
            await self._loop.create_connection(
                lambda: _Connection(self), self.target.host, self.target.port, ssl=secure
            )
        except OSError as error:
            while self._waiting:
                exchange = self._waiting.popleft()
                if not exchange.failure:
                    exchange.waited |= error.errno in OWN_ERRORS
                    self.settle(exchange, f"no connection: {error.strerror or error}")
                    break

    def _give_up(self, exchange: Exchange) -> None:
        exchange.timer = None
        if exchange.connection is not None:
            exchange.connection.cut()
        self.settle(exchange, "no answer in time")


def allow_connections(number: int) -> None:
    """Let this process open so many connections, as far as the machine lets it: 1,024 files are usual, and too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft not in {resource.RLIM_INFINITY, hard} and soft < number + SPARE_FILES:
        wanted = number + SPARE_FILES
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


class _Connection(asyncio.Protocol):
    """One keep-alive connection, with one request on it at a time."""

    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._answered = 0
        self._received = False  # anything of the current answer
        self._server_timing = b""
        self._body: list[bytes] = []

    def send(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.connection = self
        self._received = False
        self.transport.write(exchange.request.message)

    def cut(self) -> None:
        """Leave without waiting for the answer."""
        self._exchange = None
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # as TCP has it; uvloop's own class does not say so
        self._pool.made(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:  # nobody asked
            self.transport.abort()
            return
        self._received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            exchange, self._exchange = self._exchange, None
            if exchange is not None:
                self._pool.settle(exchange, f"not HTTP: {error}")
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        exchange, self._exchange = self._exchange, None
        self._pool.lost(self, exchange, stale=self._answered > 0 and not self._received)

    # What follows is called by the parser.

    def on_message_begin(self) -> None:
        self._server_timing = b""
        self._body.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._server_timing = value

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        self._answered += 1
        if exchange is not None:
            exchange.status = self._parser.get_status_code()
            exchange.server_timing = self._server_timing
            exchange.body = b"".join(self._body)
            self._pool.settle(exchange)
        if self._parser.should_keep_alive():
            self._pool.free(self)
        else:
            self.transport.close()
