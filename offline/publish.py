"""Command `publish`: a release's H, histories and step texts into the user store, then the pointer.

Nothing a running service reads is touched before the pointer moves: H and steps lie under the release's own keys.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from offline.errors import StageError
from offline.stage import console
from service.errors import ReleaseError, ReleaseMissing
from service.release.blob import encode
from service.release.manifest import ReasoningEntry
from service.release.release import Release
from service.store.base import Store
from service.store.keys import RELEASE_POINTER, history_key, reasoning_key, steps_key, user_tag
from service.store.records import History, encode_history, encode_steps

BATCH = 1000  # users written together
SAMPLE = 100  # users read back before the pointer moves

Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication wrote."""

    release_id: str
    users: int
    blobs: int
    bytes: int
    seconds: float


def latest_release(work: Path) -> Path:
    """The release that was exported last in a work folder. Raises ReleaseMissing if there is none."""
    stages = sorted(work.glob("export-*/release"), key=lambda p: p.stat().st_mtime)
    if not stages:
        raise ReleaseMissing(f"{work} holds no release: run `scoter run` first")
    return work / "releases" / stages[-1].read_text(encoding="ascii").strip()


async def publish(path: Path, store: Store) -> Published:
    """Load the release at `path` into the store, read a sample back, and make it the live one.

    Raises ReleaseError if the release is damaged, StoreError if the store fails, StageError if what was read back
    is not what was written; the pointer has not moved then.
    """
    release = Release.open(path)
    start = time.monotonic()
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    users, blobs, size = 0, 0, 0
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(f"publish {release.id}", total=release.manifest.dataset.users)
        rows = _records(release)
        while batch := list(islice(rows, BATCH)):
            pairs = [pair for record in batch for pair in record]
            await store.put(pairs)
            users += len(batch)
            blobs += len(pairs)
            size += sum(len(key) + len(value) for key, value in pairs)
            progress.update(bar, completed=users)
    await _read_back(release, store)
    await store.put([(RELEASE_POINTER, release.id.encode())])
    return Published(release.id, users, blobs, size, time.monotonic() - start)


def _records(release: Release) -> Iterator[list[Pair]]:
    """Every user's keys and values."""
    matrices = _matrices(release)
    updated = int(time.time())
    with (release.path / "reasoning" / "users.jsonl").open(encoding="utf-8") as lines:
        for row, line in enumerate(lines):
            body: dict[str, Any] = json.loads(line)
            user, history = body["user"], body["history"]
            tag = user_tag(user)
            pairs = [
                (history_key(tag), encode_history(History(history, updated))),
                (steps_key(tag, release.id), encode_steps(body["steps"])),
            ]
            for entry, matrix in matrices:
                blob = encode(
                    matrix[row],
                    entry.blob_format(release.id),
                    user,
                    history_length=len(history),
                    written=entry.written,
                )
                pairs.append((reasoning_key(tag, release.id, entry.name), blob))
            yield pairs


def _matrices(release: Release) -> list[tuple[ReasoningEntry, NDArray[np.floating]]]:
    entries = {m.reasoning.name: m.reasoning for m in release.manifest.models if m.reasoning is not None}
    found: list[tuple[ReasoningEntry, NDArray[np.floating]]] = []
    for entry in entries.values():
        matrix = np.load(release.path / entry.file, mmap_mode="r")
        expected = (release.manifest.dataset.users, entry.steps, entry.width)
        if matrix.shape != expected:
            raise ReleaseError(f"{release.path / entry.file} is {list(matrix.shape)}, expected {list(expected)}")
        found.append((entry, matrix))
    return found


async def _read_back(release: Release, store: Store) -> None:
    """Compare a sample of users with what the store returns."""
    total = release.manifest.dataset.users
    wanted = set(np.linspace(0, total - 1, min(SAMPLE, total)).astype(int).tolist())
    for row, pairs in enumerate(_records(release)):
        if row not in wanted:
            continue
        # The history is shared by all releases and may have grown meanwhile.
        own = pairs[1:]
        if await store.get([key for key, _ in own]) != [value for _, value in own]:
            raise StageError(f"the store does not return what was written for user row {row}: the pointer was not moved")
