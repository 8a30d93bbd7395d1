"""A service in a process of its own, for the tools that are given none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 120.0


@dataclass(frozen=True)
class Running:
    """A service that is ready."""

    pid: int
    port: int

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_service(releases: Path, store: str, threads: int | None) -> Iterator[Running]:
    """Start a service, with `threads` engine threads if they are given; yields it once it is ready, and stops it.

    `SCOTER_*` of the environment hold for it too: another engine, deadlines, places.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "service", "--releases", str(releases), "--store", store, "--port", str(port)]
    chosen = {} if threads is None else {"SCOTER_ENGINE__THREADS": str(threads)}
    with subprocess.Popen([*command, "--log-level", "warning"], env={**os.environ, **chosen}) as process:
        try:
            _wait_until_ready(process, port)
            yield Running(process.pid, port)
        finally:
            process.terminate()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the service ended with status {process.returncode} before it was ready")
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return  # it listens only once its warm-up is done
    raise SystemExit(f"the service was not ready within {START_SECONDS:.0f} s")
