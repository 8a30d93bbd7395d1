"""Ports for servers that tests start."""

from __future__ import annotations

import socket
from contextlib import suppress


def free_port(*, bus: bool = False) -> int:
    """A port that nobody listens on; with `bus`, nor on the one 10,000 above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if not bus:
            return port
        if port + 10_000 < 65_536:
            with socket.socket() as probe, suppress(OSError):
                probe.bind(("127.0.0.1", port + 10_000))
                return port
        with socket.socket() as probe, suppress(OSError):
            low = port - 30_000
            probe.bind(("127.0.0.1", low))
            return low
