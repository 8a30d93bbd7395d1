"""Reads exposures and outcomes, row by row; a row that cannot be read is counted with its place and reason."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, model_validator

from offline.errors import DataError
from service.errors import StoreError
from service.exposures.event import Exposure
from service.exposures.sinks import FIELD
from service.settings import RedisSettings
from service.store.keys import user_tag
from service.store.redis import Client

EVENTS = ("click", "purchase", "negative")
REMEMBERED = 100  # rejected rows whose place and reason are kept
LATEST = 4e9  # seconds since 1970: a time beyond it, in the year 2096, is one in milliseconds
PAGE = 1000  # entries of a stream read at once

_exposure = TypeAdapter(Exposure)


@dataclass(slots=True)
class Rejected:
    """Rows that could not be read."""

    count: int = 0
    rows: list[tuple[str, str]] = field(default_factory=list)  # place and reason of the first of them

    def add(self, place: str, reason: str) -> None:
        """Count a row."""
        self.count += 1
        if len(self.rows) < REMEMBERED:
            self.rows.append((place, reason))


class Outcome(BaseModel):
    """What a user did with an item, whichever answer it came from."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    event: Literal["click", "purchase", "negative"]  # negative: "not interested", a complaint, a hidden item
    ts: datetime  # seconds since 1970, or ISO 8601; UTC if no offset is given
    event_id: str | int | None = None  # the same id is the same outcome, sent again
    item_id: str | None = Field(default=None, min_length=1)
    request_id: str | None = Field(default=None, min_length=1)
    user_id: str | None = Field(default=None, min_length=1)
    user_tag: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    value: float = Field(default=0.0, ge=0)  # of a purchase: GMV

    @model_validator(mode="after")
    def _can_be_joined(self) -> Self:
        if self.request_id is None and self.user_id is None and self.user_tag is None:
            raise ValueError("no request_id, user_id or user_tag")
        if self.request_id is None and self.item_id is None:
            raise ValueError("no item_id, and no request_id that could do without")
        return self

    def user(self) -> str | None:
        """The user's tag."""
        return user_tag(self.user_id) if self.user_id is not None else self.user_tag

    def seconds(self) -> float:
        """When it happened, in seconds since 1970."""
        return (self.ts if self.ts.tzinfo else self.ts.replace(tzinfo=UTC)).timestamp()


def read_exposures(paths: Sequence[Path], rejected: Rejected) -> Iterator[Exposure]:
    """Exposures of JSONL files, .gz ones too. Raises DataError if a file cannot be opened."""
    for path in paths:
        for place, line in _lines(path):
            exposure = parse_exposure(line, place, rejected)
            if exposure is not None:
                yield exposure


def parse_exposure(line: bytes, place: str, rejected: Rejected) -> Exposure | None:
    """One exposure, or None and a rejected row."""
    try:
        exposure = _exposure.validate_json(line)
    except ValidationError as error:
        rejected.add(place, _reason(error))
        return None
    if exposure.user_id is None and exposure.user_tag is None:
        rejected.add(place, "neither user_id nor user_tag")
        return None
    if not 0 <= exposure.ts < LATEST:
        rejected.add(place, f"ts: {exposure.ts:g} is no time in seconds since 1970")
        return None
    return exposure


async def read_stream(url: str, stream: str, rejected: Rejected) -> AsyncIterator[Exposure]:
    """Exposures of a Redis Stream, oldest first. Raises DataError if Redis fails."""
    try:
        client = Client(RedisSettings(url=SecretStr(url), connect_timeout_ms=5_000), 30_000)
    except ValidationError as error:  # not the URL itself, which may hold a password
        raise DataError(f"the URL of the exposures cannot be read: {_reason(error)}") from error
    try:
        start = "-"
        while True:
            entries: Any = await client.run(("XRANGE", stream, start, "+", "COUNT", PAGE))
            if not entries:
                break
            for identity, fields in entries:
                name = identity.decode()
                line = fields.get(FIELD.encode())
                place = f"stream {stream}, entry {name}"
                if line is None:
                    rejected.add(place, f"no field {FIELD!r}")
                elif exposure := parse_exposure(line, place, rejected):
                    yield exposure
                start = f"({name}"
    except StoreError as error:
        raise DataError(f"cannot read the stream {stream}: {error}") from error
    finally:
        await client.close()


def read_outcomes(paths: Sequence[Path], rejected: Rejected) -> Iterator[Outcome]:
    """Outcomes of .csv files, whose first line names the columns, or of JSONL files. Raises DataError."""
    for path in paths:
        for place, row in _rows(path, rejected):
            try:
                yield Outcome.model_validate(row)
            except ValidationError as error:
                rejected.add(place, _reason(error))


def read_histories(path: Path, rejected: Rejected) -> dict[str, int]:
    """History length by user tag, from a .csv or JSONL file with user_id or user_tag, and history_length."""
    lengths: dict[str, int] = {}
    for place, row in _rows(path, rejected):
        try:
            length = int(row["history_length"])
            user = row.get("user_tag") or user_tag(str(row["user_id"]))
        except (KeyError, TypeError, ValueError) as error:
            rejected.add(place, f"needs user_id or user_tag, and history_length: {error!r}")
            continue
        if length < 0:
            rejected.add(place, f"history_length {length} is negative")
            continue
        lengths[str(user)] = length
    return lengths


def _rows(path: Path, rejected: Rejected) -> Iterator[tuple[str, dict[str, Any]]]:
    if ".csv" in path.suffixes:
        yield from _table(path, rejected)
        return
    for place, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            rejected.add(place, f"not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield place, {name: value for name, value in row.items() if value is not None}
        else:
            rejected.add(place, "not an object")


def _table(path: Path, rejected: Rejected) -> Iterator[tuple[str, dict[str, Any]]]:
    with _opened(path) as stream:
        text = (line.decode("utf-8-sig" if number == 0 else "utf-8", "replace") for number, line in enumerate(stream))
        reader = csv.DictReader(text)
        try:
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if any(row.pop(None, ())):  # `12,90` without quotes would be a value of 12
                    rejected.add(place, "more cells than the first line has columns: quote what holds a comma")
                    continue
                # An empty cell is a value that is not there.
                yield place, {name: cell for name, cell in row.items() if name and cell}
        except (OSError, EOFError, zlib.error, csv.Error) as error:
            raise DataError(f"cannot read {path} after line {reader.line_num}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with _opened(path) as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path}, line {number}", line
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot read {path}: {error}") from error


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    try:
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _reason(error: ValidationError) -> str:
    wrong = error.errors(include_url=False, include_context=False, include_input=False)
    parts = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ") for one in wrong[:3])
    return "; ".join(part.replace("Value error, ", "") for part in parts)
