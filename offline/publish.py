"""Command `publish`: a release's H, histories and step texts into the user store, then the pointer.

H and steps lie under the release's own keys, so a running service does not meet them before the pointer moves. How far
it has come stands in the store: called again after it was cut off, it goes on from there, and a release that is there
already is made live at once, each after a sample was read back. Histories are shared by all releases; events that were
appended since the release was made stay in them.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import ProgressColumn, Task
from rich.text import Text

from offline.errors import StageError
from offline.progress import progress
from offline.shelf import flip, read_load, spread, update_shelf, write_load
from service.errors import ReleaseCorrupt, ReleaseMissing
from service.release.blob import encode
from service.release.manifest import ReasoningEntry
from service.release.release import Release
from service.store.base import Change, Store
from service.store.keys import history_key, load_key, reasoning_key, steps_key, user_tag, users_key
from service.store.records import (
    History,
    Load,
    RecordMiss,
    Shelf,
    decode_history,
    encode_history,
    encode_load,
    encode_steps,
    encode_tags,
)

BATCH = 1000  # users written together
SAMPLE = 100  # users read back before the pointer moves
ATTEMPTS = 100
USERS = "reasoning/users.jsonl"
HISTORIES = "reasoning/histories.json"  # {"read": when the data were that they are of, seconds since the epoch}

Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication wrote."""

    release_id: str
    users: int
    skipped: int  # users whose records had been written before
    records: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Record:
    """A user's part of a release: `own` lies under the release's own keys."""

    row: int
    tag: str
    history: list[str]
    own: list[Pair]


def latest_release(work: Path) -> Path:
    """The release that was exported last in a work folder. Raises ReleaseMissing if there is none."""
    found = (path for path in work.glob("export-*/release") if path.parent.suffix != ".partial")
    stages = sorted(found, key=lambda p: p.stat().st_mtime)
    if not stages:
        raise ReleaseMissing(f"{work} holds no release: run `scoter run` first")
    return work / "releases" / stages[-1].read_text(encoding="ascii").strip()


def named_release(work: Path, release_id: str) -> Path:
    """A release of a work folder by its id. Raises ReleaseMissing, naming those that are there."""
    releases = work / "releases"
    if not (releases / release_id).is_dir():
        names = ", ".join(sorted(path.name for path in releases.glob("[!.]*") if path.is_dir()))
        raise ReleaseMissing(
            f"{releases} holds no release {release_id}" + (f", only {names}" if names else ": run `scoter run` first")
        )
    return releases / release_id


async def publish(path: Path, store: Store) -> Published:
    """Load the release at `path` into the store, read a sample back, and make it the live one.

    Raises ReleaseError if the release is damaged, before anything is written; StoreError if the store fails and
    StageError if what was read back is not what was written. The pointer has not moved then.
    """
    start = time.monotonic()
    release = Release.open(path)
    total, names = release.manifest.dataset.users, tuple(entry.name for entry, _ in _matrices(release))
    found = await read_load(store, release.id)
    load = Load(total, BATCH, names)
    if isinstance(found, Load) and found == replace(load, done=found.done):
        # What cannot be read back as it was written is written again.
        load = await _kept(release, found, store) if await _differs(release, found.done, store) is None else load
    skipped = load.done
    records, size = 0, 0
    if load.done < total:
        _check(release)
        known_until = _known_until(release)
        await update_shelf(store, lambda shelf: replace(shelf, loaded=_with(shelf, release.id)))
        await write_load(store, release.id, load)
        records, size = await _load(release, load, known_until, store)
        row = await _differs(release, total, store)
        if row is not None:
            raise StageError(
                f"the store does not return what was written for user row {row}: the pointer was not moved"
            )
    await flip(store, release.id)
    return Published(release.id, total, skipped, records, size, time.monotonic() - start)


async def _load(release: Release, load: Load, known_until: int, store: Store) -> tuple[int, int]:
    """Write what is not done; return the number of records and of their bytes."""
    users, records, size = 0, 0, 0
    with progress(Rate()) as bars:
        bar = bars.add_task(f"publish {release.id}", total=load.users, completed=load.done, users=0, records=0, size=0)
        rows = _records(release, range(load.done, load.users))
        while batch := list(islice(rows, load.part)):
            # First, so that `gc` finds whatever else is written. Whoever has no chain has nothing to be found.
            part = load.done // load.part
            await store.put([(users_key(release.id, part), encode_tags([r.tag for r in batch if r.own]))])
            pairs = [pair for record in batch for pair in record.own]
            await store.put(pairs)
            size += sum(len(key) + len(value) for key, value in pairs)
            size += await _merge_histories(batch, known_until, store)
            records += len(pairs) + len(batch)
            before, load = load, replace(load, done=load.done + len(batch))
            # Not over what somebody else has said meanwhile: `gc` may be taking away what was just written.
            if not await store.swap(load_key(release.id), encode_load(before), encode_load(load)):
                raise StageError(
                    f"another command works on release {release.id} (`scoter gc`, or a second `publish`): publish it "
                    "again when that has ended"
                )
            users += len(batch)
            bars.update(bar, completed=load.done, users=users, records=records, size=size)
    return records, size


class Rate(ProgressColumn):
    """Records a second, and bytes a user."""

    def render(self, task: Task) -> Text:
        """Of a task with fields `users`, `records` and `size`, all since it began."""
        users, records, size = (task.fields[name] for name in ("users", "records", "size"))
        return Text(f"{records / (task.elapsed or 1):,.0f} records/s, {size / max(users, 1):,.0f} bytes a user")


async def _merge_histories(batch: Sequence[Record], known_until: int, store: Store) -> int:
    """Bring the users' histories up to the release, and lose no event that comes meanwhile; return bytes written."""
    waiting = {history_key(record.tag): record.history for record in batch}
    size = 0
    for _ in range(ATTEMPTS):
        changes: list[Change] = []
        for key, record in zip(waiting, await store.get(list(waiting)), strict=True):
            after = merged(decode_history(record), waiting[key], known_until)
            if after is not None:
                changes.append((key, record, encode_history(after)))
        answers = await store.swap_all(changes)
        size += sum(len(key) + len(new) for (key, _, new), done in zip(changes, answers, strict=True) if done)
        waiting = {key: waiting[key] for (key, _, _), done in zip(changes, answers, strict=True) if not done}
        if not waiting:
            return size
    raise StageError(f"the histories of {len(waiting)} users changed all the time: publish again, it goes on from here")


def merged(stored: History | RecordMiss, items: list[str], known_until: int) -> History | None:
    """A stored history brought up to a release that knows `items` of the user; None if it need not be changed.

    An event stays unless it is among the release's items, which it can only be if it came before `known_until`
    (seconds since the epoch, when the data were read that the release was made of).
    """
    now = int(time.time())
    if isinstance(stored, RecordMiss):
        return History(items, now, known_until)
    if stored.known_until > known_until:  # a release of later data has been there
        return None
    first = len(stored.items) - len(stored.times)
    room = Counter(items)
    room.subtract(stored.gone + stored.items[:first])
    kept: list[int] = []
    absorbed: list[str] = []
    for place, (item, moment, mark) in enumerate(zip(stored.items[first:], stored.times, stored.marks, strict=True)):
        if moment <= known_until * 1000 and room[item] > 0:
            room[item] -= 1
            absorbed.append(mark)
        else:
            kept.append(place)
    after = History(
        items + [stored.items[first + place] for place in kept],
        now,
        known_until,
        [stored.times[place] for place in kept],
        [stored.marks[place] for place in kept],
        0,
        stored.forgotten + absorbed,
    )
    return None if replace(after, updated=stored.updated, dropped=stored.dropped) == stored else after


def _known_until(release: Release) -> int:
    """When the data were read that the release's histories are of. Raises ReleaseCorrupt."""
    if HISTORIES not in release.manifest.files:  # of an earlier version: when its chains were written has to do
        return max((entry.written for entry, _ in _matrices(release)), default=0)
    file = release.path / HISTORIES
    try:
        read = json.loads(file.read_bytes())["read"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseCorrupt(f"{file} does not say when its data were read ({error!r}): export it again") from error
    if type(read) is not int or read < 0:
        raise ReleaseCorrupt(f"{file}: read is {read!r}, expected seconds since the epoch: run `scoter export` again")
    return read


def _with(shelf: Shelf, release_id: str) -> tuple[str, ...]:
    return shelf.loaded if release_id in shelf.loaded else (*shelf.loaded, release_id)


def _records(release: Release, rows: Container[int]) -> Iterator[Record]:
    """What is written of the users in `rows`. Raises ReleaseCorrupt if there are more users than there should be."""
    formats = [(entry, matrix, entry.blob_format(release.id)) for entry, matrix in _matrices(release)]
    file, expected = release.path / USERS, release.manifest.dataset.users
    with file.open("rb") as lines:
        for row, line in enumerate(lines):
            if row == expected:
                raise ReleaseCorrupt(
                    f"{file}, line {row + 1}: the manifest speaks of {row} users: run `scoter export` again"
                )
            if row not in rows:
                continue
            user, history, steps = _user(line, file, row + 1)
            tag = user_tag(user)
            # Whose chain could not be written has no steps and no H: the service ranks them without, and says so.
            own = [(steps_key(tag, release.id), encode_steps(steps))] if steps else []
            for entry, matrix, fmt in formats if steps else ():
                try:
                    blob = encode(matrix[row], fmt, user, history_length=len(history), written=entry.written)
                except ValueError as error:
                    raise ReleaseCorrupt(f"{release.path / entry.file}, row {row}: {error}") from error
                own.append((reasoning_key(tag, release.id, entry.name), blob))
            yield Record(row, tag, history, own)


def _user(line: bytes, file: Path, number: int) -> tuple[str, list[str], list[str]]:
    """A line's user, history and steps."""
    try:
        body = json.loads(line)
        user, history, steps = body["user"], body["history"], body["steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseCorrupt(
            f"{file}, line {number}: not an object with user, history and steps ({error!r})"
        ) from error
    if not isinstance(user, str) or not _texts(history) or not _texts(steps):
        raise ReleaseCorrupt(f"{file}, line {number}: user is no text, or history or steps no list of texts")
    return user, history, steps


def _texts(value: Any) -> bool:  # noqa: ANN401 - whatever JSON held
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _check(release: Release) -> None:
    """Read all that will be written. Raises ReleaseCorrupt."""
    expected = release.manifest.dataset.users
    if USERS not in release.manifest.files:  # and so was not checked when the release was opened
        raise ReleaseCorrupt(f"{release.path}: the manifest does not list {USERS}: run `scoter export` again")
    found = sum(1 for _ in _records(release, range(expected)))
    if found != expected:
        raise ReleaseCorrupt(
            f"{release.path / USERS} holds {found} users, the manifest speaks of {expected}: run `scoter export` again"
        )


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


async def _kept(release: Release, load: Load, store: Store) -> Load:
    """The load without its last parts that are not all there.

    Where a cluster's master died, the replica that took over may lack the last that was written, while another node
    says that it was: of a few users of many, whom no sample need meet.
    """
    done = load.done
    known_until = _known_until(release) if done < load.users else None
    while done:
        first = (done - 1) // load.part * load.part
        if await _is_whole(release, range(first, done), known_until, store):
            break
        done = first
    return replace(load, done=done)


async def _is_whole(release: Release, rows: range, known_until: int | None, store: Store) -> bool:
    """Whether the store returns what is written of these users; with `known_until`, their histories, too."""
    records = list(_records(release, rows))
    own = [pair for record in records for pair in record.own]
    if await store.get([key for key, _ in own]) != [value for _, value in own]:
        return False
    if known_until is None:  # it was loaded to its end, and histories are those of whatever came later
        return True
    histories = await store.get([history_key(record.tag) for record in records])
    return all(
        merged(decode_history(stored), record.history, known_until) is None
        for stored, record in zip(histories, records, strict=True)
    )


async def _differs(release: Release, done: int, store: Store) -> int | None:
    """A row of the first `done`, of a sample, for which the store does not return what the release writes."""
    for record in _records(release, {*spread(done, SAMPLE)}):
        # The history is shared by all releases and may have grown meanwhile.
        if await store.get([key for key, _ in record.own]) != [value for _, value in record.own]:
            return record.row
    return None
