"""TLS to a Redis: certificates are read for all connections together, and again when their files have changed."""

from __future__ import annotations

import ssl
from functools import lru_cache
from pathlib import Path
from typing import Any

from redis.asyncio.connection import RedisSSLContext, SSLConnection
from redis.asyncio.sentinel import SentinelManagedSSLConnection

KEPT = 8  # contexts: of the store, of the exposures, and of files that have changed


class SharedContext(RedisSSLContext):
    """What the library makes for every connection anew: 20 ms each, in which the event loop does nothing else."""

    def get(self) -> ssl.SSLContext:
        """The context of these files as they are now. Raises OSError if one cannot be read."""
        files = (self.ca_certs, self.certfile, self.keyfile)
        changed = tuple(0 if file is None else Path(file).stat().st_mtime_ns for file in files)
        return _context(*files, self.check_hostname, changed)


class TlsConnection(SSLConnection):
    """A connection to one server."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the library's own
        super().__init__(**options)
        self.ssl_context = _shared(self.ssl_context)


class SentinelTlsConnection(SentinelManagedSSLConnection):
    """A connection to the master that the sentinels name."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the library's own
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.ssl_context = _shared(self.ssl_context)


def _shared(given: RedisSSLContext) -> SharedContext:
    return SharedContext(
        keyfile=given.keyfile,
        certfile=given.certfile,
        cert_reqs=given.cert_reqs,
        ca_certs=given.ca_certs,
        check_hostname=given.check_hostname,
    )


@lru_cache(KEPT)
def _context(
    ca: str | None,
    certificate: str | None,
    key: str | None,
    check_hostname: bool,  # noqa: FBT001
    changed: tuple[int, ...],  # noqa: ARG001 - when the files were
) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)  # the system's authorities if there is none
    context.check_hostname = check_hostname
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context
