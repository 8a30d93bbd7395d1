"""Stage `prepare` (section 4.1): interactions -> 5-core sequences with leave-one-out splits.

Output folder:

    sequences.npz   items int32 [all interactions], offsets int64 [U+1]; user u's sequence, oldest first, is
                    items[offsets[u]:offsets[u+1]]; item indices are 1..N, 0 is padding
    users.json      user ids by row
    items.jsonl     {"id", "title", "text", "attributes"} by index (line 1 is item 1)
    summary.json    counts before and after filtering, and of what was had before

The last item of a sequence is the test target, the one before it the validation target, the rest is training.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from offline.errors import DataError
from offline.interactions import Interaction, data_files, read_interactions, read_items
from offline.recipe import PrepareRecipe
from offline.stage import Stage, console, read_json, read_rows, run_stage, write_json, write_rows

VERSION = 1
MIN_LENGTH = 4  # two training items (an input and a target), one for validation, one for the test


@dataclass(frozen=True, slots=True)
class ItemText:
    """What is known of an item."""

    id: str
    title: str
    text: str
    attributes: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Prepared sequences and items."""

    users: list[str]
    items: list[ItemText]  # items[i - 1] has index i
    sequences: list[NDArray[np.int32]]  # oldest first

    @property
    def num_items(self) -> int:
        """N; indices run from 1 to N."""
        return len(self.items)

    def history(self, user: int, split: str) -> NDArray[np.int32]:
        """Everything before the split's target: `train` (target t-2), `valid` (t-1), `test` (t), or `serve`: all."""
        sequence = self.sequences[user]
        return sequence[: len(sequence) - _BACK[split]]

    def target(self, user: int, split: str) -> int:
        """The target item of `train`, `valid` or `test`."""
        return int(self.sequences[user][-_BACK[split]])

    def training(self, user: int) -> NDArray[np.int32]:
        """The training part of a sequence: all but the validation and test items."""
        return self.sequences[user][:-2]

    def trainings(self, *, include_validation: bool = False) -> list[NDArray[np.int32]]:
        """The training part of every sequence, by user; with `include_validation` the validation item is one of it."""
        return [sequence[: -1 if include_validation else -2] for sequence in self.sequences]


_BACK = {"serve": 0, "test": 1, "valid": 2, "train": 3}
SPLITS = ("train", "valid", "test", "serve")


def prepare(work: Path, data: Path, recipe: PrepareRecipe) -> Stage:
    """Run the stage on the RecBole files in `data`. Raises DataError; nothing half-written is left behind."""
    inter, item = data_files(data)
    settings: dict[str, Any] = {
        "recipe": recipe.model_dump(),
        "name": inter.stem,
        "inter": _digest(inter),
        "item": _digest(item) if item else None,
    }
    return run_stage(work, "prepare", VERSION, settings, [], lambda folder: _build(folder, inter, item, recipe))


def load_dataset(folder: Path) -> Dataset:
    """Read the stage's output."""
    with np.load(folder / "sequences.npz") as arrays:
        flat, offsets = arrays["items"], arrays["offsets"]
    users = read_json(folder / "users.json")
    items = [ItemText(**row) for row in read_rows(folder / "items.jsonl")]
    return Dataset(users, items, [flat[a:b] for a, b in pairwise(offsets)])


def dataset_name(folder: Path) -> str:
    """The name of the data set a prepared folder was made from."""
    summary: dict[str, Any] = read_json(folder / "summary.json")
    return str(summary["name"])


def core(rows: list[Interaction], minimum: int) -> list[Interaction]:
    """Drop users and items with fewer than `minimum` interactions until none is left."""
    while True:
        users = Counter(r.user for r in rows)
        items = Counter(r.item for r in rows)
        kept = [r for r in rows if users[r.user] >= minimum and items[r.item] >= minimum]
        if len(kept) == len(rows):
            return kept
        rows = kept


def _build(folder: Path, inter: Path, item: Path | None, recipe: PrepareRecipe) -> None:
    rows = read_interactions(inter)
    kept = core(rows, max(recipe.min_interactions, 1))
    sequences: dict[str, list[Interaction]] = {}
    for row in kept:
        sequences.setdefault(row.user, []).append(row)
    short = {user for user, rows in sequences.items() if len(rows) < MIN_LENGTH}
    sequences = {user: rows for user, rows in sequences.items() if user not in short}
    if not sequences:
        why = (
            f"; {len(short)} users have fewer than the {MIN_LENGTH} that a split takes (two to train on, one to "
            "validate, one to test)"
            if short
            else ""
        )
        raise DataError(
            f"{inter}: no user is left after {recipe.min_interactions}-core filtering of {len(rows)} interactions"
            f"{why}: lower prepare.min_interactions or bring more data"
        )
    if short:
        console.print(f"  {len(short)} users with fewer than {MIN_LENGTH} interactions are left out")
    index: dict[str, int] = {}
    flat: list[int] = []
    offsets = [0]
    for user_rows in sequences.values():
        user_rows.sort(key=lambda r: r.timestamp)  # stable: equal timestamps keep file order
        flat.extend(index.setdefault(r.item, len(index) + 1) for r in user_rows)
        offsets.append(len(flat))
    texts = read_items(item) if item else {}
    if item and texts:
        if texts.keys().isdisjoint(index):
            raise DataError(
                f"none of the {len(index)} items that {inter} leaves stands in {item}: ids have to be the same, "
                f"letter by letter ({next(iter(index))!r} here, {next(iter(texts))!r} there)"
            )
        _check_columns(item, set(next(iter(texts.values()))), recipe)
    items = [_item(item_id, texts.get(item_id, {}), recipe) for item_id in index]
    again = _had_before(flat, offsets)
    if again.users:
        console.print(
            f"  [yellow]warning:[/] {again.users} of {len(sequences)} users had their test item before: with the "
            "history masked no model can find it, and the service does not recommend what a user has had",
            soft_wrap=True,
        )
    np.savez(folder / "sequences.npz", items=np.array(flat, np.int32), offsets=np.array(offsets, np.int64))
    write_json(folder / "users.json", list(sequences))
    write_rows(folder / "items.jsonl", items)
    write_json(
        folder / "summary.json",
        {
            "name": inter.stem,
            "read": len(rows),
            "kept": len(flat),
            "users": len(sequences),
            "items": len(index),
            "mean_length": round(len(flat) / len(sequences), 2),
            "items_without_text": sum(not body["text"] for body in items),
            "had_before": again.interactions,
            "test_items_had_before": again.users,
        },
    )


@dataclass(frozen=True, slots=True)
class _Again:
    """Interactions with an item that the user had before, and users whose last one is such."""

    interactions: int
    users: int


def _had_before(flat: list[int], offsets: list[int]) -> _Again:
    interactions, users = 0, 0
    for start, end in pairwise(offsets):
        sequence = flat[start:end]
        interactions += len(sequence) - len(set(sequence))
        users += sequence[-1] in sequence[:-1]
    return _Again(interactions, users)


def _check_columns(path: Path, columns: set[str], recipe: PrepareRecipe) -> None:
    """Say which columns the recipe takes and the file has not. Raises DataError if no text at all would be read."""
    has = ", ".join(sorted(columns)) or "none"
    if recipe.text and columns.isdisjoint(recipe.text):
        raise DataError(
            f"{path} has none of the columns {', '.join(recipe.text)}, which prepare.text takes: name the right ones "
            f"there, or none, or rename them in the file (beside item_id it has {has})"
        )
    for key, wanted in (("text", recipe.text), ("attributes", recipe.attributes)):
        if missing := [name for name in wanted if name not in columns]:
            names = escape(f"{path.name} has no column {', '.join(missing)}")
            console.print(f"  {names}, which prepare.{key} takes; beside item_id it has {escape(has)}", soft_wrap=True)
    if "title" not in columns:
        console.print(f"  {escape(path.name)} has no column title: items are called by their ids", soft_wrap=True)


def _item(item_id: str, row: dict[str, str], recipe: PrepareRecipe) -> dict[str, Any]:
    parts = [row[c].strip() for c in recipe.text if row.get(c, "").strip()]
    return {
        "id": item_id,
        "title": row.get("title", "").strip() or f"item {item_id}",
        "text": ". ".join(parts),
        "attributes": {c: _values(row[c]) for c in recipe.attributes if row.get(c, "").strip()},
    }


def _values(field: str) -> list[str]:
    """Values of a multi-valued field; published files separate them by commas, since names hold spaces."""
    return [value.strip() for value in field.split(",") if value.strip()]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
