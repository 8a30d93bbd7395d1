"""The embedded store: LMDB, one folder, many processes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import lmdb

from service.errors import StoreUnavailable
from service.store.base import Change

_T = TypeVar("_T")

# The file is sparse and grows as it is written to; the map only reserves address space.
MAP_BYTES = 1 << 34


def holds_store(path: Path) -> bool:
    """Whether a store was ever opened in that folder."""
    return (path / "data.mdb").is_file()


class LmdbStore:
    """A user store in `path`. A publisher in another process may write while this one reads.

    Raises StoreUnavailable if the folder cannot be opened.
    """

    def __init__(self, path: Path, *, map_bytes: int = MAP_BYTES) -> None:
        self._path = path
        # LMDB forbids changing the map's size while this process has a transaction, so reads and growth take turns.
        self._map = threading.Lock()
        # LMDB has one writer at a time. Many that wait for the disk would take the threads of the loop, which swaps and
        # experiments need.
        self._writer = ThreadPoolExecutor(1, "store")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._environment = lmdb.open(
                str(path),
                map_size=map_bytes,
                max_readers=1024,
                readahead=False,  # lookups are random; reading ahead would only evict other users' pages
            )
            # Whoever was killed while it read is taken for a reader still, and no page that it may need is used again:
            # the file would grow with each write until nobody has it open.
            self._environment.reader_check()
            self._file = _identity(path)
            self._extend()
        except (lmdb.Error, OSError) as error:
            raise StoreUnavailable(f"cannot open the LMDB store in {path}: {error}") from error

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys`, in order, from one consistent read transaction."""
        # Microseconds from the page cache: a hop to another thread would cost ten times the read itself.
        return self._translated(lambda: self._read(keys))

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Write pairs in one transaction, synced to disk when this returns."""
        batch = list(pairs)
        await self._write(lambda transaction: _put(transaction, batch))

    async def swap(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        """Compare and set in one write transaction, synced to disk when this returns."""
        (swapped,) = await self.swap_all([(key, old, new)])
        return swapped

    async def swap_all(self, changes: Iterable[Change]) -> list[bool]:
        """Compare and set every key in one write transaction."""
        batch = list(changes)
        return await self._write(lambda transaction: _swap(transaction, batch))

    async def delete(self, keys: Iterable[bytes]) -> None:
        """Remove keys in one transaction."""
        batch = list(keys)
        await self._write(lambda transaction: _delete(transaction, batch))

    async def ping(self) -> None:
        """Return if a read transaction can be opened, of the file that others find in the folder."""
        await self.get(())
        self._translated(self._check_place)

    async def close(self) -> None:
        """Unmap the file; any later call raises StoreUnavailable."""
        with suppress(StoreUnavailable):  # closed it is
            await self._in_turn(self._end)
        self._writer.shutdown(wait=False)

    def _read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._map:
            try:
                transaction = self._environment.begin()
            except lmdb.MapResizedError:
                # Another process has grown the map. No writer of ours can be in a transaction: it would have kept
                # the other one out.
                self._environment.set_mapsize(0)
                transaction = self._environment.begin()
            with transaction:
                return [transaction.get(key) for key in keys]

    async def _write(self, change: Callable[[lmdb.Transaction], _T]) -> _T:
        # A commit waits for the disk, and for other processes' writers.
        return await self._in_turn(lambda: self._translated(lambda: self._commit(change)))

    async def _in_turn(self, work: Callable[[], _T]) -> _T:
        """What the thread of writers returns. Shielded: what a cancelled caller wanted is written all the same."""
        try:
            turn = asyncio.get_running_loop().run_in_executor(self._writer, work)
        except RuntimeError as error:
            raise StoreUnavailable(f"the LMDB store in {self._path} is closed") from error
        return await asyncio.shield(turn)

    def _commit(self, change: Callable[[lmdb.Transaction], _T]) -> _T:
        self._check_place()  # what is written to a file without a name is lost
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    return change(transaction)
            except lmdb.MapFullError:
                with self._map:
                    self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.MapResizedError:
                with self._map:
                    self._environment.set_mapsize(0)

    def _check_place(self) -> None:
        """Raise StoreUnavailable if the file was replaced or removed since it was opened. Reads go on."""
        try:
            same = _identity(self._path) == self._file
        except FileNotFoundError:
            same = False
        if not same:
            raise StoreUnavailable(
                f"the LMDB store in {self._path} was replaced or removed while it was open: restart what has it open"
            )

    def _extend(self) -> None:
        """Make the file as long as LMDB takes it to be.

        Reading past the end of a file that was cut off, as by a full disk while it was copied, would end the process.
        Of pages of zeros LMDB says that they are corrupt. A file in order may lack its last pages too, which are free.
        """
        file, page = self._path / "data.mdb", self._environment.stat()["psize"]
        if file.stat().st_size < self._pages() * page:
            with self._environment.begin(write=True):  # nobody else makes it longer meanwhile
                whole = file.stat().st_size // page
                if whole < self._pages():
                    os.truncate(file, whole * page)  # a part of a page would pass for all of it
                    os.truncate(file, self._pages() * page)

    def _pages(self) -> int:
        last: int = self._environment.info()["last_pgno"]
        return last + 1

    def _end(self) -> None:
        with self._map:
            self._environment.close()

    def _translated(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (lmdb.Error, OSError) as error:
            raise StoreUnavailable(f"the LMDB store in {self._path} failed: {error}") from error


def _identity(path: Path) -> tuple[int, int]:
    """What tells the file from any other that bears its name later."""
    found = (path / "data.mdb").stat()
    return found.st_dev, found.st_ino


def _put(transaction: lmdb.Transaction, pairs: list[tuple[bytes, bytes]]) -> None:
    for key, value in pairs:
        transaction.put(key, value)


def _swap(transaction: lmdb.Transaction, changes: list[Change]) -> list[bool]:
    answers: list[bool] = []
    for key, old, new in changes:
        now = transaction.get(key)
        if now == old and now != new:
            transaction.put(key, new)
        answers.append(now in {old, new})
    return answers


def _delete(transaction: lmdb.Transaction, keys: list[bytes]) -> None:
    for key in keys:
        transaction.delete(key)
