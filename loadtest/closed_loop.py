"""What HTTP, the store and batching cost on top of the bare model, measured in one run.

Alternates the bare `session.run` of a release's graph with `POST /recommend` for the same user, so that whatever else
the machine is doing hits both alike. A closed loop: each client sends its next request when it has its answer, which
is right for a latency floor and for peak throughput, and wrong for latency under load (use an open loop for that).
"""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import uvloop
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from loadtest.client import Pool, Target
from loadtest.drive import closed_loop
from loadtest.process import running_service
from service.cli import store_settings
from service.context import Context
from service.deadline import Deadline
from service.edition import warmup_requests
from service.engine.onnx import load
from service.engine.tensors import feeds
from service.logs import LogLevel, configure_logs
from service.metrics import Metrics
from service.serving import Serving
from service.settings import OnnxSettings, Settings
from service.timings import StageTimings

PREPARE_SECONDS = 60.0  # nobody waits for it
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Workload:
    """The same requests in both shapes."""

    bodies: list[bytes]  # of POST /recommend
    feeds: list[dict[str, Any]]  # inputs of session.run
    session: Any


class Connection:
    """One keep-alive connection that does as little as HTTP allows."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> bytes:
        """Send a request and return its whole answer."""
        self._socket.sendall(request)
        answer = self._received()
        while not _complete(answer):
            answer += self._received()
        return answer

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _received(self) -> bytes:
        chunk = self._socket.recv(65536)
        if not chunk:
            raise ConnectionError("the service hung up")
        return chunk


@app.command()
def main(
    releases: Annotated[Path, typer.Option(help="Folder of releases, each named by its id.")],
    store: Annotated[str, typer.Option(help="LMDB folder or Redis URL that the release was published to.")],
    model: Annotated[str | None, typer.Option(help="Model to ask.", show_default="the release's default")] = None,
    seconds: Annotated[float, typer.Option(help="Length of each measured part.", min=0.1)] = 3.0,
    rounds: Annotated[int, typer.Option(help="Times that the parts take turns.", min=1)] = 3,
    clients: Annotated[int, typer.Option(help="Clients of the throughput part.", min=1)] = 16,
    threads: Annotated[int | None, typer.Option(help="Engine threads.", show_default="all usable cores")] = None,
) -> None:
    """Measure POST /recommend against the bare model: p50 and p99 at one client, requests/s at many.

    Starts the service itself. A table goes to stderr, JSON to stdout.

    Example: python -m loadtest.closed_loop --releases out/releases --store out/store > closed_loop.json
    """
    configure_logs(LogLevel.warning)  # which writes to stderr
    settings = Settings(releases=releases, store=store_settings(store))
    threads = threads or OnnxSettings().threads
    workload = uvloop.run(prepare(settings, model))
    bare, http, server = Samples(), Samples(), Samples()
    bare_rates: list[float] = []
    http_rates: list[float] = []
    with running_service(releases, store, threads) as service:
        port = service.port
        warm_up = Connection(port)
        measure_latency(workload, warm_up, 0.5, Samples(), Samples(), Samples())
        warm_up.close()
        for _ in range(rounds):
            connection = Connection(port)  # the server closes one that idles through the other parts
            measure_latency(workload, connection, seconds, bare, http, server)
            connection.close()
            bare_rates.append(bare_rate(workload, threads, seconds))
            http_rates.append(uvloop.run(http_rate(workload, port, clients, seconds)))
    report = {
        "requests": len(http),
        "engine_threads": threads,
        "clients": clients,
        "bare_ms": bare.summary(),
        "http_ms": http.summary(),
        "server_ms": server.summary(),
        "overhead_p50_ms": round(http.quantile(50) - bare.quantile(50), 3),
        "bare_per_second": round(float(np.median(bare_rates)), 1),
        "http_per_second": round(float(np.median(http_rates)), 1),
    }
    show(report)
    typer.echo(json.dumps(report, indent=2))


class Samples(list[float]):
    """Durations in milliseconds."""

    def quantile(self, percent: float) -> float:
        """A percentile."""
        return float(np.percentile(self, percent))

    def summary(self) -> dict[str, float]:
        """The percentiles that are reported."""
        return {"p50": round(self.quantile(50), 3), "p99": round(self.quantile(99), 3)}


async def prepare(settings: Settings, model: str | None) -> Workload:
    """The release's warm-up requests, as HTTP bodies and as the inputs that the service would build from them."""
    serving = await Serving.open(settings, Metrics(CollectorRegistry()))
    try:
        release, recommender = serving.edition.release, serving.edition.recommender
        entry = release.model(model or release.manifest.default_model)
        everything = warmup_requests(release, settings.limits)
        requests = [request for request in everything if request.model == entry.name]
        context = Context("prepare", StageTimings(), Deadline(PREPARE_SECONDS))
        prepared = [await recommender.prepare(request, context) for request in requests]
        return Workload(
            [request.model_dump_json(exclude_none=True).encode() for request in requests],
            [feeds(entry, [one.input]) for one in prepared],
            load(release, entry),
        )
    finally:
        await serving.close()


def measure_latency(
    workload: Workload, connection: Connection, seconds: float, bare: Samples, http: Samples, server: Samples
) -> None:
    """One client: the bare model and the service take turns, request by request. `server` is its own Server-Timing."""
    end = time.perf_counter() + seconds
    target = Target("service", "127.0.0.1", 0)
    requests = cycle(
        [
            (inputs, target.post("/recommend", body))
            for inputs, body in zip(workload.feeds, workload.bodies, strict=True)
        ]
    )
    while time.perf_counter() < end:
        inputs, request = next(requests)
        started = time.perf_counter()
        workload.session.run(None, inputs)
        between = time.perf_counter()
        answer = connection.send(request)
        done = time.perf_counter()
        bare.append((between - started) * 1000)
        http.append((done - between) * 1000)
        server.append(float(answer.partition(b"total;dur=")[2].split(b"\r", 1)[0]))


def bare_rate(workload: Workload, threads: int, seconds: float) -> float:
    """Requests/s of the bare model, one at a time on each of `threads` threads."""

    def loop() -> int:
        done = 0
        for inputs in cycle(workload.feeds):
            if time.perf_counter() >= end:
                break
            workload.session.run(None, inputs)
            done += 1
        return done

    end = time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        return sum(future.result() for future in [pool.submit(loop) for _ in range(threads)]) / seconds


async def http_rate(workload: Workload, port: int, clients: int, seconds: float) -> float:
    """Requests/s of the service with `clients` connections, each waiting for its answer."""
    target = Target("service", "127.0.0.1", port)
    pool = Pool(target, clients)
    requests = [target.post("/recommend", body) for body in workload.bodies]
    rate = await closed_loop(pool, requests, clients, seconds)
    await pool.close()
    return rate


def show(report: dict[str, Any]) -> None:
    """A table on stderr."""
    table = Table(title=f"{report['requests']} requests, {report['engine_threads']} engine threads")
    for heading in ("", "p50 ms", "p99 ms", "requests/s"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = {
        "bare session.run": ("bare_ms", "bare_per_second"),
        "POST /recommend": ("http_ms", "http_per_second"),
        "  of that, in the service": ("server_ms", None),
    }
    for name, (latency, rate) in rows.items():
        percentiles = report[latency]
        table.add_row(name, str(percentiles["p50"]), str(percentiles["p99"]), str(report[rate]) if rate else "")
    table.caption = f"HTTP adds {report['overhead_p50_ms']} ms at p50; requests/s with {report['clients']} clients"
    Console(stderr=True).print(table)


def _complete(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    return bool(end) and len(body) >= _content_length(head + end)


def _content_length(head: bytes) -> int:
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the service answered {head.splitlines()[0].decode()}")
    return int(head.lower().partition(b"content-length:")[2].split(b"\r", 1)[0])


if __name__ == "__main__":
    app()
