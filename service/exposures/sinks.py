"""Where exposures go. A sink is slow, full or gone without anyone else noticing: it says so, and is asked again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, Protocol

from service.errors import StoreError, StoreTimeout
from service.settings import RedisSettings
from service.store.redis import Client

Failure = Literal["disk_full", "unavailable", "timeout", "unwritable"]
FIELD = "exposure"  # of each entry of the stream


class SinkFailed(Exception):
    """A batch was not written; never leaves this package."""

    def __init__(self, reason: Failure, detail: str) -> None:
        self.reason = reason
        super().__init__(detail)


class Sink(Protocol):
    """Takes batches of exposures."""

    name: str  # for metrics

    async def write(self, lines: Sequence[bytes]) -> None:
        """Write all lines, or raise SinkFailed; what was written of them then may be written again."""
        ...

    async def close(self) -> None:
        """Give connections and files back."""
        ...


class FileSink:
    """Appends lines to a file, opened by its path again when it was moved away, as log rotation does."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._writing = threading.Lock()
        self._daemon = Daemon()

    async def write(self, lines: Sequence[bytes]) -> None:
        """Append the lines. Raises SinkFailed, with nothing of the batch left in the file."""
        await self._daemon.run(lambda: self._append(b"".join(line + b"\n" for line in lines)))

    async def close(self) -> None:
        """Close the file, unless a write that was given up still hangs in it."""
        if self._writing.acquire(blocking=False):
            self._leave()
            self._writing.release()
        self._daemon.close()

    def _append(self, content: bytes) -> None:
        with self._writing:
            self._append_alone(content)

    def _append_alone(self, content: bytes) -> None:
        try:
            file = self._opened()
            start = os.fstat(file).st_size
            try:
                _write(file, content)
            except OSError:
                with contextlib.suppress(OSError):  # half a line would spoil the next one
                    os.ftruncate(file, start)
                raise
        except OSError as error:
            raise _failed(error, str(self._path)) from error

    def _opened(self) -> int:
        if self._file is not None:
            mine = os.fstat(self._file)
            try:
                there = self._path.stat()
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return self._file
            self._leave()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if _torn(self._path):  # by a process that was killed: what follows needs a line of its own
                _write(file, b"\n")
        except OSError:
            os.close(file)
            raise
        self._file = file
        return file

    def _leave(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class StdoutSink:
    """Writes lines to standard output; the service's logs go to standard error."""

    name = "stdout"

    def __init__(self) -> None:
        self._torn = False  # the last write ended in the middle of a line
        self._daemon = Daemon()

    async def write(self, lines: Sequence[bytes]) -> None:
        """Write the lines. Raises SinkFailed."""
        await self._daemon.run(lambda: self._print(b"".join(line + b"\n" for line in lines)))

    async def close(self) -> None:
        """End the thread."""
        self._daemon.close()

    def _print(self, content: bytes) -> None:
        left = memoryview(b"\n" + content if self._torn else content)
        try:
            file = sys.__stdout__.fileno() if sys.__stdout__ else 1
            while left:
                written = os.write(file, left)
                self._torn = left[written - 1] != ord("\n")
                left = left[written:]
        except (OSError, ValueError) as error:
            raise _failed(error, "standard output") from error


class StreamSink:
    """Adds entries with one field, `exposure`, to a Redis Stream of bounded length."""

    name = "redis"

    def __init__(self, settings: RedisSettings, stream: str, length: int) -> None:
        self._client = Client(settings, settings.write_timeout_ms)
        self._add = ("XADD", stream, "MAXLEN", "~", length, "*", FIELD)  # ~: some more are kept, as that is cheaper

    async def write(self, lines: Sequence[bytes]) -> None:
        """Add the lines by pipelined XADDs. Raises SinkFailed."""
        try:
            await self._client.pipelined((*self._add, line) for line in lines)
        except StoreTimeout as error:
            raise SinkFailed("timeout", str(error)) from error
        except StoreError as error:
            raise SinkFailed("unavailable", str(error)) from error

    async def close(self) -> None:
        """Close the connection, once what runs has met its timeout."""
        await self._client.close()


class Daemon:
    """A thread that ends with the process: a pipe nobody reads must not keep it from stopping.

    It does one piece of work after another. Were each given a thread of its own, the event loop would wait until that
    one has started, for milliseconds where the cores are busy with models.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None  # started by the first work

    async def run(self, work: Callable[[], None]) -> None:
        """Do blocking work in the thread. Raises what it raises."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: Exception | None) -> None:
            if done.done():
                return  # the caller has given up
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def run() -> None:
            failed: Exception | None = None
            try:
                work()
            except Exception as error:  # noqa: BLE001 - handed to the caller
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
                loop.call_soon_threadsafe(settle, failed)

        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="exposures", daemon=True)
            self._thread.start()
        self._work.put(run)
        await done

    def close(self) -> None:
        """End the thread once what it does is done."""
        self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # or a batch would stay until the next one


def _write(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def _torn(path: Path) -> bool:
    """Whether a file ends in the middle of a line. What cannot be read, or is no file, is taken to end with one."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) == 0:
                return False
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) != b"\n"
    except OSError:
        return False


def _failed(error: OSError | ValueError, where: str) -> SinkFailed:
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return SinkFailed("disk_full" if full else "unwritable", f"cannot write exposures to {where}: {error}")
