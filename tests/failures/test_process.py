"""What callers get when the service's own process or machine is in trouble."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx2
import pytest

from tests.failures.scenario import Clients
from tests.service.conftest import published_settings
from tests.service.server import serving
from tests.service.tiny_release import TinyRelease

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


async def fill(tiny: TinyRelease, folder: Path) -> None:
    await asyncio.to_thread(published_settings, tiny, folder)


async def test_a_stop_under_load_finishes_what_is_running(tiny: TinyRelease, tmp_path: Path) -> None:
    """Readiness turns red first; until the port closes, requests are answered; then the process ends with 0."""
    await fill(tiny, tmp_path / "store")
    environment = {"SCOTER_DRAIN_SECONDS": "1"}
    with serving(tiny.path.parent, tmp_path / "store", tmp_path, environment=environment) as server:
        clients = Clients(server, tiny)
        running = asyncio.create_task(clients.run())
        await asyncio.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        async with httpx2.AsyncClient(base_url=server.address) as client:
            async with asyncio.timeout(0.9):
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
    kinds = {answer.status for answer in clients.answers}
    # Whoever connects once the port is closed is refused by the kernel; nobody who was let in is dropped.
    assert kinds <= {200, "ConnectError"}, kinds
    assert all(answer.whole for answer in clients.answers if answer.status == 200)


async def test_a_full_disk_for_logs_stops_nobody(tiny: TinyRelease, tmp_path: Path) -> None:
    await fill(tiny, tmp_path / "store")
    full = tmp_path / "logs"
    full.mkdir()
    with serving(tiny.path.parent, tmp_path / "store", full, log=Path("/dev/full")) as server:
        clients = Clients(server, tiny)
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
