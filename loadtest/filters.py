"""What a hard filter adds to one inference, and what making its mask costs.

Runs a release's graph as the in-process engine does, one thread, with the same requests in turn: without a filter, with
one, with one whose mask also carries the exclusions, and in batches where every other request has one. The kinds take
turns in random order, and each run is preceded by one that is not timed, so that what the machine does otherwise and
what the processor's caches hold is the same for all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from service.engine.base import ModelInput
from service.engine.onnx import load
from service.engine.tensors import feeds
from service.filters import Filter, Filters
from service.release.release import Release

EXCLUDED = 20
PLAIN = "no filter"


def main(
    release: Annotated[Path, typer.Option(help="Folder of one release.")],
    column: Annotated[str, typer.Option(help="Attribute column to filter by.")] = "categories",
    value: Annotated[
        str | None, typer.Option(help="Value to allow.", show_default="the one nearest to a tenth of all items")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to run.", show_default="the release's default")] = None,
    rounds: Annotated[int, typer.Option(help="Times that each kind of batch of one is run.", min=1)] = 400,
) -> None:
    """Measure p50 with and without a filter at batches of 1 and 16. A table goes to stderr, JSON to stdout.

    Example: python -m loadtest.filters --release out/releases/33ee5dad124d851a > filters.json
    """
    opened = Release.open(release)
    entry = opened.model(model or opened.manifest.default_model)
    filters, session = Filters(opened.catalogue), load(opened, entry)
    chosen = filters.resolve({column: [value or common(opened, column)]}, {})
    random = np.random.default_rng(0)

    def request(kind: str, row: int) -> ModelInput:
        history = random.integers(1, len(opened.catalogue) + 1, entry.history_length)
        exclude = random.integers(1, len(opened.catalogue) + 1, EXCLUDED)
        reasoning = None
        if entry.reasoning is not None:
            reasoning = random.normal(size=(entry.reasoning.steps, entry.reasoning.width)).astype(np.float32)
        if kind == PLAIN or (kind == "every other filtered" and row % 2):
            return ModelInput(history, reasoning, exclude)
        mask = chosen.mask(exclude)
        return ModelInput(history, reasoning, exclude[:0] if kind == "exclusions in the mask" else exclude, mask)

    report: dict[str, Any] = {
        "model": entry.name,
        "items": len(opened.catalogue),
        "eligible": chosen.eligible,
        "mask_us": round(mask_microseconds(chosen, len(opened.catalogue), random), 1),
        "batches": [],
    }
    for size in (1, 16):
        kinds = [PLAIN, "filtered", "exclusions in the mask", *(["every other filtered"] if size > 1 else [])]

        def run(kind: str, size: int = size) -> float:
            batches = [feeds(entry, [request(kind, row) for row in range(size)]) for _ in range(2)]
            session.run(None, batches[0])
            start = time.perf_counter()
            session.run(None, batches[1])
            return (time.perf_counter() - start) * 1000

        report["batches"].append({"size": size} | interleaved(run, kinds, max(10, rounds // size), random))
    show(report)
    typer.echo(json.dumps(report, indent=2))


def common(release: Release, column: str) -> str:
    """The value of a column whose items come nearest to a tenth of the catalogue."""
    counts: dict[str, int] = {}
    for item in release.catalogue.items:
        for value in set(item.attributes.get(column, [])):
            counts[value] = counts.get(value, 0) + 1
    if not counts:
        raise typer.BadParameter(f"no item of release {release.id} has attribute {column!r}")
    return min(counts, key=lambda value: abs(counts[value] - len(release.catalogue) / 10))


def mask_microseconds(chosen: Filter, items: int, random: np.random.Generator, rounds: int = 2000) -> float:
    """Median time to make the mask of a request that excludes eligible items."""
    eligible, times = np.flatnonzero(chosen.passes(np.arange(items + 1))), []
    for _ in range(rounds):
        excluded = random.choice(eligible, min(EXCLUDED, len(eligible)), replace=False)
        start = time.perf_counter()
        chosen.mask(excluded)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def interleaved(
    run: Callable[[str], float], kinds: list[str], rounds: int, random: np.random.Generator
) -> dict[str, dict[str, float]]:
    """p50 of each kind in ms, and its ratio to the first."""
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in random.permutation(kinds):
            times[str(kind)].append(run(str(kind)))
    median = {kind: float(np.median(values)) for kind, values in times.items()}
    return {
        kind: {"p50_ms": round(value, 3), "ratio": round(value / median[kinds[0]], 3)} for kind, value in median.items()
    }


def show(report: dict[str, Any]) -> None:
    """A table on stderr."""
    table = Table(title=f"{report['model']}: {report['eligible']:,} of {report['items']:,} items are eligible")
    for heading in ("batch", "", "p50 ms", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for batch in report["batches"]:
        for kind, found in batch.items():
            if kind != "size":
                table.add_row(str(batch["size"]), kind, f"{found['p50_ms']:.3f}", f"{found['ratio']:.3f}")
    table.caption = f"a mask with {EXCLUDED} exclusions takes {report['mask_us']} µs"
    Console(stderr=True).print(table)


if __name__ == "__main__":
    typer.run(main)
