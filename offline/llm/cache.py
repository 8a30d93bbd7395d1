"""Answers on disk, so that none is asked for, or paid for, twice.

One sqlite file in WAL mode holds three things:

    answers   key -> text; the key is a digest of everything that decides the answer (`request_key`), and its number
    ledger    what was spent; a request is entered at its worst case before it is sent and corrected once it is answered
    failed    keys of prompts that had to be given up: that they fail once more tells nothing about the endpoint

An answer and what it cost are written in one transaction before anybody sees the answer. So a process that is killed
loses at most the requests in flight, and what those may have cost stays in the ledger. Any number of processes may
share a file. Prompts are not kept, only digests of them. A power cut (not a crash) may lose the last few answers.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from offline.errors import LLMError
from offline.wal import write_ahead

FILE = "answers.sqlite"
_APPLICATION = 0x5C07E4  # tells our files from other people's
_VERSION = 1
_BUSY = 60.0  # seconds to wait for another process's transaction
_MANY = 500  # keys in one SELECT
_TABLES = """
CREATE TABLE answers (key BLOB PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE ledger (id INTEGER PRIMARY KEY CHECK (id = 1), spent REAL NOT NULL);
INSERT INTO ledger VALUES (1, 0.0);
"""
_ADDED = "CREATE TABLE IF NOT EXISTS failed (key BLOB PRIMARY KEY) WITHOUT ROWID"  # version 1 had begun without it


def request_key(parts: Mapping[str, Any], number: int) -> bytes:
    """Digest of what decides answer `number` to a request; `parts` is JSON-serialisable and holds no secret."""
    body = json.dumps([parts, number], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).digest()


class AnswerCache:
    """The answers in a folder. Raises LLMError naming the file when it cannot be used; it is never overwritten."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Transactions are ours to begin; the connection is used from the thread that asks and the one that waits.
            self._db = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise LLMError(f"cannot open the cache of answers {self.path}: {error}") from error
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def get(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The texts of those keys that have one."""
        found: dict[bytes, str] = {}
        with self._translated():
            for first in range(0, len(keys), _MANY):
                some = keys[first : first + _MANY]
                marks = ",".join("?" * len(some))
                found.update(self._db.execute(f"SELECT key, text FROM answers WHERE key IN ({marks})", some))  # noqa: S608 - marks only
        return found

    def put(self, answers: Mapping[bytes, str], *, correction: float = 0.0) -> None:
        """Keep answers and correct the ledger by what they cost less (< 0) than was reserved for them."""
        with self._translated(), self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", answers.items())
            if correction:
                self._db.execute("UPDATE ledger SET spent = max(0.0, spent + ?)", (correction,))

    def reserve(self, cost: float, budget: float) -> bool:
        """Enter `cost` into the ledger, unless more than `budget` would then be spent."""
        with self._translated(), self._transaction():
            rows = self._db.execute("UPDATE ledger SET spent = spent + ?1 WHERE spent + ?1 <= ?2", (cost, budget))
            return rows.rowcount == 1

    def first_failure(self, key: bytes) -> bool:
        """Note that a prompt was given up; whether it is the first time."""
        with self._translated(), self._transaction():
            return self._db.execute("INSERT OR IGNORE INTO failed VALUES (?)", (key,)).rowcount == 1

    @property
    def spent(self) -> float:
        """Spent over all runs that used this cache, requests in flight at their worst case."""
        with self._translated():
            return float(self._db.execute("SELECT spent FROM ledger").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __len__(self) -> int:
        with self._translated():
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        if write_ahead(self._db, _BUSY) != "wal":
            raise LLMError(
                f"the cache of answers {self.path} is on a disk that cannot lock files: move the work folder"
            )
        self._db.execute("PRAGMA synchronous = NORMAL")  # safe against crashes; the answers outlive the process
        with self._transaction():
            application = self._db.execute("PRAGMA application_id").fetchone()[0]
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not tables:
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
            elif application != _APPLICATION or version != _VERSION:
                raise LLMError(
                    f"{self.path} is no cache of answers that this version reads ({application:#x}, version "
                    f"{version}): move it away, or use the version that wrote it"
                )
        with closing(self._db.execute("PRAGMA quick_check(1)")) as check:
            verdict = check.fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(" ".join(verdict.split()))  # it may be several lines
        self._db.execute(_ADDED)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:  # locked, read-only, full
                raise LLMError(f"cannot use the cache of answers {self.path}: {error}") from error
            except sqlite3.DatabaseError as error:
                raise LLMError(
                    f"the cache of answers {self.path} is damaged ({error}) and was left as it was: restore it, save "
                    f"what can be saved with `sqlite3 {self.path} .recover`, or move it away to ask everything anew"
                ) from error
