"""What has been written and encoded, by what it was made from: a table of bytes on disk.

A key is a digest of everything that decides its value, so a value never goes stale: what changed has another key. The
table survives a kill at any moment, and takes the same few megabytes of memory whatever it holds.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from offline.errors import StageError
from offline.wal import write_ahead

VERSION = 1
_CACHE = 16 * 1024  # KiB of pages in memory
_AT_ONCE = 500  # keys in one query
_PATIENCE = 300.0  # seconds that another process may be writing


def digest(*parts: bytes | str) -> bytes:
    """A key of 16 bytes. No two different lists of parts have the same, short of a collision."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        body = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(len(body).to_bytes(8, "little"))
        found.update(body)
    return found.digest()


class Kept:
    """Values by key in an SQLite file, which several processes of one machine may use at a time.

    With `lasting = False` nothing is written to the disk before the system likes to: for what can be made again.
    Raises StageError if the file cannot be used.
    """

    def __init__(self, path: Path, *, lasting: bool = True) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._table = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            self._run(f"PRAGMA cache_size = -{_CACHE}")
            write_ahead(self._table, _PATIENCE)
            self._run(f"PRAGMA synchronous = {'NORMAL' if lasting else 'OFF'}")
            (version,) = self._run("PRAGMA user_version").fetchone()
            if version not in {0, VERSION}:
                self._table.close()
                raise StageError(f"{path} is of another version of this program: remove it, it will be made again")
            # Rows in order of arrival, found by a small index: neighbours in a run are neighbours on the disk.
            self._run(
                "CREATE TABLE IF NOT EXISTS kept "
                "(row INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)"
            )
            self._run(f"PRAGMA user_version = {VERSION}")
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, or None."""
        found: dict[bytes, bytes] = {}
        for first in range(0, len(keys), _AT_ONCE):
            part = keys[first : first + _AT_ONCE]
            marks = ",".join("?" * len(part))
            found.update(self._run(f"SELECT key, value FROM kept WHERE key IN ({marks})", part))  # noqa: S608 - marks
        return [found.get(key) for key in keys]

    def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep all of them or none. The first value of a key stays: another process may have been faster."""
        self._all("INSERT OR IGNORE INTO kept (key, value) VALUES (?, ?)", pairs)

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget these keys."""
        self._all("DELETE FROM kept WHERE key = ?", ((key,) for key in keys))

    def new(self, keys: Sequence[bytes]) -> list[int]:
        """Places of the keys that were not there, each key once; they are afterwards, with an empty value."""
        places = {key: place for place, key in reversed(list(enumerate(keys)))}
        asked = list(places)
        fresh = [key for key, value in zip(asked, self.get(asked), strict=True) if value is None]
        self.put((key, b"") for key in fresh)
        return sorted(places[key] for key in fresh)

    def __len__(self) -> int:
        (count,) = self._run("SELECT count(*) FROM kept").fetchone()
        return int(count)

    def close(self) -> None:
        """Give the file back."""
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, statement: str, values: Sequence[bytes] = ()) -> sqlite3.Cursor:
        try:
            return self._table.execute(statement, values)
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _all(self, statement: str, rows: Iterable[tuple[bytes, ...]]) -> None:
        try:
            self._table.execute("BEGIN IMMEDIATE")
            try:
                self._table.executemany(statement, rows)
            except BaseException:
                self._table.execute("ROLLBACK")
                raise
            self._table.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> StageError:
        return StageError(
            f"cannot use {self._path}: {error}; if it is damaged, remove it: what it held will be made again"
        )


def remove(path: Path) -> None:
    """Remove a table's files."""
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        (path.parent / name).unlink(missing_ok=True)
