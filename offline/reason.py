"""Stage `reason` (section 3.3.1): a chain of K steps per user and split, and its step embeddings H.

Output folder, for each split of `train`, `valid`, `test` and `serve`:

    {split}.npy     float16 [U, K, D]; row u is user u's H, unit vectors by step
    {split}.jsonl   {"user": id, "history_length": n, "steps": [K texts]}, in row order
    summary.json    backend, encoder, template, sizes and seconds

A chain reads the history before its split's target and nothing after it (`serve` has no target and reads all of it);
what else it may know is up to the backend (see `offline.analyst`). Texts are written first, then every different text
is encoded, chunk by chunk, into the unfinished folder: a run that was cut off goes on with the chunk it was at.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from offline.analyst import BACKEND, Analyst
from offline.chains.template import template
from offline.encoder import SentenceEncoder
from offline.prepare import SPLITS, Dataset, load_dataset
from offline.recipe import ReasonRecipe
from offline.stage import Stage, console, run_stage, write_json

VERSION = 1
CHUNK = 4096  # texts between two savings; a chunk takes about ten seconds
USERS = 512  # users written or assembled at a time


def reason(work: Path, prepared: Stage, recipe: ReasonRecipe) -> Stage:
    """Run the stage on the output of `prepare`."""
    settings = recipe.model_dump()
    return run_stage(
        work, "reason", VERSION, settings, [prepared], lambda folder: _build(folder, prepared.folder, recipe)
    )


def load_reasoning(folder: Path, split: str) -> NDArray[np.float16]:
    """H of every user, float16 [U, K, D], mapped from disk."""
    reasoning: NDArray[np.float16] = np.load(folder / f"{split}.npy", mmap_mode="r")
    return reasoning


def load_steps(folder: Path, split: str) -> list[list[str]]:
    """The step texts of every user, in row order."""
    return list(_steps(folder / f"{split}.jsonl"))


def load_template(folder: Path) -> list[str]:
    """Names of the K steps that the chains were written in."""
    names: list[str] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["template"]
    return names


def _build(folder: Path, prepared: Path, recipe: ReasonRecipe) -> None:
    dataset = load_dataset(prepared)
    seconds: dict[str, float] = _read_json(folder / "seconds.json") or {"write": 0.0, "encode": 0.0}
    with _progress() as progress:
        start = time.monotonic()
        _write_texts(folder, dataset, recipe, progress)
        unique: dict[str, int] = {}
        for split in SPLITS:
            for steps in _steps(folder / f"{split}.jsonl"):
                for step in steps:
                    unique.setdefault(step, len(unique))
        seconds["write"] += time.monotonic() - start
        write_json(folder / "seconds.json", seconds)
        vectors = _encode(folder, list(unique), recipe, seconds, progress)
        start = time.monotonic()
        for split in SPLITS:
            _assemble(folder, split, len(dataset.users), unique, vectors, progress)
        seconds["assemble"] = time.monotonic() - start
    chains = len(dataset.users) * len(SPLITS)
    write_json(
        folder / "summary.json",
        {
            "backend": BACKEND,
            "encoder": recipe.encoder,
            "precision": recipe.precision,
            "K": len(template(recipe.template).steps),
            "D": vectors.shape[1],
            "template": list(template(recipe.template).steps),
            "users": len(dataset.users),
            "chains": chains,
            "unique_texts": len(unique),
            "seconds": {part: round(value, 2) for part, value in seconds.items()},
            "users_per_second": round(len(dataset.users) / max(sum(seconds.values()), 1e-9), 1),
        },
    )
    del vectors  # unmapped before its file goes
    for name in ("vectors.npy", "encoded.json", "seconds.json"):
        (folder / name).unlink(missing_ok=True)


def _write_texts(folder: Path, dataset: Dataset, recipe: ReasonRecipe, progress: Progress) -> None:
    """Write `{split}.jsonl` for the splits that have none yet."""
    missing = [split for split in SPLITS if not (folder / f"{split}.jsonl").exists()]
    if not missing:
        return
    analyst = Analyst(dataset)
    names = template(recipe.template).steps
    for split in missing:
        task = progress.add_task(f"chains, {split}", total=len(dataset.users))
        temporary = folder / f"{split}.jsonl.tmp"
        with temporary.open("w", encoding="utf-8") as out:
            for first in range(0, len(dataset.users), USERS):
                users = range(first, min(first + USERS, len(dataset.users)))
                for user, steps in zip(users, analyst.chains(users, split), strict=True):
                    if len(steps) != len(names):
                        raise AssertionError(f"{len(steps)} steps for a template of {len(names)}")
                    row = {
                        "user": dataset.users[user],
                        "history_length": len(dataset.history(user, split)),
                        "steps": steps,
                    }
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
                progress.advance(task, len(users))
        temporary.replace(folder / f"{split}.jsonl")


def _encode(
    folder: Path, texts: list[str], recipe: ReasonRecipe, seconds: dict[str, float], progress: Progress
) -> NDArray[np.float16]:
    """Embeddings of `texts`, float16 [len(texts), D], mapped from disk; what is there of the same texts is kept."""
    path = folder / "vectors.npy"
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    saved = _read_json(folder / "encoded.json") or {}
    done: int = saved["done"] if saved.get("texts") == digest else 0
    task = progress.add_task("encoding", total=len(texts), completed=done)
    vectors: NDArray[np.float16] | None = np.load(path, mmap_mode="r+") if done else None
    encoder = SentenceEncoder(recipe.encoder, recipe.precision) if done < len(texts) else None
    while encoder is not None and done < len(texts):
        start = time.monotonic()
        chunk = encoder.encode(texts[done : done + CHUNK])
        if vectors is None:
            vectors = open_memmap(path, mode="w+", dtype=np.float16, shape=(len(texts), chunk.shape[1]))
        vectors[done : done + len(chunk)] = chunk
        done += len(chunk)
        if isinstance(vectors, np.memmap):
            vectors.flush()  # on disk before it is said to be
        seconds["encode"] += time.monotonic() - start
        write_json(folder / "seconds.json", seconds)
        write_json(folder / "encoded.json", {"texts": digest, "done": done})
        progress.update(task, completed=done)
    if vectors is None:
        raise AssertionError("there is always a text: prepare leaves no data set without users")
    return vectors


def _assemble(
    folder: Path, split: str, users: int, unique: dict[str, int], vectors: NDArray[np.float16], progress: Progress
) -> None:
    """Gather a split's H from the vectors of its texts."""
    task = progress.add_task(f"H, {split}", total=users)
    output: NDArray[np.float16] | None = None
    first, rows = 0, list[list[int]]()
    for user, steps in enumerate(_steps(folder / f"{split}.jsonl"), start=1):
        rows.append([unique[step] for step in steps])
        if len(rows) == USERS or user == users:
            if output is None:
                shape = (users, len(steps), vectors.shape[1])
                output = open_memmap(folder / f"{split}.npy", mode="w+", dtype=np.float16, shape=shape)
            output[first:user] = vectors[np.array(rows)]
            progress.advance(task, len(rows))
            first, rows = user, []
    if isinstance(output, np.memmap):
        output.flush()


def _steps(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["steps"]


def _read_json(path: Path) -> Any | None:  # noqa: ANN401 - anything JSON takes
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)
