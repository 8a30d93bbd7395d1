"""Latency under load: requests arrive when they arrive, whether or not the last one has been answered.

Arrivals are a Poisson process, and each latency counts from the time at which its request was due. A client that waits
for an answer before it sends the next request (a closed loop) sends nothing while the service stalls, and so never
sees most of a stall; callers in production do not wait for each other.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from loadtest.bodies import read_bodies, release_bodies
from loadtest.canned import canned_service
from loadtest.client import Pool, Request, Target, allow_connections
from loadtest.drive import closed_loop, open_loop
from loadtest.figures import SLO_MS, Figures, figures, medians, ratios
from loadtest.outputs import FiguresFile, PictureFile
from loadtest.picture import draw
from loadtest.process import running_service
from service.context import DEADLINE_HEADER

CEILING_SECONDS = 1.0
CEILING_CLIENTS = 16
CEILING_SHARE = 0.5  # of the generator's ceiling; above it, it is doubtful
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


@dataclass(frozen=True)
class Plan:
    """What to send, to whom, how often and how long."""

    targets: list[Target]
    rates: list[float]  # requests/s
    seconds: float
    rounds: int
    run_in: float  # seconds at each rate before the measurement
    patience: float  # seconds
    connections: int
    seed: int
    bodies: list[bytes]


@app.command()
def main(
    url: Annotated[
        list[str] | None,
        typer.Option(help="Service to ask, as http://host:port or name=http://host:port; several are compared."),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with a user id, or a JSON request, on each line."),
    ] = None,
    releases: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of releases; its users are asked for.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Without --url: LMDB folder or Redis URL of the service.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Without --url: engine threads.", show_default="the service's own choice")
    ] = None,
    rates: Annotated[str, typer.Option(help="Requests per second, in any order.")] = "50,100,200,400",
    seconds: Annotated[float, typer.Option(help="Length of each measurement.", min=0.5)] = 20.0,
    run_in: Annotated[float, typer.Option(help="Seconds at each rate before its measurement.", min=0)] = 2.0,
    rounds: Annotated[int, typer.Option(help="Times that every target meets every rate; medians count.", min=1)] = 3,
    deadline_ms: Annotated[float | None, typer.Option(help="Deadline that is sent with every request.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="Further header, as 'Name: value'.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds until a request is given up.", min=0.01)] = 5.0,
    connections: Annotated[int, typer.Option(help="Keep-alive connections to a target, at most.", min=1)] = 1024,
    seed: Annotated[int, typer.Option(help="Of arrivals, users and the order of measurements.")] = 0,
    json_file: FiguresFile = None,
    plot: PictureFile = None,
) -> None:
    """Measure POST /recommend at several rates: latency from the intended send time, statuses, stages.

    Without --url it starts the service itself, from --releases and --store. Tables go to stderr.

    Example: python -m loadtest.open_loop --releases out/releases --store out/store --rates 50,100,200 --plot curve.png

    Two services: ... --url onnx=http://localhost:8080 --url triton=http://localhost:8081 --releases out/releases
    """
    headers = (*(header or ()), *([f"{DEADLINE_HEADER}: {deadline_ms:g}"] if deadline_ms is not None else ()))
    if users is None and releases is None:
        raise typer.BadParameter("say whom to ask for: --users FILE or --releases DIR")
    bodies = read_bodies(users) if users is not None else release_bodies(releases or Path())
    meant = parsed_rates(rates)
    if url:
        service: AbstractContextManager[list[Target]] = nullcontext([Target.parse(one, headers) for one in url])
    elif releases is None or store is None:
        raise typer.BadParameter("without --url, --releases and --store are needed to start the service")
    else:
        service = _own(releases, store, threads, headers)
    with service as targets:
        names = [target.name for target in targets]
        if len(set(names)) < len(names):
            raise typer.BadParameter("two targets have the same name: give them names with --url name=http://...")
        plan = Plan(targets, meant, seconds, rounds, run_in, patience, connections, seed, bodies)
        ceiling = uvloop.run(generator_ceiling(bodies))
        _warn(plan, ceiling, shared=not url)
        rows, compared = uvloop.run(measure(plan))
    show(rows, compared)
    report = {
        "seconds": seconds,
        "rounds": rounds,
        "seed": seed,
        "slo_ms": SLO_MS,
        "generator_per_second": round(ceiling, 1),
        "rows": [{**asdict(row), "valid": row.valid} for row in rows],
        "ratios": [{"target": name, "to": names[0], "rate": rate, **ratio} for (name, rate), ratio in compared.items()],
    }
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        draw(rows, plot)


async def measure(plan: Plan) -> tuple[list[Figures], dict[tuple[str, float], dict[str, float | None]]]:
    """One row for each target and rate, and ratios to the first target.

    In each round every target meets every rate, in an order drawn anew: what else the machine does, and what one
    measurement leaves behind, hits all alike.
    """
    allow_connections(plan.connections)
    rng = np.random.default_rng(plan.seed)
    order = random.Random(plan.seed)
    runs: dict[tuple[str, float], list[Figures]] = {(t.name, rate): [] for t in plan.targets for rate in plan.rates}
    for turn in range(plan.rounds):
        jobs = [(target, rate) for target in plan.targets for rate in plan.rates]
        order.shuffle(jobs)
        for number, (target, rate) in enumerate(jobs, start=1):
            console.print(f"round {turn + 1}/{plan.rounds}, {number}/{len(jobs)}: {target.name} at {rate:g}/s")
            runs[target.name, rate].append(await _run(plan, target, rate, rng))
    rows = [medians(found) for found in runs.values()]
    first = plan.targets[0].name
    compared = {(name, rate): ratios(found, runs[first, rate]) for (name, rate), found in runs.items() if name != first}
    return rows, compared


async def generator_ceiling(bodies: list[bytes]) -> float:
    """Requests/s that this generator gets from a server whose answers cost nothing."""
    with canned_service() as port:
        target = Target("canned", "127.0.0.1", port)
        pool = Pool(target, CEILING_CLIENTS)
        requests = [target.post("/recommend", body) for body in bodies[:1000]]
        rate = await closed_loop(pool, requests, CEILING_CLIENTS, CEILING_SECONDS)
        await pool.close()
    return rate


def parsed_rates(text: str) -> list[float]:
    """Ascending rates of `50,100,200`. Raises BadParameter."""
    try:
        rates = sorted({float(one) for one in text.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"--rates {text!r}: numbers, separated by commas") from error
    if not all(0 < rate < float("inf") for rate in rates):
        raise typer.BadParameter(f"--rates {text!r}: each must be above 0")
    return rates


def show(rows: list[Figures], compared: dict[tuple[str, float], dict[str, float | None]]) -> None:
    """Tables on stderr: figures, stages, and ratios if targets were compared."""
    console.print(_figures_table(rows))
    console.print(_answers_table(rows))
    console.print(_stages_table(rows))
    if compared:
        console.print(_ratios_table(rows[0].target, compared))
    for row in rows:
        if row.waited:
            console.print(
                f"{row.target} at {row.rate:g}/s: {row.waited} of {row.requests} requests found all connections of the "
                "generator busy, or this machine out of files or ports: see --connections and `ulimit -n`."
            )
    if any(not row.valid for row in rows):
        console.print(
            "[bold red]invalid[/]: the generator itself was late, or out of CPU or connections, in most runs; the row "
            "says nothing of the service. Ask for less, or run the generator on a machine of its own."
        )


async def _run(plan: Plan, target: Target, rate: float, rng: np.random.Generator) -> Figures:
    pool = Pool(target, plan.connections)
    try:
        order = cycle(rng.permutation(len(plan.bodies)))

        def make() -> Request:  # as many as are sent: all of a million users' would take seconds and 200 MB
            return Request(target.post("/recommend", plan.bodies[next(order)]), plan.patience)

        driven = await open_loop(pool, make, rate, plan.seconds, rng, run_in=plan.run_in)
    finally:
        await pool.close()
    return figures(target.name, rate, plan.seconds, driven)


@contextmanager
def _own(releases: Path, store: str, threads: int | None, headers: tuple[str, ...]) -> Iterator[list[Target]]:
    """A service of our own, as the only target."""
    with running_service(releases, store, threads) as service:
        yield [Target.parse(f"service={service.address}", headers)]


def _warn(plan: Plan, ceiling: float, *, shared: bool) -> None:
    console.print(f"The generator alone reaches {ceiling:.0f} requests/s.")
    if max(plan.rates) > CEILING_SHARE * ceiling:
        console.print(f"[yellow]Rates above {CEILING_SHARE * ceiling:.0f}/s are too much for it to be trusted.[/]")
    if shared:
        console.print("Service and generator share this machine's cores: ratios travel, milliseconds do not.")


def _figures_table(rows: list[Figures]) -> Table:
    table = Table(title="latency in ms, from when a request was due")
    table.add_column("target")
    for heading in ("rate/s", "200s/s", *rows[0].latency_ms, f"≤ {SLO_MS:g} ms", "lag p99", "CPU", "valid"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.target,
            f"{row.rate:g}",
            f"{row.achieved:.1f}",
            *("–" if value is None else f"{value:.2f}" for value in row.latency_ms.values()),
            f"{row.within_slo:.1%}",
            f"{row.lag_p99_ms:.2f}",
            f"{row.busy:.0%}",
            f"{row.valid_runs}/{row.runs}",
            style=None if row.valid else "red",
        )
    table.caption = "lag, CPU: the generator's own; valid: runs in which it kept up"
    return table


def _answers_table(rows: list[Figures]) -> Table:
    table = Table(title="answers")
    for heading in ("target", "rate/s", "statuses", "sources", "degraded"):
        table.add_column(heading, justify="right" if heading == "rate/s" else "left")
    for row in rows:
        counts = (row.statuses, row.sources, row.degraded)
        table.add_row(row.target, f"{row.rate:g}", *("\n".join(f"{n}: {c}" for n, c in one.items()) for one in counts))
    return table


def _stages_table(rows: list[Figures]) -> Table:
    table = Table(title="stages in ms (Server-Timing): mean · p50 · p99")
    names = list(dict.fromkeys(name for row in rows for name in row.stages))
    for heading in ("target", "rate/s", *names):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for row in rows:
        found = [row.stages.get(name) for name in names]
        cells = ["" if one is None else f"{one.mean:.2f} · {one.p50:.2f} · {one.p99:.2f}" for one in found]
        table.add_row(row.target, f"{row.rate:g}", *cells)
    return table


def _ratios_table(base: str, compared: dict[tuple[str, float], dict[str, float | None]]) -> Table:
    table = Table(title=f"latency as a multiple of {base}'s, median over the valid rounds")
    for heading in ("target", "rate/s", *next(iter(compared.values()))):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for (name, rate), ratio in compared.items():
        table.add_row(name, f"{rate:g}", *("–" if value is None else f"{value:.2f}" for value in ratio.values()))
    return table


if __name__ == "__main__":
    app()
