"""Codecs of the small records beside the H blob: recent history and step texts."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic_core import from_json


@dataclass(frozen=True, slots=True)
class History:
    """A user's recent items, oldest first; `updated` in seconds since the epoch."""

    items: list[str]
    updated: int


def encode_history(history: History) -> bytes:
    """History as compact JSON."""
    return json.dumps({"items": history.items, "updated": history.updated}, separators=(",", ":")).encode()


def decode_history(record: bytes | None) -> History | None:
    """The stored history, or None if there is none or it cannot be read."""
    if record is None:
        return None
    try:
        row = from_json(record)
        items, updated = row["items"], row["updated"]
        if not isinstance(items, list) or not {*map(type, items)} <= {str}:
            return None
        return History(items, int(updated))
    except (ValueError, KeyError, TypeError):
        return None


def encode_steps(steps: list[str]) -> bytes:
    """The K step texts as a JSON array."""
    return json.dumps(steps, ensure_ascii=False, separators=(",", ":")).encode()


def decode_steps(record: bytes | None) -> list[str] | None:
    """The stored step texts, or None if there are none or they cannot be read."""
    if record is None:
        return None
    try:
        steps = from_json(record)
    except ValueError:
        return None
    if not isinstance(steps, list) or not all(isinstance(s, str) for s in steps):
        return None
    return steps
