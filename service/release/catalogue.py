"""The catalogue: what the model's item indices stand for.

Index 0 is padding; items are 1..N, the same numbering as in the model's tensors. On disk a catalogue is a folder:

    items.jsonl      one object a line, in index order: {"id", "title", "attributes": {column: [value, ...]}}
    codes.npy        uint16 [N, L], the semantic ID of each item
    popularity.npy   float32 [N], share of training interactions
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ReleaseCorrupt


@dataclass(frozen=True, slots=True)
class Item:
    """One item as a caller sees it. Items may share the lists of their attributes: none is to be changed."""

    id: str
    title: str
    attributes: dict[str, list[str]]


class Catalogue:
    """Items by index and by id, their semantic IDs and popularity."""

    def __init__(
        self,
        items: list[Item],
        codes: NDArray[np.uint16],  # [N, L]
        popularity: NDArray[np.float32],  # [N]
    ) -> None:
        self.items = items
        self.codes = codes
        self.popularity = popularity
        self._index = {item.id: i for i, item in enumerate(items, start=1)}
        if len(self._index) != len(items):
            raise ReleaseCorrupt("the catalogue names an item id twice: run `scoter export` again")
        if codes.ndim != 2 or codes.shape[0] != len(items) or popularity.shape != (len(items),):
            raise ReleaseCorrupt(
                f"the catalogue holds {len(items)} items but semantic IDs of shape {list(codes.shape)} and "
                f"popularities of shape {list(popularity.shape)}: run `scoter export` again"
            )
        # Stable order, so that equal popularity never makes two pods disagree.
        self._by_popularity = np.argsort(-popularity, kind="stable") + 1

    def __len__(self) -> int:
        return len(self.items)

    def index_of(self, item_id: str) -> int | None:
        """Model index (1..N) of an item id, or None if the catalogue does not hold it."""
        return self._index.get(item_id)

    def item(self, index: int) -> Item:
        """The item at a model index. Raises IndexError for padding or beyond the end."""
        if not 1 <= index <= len(self.items):
            raise IndexError(f"item index {index} is not in 1..{len(self.items)}")
        return self.items[index - 1]

    def popular(
        self,
        k: int,
        exclude: AbstractSet[int],
        eligible: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
        few: NDArray[np.int32] | None = None,
    ) -> list[int]:
        """The k most popular item indices not in `exclude`, best first.

        Of those alone that are `eligible`, if that is given; `few` are those themselves where there are not many.
        """
        best = self._by_popularity
        if few is not None:
            best = few[np.lexsort((few, -self.popularity[few - 1]))].astype(np.int64)
        found: list[int] = []
        begin, size = 0, k + len(exclude)  # without a filter that is enough
        while len(found) < k and begin < len(best):
            # Of a large catalogue only what is needed is looked at, or becomes Python's own numbers.
            part = best[begin : begin + size]
            if eligible is not None:
                part = part[eligible(part)]
            found += [index for index in part.tolist() if index not in exclude]
            begin, size = begin + size, 4 * size
        return found[:k]

    def write(self, folder: Path) -> None:
        """Write the catalogue into a new folder."""
        folder.mkdir(parents=True)
        with (folder / "items.jsonl").open("w", encoding="utf-8") as out:
            for item in self.items:
                row = {"id": item.id, "title": item.title, "attributes": item.attributes}
                out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
        np.save(folder / "codes.npy", self.codes.astype(np.uint16))
        np.save(folder / "popularity.npy", self.popularity.astype(np.float32))

    @classmethod
    def read(cls, folder: Path) -> Catalogue:
        """Read a catalogue folder. Raises ReleaseCorrupt with file and line."""
        items: list[Item] = []
        shared: dict[tuple[str, ...], list[str]] = {}  # values repeat: each list once, not a copy for every item
        path = folder / "items.jsonl"
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    items.append(_item(line, path, number, shared))
            codes = np.load(folder / "codes.npy", allow_pickle=False)
            popularity = np.load(folder / "popularity.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ReleaseCorrupt(f"cannot read the catalogue in {folder}: {error}") from error
        return cls(items, codes, popularity)


def _item(line: str, path: Path, number: int, shared: dict[tuple[str, ...], list[str]]) -> Item:
    try:
        row: dict[str, Any] = json.loads(line)
        if not isinstance(row["id"], str) or not isinstance(row["title"], str):
            raise TypeError("id and title must be strings")
        return Item(row["id"], row["title"], _attributes(row["attributes"], shared))
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseCorrupt(f"{path}, line {number}: not a catalogue item ({error})") from error


def _attributes(found: object, shared: dict[tuple[str, ...], list[str]]) -> dict[str, list[str]]:
    if not isinstance(found, dict) or not all(
        isinstance(values, list) and all(isinstance(value, str) for value in values) for values in found.values()
    ):
        raise TypeError("attributes must be lists of strings by column")
    return {sys.intern(column): shared.setdefault(tuple(values), values) for column, values in found.items()}
