"""The exposure log: takes an event in microseconds, and writes it when nobody waits."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from itertools import islice

import structlog

from service.exposures.event import Exposure, encode
from service.exposures.sinks import FileSink, Sink, SinkFailed, StdoutSink, StreamSink
from service.metrics import Metrics
from service.settings import ExposureSettings

log = structlog.get_logger(__name__)

PAUSE_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)  # after one, two, ... failures of a sink in a row
CLOSE_SECONDS = 1.0  # for a sink to give back what it holds


class ExposureLog:
    """Hands each exposure to every sink that the settings name. Belongs to one event loop."""

    def __init__(self, settings: ExposureSettings, metrics: Metrics) -> None:
        self._seconds = settings.close_seconds
        self._tagged = settings.user == "tag"
        self._metrics = metrics
        self._channels = [_Channel(sink, settings, metrics) for sink in _sinks(settings)]

    @property
    def enabled(self) -> bool:
        """Whether anyone takes exposures; if not, none need be made."""
        return bool(self._channels)

    def record(self, exposure: Exposure) -> None:
        """Take an exposure. Never waits and never raises: what cannot be queued is dropped and counted."""
        if not self._channels:
            return
        try:
            # Here and not by the writer: a batch of these would keep the event loop for milliseconds.
            line = encode(exposure, tagged=self._tagged)
        except ValueError:  # of pydantic: a value that JSON cannot hold
            for channel in self._channels:
                channel.drop("unencodable", 1)
            return
        for channel in self._channels:
            channel.put(line)

    async def close(self) -> None:
        """Write what waits, within the time that the settings give; the rest is dropped and counted."""
        await asyncio.gather(*(channel.close(self._seconds) for channel in self._channels))


def _sinks(settings: ExposureSettings) -> list[Sink]:
    sinks: list[Sink] = []
    if settings.stdout:
        sinks.append(StdoutSink())
    if settings.file is not None:
        sinks.append(FileSink(settings.file))
    if settings.redis is not None:
        sinks.append(StreamSink(settings.redis, settings.stream, settings.stream_length))
    return sinks


class _Channel:
    """The queue before one sink, and the task that empties it. A failing sink keeps its events while there is room."""

    def __init__(self, sink: Sink, settings: ExposureSettings, metrics: Metrics) -> None:
        self._sink = sink
        self._metrics = metrics
        self._room = settings.queue
        self._batch = settings.batch
        self._linger = settings.linger_seconds
        self._waiting: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._closing = asyncio.Event()
        self._failure: str | None = None  # why the sink does not write at present
        self._writer = asyncio.create_task(self._write())
        metrics.exposing(sink.name)

    def put(self, line: bytes) -> None:
        """Queue a line, or drop it: for the sink's own failure if it has one, else because it is too slow."""
        if self._closing.is_set():
            self.drop("closed", 1)
        elif len(self._waiting) >= self._room:
            self.drop(self._failure or "queue_full", 1)
        else:
            self._waiting.append(line)
            self._arrived.set()

    def drop(self, reason: str, count: int) -> None:
        """Count what will not be written."""
        self._metrics.exposures_dropped(self._sink.name, reason, count)

    async def close(self, seconds: float) -> None:
        """Let the writer finish, for so long."""
        self._closing.set()
        self._arrived.set()
        _, late = await asyncio.wait([self._writer], timeout=seconds)
        if late:
            self._writer.cancel()
            await asyncio.wait([self._writer])
        if self._waiting:
            self.drop(self._failure or "closed", len(self._waiting))
            self._waiting.clear()
        with suppress(TimeoutError):  # a connection that hangs ends with the process
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._sink.close()

    async def _write(self) -> None:
        while not (self._closing.is_set() and not self._waiting):
            await self._arrived.wait()
            self._arrived.clear()
            failures = 0
            while self._waiting:
                # Left in the queue until it is written: a batch that fails is tried again.
                batch = list(islice(self._waiting, self._batch))
                if not await self._written(batch):
                    await self._rest(PAUSE_SECONDS[min(failures, len(PAUSE_SECONDS) - 1)])
                    failures += 1
                    continue
                failures = 0
                for _ in batch:
                    self._waiting.popleft()
                self._metrics.exposures_written(self._sink.name, len(batch))
                if len(self._waiting) < self._batch and not self._closing.is_set():
                    await self._rest(self._linger)

    async def _written(self, batch: list[bytes]) -> bool:
        try:
            await self._sink.write(batch)
        except SinkFailed as error:
            if self._failure != error.reason:  # once, not at every try
                log.warning("exposures_not_written", sink=self._sink.name, reason=str(error))
            self._failure = error.reason
            return False
        except Exception:
            log.exception("exposures_not_written", sink=self._sink.name)  # and the writer goes on: it is the only one
            self._failure = "unwritable"
            return False
        if self._failure is not None:
            log.info("exposures_written_again", sink=self._sink.name)
            self._failure = None
        return True

    async def _rest(self, seconds: float) -> None:
        if self._closing.is_set():
            await asyncio.sleep(PAUSE_SECONDS[0])
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
