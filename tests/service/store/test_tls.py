from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
from redis.asyncio.connection import SSLConnection

from service.settings import RedisSettings
from service.store.cluster import Cluster
from service.store.redis import Client
from tests.conftest import redis_settings
from tests.redis_server import Certificates

pytestmark = pytest.mark.anyio


def contexts(settings: RedisSettings) -> list[ssl.SSLContext]:
    """Of two connections of a client that was not used yet."""
    redis = Client(settings, 1_000)._redis
    if isinstance(redis, Cluster):
        (node,) = redis.startup_nodes
        made = [node.acquire_connection(), node.acquire_connection()]
    else:
        made = [redis.connection_pool.make_connection() for _ in range(2)]
    assert made[0] is not made[1]
    found: list[ssl.SSLContext] = []
    for connection in made:
        assert isinstance(connection, SSLConnection)
        found.append(connection.ssl_context.get())
    return found


@pytest.mark.parametrize("where", ["rediss://h/0", "rediss+sentinel://h/users", "rediss+cluster://h"])
async def test_connections_share_one_context_for_as_long_as_its_files_stay(
    certificates: Certificates, tmp_path: Path, where: str
) -> None:
    client = tmp_path / "client.pem"
    client.write_bytes(certificates.client.read_bytes())
    settings = redis_settings(f"{where}?ssl_ca_certs={certificates.ca}&ssl_certfile={client}")
    first, second = contexts(settings)
    assert first is second
    assert contexts(settings)[0] is first
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert first.check_hostname
    assert first.cert_store_stats()["x509_ca"] == 1  # nobody else may vouch for the server
    os.utime(client, ns=(0, client.stat().st_mtime_ns + 1))  # renewed
    assert contexts(settings)[0] is not first


async def test_a_certificate_that_need_not_name_the_host_must_be_vouched_for_all_the_same(
    certificates: Certificates,
) -> None:
    (lax, _) = contexts(redis_settings(f"rediss://h/0?ssl_ca_certs={certificates.ca}&ssl_check_hostname=false"))
    assert not lax.check_hostname
    assert lax.verify_mode is ssl.CERT_REQUIRED


async def test_without_a_file_the_authorities_of_the_system_vouch() -> None:
    (usual, _) = contexts(redis_settings("rediss://h/0"))
    assert usual.cert_store_stats() == ssl.create_default_context().cert_store_stats()
