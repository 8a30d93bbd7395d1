"""The store's pointer to the live release, and who follows it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import structlog

from service.errors import EngineError, ExperimentsError, ReleaseCorrupt, ReleaseError, ReleaseMissing, StoreError
from service.metrics import Metrics
from service.store.base import Store
from service.store.keys import RELEASE_POINTER

log = structlog.get_logger(__name__)

PATIENCE_CEILING = 300.0  # seconds between attempts at a release that cannot be served
START_PAUSES = (0.1, 0.3, 1.0)  # seconds between attempts to read the pointer when the service starts


async def published(store: Store, where: str = "the store") -> str:
    """The id of the live release. Raises ReleaseMissing if none was published, StoreError if the store is down.

    `where` is what the message calls the store: a mistyped folder is an empty store.
    """
    (pointer,) = await store.get([RELEASE_POINTER])
    if pointer is None:
        raise ReleaseMissing(
            f"{where} names no live release: publish one into it with `scoter publish`, or pin one with --release"
        )
    release_id = pointer.decode("ascii", "replace")
    if not (len(release_id) == 16 and all(digit in "0123456789abcdef" for digit in release_id)):
        raise ReleaseCorrupt(f"the store's release pointer is no release id: {release_id!r}; publish again")
    return release_id


async def published_at_start(store: Store, where: str = "the store") -> str:
    """What `published` says to a service that has nothing else to serve yet.

    The store is given as little time as for a request, which can do without it: one late answer must not end a start.
    """
    for pause in START_PAUSES:
        try:
            return await published(store, where)
        except StoreError as error:
            log.warning("release_pointer_unread", error=str(error), again_seconds=pause)
            await asyncio.sleep(pause)
    return await published(store, where)


@dataclass(frozen=True, slots=True)
class _Refused:
    """The release that the pointer names and that could not be served."""

    release: str
    patience: float  # seconds between the latest attempt and the next
    again: float  # when to try again, by the clock


class Follower:
    """Swaps whenever the pointer moves.

    A release that is refused is tried again, ever more rarely; the pointer is read as often as ever, as what it names
    next may be the way back.
    """

    def __init__(
        self,
        store: Store,
        swap: Callable[[str], Awaitable[object]],  # counts and logs what it refuses
        served: str,  # what the pointer named when it was last followed
        seconds: float,  # between two looks
        metrics: Metrics,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store = store
        self._swap = swap
        self._followed = served
        self._seconds = seconds
        self._metrics = metrics
        self._clock = clock
        self._refused: _Refused | None = None
        self._unread: str | None = None  # why the pointer could not be read at the last look
        self._tell_again = 0.0  # when, by the clock
        self._now = asyncio.Event()

    def hurry(self) -> None:
        """Look now instead of at the next turn, and give a refused release another chance."""
        self._now.set()

    async def run(self) -> None:
        """Look again and again."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._now.wait(), self._seconds)
            try:
                await self.look()
            except Exception:
                log.exception("release_watch_failed")  # a watcher that ends would leave this replica behind unnoticed

    async def look(self) -> None:
        """Read the pointer, and swap if it names what is not served and is due."""
        hurried = self._now.is_set()
        self._now.clear()
        wanted = await self._read()
        if wanted is None:
            return
        refused = self._refused if self._refused is not None and self._refused.release == wanted else None
        self._refused = refused  # a release that the pointer came back to is a new decision
        if wanted == self._followed or (refused is not None and not hurried and self._clock() < refused.again):
            return
        try:
            await self._swap(wanted)
        except (ReleaseError, EngineError, ExperimentsError):
            patience = min(2 * (self._seconds if refused is None else refused.patience), PATIENCE_CEILING)
            self._refused = _Refused(wanted, patience, self._clock() + patience)
        else:
            self._followed, self._refused = wanted, None

    async def _read(self) -> str | None:
        """The release that the pointer names; why there is none is told at first and every few minutes."""
        try:
            wanted = await published(self._store)
        except (ReleaseError, StoreError) as error:
            if str(error) != self._unread or self._clock() >= self._tell_again:
                self._unread, self._tell_again = str(error), self._clock() + PATIENCE_CEILING
                log.error("release_pointer_unread", error=str(error))  # noqa: TRY400 - it says what is wrong
                if isinstance(error, ReleaseError):  # a store that is down has refused nothing
                    self._metrics.swapped("refused")
            return None
        self._unread = None
        return wanted
