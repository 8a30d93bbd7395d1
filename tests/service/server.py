"""The service as a process of its own, and a load of checked requests on it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
# Settings of a service whose answers are whole although the machine stops for a moment.
PATIENT = {"SCOTER_LIMITS__DEADLINE_MS": "10000", "SCOTER_LIMITS__STORE_MS": "10000"}


@dataclass(slots=True)
class Server:
    """A running service."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def lines(self) -> list[str]:
        """What it has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def metric(self, line: str) -> float:
        """The value of one line of /metrics, 0 if it is not there."""
        text = httpx2.get(f"{self.address}/metrics").text
        return next((float(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(line + " ")), 0.0)

    def metrics(self, name: str) -> float:
        """The sum of a metric over all its labels."""
        text = httpx2.get(f"{self.address}/metrics").text
        mine = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
        return sum(float(line.rpartition(" ")[2]) for line in mine)


def command(releases: Path, store: Path | str, port: int) -> list[str]:
    """What starts the service."""
    return [
        *(sys.executable, "-m", "service", "--releases", str(releases)),
        *("--store", str(store), "--port", str(port)),
    ]


def variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Variables of a service with these settings and no others."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SCOTER_")} | {**settings}


@contextmanager
def serving(
    releases: Path,
    store: Path | str,
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[Server]:
    """The service, once it is ready; killed at the end. `environment` adds settings; the log goes into `folder`."""
    port = free_port()
    log = log or folder / f"service-{port}.log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            command(releases, store, port),
            cwd=ROOT,
            env=variables(environment or {}),
            stdout=stream,
            stderr=stream,
        ) as process,
    ):
        server = Server(process, f"http://127.0.0.1:{port}", log)
        try:
            _wait(server)
            yield server
        finally:
            process.send_signal(signal.SIGCONT)  # a test may have paused it
            process.kill()


def _wait(server: Server) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx2.get(f"{server.address}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert server.process.poll() is None, "\n".join(server.lines())
        assert time.monotonic() < end, "\n".join(server.lines())
        time.sleep(0.05)


@dataclass(slots=True)
class Load:
    """Requests sent by several clients at once until it is told to stop; every answer is checked as it comes."""

    address: str
    body: Callable[[int], dict[str, Any]]  # the n-th request
    check: Callable[[dict[str, Any], dict[str, Any]], None]  # (request, answer), raises what fails the test
    clients: int = 8
    headers: dict[str, str] = field(default_factory=dict)
    statuses: Counter[int | str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Send requests until `stop`."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.clients):
                group.create_task(self._client(number))

    def stop(self) -> None:
        """Let each client finish its request."""
        self._stop.set()

    def clear(self) -> None:
        """Forget what was counted, to look at the next phase alone."""
        self.statuses.clear()
        self.degraded.clear()
        self.seconds.clear()

    async def _client(self, number: int) -> None:
        async with httpx2.AsyncClient(base_url=self.address, timeout=30, headers=self.headers) as client:
            while not self._stop.is_set():
                body = self.body(number)
                number += self.clients
                started = time.perf_counter()
                try:
                    response = await client.post("/recommend", json=body)
                except httpx2.TransportError as error:
                    self.statuses[type(error).__name__] += 1
                    await asyncio.sleep(0.02)
                    continue
                self.seconds.append(time.perf_counter() - started)
                self.statuses[response.status_code] += 1
                if response.status_code == 200:
                    answer = response.json()
                    self.degraded.update(answer["degraded"] or ["none"])
                    self.check(body, answer)
                else:
                    await asyncio.sleep(0.005)
