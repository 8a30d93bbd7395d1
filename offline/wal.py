"""Switching an SQLite file to its write-ahead log."""

from __future__ import annotations

import sqlite3
import time

_AGAIN = 0.05  # seconds between two tries


def write_ahead(db: sqlite3.Connection, patience: float) -> str:
    """Switch to WAL mode; returns the mode that the file then has, which is another one where locks do not work.

    Of all waits this is one that SQLite's own timeout does not cover: of two processes that make the same file one
    would be told at once that it is locked. Raises sqlite3.OperationalError after `patience` seconds.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return str(db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(_AGAIN)
