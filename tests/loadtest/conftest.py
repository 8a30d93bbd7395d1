from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import pytest

from loadtest.client import Target
from tests.service.conftest import published_settings
from tests.service.tiny_release import TinyRelease, write_release

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 59\r\nServer-Timing: store;dur=1, total;dur=2.5\r\n\r\n"
    b'{"source":"model","degraded":[],"items":[],"request_id":""}'
)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Releases, and a store that one of them is published to; a request costs about as much as with a real model."""
    folder = tmp_path_factory.mktemp("published")
    release: TinyRelease = write_release(folder / "releases", users=40, rounds=2)
    published_settings(release, folder / "store")
    return folder / "releases", folder / "store"


@asynccontextmanager
async def answering(
    *, delay: Callable[[float], float] = lambda _: 0.0, answer: bytes = ANSWER, answers: int = 10**9
) -> AsyncIterator[Target]:
    """An HTTP server that waits `delay(seconds since the first request)` each time, and hangs up after `answers`."""
    started: float | None = None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal started
        try:
            for _ in range(answers):
                head = await reader.readuntil(b"\r\n\r\n")
                started = started or perf_counter()  # a client that is slow to begin misses nothing
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
                await asyncio.sleep(delay(perf_counter() - started))
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Target("test", "127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
