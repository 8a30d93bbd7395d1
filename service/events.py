"""POST /events: interactions of a user are appended to the stored history, which the next recommendation reads."""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_right
from collections import Counter
from typing import Annotated
from weakref import WeakValueDictionary

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema

from service.errors import FieldError, RequestInvalid, StoreUnavailable
from service.metrics import Metrics
from service.release.catalogue import Catalogue
from service.schemas import ID_CHARS, ItemId
from service.store.base import Store
from service.store.keys import history_key, user_tag
from service.store.records import History, RecordMiss, decode_history, encode_history, event_mark

BATCH = 500  # events in one request
AHEAD_SECONDS = 300  # how far a producer's clock may be ahead of ours
ATTEMPTS = 60
LONGEST_PAUSE = 0.05  # seconds between two attempts
# pydantic takes both, and documents the second only.
_TIME = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}]})


class Event(BaseModel):
    """One interaction of a user with an item."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_id: str = Field(min_length=1, max_length=256, description="The same id is the same event, sent again.")
    item_id: ItemId
    timestamp: Annotated[AwareDatetime, _TIME] = Field(
        description="When it happened: seconds since the epoch, or ISO 8601 with an offset."
    )
    type: str | None = Field(
        default=None, max_length=64, description="What it was, as the producer calls it; every type counts alike."
    )


class EventsRequest(BaseModel):
    """Interactions of one user, in any order."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "user_id": "u00001",
                    "events": [{"event_id": "order-7-1", "item_id": "i00391", "timestamp": 1748747565}],
                }
            ]
        },
    )

    user_id: str = Field(min_length=1, max_length=ID_CHARS)
    events: list[Event] = Field(min_length=1, max_length=BATCH)


class EventsResponse(BaseModel):
    """What became of the events; all of it is in the store."""

    accepted: int = Field(description="Events that were not known yet.")
    duplicates: int = Field(description="Events that had come before; nothing was done about them.")
    unknown_items: int = Field(description="Accepted events of items that the catalogue does not hold (yet).")
    history: int = Field(description="Items that are stored of the user now.")


class Events:
    """Appends events to stored histories: each once, in order of time, `keep` items a user, nothing lost on the way."""

    def __init__(self, store: Store, keep: int, metrics: Metrics) -> None:
        self._store = store
        self._keep = keep
        self._metrics = metrics
        # Writers of this process take turns; those of other processes are met in the store.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def append(self, request: EventsRequest, catalogue: Catalogue) -> EventsResponse:
        """Append what is new; what is returned is stored.

        Raises RequestInvalid if an event lies in the future, StoreError if the store fails or other writers of the
        same user left no gap: the same request may then be sent again.
        """
        _not_ahead(request.events)
        tag = user_tag(request.user_id)
        turn = self._turns.setdefault(tag, asyncio.Lock())
        async with turn:
            appended, stored = await self._appended(history_key(tag), request.events)
        unknown = sum(catalogue.index_of(event.item_id) is None for event in appended)
        self._metrics.events("accepted", len(appended))
        self._metrics.events("duplicate", len(request.events) - len(appended))
        self._metrics.events("unknown_item", unknown)
        return EventsResponse(
            accepted=len(appended),
            duplicates=len(request.events) - len(appended),
            unknown_items=unknown,
            history=stored,
        )

    async def _appended(self, key: bytes, events: list[Event]) -> tuple[list[Event], int]:
        """The events that were new, and the length of what is stored."""
        for attempt in range(ATTEMPTS):
            (record,) = await self._store.get([key])
            found = decode_history(record)
            if found is RecordMiss.corrupt:  # nobody can read it, and it must not keep new events out
                self._metrics.history_missed(found)
            before = found if isinstance(found, History) else History([], 0)
            after, new = appended(before, events, self._keep)
            if not new or await self._store.swap(key, record, encode_history(after)):
                return new, len(after.items)
            self._metrics.contended()
            await asyncio.sleep(random.uniform(0, min(0.001 * 2**attempt, LONGEST_PAUSE)))  # noqa: S311 - no secret
        raise StoreUnavailable(f"other writers changed this user's history {ATTEMPTS} times in a row: send it again")


def appended(history: History, events: list[Event], keep: int) -> tuple[History, list[Event]]:
    """The history with the events that it does not hold yet, at most `keep` items long; and those events."""
    known = {*history.marks, *history.forgotten}
    base = history.items[: len(history.items) - len(history.times)]
    items, times, marks = history.items[len(base) :], history.times.copy(), history.marks.copy()
    new: list[Event] = []
    room = Counter(history.gone + base)
    for event in events:
        mark = event_mark(event.event_id)
        if mark in known:
            continue
        known.add(mark)
        moment = round(event.timestamp.timestamp() * 1000)
        if moment <= history.known_until * 1000 and room[event.item_id] > 0:
            room[event.item_id] -= 1  # the release was made later and holds it, as `scoter publish` judges it, too
            continue
        new.append(event)
        place = bisect_right(times, moment)  # of those at the same time, the later comer comes later
        items.insert(place, event.item_id)
        times.insert(place, moment)
        marks.insert(place, mark)
    if not new:
        return history, new
    over = max(0, len(base) + len(items) - keep)
    old = max(0, over - len(base))  # of these, how many came as events
    kept = History(
        base[over:] + items[old:],
        int(time.time()),
        history.known_until,
        times[old:],
        marks[old:],
        history.dropped + over,
        (history.forgotten + marks[:old])[-keep:],
        (history.gone + base[:over])[-keep:],
    )
    return kept, new


def _not_ahead(events: list[Event]) -> None:
    latest = time.time() + AHEAD_SECONDS
    wrong = [
        FieldError(f"/events/{number}/timestamp", f"lies more than {AHEAD_SECONDS} s in the future")
        for number, event in enumerate(events)
        if event.timestamp.timestamp() > latest
    ]
    if wrong:
        raise RequestInvalid(wrong)
