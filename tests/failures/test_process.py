"""What callers get when the service's own process or machine is in trouble."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx2
import pytest

from tests.failures.scenario import Clients
from tests.service.conftest import published_settings
from tests.service.server import PATIENT, serving
from tests.service.tiny_release import TinyRelease

DRAIN_SECONDS = 4.0  # longer than a test machine may stop
HEADERS = {"X-Deadline-Ms": "9000"}  # as long as an answer may be late when it does

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


async def fill(tiny: TinyRelease, folder: Path) -> None:
    await asyncio.to_thread(published_settings, tiny, folder)


async def test_a_stop_under_load_finishes_what_is_running(tiny: TinyRelease, tmp_path: Path) -> None:
    """Readiness turns red first; until the port closes, requests are answered; then the process ends with 0."""
    await fill(tiny, tmp_path / "store")
    environment = {**PATIENT, "SCOTER_DRAIN_SECONDS": str(DRAIN_SECONDS)}
    with serving(tiny.path.parent, tmp_path / "store", tmp_path, environment=environment) as server:
        clients = Clients(server, tiny, headers=HEADERS)
        running = asyncio.create_task(clients.run())
        async with asyncio.timeout(20):
            while len(clients.answers) < clients.number:
                await asyncio.sleep(0.01)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        async with httpx2.AsyncClient(base_url=server.address) as client:
            async with asyncio.timeout(0.9 * DRAIN_SECONDS):
                while True:
                    ready = await client.get("/readyz")
                    if ready.status_code == 503:
                        break
                    await asyncio.sleep(0.01)
            assert ready.json()["status"] == "not ready"
            assert ready.headers["connection"] == "close"
        status = await asyncio.to_thread(server.process.wait, 20)
        clients.stop()
        await running
        assert status == 0
    failed = [answer for answer in clients.answers if not answer.whole]
    # These callers are told to leave and do not. Who still knocks once the port is closed is turned away by the kernel,
    # and so is who stands before a door that has not been opened to him yet; nobody before that.
    assert {answer.status for answer in failed} <= {"ConnectError", "ReadError"}
    assert all(answer.at > told + DRAIN_SECONDS for answer in failed)
    assert sum(answer.at > told for answer in clients.answers if answer.whole) > 20


async def test_a_full_disk_for_logs_stops_nobody(tiny: TinyRelease, tmp_path: Path) -> None:
    await fill(tiny, tmp_path / "store")
    full = tmp_path / "logs"
    full.mkdir()
    with serving(tiny.path.parent, tmp_path / "store", full, log=Path("/dev/full")) as server:
        clients = Clients(server, tiny, headers=HEADERS)
        running = asyncio.create_task(clients.run())
        async with httpx2.AsyncClient(base_url=server.address) as client:
            for _ in range(50):  # each of these is logged
                await client.post("/admin/release", json={})
        await asyncio.sleep(0.5)
        clients.stop()
        await running
        assert {answer.status for answer in clients.answers} == {200}
        os.kill(server.process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 20) == 0
