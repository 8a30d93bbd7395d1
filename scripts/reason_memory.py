"""Memory and speed of `scoter reason` as users grow, on simulated data.

Usage: python -m scripts.reason_memory [--users 1000 --users 10000 --users 100000] [--items 2000] [--work DIR]

Chains are by `analyst`; the encoder hashes texts into vectors, so that the stage itself is measured and no sentence
encoder. Every size runs in a process of its own. `private` is the peak of RssAnon, sampled every 20 ms: what the
kernel cannot take back, unlike pages of the files that are read and written. `before` is what the process held when
the stage began, with all modules imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from offline.chains.template import MANUAL
from offline.prepare import prepare
from offline.reason.chains import Asking
from offline.reason.engines import Job, Local
from offline.reason.stage import build
from offline.reason.writers import writer
from offline.recipe import PrepareRecipe, Recipe
from offline.sample import write_sample

WIDTH = 384
STEPS = MANUAL["five-step"].steps


class Hashing:
    """Unit vectors that follow from the text's bytes."""

    identity = f"hashed {WIDTH}"

    def open(self) -> Hashing:
        """Itself: there is nothing to load."""
        return self

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Float32 [len(texts), WIDTH]."""
        drawn = [np.random.default_rng(zlib.crc32(text.encode())).random(WIDTH, dtype=np.float32) for text in texts]
        out = np.stack(drawn)
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        return out


@contextmanager
def _watched(peak: list[float]) -> Iterator[None]:
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(0.02):
            peak[0] = max(peak[0], _private())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _private() -> float:
    """Megabytes that are in memory and in no file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def _one(work: Path) -> None:
    """Do the stage on what is in `work`, and print what it took."""
    prepared = next((work / "run").glob("prepare-*"))
    before, peak, out = _private(), [0.0], work / "out"
    out.mkdir()
    start = time.monotonic()
    with _watched(peak):
        chosen = writer(work, Recipe(name="memory"), STEPS, None)
        job = Job(prepared, out / "chunks", chosen, Asking(STEPS, 320), Hashing())
        build(out, work / "kept", job, Local())
    seconds = time.monotonic() - start
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    print(
        f"{summary['users']:>9,} users {summary['chains']:>9,} chains {summary['unique_texts']:>9,} texts   private "
        f"{peak[0]:4.0f} MB, before {before:.0f}   {seconds:6.1f} s, {summary['users'] / seconds:,.0f} users/s",
        flush=True,
    )


def main(
    users: Annotated[list[int], typer.Option(help="simulated users; the 5-core keeps most of them")] = [  # noqa: B006
        1000,
        10000,
        100000,
    ],
    items: Annotated[int, typer.Option(help="in the catalogue")] = 2000,
    work: Annotated[Path | None, typer.Option(help="folder for what is made; a temporary one by default")] = None,
    inside: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure one size after another."""
    if inside is not None:
        _one(inside)
        return
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        for count in users:
            folder = Path(scratch) / str(count)
            write_sample(folder / "data", users=count, items=items)
            prepare(folder / "run", folder / "data", PrepareRecipe())
            subprocess.run([sys.executable, "-m", "scripts.reason_memory", "--inside", str(folder)], check=True)


if __name__ == "__main__":
    typer.run(main)
