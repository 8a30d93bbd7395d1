"""What callers get when exposures cannot be written: the same answers. The exposures wait, and what is lost is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failures.scenario import Answer, Clients, run
from tests.redis_server import PLAIN, Server, standalone, start, wait_for
from tests.service.conftest import published_settings
from tests.service.server import Server as Service
from tests.service.server import serving
from tests.service.tiny_release import TinyRelease

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

QUEUE = 50  # exposures that wait for a sink: few, so that some are dropped
COMMON = {"SCOTER_EXPOSURES__QUEUE": str(QUEUE), "SCOTER_EXPOSURES__LINGER_SECONDS": "0.02"}
STREAM = "scoter:exposures"


@pytest.fixture
async def store(tiny: TinyRelease, tmp_path: Path) -> Path:
    await asyncio.to_thread(published_settings, tiny, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    with standalone(tmp_path / "redis") as server:
        yield server


async def accounted(service: Service, clients: Clients) -> None:
    """Every answer's exposure is written or counted as dropped, as soon as the sink has had its time."""
    answers = sum(answer.status == 200 for answer in clients.answers)

    def known() -> float:
        return service.metrics("scoter_exposures_written_total") + service.metrics("scoter_exposures_dropped_total")

    async with asyncio.timeout(20):
        while known() < answers:
            await asyncio.sleep(0.1)
    assert known() == answers


def whole(answers: list[Answer]) -> None:
    assert all(answer.whole for answer in answers)


async def test_disk_full(tiny: TinyRelease, store: Path, tmp_path: Path) -> None:
    """The disk is full, and then it is not: the file is found again at its path."""
    file = tmp_path / "exposures.jsonl"
    environment = {**COMMON, "SCOTER_EXPOSURES__FILE": str(file)}
    with serving(tiny.path.parent, store, tmp_path, environment=environment) as service:
        clients = Clients(service, tiny)

        def fill() -> None:
            file.rename(tmp_path / "before.jsonl")
            file.symlink_to("/dev/full")

        def empty() -> None:
            file.unlink()

        whole(await run("disk full for exposures", clients, fill, empty))
        assert service.metric('scoter_exposures_dropped_total{reason="disk_full",sink="file"}') > 0
        await accounted(service, clients)
        written = [line for path in (tmp_path / "before.jsonl", file) for line in path.read_text().splitlines()]
        assert len(written) == service.metric('scoter_exposures_written_total{sink="file"}')
        assert len(file.read_text().splitlines()) > 0
        told = [line for line in service.lines() if "exposures_not_written" in line]
        assert len(told) == 1  # not one a try


async def test_redis_killed(redis: Server, tiny: TinyRelease, store: Path, tmp_path: Path) -> None:
    environment = {**COMMON, "SCOTER_EXPOSURES__REDIS__URL": f"redis://127.0.0.1:{redis.port}/0"}
    again: list[Server] = []

    async def restart() -> None:
        again.append(start(tmp_path / "redis", *PLAIN, port=redis.port))
        await asyncio.to_thread(wait_for, lambda: bool(again[0].admin.ping()))

    try:
        with serving(tiny.path.parent, store, tmp_path, environment=environment) as service:
            clients = Clients(service, tiny)
            whole(await run("Redis of the exposures killed", clients, redis.kill, restart))
            unavailable, late = (
                service.metric(f'scoter_exposures_dropped_total{{reason="{reason}",sink="redis"}}')
                for reason in ("unavailable", "timeout")  # late: a busy machine
            )
            assert unavailable > 0
            assert unavailable + late == service.metrics("scoter_exposures_dropped_total")
            await accounted(service, clients)
            assert 0 < again[0].admin.xlen(STREAM) <= service.metric('scoter_exposures_written_total{sink="redis"}')
    finally:
        for server in again:
            server.stop()
