"""A server whose answers cost nothing: what a load generator gets from it is the most it can measure."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import uvloop

ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    b"server-timing: total;dur=0.001\r\ncontent-length: 1500\r\n\r\n"
    + b'{"source":"model","degraded":[],"items":[]}'.ljust(1500)
)


class Canned(asyncio.Protocol):
    """Takes every piece that arrives for a request."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember whom to answer."""
        self.transport = cast("asyncio.Transport", transport)  # as TCP has it; uvloop's own class does not say so

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - asyncio's signature
        """Answer."""
        self.transport.write(ANSWER)


@contextmanager
def canned_service() -> Iterator[int]:
    """The server in a process of its own; yields its port."""
    with subprocess.Popen([sys.executable, "-m", "loadtest.canned"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - asked for above
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Canned, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
