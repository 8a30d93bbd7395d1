"""Work cut into numbered files.

The list of what is to be done is then on the disk and not in memory, any process can take a part of it, and whoever
does it, at once or after a break, hands the same parts to the same model: which texts share a batch may change the last
bit of a result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline.stage import read_json, write_json

_WHOLE = "whole.json"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows (anything JSON takes) that share a label."""

    label: int
    rows: list[Any]


class Chunks:
    """Chunks in a folder, each known by its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def counts(self) -> dict[str, int] | None:
        """What the list was said to be made of; None while it is not whole."""
        path = self.folder / _WHOLE
        counts: dict[str, int] | None = read_json(path) if path.exists() else None
        return counts

    def cut(self, rows: Iterable[tuple[int, Any]], size: int, *, first: int | None = None) -> None:
        """Write `(label, row)` pairs as chunks of one label and up to `size` rows, in the place of what was there.

        The first chunk of each label has `first` rows at most: whoever is not up to the work is found out early.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        held: dict[int, list[Any]] = {}
        written: dict[int, int] = {}
        for label, row in rows:
            held.setdefault(label, []).append(row)
            if len(held[label]) == (size if label in written or first is None else min(first, size)):
                self._save(label, written, held.pop(label))
        for label, left in held.items():
            self._save(label, written, left)

    def finish(self, counts: dict[str, int]) -> None:
        """Say that the list is whole."""
        write_json(self.folder / _WHOLE, counts)

    def names(self) -> list[str]:
        """By label, then in order."""
        return sorted(path.stem for path in self.folder.glob("*.json") if path.name != _WHOLE)

    def read(self, name: str) -> Chunk:
        """A chunk by its name."""
        body = read_json(self.folder / f"{name}.json")
        return Chunk(body["label"], body["rows"])

    def _save(self, label: int, written: dict[int, int], rows: list[Any]) -> None:
        number = written[label] = written.get(label, -1) + 1
        path = self.folder / f"{label:03d}-{number:08d}.json"
        path.write_text(json.dumps({"label": label, "rows": rows}), encoding="utf-8")
