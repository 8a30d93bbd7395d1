"""Reading RecBole atomic files.

`NAME.inter` has at least `user_id`, `item_id` and `timestamp`; `NAME.item` (optional) has `item_id` and any
text columns. Both are tab-separated UTF-8 (a byte order mark is passed over) with a header of `column:type` fields.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from offline.errors import DataError
from service.schemas import ID_CHARS

_TYPES = {"token", "token_seq", "float", "float_seq"}


@dataclass(frozen=True, slots=True)
class Interaction:
    """One row of an `.inter` file."""

    user: str
    item: str
    timestamp: float


def data_files(folder: Path) -> tuple[Path, Path | None]:
    """The `.inter` file of a folder and its `.item` file, if any. Raises DataError if that is not one file each."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the folder that holds NAME.inter and NAME.item")
    inter = sorted(folder.glob("*.inter"))
    if len(inter) != 1:
        raise DataError(_not_one(folder, [path.name for path in inter]))
    item = inter[0].with_suffix(".item")
    if item.is_file():
        return inter[0], item
    others = sorted(path.name for path in folder.glob("*.item"))
    if others:  # better than going on without any text
        raise DataError(f"{folder} holds {', '.join(others)} beside {inter[0].name}: rename it to {item.name}")
    return inter[0], None


def _not_one(folder: Path, names: list[str]) -> str:
    """What to do about a folder that does not hold one `.inter` file."""
    if names:
        return (
            f"{folder} holds {len(names)} .inter files ({', '.join(names)}), expected one: keep one data set a folder"
        )
    if below := sorted({str(path.parent) for path in folder.glob("*/*.inter")}):
        return f"{folder} holds no .inter file: is {' or '.join(below)} meant?"
    return f"{folder} holds no .inter file: see 'Your own data' in README.md for what the folder has to hold"


def read_interactions(path: Path) -> list[Interaction]:
    """All rows of an `.inter` file, in file order. Raises DataError with line number and reason."""
    rows: list[Interaction] = []
    for line, row in _rows(path, ["user_id", "item_id", "timestamp"]):
        try:
            if "_" in row["timestamp"]:  # Python's own way to group digits
                raise ValueError
            timestamp = float(row["timestamp"])
        except ValueError:
            raise DataError(f"{path}, line {line}: timestamp {row['timestamp']!r} is not a number") from None
        if not math.isfinite(timestamp):
            raise DataError(f"{path}, line {line}: timestamp {row['timestamp']!r} is not finite")
        for column in ("user_id", "item_id"):
            if not row[column]:
                raise DataError(f"{path}, line {line}: {column} is empty")
            if len(row[column]) > ID_CHARS:
                raise DataError(
                    f"{path}, line {line}: {column} has {len(row[column])} characters, and the service can be asked "
                    f"about ids of up to {ID_CHARS}: shorten them, as by a hash"
                )
        rows.append(Interaction(row["user_id"], row["item_id"], timestamp))
    if not rows:
        raise DataError(f"{path} holds a header and no rows")
    return rows


def read_items(path: Path) -> dict[str, dict[str, str]]:
    """Rows of an `.item` file by item id. Raises DataError with line number and reason."""
    items: dict[str, dict[str, str]] = {}
    for line, row in _rows(path, ["item_id"]):
        item = row.pop("item_id")
        if not item:
            raise DataError(f"{path}, line {line}: item_id is empty")
        if item in items:
            raise DataError(f"{path}, line {line}: item {item!r} stands there twice")
        items[item] = row
    return items


def _rows(path: Path, required: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    with _opened(path) as stream:
        columns: list[str] = []
        for line, raw in enumerate(stream, start=1):
            try:
                text = raw.removeprefix(codecs.BOM_UTF8 if line == 1 else b"").decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason} at byte {error.start})") from None
            fields = text.split("\t")
            if line == 1:
                columns = _header(path, fields, required)
                continue
            if not text:
                raise DataError(f"{path}, line {line}: the line is empty")
            if len(fields) != len(columns):
                raise DataError(f"{path}, line {line}: {len(fields)} fields, the header has {len(columns)}")
            yield line, dict(zip(columns, fields, strict=True))
    if not columns:
        raise DataError(f"{path} is empty: expected a header such as user_id:token, item_id:token, timestamp:float")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _header(path: Path, fields: list[str], required: list[str]) -> list[str]:
    columns: list[str] = []
    if len(fields) == 1 and "," in fields[0]:
        raise DataError(f"{path}, line 1: commas and no tab: columns are separated by tabs, here as in every row")
    for field in fields:
        name, _, kind = field.partition(":")
        if not name or kind not in _TYPES:
            raise DataError(
                f"{path}, line 1: {field!r} is not column:type, as user_id:token, with a type of "
                f"{', '.join(sorted(_TYPES))}"
            )
        columns.append(name)
    missing = [name for name in required if name not in columns]
    if missing:
        raise DataError(f"{path}, line 1: no column {', '.join(missing)}; the header has {', '.join(columns)}")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: column {', '.join(twice)} stands there twice")
    return columns
