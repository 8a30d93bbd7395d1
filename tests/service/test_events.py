from __future__ import annotations

import asyncio
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from offline.publish import merged
from service.errors import RequestInvalid, StoreUnavailable
from service.events import AHEAD_SECONDS, ATTEMPTS, Event, Events, EventsRequest, appended
from service.metrics import Metrics
from service.profile import Profiles
from service.release.catalogue import Catalogue
from service.release.release import Release
from service.store.base import Store
from service.store.keys import history_key, user_tag
from service.store.lmdb import LmdbStore
from service.store.records import History, decode_history, encode_history, event_mark
from tests.service.tiny_release import TinyRelease, publish

ROOT = Path(__file__).parents[2]
NOW = 1_800_000_000
RESULTS = ("accepted", "duplicate", "unknown_item")


@pytest.fixture(scope="module")
def catalogue(tiny: TinyRelease) -> Catalogue:
    return Release.open(tiny.path).catalogue


def request(user: str, *events: tuple[str, str, Any]) -> EventsRequest:
    rows = [{"event_id": i, "item_id": item, "timestamp": when} for i, item, when in events]
    return EventsRequest.model_validate({"user_id": user, "events": rows})


def writer(store: Store, keep: int = 200) -> Events:
    return Events(store, keep, Metrics(CollectorRegistry()))


async def stored(store: Store, user: str) -> History:
    (record,) = await store.get([history_key(user_tag(user))])
    found = decode_history(record)
    assert isinstance(found, History)
    return found


@pytest.mark.anyio
async def test_the_next_recommendation_sees_what_was_appended(
    any_store: Store, tiny: TinyRelease, catalogue: Catalogue
) -> None:
    await publish(tiny, any_store)
    user = tiny.users[0]
    answer = await writer(any_store).append(
        request(user.id, ("e1", "item-9", NOW - 1e8), ("e2", "no such item", NOW - 1e8 + 5)), catalogue
    )
    assert (answer.accepted, answer.duplicates, answer.unknown_items) == (2, 0, 1)
    assert answer.history == len(user.history) + 2
    profile = await Profiles(any_store, tiny.manifest.release_id).fetch(
        user.id, tiny.manifest.models[0].reasoning, history=True, reasoning=True, steps=False, seconds=10
    )
    assert profile.history == [*user.history, "item-9", "no such item"]
    assert profile.behind == 2


@pytest.mark.anyio
async def test_the_same_event_counts_once(store: Store, catalogue: Catalogue) -> None:
    registry = CollectorRegistry()
    events = Events(store, 200, Metrics(registry))
    first = await events.append(request("u", ("e1", "a", 5), ("e2", "b", 6), ("e1", "a", 5)), catalogue)
    assert (first.accepted, first.duplicates, first.unknown_items) == (2, 1, 2)
    again = await events.append(request("u", ("e2", "b", 6), ("e3", "c", 7)), catalogue)
    assert (again.accepted, again.duplicates, again.unknown_items, again.history) == (1, 1, 1, 3)
    assert (await stored(store, "u")).items == ["a", "b", "c"]
    told = {result: registry.get_sample_value("scoter_events_total", {"result": result}) for result in RESULTS}
    assert told == {"accepted": 3, "duplicate": 2, "unknown_item": 3}


@pytest.mark.anyio
async def test_late_events_find_their_place(store: Store, catalogue: Catalogue) -> None:
    await store.put([(history_key(user_tag("u")), encode_history(History(["of", "a release"], 1)))])
    events = writer(store)
    await events.append(request("u", ("e1", "at 50", 50), ("e2", "at 30", 30)), catalogue)
    await events.append(request("u", ("e3", "at 40", "1970-01-01T00:00:40Z"), ("e4", "at 30 too", 30.0)), catalogue)
    assert (await stored(store, "u")).items == ["of", "a release", "at 30", "at 30 too", "at 40", "at 50"]
    await events.append(request("u", ("e5", "at 40.002", 40.002), ("e6", "at 40.001", 40.001)), catalogue)
    assert (await stored(store, "u")).items[-4:] == ["at 40", "at 40.001", "at 40.002", "at 50"]


@pytest.mark.anyio
async def test_the_oldest_items_leave_and_are_still_known(store: Store, catalogue: Catalogue) -> None:
    await store.put([(history_key(user_tag("u")), encode_history(History(["x", "y"], 1)))])
    events = writer(store, keep=3)
    for number in range(5):
        await events.append(request("u", (f"e{number}", f"i{number}", 10 + number)), catalogue)
    found = await stored(store, "u")
    assert (found.items, found.dropped, found.length) == (["i2", "i3", "i4"], 4, 7)
    again = await events.append(request("u", ("e0", "i0", 10), ("e1", "i1", 11), ("e4", "i4", 14)), catalogue)
    assert (again.accepted, again.duplicates) == (0, 3)
    assert await stored(store, "u") == found


moments = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 50)), max_size=40)


@given(moments, st.integers(1, 12), st.randoms())
def test_any_order_of_arrival_ends_in_the_order_of_time(
    came: list[tuple[int, int]], keep: int, order: random.Random
) -> None:
    by_id = {number: Event(event_id=str(number), item_id=f"i{number}", timestamp=at(when)) for number, when in came}
    events = [by_id[number] for number, _ in came]
    order.shuffle(events)
    history = History([], 0)
    seen = 0
    for event in events:
        history, new = appended(history, [event], keep)
        seen += len(new)
        assert len(history.items) <= keep
    assert history.times == sorted(history.times)
    assert len(history.forgotten) <= keep  # or the record would grow for as long as the user comes
    times = sorted((event.timestamp for event in by_id.values()), reverse=True)[:keep]
    assert [datetime.fromtimestamp(moment / 1000, UTC) for moment in reversed(history.times)] == times
    if len(by_id) <= keep:
        assert (seen, history.length, history.dropped) == (len(by_id), len(by_id), 0)


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.mark.anyio
async def test_the_future_is_refused_whole(store: Store, catalogue: Catalogue) -> None:
    far = time.time() + AHEAD_SECONDS + 60
    with pytest.raises(RequestInvalid) as caught:
        await writer(store).append(request("u", ("e1", "a", 5), ("e2", "b", far)), catalogue)
    assert [field.pointer for field in caught.value.fields] == ["/events/1/timestamp"]
    assert await store.get([history_key(user_tag("u"))]) == [None]
    near = await writer(store).append(request("u", ("e1", "a", time.time() + AHEAD_SECONDS - 60)), catalogue)
    assert near.accepted == 1


@pytest.mark.parametrize("when", ["2025-01-01T00:00:00", "yesterday", None, [], float("nan"), 1e300])
def test_a_time_that_is_none_is_refused(when: object) -> None:
    with pytest.raises(ValidationError):
        request("u", ("e", "i", when))


@pytest.mark.anyio
async def test_a_corrupt_history_is_counted_and_does_not_keep_events_out(store: Store, catalogue: Catalogue) -> None:
    registry = CollectorRegistry()
    await store.put([(history_key(user_tag("u")), b"{")])
    answer = await Events(store, 10, Metrics(registry)).append(request("u", ("e", "a", 5)), catalogue)
    assert answer.accepted == 1
    assert (await stored(store, "u")).items == ["a"]
    assert registry.get_sample_value("scoter_history_misses_total", {"reason": "corrupt"}) == 1
    assert registry.get_sample_value("scoter_events_total", {"result": "accepted"}) == 1
    assert registry.get_sample_value("scoter_events_total", {"result": "unknown_item"}) == 1


@pytest.mark.anyio
async def test_writers_at_once_lose_nothing_that_was_acknowledged(any_store: Store, catalogue: Catalogue) -> None:
    # Each of the eight takes no turns with the others: they stand for as many processes.
    writers = [writer(any_store, keep=1000) for _ in range(8)]

    async def write(number: int) -> None:
        for turn in range(6):
            for user in ("u", "v"):
                name = f"{number}-{turn}-{user}"
                await writers[number].append(request(user, (name, name, NOW - 1e8 - turn)), catalogue)

    await asyncio.wait_for(asyncio.gather(*(write(number) for number in range(8))), 60)
    for user in ("u", "v"):
        found = await stored(any_store, user)
        assert sorted(found.items) == sorted(f"{n}-{t}-{user}" for n in range(8) for t in range(6))
        assert found.times == sorted(found.times)


@pytest.mark.anyio
async def test_a_hundred_requests_for_one_user_take_turns(store: Store, catalogue: Catalogue) -> None:
    registry = CollectorRegistry()
    events = Events(store, 1000, Metrics(registry))
    await asyncio.gather(*(events.append(request("u", (f"e{n}", f"i{n}", n)), catalogue) for n in range(100)))
    assert (await stored(store, "u")).items == [f"i{n}" for n in range(100)]
    assert registry.get_sample_value("scoter_event_retries_total") == 0
    assert len(events._turns) == 0  # nobody waits, nothing is kept


PROCESS = """
import asyncio, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from service.events import Events, EventsRequest
from service.metrics import Metrics
from service.release.release import Release
from service.store.lmdb import LmdbStore

async def main(folder, release, name):
    store = LmdbStore(Path(folder))
    events, catalogue = Events(store, 1000, Metrics(CollectorRegistry())), Release.open(Path(release)).catalogue
    for number in range(40):
        event = {"event_id": f"{name}{number}", "item_id": f"{name}{number}", "timestamp": number}
        await events.append(EventsRequest.model_validate({"user_id": "u", "events": [event]}), catalogue)
        print(f"{name}{number}", flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.anyio
@pytest.mark.slow
async def test_what_a_killed_writer_has_acknowledged_is_there(tiny: TinyRelease, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "store"), str(tiny.path)]
    running = [
        await asyncio.create_subprocess_exec(*command, name, cwd=ROOT, stdout=asyncio.subprocess.PIPE) for name in "abc"
    ]
    assert running[0].stdout is not None
    for _ in range(5):
        await running[0].stdout.readline()
    running[0].kill()
    said = [(await process.communicate())[0].decode().split() for process in running]
    assert [process.returncode for process in running[1:]] == [0, 0]
    store = LmdbStore(tmp_path / "store")
    items = (await stored(store, "u")).items
    await store.close()
    assert {f"a{number}" for number in range(5)} | {*said[0], *said[1], *said[2]} <= {*items}
    assert len(items) == len({*items})
    assert {f"{name}{number}" for name in "bc" for number in range(40)} <= {*items}


@pytest.mark.anyio
async def test_a_user_that_never_stays_the_same_is_no_endless_loop(
    store: Store, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_key: bytes, _old: bytes | None, _new: bytes) -> bool:
        return False

    monkeypatch.setattr("service.events.LONGEST_PAUSE", 0.0001)
    monkeypatch.setattr(store, "swap", never)
    registry = CollectorRegistry()
    with pytest.raises(StoreUnavailable, match="send it again"):
        await Events(store, 10, Metrics(registry)).append(request("u", ("e", "a", 5)), catalogue)
    assert registry.get_sample_value("scoter_event_retries_total") == ATTEMPTS


@pytest.mark.parametrize("when", [NOW - 86_400, NOW])
def test_a_late_event_that_the_release_holds_ends_alike_before_and_after_it(when: int) -> None:
    """The latest of them is of the very second at which the data were read."""
    late = Event.model_validate({"event_id": "order-7", "item_id": "milk", "timestamp": when})
    items = ["bread", "milk", "razor"]
    before, _ = appended(History(["bread"], 1), [late], 200)
    first = merged(before, items, NOW)
    after, new = appended(History(items, 1, NOW), [late], 200)
    assert first is not None
    assert after.items == first.items == items
    assert new == []


def test_events_that_the_release_holds_are_no_news_though_their_items_are_kept_no_more() -> None:
    """Sent again, they would stand behind all that is left of the release, as the user's latest."""

    def event(item: str, moment: int) -> Event:
        return Event.model_validate({"event_id": f"of {item} at {moment}", "item_id": item, "timestamp": moment})

    items = [f"i{number}" for number in range(6)]
    cut, _ = appended(History(items, 1, NOW), [event("fresh", NOW + 1)], 4)
    assert (cut.items, cut.gone) == (["i3", "i4", "i5", "fresh"], ["i0", "i1", "i2"])
    assert appended(cut, [event(item, NOW - 9) for item in items], 4) == (cut, [])
    again, new = appended(cut, [event("i1", NOW - 9), event("i1", NOW - 8)], 4)  # bought once only by its data
    assert (again.items, len(new)) == (["i4", "i5", "i1", "fresh"], 1)
    assert again.gone == ["i0", "i1", "i2", "i3"]
    # A release of later data that has not this event has had it no more than the one before.
    late = merged(again, ["i0", "i1", "i2", "i3", "i4", "i5"], NOW + 5)
    assert late is not None
    assert (late.items, late.gone) == ([*items, "i1", "fresh"], [])


def test_what_is_kept_of_items_that_are_kept_no_more_is_bounded() -> None:
    """The latest of a release's and of events' marks, as many as items: a record is read with each request."""
    history = History([f"r{number}" for number in range(9)], 1, NOW)
    came = [
        Event.model_validate({"event_id": f"e{number}", "item_id": f"i{number}", "timestamp": NOW + 1 + number})
        for number in range(9)
    ]
    for event in came:
        history, _ = appended(history, [event], 3)
    assert (history.items, history.dropped) == (["i6", "i7", "i8"], 15)
    assert history.gone == ["r6", "r7", "r8"]
    assert history.forgotten == [event_mark(f"e{number}") for number in (3, 4, 5)]


def test_an_event_that_is_kept_no_more_is_known_after_the_next_release() -> None:
    """Also where that release does not hold it: its producer may send it again, and it would be bought once more."""
    came = [
        Event.model_validate({"event_id": f"e{number}", "item_id": f"i{number}", "timestamp": NOW + 1 + number})
        for number in range(4)
    ]
    cut, _ = appended(History(["r"], 1, NOW), came, 2)
    assert cut.items == ["i2", "i3"]
    after = merged(cut, ["r", "i1"], NOW + 3)
    assert after is not None
    assert after.items == ["r", "i1", "i2", "i3"]
    assert appended(after, came, 9) == (after, [])


def test_of_two_events_of_an_item_that_the_release_holds_once_one_is_new() -> None:
    events = [Event.model_validate({"event_id": f"e{n}", "item_id": "milk", "timestamp": NOW - n}) for n in (2, 1)]
    after, new = appended(History(["milk", "razor"], 1, NOW), events, 200)
    assert [event.event_id for event in new] == ["e1"]
    assert after.items == ["milk", "razor", "milk"]
