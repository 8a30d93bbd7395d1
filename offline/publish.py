"""Command `publish`: a release's H, histories and step texts into the user store, then the pointer.

H and steps lie under the release's own keys, so a running service does not meet them before the pointer moves.
Histories are shared by all releases and replaced as they are written.
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
from service.errors import ReleaseCorrupt, ReleaseMissing
from service.release.blob import encode
from service.release.manifest import ReasoningEntry
from service.release.release import Release
from service.store.base import Store
from service.store.keys import RELEASE_POINTER, history_key, reasoning_key, steps_key, user_tag
from service.store.records import History, encode_history, encode_steps

BATCH = 1000  # users written together
SAMPLE = 100  # users read back before the pointer moves
USERS = "reasoning/users.jsonl"

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
    found = (path for path in work.glob("export-*/release") if path.parent.suffix != ".partial")
    stages = sorted(found, key=lambda p: p.stat().st_mtime)
    if not stages:
        raise ReleaseMissing(f"{work} holds no release: run `scoter run` first")
    return work / "releases" / stages[-1].read_text(encoding="ascii").strip()


async def publish(path: Path, store: Store) -> Published:
    """Load the release at `path` into the store, read a sample back, and make it the live one.

    Raises ReleaseError if the release is damaged, before anything is written; StoreError if the store fails and
    StageError if what was read back is not what was written. The pointer has not moved then.
    """
    release = Release.open(path)
    total = _check(release)
    wanted = set(np.linspace(0, total - 1, min(SAMPLE, total)).astype(int).tolist())
    sample: dict[int, list[Pair]] = {}
    start = time.monotonic()
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    users, blobs, size = 0, 0, 0
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(f"publish {release.id}", total=total)
        rows = _records(release)
        while batch := list(islice(rows, BATCH)):
            pairs = [pair for record in batch for pair in record]
            await store.put(pairs)
            sample |= {row: batch[row - users] for row in wanted if users <= row < users + len(batch)}
            users += len(batch)
            blobs += len(pairs)
            size += sum(len(key) + len(value) for key, value in pairs)
            progress.update(bar, completed=users)
    await _read_back(sample, store)
    await store.put([(RELEASE_POINTER, release.id.encode())])
    return Published(release.id, users, blobs, size, time.monotonic() - start)


def _records(release: Release) -> Iterator[list[Pair]]:
    """Every user's keys and values."""
    matrices = _matrices(release)
    updated = int(time.time())
    with (release.path / USERS).open("rb") as lines:
        for row, line in enumerate(lines):
            where = f"{release.path / USERS}, line {row + 1}"
            if row == release.manifest.dataset.users:
                raise ReleaseCorrupt(f"{where}: the manifest speaks of {row} users: run `scoter export` again")
            user, history, steps = _user(line, where)
            tag = user_tag(user)
            pairs = [
                (history_key(tag), encode_history(History(history, updated))),
                (steps_key(tag, release.id), encode_steps(steps)),
            ]
            for entry, matrix in matrices:
                fmt = entry.blob_format(release.id)
                try:
                    blob = encode(matrix[row], fmt, user, history_length=len(history), written=entry.written)
                except ValueError as error:
                    raise ReleaseCorrupt(f"{release.path / entry.file}, row {row}: {error}") from error
                pairs.append((reasoning_key(tag, release.id, entry.name), blob))
            yield pairs


def _user(line: bytes, where: str) -> tuple[str, list[str], list[str]]:
    """A line's user, history and steps."""
    try:
        body = json.loads(line)
        user, history, steps = body["user"], body["history"], body["steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseCorrupt(f"{where}: not an object with user, history and steps ({error!r})") from error
    if not isinstance(user, str) or not _texts(history) or not _texts(steps):
        raise ReleaseCorrupt(f"{where}: user is no text, or history or steps no list of texts")
    return user, history, steps


def _texts(value: Any) -> bool:  # noqa: ANN401 - whatever JSON held
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _check(release: Release) -> int:
    """Read all that will be written; return the number of users. Raises ReleaseCorrupt."""
    expected = release.manifest.dataset.users
    if USERS not in release.manifest.files:  # and so was not checked when the release was opened
        raise ReleaseCorrupt(f"{release.path}: the manifest does not list {USERS}: run `scoter export` again")
    found = sum(1 for _ in _records(release))
    if found != expected:
        raise ReleaseCorrupt(
            f"{release.path / USERS} holds {found} users, the manifest speaks of {expected}: run `scoter export` again"
        )
    return found


def _matrices(release: Release) -> list[tuple[ReasoningEntry, NDArray[np.floating]]]:
    entries = {m.reasoning.name: m.reasoning for m in release.manifest.models if m.reasoning is not None}
    found: list[tuple[ReasoningEntry, NDArray[np.floating]]] = []
    for entry in entries.values():
        if entry.file not in release.manifest.files:
            raise ReleaseCorrupt(f"{release.path}: the manifest does not list {entry.file}: run `scoter export` again")
        try:
            matrix = np.load(release.path / entry.file, mmap_mode="r")
        except ValueError as error:
            raise ReleaseCorrupt(f"{release.path / entry.file} is no array: {error}") from error
        expected = (release.manifest.dataset.users, entry.steps, entry.width)
        if matrix.shape != expected:
            raise ReleaseCorrupt(f"{release.path / entry.file} is {list(matrix.shape)}, expected {list(expected)}")
        found.append((entry, matrix))
    return found


async def _read_back(sample: dict[int, list[Pair]], store: Store) -> None:
    """Compare users, by row, with what the store returns."""
    for row, pairs in sorted(sample.items()):
        # The history is shared by all releases and may have grown meanwhile.
        own = pairs[1:]
        if await store.get([key for key, _ in own]) != [value for _, value in own]:
            raise StageError(
                f"the store does not return what was written for user row {row}: the pointer was not moved"
            )
