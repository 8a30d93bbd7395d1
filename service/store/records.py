"""Codecs of the small records beside the H blob: recent history, step texts, and what a store says of its releases."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

_T = TypeVar("_T")

TAG_BYTES = 16


class RecordMiss(StrEnum):
    """Why there is no record to use."""

    absent = "absent"
    corrupt = "corrupt"


@dataclass(frozen=True, slots=True)
class History:
    """A user's recent items, oldest first: those that a release knew, then the events since, by time.

    `times` (ms since the epoch) and `marks` (see `event_mark`) are those of the last items, which came as events.
    `updated` is when the record was written, `known_until` when the data were read that the release was made of
    (seconds since the epoch).
    `dropped` counts older items that are no longer kept. Of the latest among them, in order, `gone` holds those that a
    release knew, and `forgotten` the marks of those that came as events.
    """

    items: list[str]
    updated: int
    known_until: int = 0
    times: list[int] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    dropped: int = 0
    forgotten: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        """How many items the user has had, those that are no longer kept included."""
        return self.dropped + len(self.items)


def event_mark(event_id: str) -> str:
    """What stands for an event id in a history: 64 bits of its hash, 11 characters."""
    digest = blake2b(event_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def encode_history(history: History) -> bytes:
    """History as compact JSON; what is empty is left out."""
    row: dict[str, Any] = {"items": history.items, "updated": history.updated}
    if history.known_until:
        row["known_until"] = history.known_until
    if history.times:
        row |= {"times": history.times, "marks": history.marks}
    if history.dropped:
        row["dropped"] = history.dropped
    if history.forgotten:
        row["forgotten"] = history.forgotten
    if history.gone:
        row["gone"] = history.gone
    return json.dumps(row, separators=(",", ":")).encode()


def decode_history(record: bytes | None) -> History | RecordMiss:
    """The stored history, or why there is none. A record without events, as earlier versions wrote it, is one."""
    found = _decoded(_HISTORY, record)
    if isinstance(found, History) and not len(found.times) == len(found.marks) <= len(found.items):
        return RecordMiss.corrupt
    return found


def encode_steps(steps: list[str]) -> bytes:
    """The K step texts as a JSON array."""
    return json.dumps(steps, ensure_ascii=False, separators=(",", ":")).encode()


def decode_steps(record: bytes | None) -> list[str] | None:
    """The stored step texts, or None if there are none or they cannot be read."""
    steps = _decoded(_STEPS, record)
    return None if isinstance(steps, RecordMiss) else steps


@dataclass(frozen=True, slots=True)
class Shelf:
    """Which releases a store holds, in the order of their first loading, and which were live, the latest last."""

    loaded: tuple[str, ...]
    live: tuple[str, ...]


def encode_shelf(shelf: Shelf) -> bytes:
    """Shelf as JSON."""
    return json.dumps({"loaded": shelf.loaded, "live": shelf.live}).encode()


def decode_shelf(record: bytes | None) -> Shelf | RecordMiss:
    """The stored shelf, or why there is none."""
    return _decoded(_SHELF, record)


@dataclass(frozen=True, slots=True)
class Load:
    """How far a release has been loaded: `done` of its `users` are, in parts of `part` users each.

    `names` are the release's kinds of reasoning, which its keys name. While `leaving`, its records are being removed,
    the last part first, and `done` counts down.
    """

    users: int
    part: int
    names: tuple[str, ...]
    done: int = 0
    leaving: bool = False


def encode_load(load: Load) -> bytes:
    """Load as JSON."""
    body = {"users": load.users, "part": load.part, "names": load.names, "done": load.done, "leaving": load.leaving}
    return json.dumps(body).encode()


def decode_load(record: bytes | None) -> Load | RecordMiss:
    """The stored state of loading, or why there is none."""
    found = _decoded(_LOAD, record)
    if isinstance(found, Load) and not (found.part > 0 and 0 <= found.done <= found.users):
        return RecordMiss.corrupt
    return found


def encode_tags(tags: list[str]) -> bytes:
    """User tags (`service.store.keys.user_tag`), 16 bytes each."""
    return b"".join(bytes.fromhex(tag) for tag in tags)


def decode_tags(record: bytes | None) -> list[str] | RecordMiss:
    """The stored user tags, or why there are none."""
    if record is None:
        return RecordMiss.absent
    if len(record) % TAG_BYTES:
        return RecordMiss.corrupt
    return [record[start : start + TAG_BYTES].hex() for start in range(0, len(record), TAG_BYTES)]


_HISTORY, _STEPS = TypeAdapter(History), TypeAdapter(list[str])
_SHELF, _LOAD = TypeAdapter(Shelf), TypeAdapter(Load)


def _decoded(adapter: TypeAdapter[_T], record: bytes | None) -> _T | RecordMiss:
    if record is None:
        return RecordMiss.absent
    try:
        return adapter.validate_json(record, strict=True)
    except ValidationError:
        return RecordMiss.corrupt
