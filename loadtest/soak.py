"""A soak: half of the capacity for minutes, with everything that callers do wrong mixed in, and nothing may grow.

Memory is judged by what the process holds for itself (resident, less what is backed by files): an LMDB store is mapped
into the process, and its resident part grows with every user who is asked for, without costing anybody anything.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import psutil
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from loadtest.arrivals import poisson
from loadtest.bodies import read_bodies, release_bodies
from loadtest.client import Exchange, Pool, Target, allow_connections
from loadtest.drive import closed_loop, offer
from loadtest.mix import DEGRADED, REFUSED, Mix, outcome, right
from loadtest.outputs import FiguresFile, PictureFile
from loadtest.picture import draw_soak
from loadtest.process import Running, running_service
from loadtest.sample import Sample

GROWTH = 0.02  # of memory, from after the warm-up to the end
REFUSALS = 0.01  # share of requests that may be refused
LESSER = 0.01  # share of ordinary requests whose answer may be degraded: the objective of quality
WARM_UP = 0.2  # of the samples, not looked at
WINDOW = 0.1  # of the samples: the first ones after the warm-up are compared with the last ones
CLIENTS = 16  # that capacity is measured with
CAPACITY_SECONDS = 5.0
BURST_CLIENTS = 64  # open once what a service opens on demand
BURST_SECONDS = 1.0
SETTLE_SECONDS = 10.0  # for the service to notice that connections are closed
CONNECTIONS = 1024
MIB = 2**20
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


@dataclass(frozen=True)
class Finding:
    """One thing that was judged."""

    what: str
    found: str
    allowed: str
    good: bool


@dataclass(slots=True)
class Soaked:
    """What happened during a soak."""

    rate: float  # requests/s
    before: Sample  # after a burst, when its connections were closed again
    after: Sample  # when the connections of the soak were closed
    samples: list[Sample]
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)  # by kind of request
    wrong: int = 0  # requests that got what they should not
    latencies: list[float] = field(default_factory=list)  # ms, of ordinary requests

    @property
    def requests(self) -> int:
        """How many were sent."""
        return sum(counts.total() for counts in self.outcomes.values())

    def growth(self) -> float:
        """Memory at the end over memory after the warm-up, less one."""
        held = [sample.private for sample in self.samples]
        first, width = int(len(held) * WARM_UP), max(1, int(len(held) * WINDOW))
        return float(np.median(held[-width:]) / np.median(held[first : first + width])) - 1

    def findings(self) -> list[Finding]:
        """The verdict, part by part."""
        refused = sum(counts[str(REFUSED)] for counts in self.outcomes.values()) / max(1, self.requests)
        ordinary = self.outcomes.get("known", Counter())
        lesser = ordinary[DEGRADED] / max(1, ordinary.total())
        held = [
            Finding(what, f"{before} → {after}", "no more than before", after <= before)
            for what, before, after in (
                ("file descriptors", self.before.fds, self.after.fds),
                ("TCP connections", self.before.connections, self.after.connections),
                ("threads", self.before.threads, self.after.threads),
            )
        ]
        return [
            Finding("memory", f"{self.growth():+.2%}", f"below {GROWTH:+.0%}", self.growth() < GROWTH),
            *held,
            Finding("wrong answers", str(self.wrong), "none", self.wrong == 0),
            Finding("refused", f"{refused:.2%}", f"below {REFUSALS:.0%}", refused < REFUSALS),
            Finding("degraded", f"{lesser:.2%}", f"below {LESSER:.0%}", lesser < LESSER),
        ]

    def count(self, exchange: Exchange) -> None:
        """Add a request that is done. It is forgotten then, or a soak would fill the generator's memory."""
        kind = exchange.request.kind
        self.outcomes.setdefault(kind, Counter())[outcome(exchange)] += 1
        self.wrong += not right(exchange)
        if kind == "known" and exchange.status == 200:
            self.latencies.append(exchange.latency * 1000)


@app.command()
def main(
    releases: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder of releases, each named by its id.")
    ],
    store: Annotated[str, typer.Option(help="LMDB folder or Redis URL that the release was published to.")],
    users: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File of users.", show_default="the release's")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Length of the load.", min=0.1)] = 10.0,
    rate: Annotated[str, typer.Option(help="Requests per second; auto: half of the measured capacity.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Engine threads.", show_default="the service's own choice")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals and requests.")] = 0,
    json_file: FiguresFile = None,
    plot: PictureFile = None,
) -> None:
    """Load a service of our own for minutes, and see whether its memory, descriptors and connections stay.

    Unknown users, invalid requests, batches and callers who hang up are mixed in. Ends with status 1 if the service
    failed.

    Example: python -m loadtest.soak --releases out/releases --store out/store --minutes 10 --plot soak.png
    """
    bodies = read_bodies(users) if users is not None else release_bodies(releases)
    meant = None if rate == "auto" else parsed_rate(rate)
    with running_service(releases, store, threads) as service:
        soaked = uvloop.run(soak(service, bodies, meant, minutes * 60, seed))
    findings = soaked.findings()
    show(soaked, findings)
    if json_file is not None:
        json_file.write_text(json.dumps(report(soaked, findings), indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        draw_soak(soaked.samples, plot)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def parsed_rate(text: str) -> float:
    """A rate above 0. Raises BadParameter."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise typer.BadParameter(f"--rate {text!r}: auto, or requests per second above 0")
    return rate


async def soak(service: Running, bodies: Sequence[bytes], rate: float | None, seconds: float, seed: int = 0) -> Soaked:
    """Load a service for `seconds`, at half of its capacity if no rate is given."""
    allow_connections(CONNECTIONS)
    target = Target("service", "127.0.0.1", service.port)
    process = psutil.Process(service.pid)
    requests = [target.post("/recommend", body) for body in bodies[:10_000]]
    await _closed(target, requests, BURST_CLIENTS, BURST_SECONDS)
    capacity = await _closed(target, requests, CLIENTS, CAPACITY_SECONDS)
    rate = rate or max(1.0, capacity / 2)
    console.print(f"capacity {capacity:.0f} requests/s; {rate:.0f} requests/s for {seconds:.0f} s")
    begun = perf_counter()
    before = await _settled(process, begun, 0)
    soaked = Soaked(rate, before, before, [])
    sampling = asyncio.create_task(_sample(process, begun, soaked.samples.append))
    pool = Pool(target, CONNECTIONS)
    mix = Mix(target, bodies, random.Random(seed))
    times = poisson(rate, seconds, np.random.default_rng(seed))

    def count_when_done(exchange: Exchange) -> None:
        exchange.then = soaked.count

    # What there is by now stays: a collection, which holds up the requests of that moment, need not look at it.
    gc.collect()
    gc.freeze()
    try:
        await offer(pool, times, mix.draw, count_when_done)
        await pool.drained()
    finally:
        gc.unfreeze()
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
        await pool.close()
    soaked.after = await _settled(process, begun, before.connections)
    return soaked


def report(soaked: Soaked, findings: Sequence[Finding]) -> dict[str, object]:
    """Everything, for a file."""
    return {
        "rate": soaked.rate,
        "requests": soaked.requests,
        "outcomes": soaked.outcomes,
        "latency_ms": {f"p{percent}": round(_percentile(soaked, percent), 3) for percent in (50, 99)},
        "findings": [asdict(finding) for finding in findings],
        "before": asdict(soaked.before),
        "after": asdict(soaked.after),
        "samples": [asdict(sample) for sample in soaked.samples],
    }


def show(soaked: Soaked, findings: Sequence[Finding]) -> None:
    """The verdict on stderr."""
    answers = Table(title=f"{soaked.requests} requests at {soaked.rate:.0f}/s")
    for heading in ("kind", "outcomes"):
        answers.add_column(heading)
    for kind, counts in soaked.outcomes.items():
        answers.add_row(kind, ", ".join(f"{name}: {count}" for name, count in counts.most_common()))
    answers.caption = f"p50 {_percentile(soaked, 50):.1f} ms, p99 {_percentile(soaked, 99):.1f} ms, known users"
    console.print(answers)
    verdict = Table(title="verdict")
    for heading in ("", "found", "allowed", ""):
        verdict.add_column(heading)
    for finding in findings:
        verdict.add_row(finding.what, finding.found, finding.allowed, "[green]good" if finding.good else "[red]BAD")
    held = [soaked.samples[0].private, soaked.samples[-1].private] if soaked.samples else [0, 0]
    verdict.caption = f"private memory {held[0] / MIB:.1f} → {held[1] / MIB:.1f} MiB, first and last second"
    console.print(verdict)


async def _closed(target: Target, requests: Sequence[bytes], clients: int, seconds: float) -> float:
    pool = Pool(target, clients)
    try:
        return await closed_loop(pool, requests, clients, seconds)
    finally:
        await pool.close()


async def _sample(process: psutil.Process, begun: float, keep: Callable[[Sample], None]) -> None:
    """Once a second, in a thread: reading /proc takes milliseconds, and requests are due meanwhile."""
    number = 0
    while True:
        keep(await asyncio.to_thread(Sample.take, process, begun))
        number += 1
        await asyncio.sleep(max(0.0, begun + number - perf_counter()))


async def _settled(process: psutil.Process, begun: float, connections: int) -> Sample:
    """The state once the service has noticed that callers hung up, or when it never does."""
    end = perf_counter() + SETTLE_SECONDS
    while True:
        sample = await asyncio.to_thread(Sample.take, process, begun)
        if sample.connections <= connections or perf_counter() > end:
            return sample
        await asyncio.sleep(0.2)


def _percentile(soaked: Soaked, percent: float) -> float:
    return float(np.percentile(soaked.latencies, percent)) if soaked.latencies else float("nan")


if __name__ == "__main__":
    app()
