from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from service.connection import HEAD_BYTES, Connection

pytestmark = pytest.mark.anyio

OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
}
BODIES = {
    "counted": (b"Content-Length: 11\r\n", b"hello there"),
    "chunked": (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n6\r\n there\r\n0\r\n\r\n"),
}


class Echo:
    """Answers with path and body, as middleware and routes do: it watches for the caller to leave meanwhile."""

    def __init__(self) -> None:
        self.begun = 0
        self.seen: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()
        self.headers: list[tuple[bytes, bytes]] = []
        self.left = 0  # callers, before they had their answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun += 1
        body, more = b"", True
        while more:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.seen.append(body)
        self.headers = list(scope["headers"])
        leaving = asyncio.create_task(self._until_gone(receive))
        await self.go.wait()
        leaving.cancel()
        answer = scope["path"].encode() + b" " + body
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})

    async def _until_gone(self, receive: Receive) -> None:
        self.left += (await receive())["type"] == "http.disconnect"


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@asynccontextmanager
async def listening(app: Echo, *, patience: float = 60) -> AsyncIterator[tuple[Connect, ServerState]]:
    config: Any = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None)
    config.timeout_keep_alive = patience  # whole seconds, as it is declared, are long for a test
    config.load()
    state = ServerState()
    protocol = partial(Connection, config, state, {})
    async with await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield partial(asyncio.open_connection, "127.0.0.1", port), state
        for connection in [*state.connections]:
            connection.transport.abort()


async def answered(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The line of status and the body of one answer."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = (line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        return head.split(b"\r\n")[0], await reader.readexactly(int(length.split()[1]))


def post(headers: bytes = BODIES["counted"][0], body: bytes = BODIES["counted"][1], path: bytes = b"/a") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n%s" % (path, headers, body)


@pytest.mark.parametrize("split", [1, 90, 100_000])
@pytest.mark.parametrize("length, body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
async def test_an_offer_of_another_protocol_is_passed_over(
    offer: bytes, length: bytes, body: bytes, split: int
) -> None:
    """With its body, whatever arrives with what, and so that the connection's next request is answered, too."""
    app = Echo()
    async with listening(app) as (connect, _):
        reader, writer = await connect()
        request = post(offer + length, body) + post(offer + length, body, b"/b") + post(path=b"/c")
        for start in range(0, len(request), split):
            writer.write(request[start : start + split])
            await asyncio.sleep(0)
        for path in (b"/a", b"/b", b"/c"):
            assert await answered(reader) == (b"HTTP/1.1 200 OK", path + b" hello there")
        assert (b"host", b"x") in app.headers
        writer.close()


async def test_many_offers_in_one_read_are_passed_over() -> None:
    number = 3_000
    app = Echo()
    async with listening(app) as (connect, _):
        reader, writer = await connect()
        writer.write(
            b"".join(post(OFFERS["h2c"] + b"Content-Length: 0\r\n", b"", b"/%d" % turn) for turn in range(number))
        )
        for turn in range(number):
            assert await answered(reader) == (b"HTTP/1.1 200 OK", b"/%d " % turn)
        writer.close()


async def test_connect_is_refused() -> None:
    async with listening(Echo()) as (connect, _):
        for offer in (b"", OFFERS["h2c"]):
            reader, writer = await connect()
            writer.write(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n" + offer + b"\r\n")
            assert (await answered(reader))[0] == b"HTTP/1.1 400 Bad Request"
            assert await reader.read() == b""
            writer.close()


@pytest.mark.parametrize(
    "piece",
    [b"x: %s\r\n" % (b"y" * 100), b"y" * 1000],
    ids=["many", "endless"],
)
async def test_a_head_has_a_bound(piece: bytes) -> None:
    async with listening(Echo()) as (connect, state):
        reader, writer = await connect()
        writer.write(b"POST /a HTTP/1.1\r\nx: ")
        sent = 0
        while not (sent and _closed(state)):
            writer.write(piece)
            sent += len(piece)
            await asyncio.sleep(0.002)  # read it has to be, or the answer is lost with what is left
            assert sent < 2 * HEAD_BYTES
        assert sent > HEAD_BYTES - 1000
        assert (await answered(reader))[0] == b"HTTP/1.1 431 Request Header Fields Too Large"
        writer.close()
        await _none_left(state)


async def test_what_fits_is_no_large_head_however_often_and_with_whatever_body() -> None:
    async with listening(Echo()) as (connect, _):
        reader, writer = await connect()
        large = b"x: %s\r\nContent-Length: 200000\r\n" % (b"y" * (HEAD_BYTES - 200))
        for _ in range(3):
            writer.write(post(large, b"z" * 200_000))
            assert (await answered(reader))[0] == b"HTTP/1.1 200 OK"
        writer.close()


def _closed(state: ServerState) -> bool:
    return all(connection.transport.is_closing() for connection in state.connections)


async def _none_left(state: ServerState) -> None:
    async with asyncio.timeout(10):
        while state.connections:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "before, piece",
    [(b"0\r\nx: ", b"y" * 1000), (b"0\r\n", b"x: %s\r\n" % (b"y" * 100)), (b"5;x=", b"y" * 1000)],
    ids=["endless trailer", "many trailers", "extension"],
)
async def test_so_has_what_comes_with_a_body_and_is_none(before: bytes, piece: bytes) -> None:
    app = Echo()
    async with listening(app) as (connect, state):
        reader, writer = await connect()
        writer.write(post(BODIES["chunked"][0], b"2\r\nhi\r\n" + before))
        sent = 0
        while not (sent and _closed(state)):
            writer.write(piece)
            sent += len(piece)
            await asyncio.sleep(0.002)
            assert sent < 2 * HEAD_BYTES
        assert sent > HEAD_BYTES - 1000
        assert (await answered(reader))[0] == b"HTTP/1.1 431 Request Header Fields Too Large"
        assert not app.seen
        writer.close()


async def test_trailers_are_no_headers() -> None:
    """A gateway that strips a header from its callers' requests lets it through behind the body."""
    app = Echo()
    async with listening(app) as (connect, _):
        reader, writer = await connect()
        length, body = BODIES["chunked"]
        for path in (b"/a", b"/b"):
            writer.write(post(length, body[:-2] + b"X-Scoter-Arm: a=b\r\n\r\n", path))
            assert await answered(reader) == (b"HTTP/1.1 200 OK", path + b" hello there")
            assert app.headers == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]
        writer.close()


@pytest.mark.parametrize(
    "before, rest",
    [
        (b"", b""),
        (b"", b"POST /a HTTP/1.1\r\nHo"),
        (post(), b""),
        (post(), b"\r\n"),
        (post(), b"POST /a HTTP/1.1\r\nHo"),
    ],
    ids=["silent", "half", "idle", "blank line", "half of the next"],
)
async def test_who_sends_no_whole_head_is_not_waited_for_forever(before: bytes, rest: bytes) -> None:
    async with listening(Echo(), patience=0.3) as (connect, state):
        reader, writer = await connect()
        if before:
            writer.write(before)
            await answered(reader)
        if rest:
            writer.write(rest)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        await _none_left(state)
        writer.close()


async def test_an_answer_may_take_longer_than_a_head() -> None:
    app = Echo()
    async with listening(app, patience=0.2) as (connect, _):
        app.go.clear()
        reader, writer = await connect()
        writer.write(post())
        await asyncio.sleep(0.5)
        app.go.set()
        assert (await answered(reader))[0] == b"HTTP/1.1 200 OK"
        writer.close()


@pytest.mark.parametrize("headers", [b"x: %s\r\n" % (b"y" * 1_000), b""], ids=["long", "short"])
async def test_requests_that_wait_for_their_turn_wait_in_the_socket(headers: bytes) -> None:
    """All are answered in order, and few at a time are in memory: a caller could fill it in seconds."""
    app = Echo()
    number = 2_000
    async with listening(app) as (connect, state):
        app.go.clear()
        reader, writer = await connect()
        writer.write(b"".join(post(headers + BODIES["counted"][0], path=b"/%d" % turn) for turn in range(number)))
        async with asyncio.timeout(10):
            while not app.seen:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        (connection,) = state.connections
        assert isinstance(connection, Connection)
        waiting = 0
        app.go.set()
        for turn in range(number):
            assert (await answered(reader))[1].startswith(b"/%d " % turn)
            waiting = max(waiting, len(connection.pipeline))
        assert waiting < 100
        writer.close()


@pytest.mark.parametrize(
    "bad, status",
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /%s" % (b"y" * 2 * HEAD_BYTES), b"431"),
        (post(BODIES["chunked"][0], b"nonsense\r\n"), b"400"),
        (post(OFFERS["h2c"] + BODIES["chunked"][0], b"nonsense\r\n"), b"400"),
    ],
    ids=["no head", "connect", "too large", "no body", "no body behind an offer"],
)
@pytest.mark.parametrize("good", [1, 3])
async def test_what_cannot_be_read_is_refused_after_the_answers_before_it(good: int, bad: bytes, status: bytes) -> None:
    app = Echo()
    async with listening(app) as (connect, state):
        app.go.clear()
        reader, writer = await connect()
        writer.write(post() * good + bad)
        await asyncio.sleep(0.2)
        app.go.set()
        for _ in range(good):
            assert await answered(reader) == (b"HTTP/1.1 200 OK", b"/a hello there")
        assert status in (await answered(reader))[0]
        await _none_left(state)
        assert app.seen == [b"hello there"] * good
        assert app.begun - good == (b"Upgrade" in bad)  # what comes behind an offer is looked at when its turn comes
        writer.close()


async def test_a_caller_with_requests_waiting_is_seen_to_leave() -> None:
    app = Echo()
    async with listening(app) as (connect, state):
        app.go.clear()
        _, writer = await connect()
        writer.write(post() + post(path=b"/b"))
        async with asyncio.timeout(10):
            while not app.seen:
                await asyncio.sleep(0.01)
            (connection,) = state.connections
            connection.transport.abort()  # as it is once it is found to have ended: reading is paused
            while not app.left:
                await asyncio.sleep(0.01)
        app.go.set()
        writer.close()


class Large(Echo):
    """Answers with more than any socket takes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = bytes(20_000_000)
        length = (b"content-length", str(len(answer)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})


@pytest.mark.parametrize(
    "requests",
    [post(), post() * 3, post(b"Connection: close\r\n", b""), post() + b"nonsense\r\n\r\n"],
    ids=["one", "several", "closing", "refused"],
)
async def test_who_takes_no_answer_is_not_waited_for_forever(requests: bytes) -> None:
    async with listening(Large(), patience=0.2) as (connect, state):
        _, writer = await connect()
        writer.write(requests)
        async with asyncio.timeout(10):
            while not state.connections:
                await asyncio.sleep(0.01)
        await _none_left(state)
        writer.transport.abort()
