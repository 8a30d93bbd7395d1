import asyncio
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from offline import publish as module
from offline.errors import StageError
from offline.publish import latest_release, publish
from offline.shelf import read_load, read_shelf, rollback
from service.errors import ReleaseCorrupt, ReleaseError, ReleaseMissing, StoreUnavailable
from service.events import Event, Events, EventsRequest, appended
from service.metrics import Metrics
from service.release.blob import BlobMiss, Reasoning, decode
from service.release.release import Release
from service.store.base import Change, Store
from service.store.keys import (
    RELEASE_POINTER,
    RELEASES,
    history_key,
    load_key,
    reasoning_key,
    steps_key,
    user_tag,
    users_key,
)
from service.store.records import (
    History,
    Load,
    RecordMiss,
    decode_history,
    decode_steps,
    decode_tags,
    encode_history,
    encode_load,
)
from tests.service.tiny_release import WRITTEN, TinyRelease, seal, write_release

asynchronous = pytest.mark.anyio


class Watched:
    """A store that records what is written, and may fail or lose a value."""

    def __init__(self, inner: Store, *, fail_at: int | None = None, lose: bytes = b"no key holds this") -> None:
        self.inner = inner
        self.fail_at = fail_at
        self.lose = lose
        self.writes: list[list[tuple[bytes, bytes]]] = []

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self.inner.get(keys)

    def _write(self, pairs: list[tuple[bytes, bytes]]) -> None:
        if len(self.writes) == self.fail_at:
            raise StoreUnavailable("the store went away")
        self.writes.append(pairs)

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._write(list(pairs))
        await self.inner.put(pair for pair in self.writes[-1] if self.lose not in pair[0])

    async def swap(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        if key != RELEASES:
            self._write([(key, new)])
        return await self.inner.swap(key, old, new)

    async def swap_all(self, changes: Iterable[Change]) -> list[bool]:
        return await self.inner.swap_all(changes)

    async def delete(self, keys: Iterable[bytes]) -> None:
        raise NotImplementedError

    async def ping(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


async def pointer(store: Store) -> bytes | None:
    return (await store.get([RELEASE_POINTER]))[0]


async def reasoning(store: Store, tiny: TinyRelease, user: str) -> Reasoning | BlobMiss:
    entry = tiny.manifest.models[0].reasoning
    assert entry is not None
    release = tiny.manifest.release_id
    (blob,) = await store.get([reasoning_key(user_tag(user), release, entry.name)])
    return decode(blob, entry.blob_format(release), user)


async def history(store: Store, user: str) -> History:
    (record,) = await store.get([history_key(user_tag(user))])
    found = decode_history(record)
    assert isinstance(found, History)
    return found


def resealed(tiny: TinyRelease, folder: Path) -> TinyRelease:
    """The release with a manifest that fits the files as they are now."""
    size = tiny.manifest.dataset
    manifest = seal(folder, tiny.manifest.models, items=size.items, users=size.users)
    return replace(tiny, path=folder.rename(folder.parent / manifest.release_id), manifest=manifest)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    return write_release(tmp_path_factory.mktemp("older"), seed=9)


@asynchronous
async def test_every_user_s_records_are_the_release_s(store: Store, tiny: TinyRelease) -> None:
    before = int(time.time())
    done = await publish(tiny.path, store)
    entry = tiny.manifest.models[0].reasoning
    assert entry is not None
    size = 0
    for user in tiny.users:
        found = await reasoning(store, tiny, user.id)
        assert isinstance(found, Reasoning)
        np.testing.assert_array_equal(found.matrix, user.matrix)
        assert found.history_length == len(user.history)
        assert found.written == entry.written
        tag = user_tag(user.id)
        release = tiny.manifest.release_id
        keys = [history_key(tag), steps_key(tag, release), reasoning_key(tag, release, entry.name)]
        history, steps, blob = await store.get(keys)
        size += sum(len(part or b"") for part in (*keys, history, steps, blob))
        kept = decode_history(history)
        assert isinstance(kept, History)
        assert (kept.items, kept.known_until) == (user.history, entry.written)
        assert before <= kept.updated <= time.time()
        assert decode_steps(steps) == user.steps
    assert await pointer(store) == tiny.manifest.release_id.encode()
    assert (done.release_id, done.users, done.skipped, done.records) == (tiny.manifest.release_id, 6, 0, 18)
    assert done.bytes == size
    assert done.seconds > 0
    shelf = await read_shelf(store)
    assert (shelf.loaded, shelf.live) == ((tiny.manifest.release_id,), (tiny.manifest.release_id,))


@asynchronous
async def test_the_pointer_moves_last_and_alone(
    store: Store, tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    release = tiny.manifest.release_id
    watched = Watched(store)
    await publish(tiny.path, watched)
    written = [key for write in watched.writes for key, _ in write]
    assert written.index(users_key(release, 0)) == 1  # before any record, so that they can be found again
    assert watched.writes[-1] == [(RELEASE_POINTER, release.encode())]
    assert written.count(RELEASE_POINTER) == 1


@asynchronous
async def test_the_users_of_a_release_are_listed_beside_it(
    store: Store, tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    release = tiny.manifest.release_id
    await publish(tiny.path, store)
    parts = [decode_tags(part) for part in await store.get([users_key(release, n) for n in range(3)])]
    tags = [user_tag(user.id) for user in tiny.users]
    assert parts == [tags[:4], tags[4:], RecordMiss.absent]
    assert await read_load(store, release) == Load(6, 4, ("scoter_h",), done=6)


@asynchronous
@pytest.mark.parametrize("fail_at", range(8))
async def test_an_interrupted_publication_leaves_the_live_release_and_is_gone_on_with(
    store: Store, tiny: TinyRelease, older: TinyRelease, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    await publish(older.path, store)
    monkeypatch.setattr(module, "BATCH", 4)
    with pytest.raises(StoreUnavailable, match="went away"):
        await publish(tiny.path, Watched(store, fail_at=fail_at))
    assert await pointer(store) == older.manifest.release_id.encode()
    for user in older.users:
        found = await reasoning(store, older, user.id)
        assert isinstance(found, Reasoning)
        np.testing.assert_array_equal(found.matrix, user.matrix)
    done = await publish(tiny.path, store)
    assert done.skipped == {0: 0, 1: 0, 2: 0, 3: 0}.get(fail_at, 4 if fail_at < 7 else 6)
    release = tiny.manifest.release_id
    assert await pointer(store) == release.encode()
    assert await read_load(store, release) == Load(6, 4, ("scoter_h",), done=6)
    parts = [decode_tags(part) for part in await store.get([users_key(release, n) for n in range(3)])]
    tags = [user_tag(user.id) for user in tiny.users]
    assert parts == [tags[:4], tags[4:], RecordMiss.absent]  # or `gc` would not find them all
    for user in tiny.users:
        found = await reasoning(store, tiny, user.id)
        assert isinstance(found, Reasoning)
        np.testing.assert_array_equal(found.matrix, user.matrix)


@asynchronous
async def test_what_was_lost_meanwhile_is_written_again(
    store: Store, tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    with pytest.raises(StoreUnavailable):
        await publish(tiny.path, Watched(store, fail_at=5))
    await store.delete([steps_key(user_tag("user-0"), tiny.manifest.release_id)])
    done = await publish(tiny.path, store)
    assert (done.skipped, done.records) == (0, 18)
    assert await store.get([steps_key(user_tag("user-0"), tiny.manifest.release_id)]) != [None]


@asynchronous
@pytest.mark.parametrize("what", ["history", "steps"])
@pytest.mark.parametrize(
    "done, lost, skipped", [(6, range(0), 6), (6, range(5, 6), 4), (6, range(2, 6), 2), (8, range(7, 8), 6)]
)
async def test_what_a_replica_that_took_over_had_not_been_told_is_written_again(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    done: int,
    lost: range,
    skipped: int,
) -> None:
    """Another node says how far the load has come, and the sample meets nobody of whom something is missing."""
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "SAMPLE", 1)
    made = write_release(tmp_path, users=8)
    release = made.manifest.release_id
    tags = [user_tag(user.id) for user in made.users]
    keys = [history_key(tag) if what == "history" else steps_key(tag, release) for tag in tags]
    await publish(made.path, store)
    await store.put([(load_key(release), encode_load(Load(8, 2, ("scoter_h",), done=done)))])
    await store.delete([keys[row] for row in lost])
    if what == "history" and done == 8:  # by then they are those of whatever came later
        skipped = 8
    assert (await publish(made.path, store)).skipped == skipped
    assert await read_load(store, release) == Load(8, 2, ("scoter_h",), done=8)
    if skipped < 8:
        assert None not in await store.get(keys)


@asynchronous
@pytest.mark.parametrize("change", [{"leaving": True}, {"part": 2}, {"names": ("other",)}, {"users": 5}])
async def test_what_was_loaded_in_another_way_or_is_being_removed_is_written_anew(
    store: Store, tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """`gc` that was cut off leaves records that can all be read back, and the word that they are to go."""
    monkeypatch.setattr(module, "BATCH", 4)
    release = tiny.manifest.release_id
    await publish(tiny.path, store)
    whole = await read_load(store, release)
    assert isinstance(whole, Load)
    await store.put([(load_key(release), encode_load(replace(whole, done=4, **change)))])
    assert (await publish(tiny.path, store)).skipped == 0
    assert await read_load(store, release) == whole


@asynchronous
async def test_going_back_is_quick_and_keeps_the_later_histories(
    store: Store, tiny: TinyRelease, older: TinyRelease
) -> None:
    for release in (older, tiny):
        await publish(release.path, store)
    watched = Watched(store)
    done = await publish(older.path, watched)
    assert (done.skipped, done.records) == (6, 0)
    assert [key for write in watched.writes for key, _ in write] == [RELEASE_POINTER]
    assert await pointer(store) == older.manifest.release_id.encode()
    for release in (older, tiny):  # the records of both stay
        found = await reasoning(store, release, "user-3")
        assert isinstance(found, Reasoning)
        np.testing.assert_array_equal(found.matrix, release.users[3].matrix)
    assert (await history(store, "user-3")).items == tiny.users[3].history
    shelf = await read_shelf(store)
    ids = [older.manifest.release_id, tiny.manifest.release_id]
    assert (shelf.loaded, shelf.live) == ((*ids,), (*ids, ids[0]))


def events(*moments: tuple[str, str, float]) -> list[Event]:
    return [Event.model_validate({"event_id": i, "item_id": item, "timestamp": when}) for i, item, when in moments]


@asynchronous
async def test_events_outlive_publications(store: Store, tiny: TinyRelease, older: TinyRelease) -> None:
    await publish(older.path, store)
    user = tiny.users[3]
    already = next(item for item in user.history if item not in older.users[3].history)
    key = history_key(user_tag(user.id))
    (record,) = await store.get([key])
    before = decode_history(record)
    assert isinstance(before, History)
    came = events(
        ("known", already, WRITTEN - 10),  # the release holds it by now
        ("unknown", "elsewhere", WRITTEN - 5),
        ("later", already, WRITTEN + 5),
    )
    after, new = appended(before, came, 100)
    assert len(new) == 3
    await store.put([(key, encode_history(after))])
    for _ in range(2):  # the second finds nothing to do
        await store.delete([load_key(tiny.manifest.release_id)])
        await publish(tiny.path, store)
        found = await history(store, user.id)
        assert found.items == [*user.history, "elsewhere", already]
        assert appended(found, came, 100) == (found, [])  # each is still known


@asynchronous
async def test_a_history_that_changes_under_a_publication_is_brought_up_to_the_release_all_the_same(
    store: Store, tiny: TinyRelease
) -> None:
    """An event comes between reading the histories and writing them."""
    key = history_key(user_tag("user-0"))

    class Meanwhile(Watched):
        came = False

        async def swap_all(self, changes: Iterable[Change]) -> list[bool]:
            if not self.came:
                self.came = True
                after, _ = appended(History([], 0), events(("one", "elsewhere", WRITTEN + 5)), 100)
                await self.inner.put([(key, encode_history(after))])
            return await super().swap_all(changes)

    await publish(tiny.path, Meanwhile(store))
    assert (await history(store, "user-0")).items == [*tiny.users[0].history, "elsewhere"]
    assert (await history(store, "user-1")).items == tiny.users[1].history


@asynchronous
async def test_an_older_release_does_not_replace_what_a_later_one_knows(store: Store, tiny: TinyRelease) -> None:
    key = history_key(user_tag("user-0"))
    later = encode_history(History(["from", "later"], 5, known_until=WRITTEN + 1))
    await store.put([(key, later)])
    await publish(tiny.path, store)
    assert await store.get([key]) == [later]


def read_at(tiny: TinyRelease, folder: Path, seconds: object, *models: str) -> TinyRelease:
    """The release as of data that were read then, with some of its models."""
    (folder / module.HISTORIES).write_text(json.dumps({"read": seconds}), encoding="utf-8")
    entries = [entry for entry in tiny.manifest.models if not models or entry.name in models]
    return resealed(replace(tiny, manifest=tiny.manifest.model_copy(update={"models": entries})), folder)


@asynchronous
async def test_newer_reasoning_about_older_data_leaves_the_history_of_later_data(
    store: Store, tiny: TinyRelease, own: Path
) -> None:
    key = history_key(user_tag("user-0"))
    later = encode_history(History(["from", "later"], 5, known_until=WRITTEN - 50))
    await store.put([(key, later)])
    await publish(read_at(tiny, own, WRITTEN - 100).path, store)
    assert await store.get([key]) == [later]
    assert (await history(store, "user-1")).known_until == WRITTEN - 100


@asynchronous
async def test_a_release_without_reasoning_doubles_no_event(store: Store, tiny: TinyRelease, own: Path) -> None:
    user = tiny.users[3]
    key = history_key(user_tag(user.id))
    before = History(user.history[:-1], 5, known_until=WRITTEN - 200)
    came, new = appended(before, events(("one", user.history[-1], WRITTEN - 150), ("two", "x", WRITTEN - 50)), 100)
    assert len(new) == 2
    await store.put([(key, encode_history(came))])
    await publish(read_at(tiny, own, WRITTEN - 100, "hstu").path, store)
    assert (await history(store, user.id)).items == [*user.history, "x"]


@asynchronous
@pytest.mark.parametrize("seconds", ["yesterday", -1, 1.5, None, True])
async def test_a_release_that_does_not_say_when_its_data_were_read_writes_nothing(
    store: Store, tiny: TinyRelease, own: Path, seconds: object
) -> None:
    with pytest.raises(ReleaseCorrupt, match=r"histories\.json: read is "):
        await publish(read_at(tiny, own, seconds).path, store)
    assert await store.get([RELEASES]) == [None]


@asynchronous
async def test_no_event_is_lost_that_comes_while_a_release_is_published(any_store: Store, tiny: TinyRelease) -> None:
    writer = Events(any_store, 500, Metrics(CollectorRegistry()))
    catalogue = Release.open(tiny.path).catalogue
    acknowledged: dict[str, list[str]] = {user.id: [] for user in tiny.users}
    stop = asyncio.Event()

    async def write(user: str) -> None:
        number = 0
        while not stop.is_set():
            item = f"{user}-new-{number}"
            event = {"event_id": item, "item_id": item, "timestamp": WRITTEN + 1 + number}
            request = EventsRequest.model_validate({"user_id": user, "events": [event]})
            assert (await writer.append(request, catalogue)).accepted == 1
            acknowledged[user].append(item)
            number += 1
            await asyncio.sleep(0.002)

    writers = [asyncio.create_task(write(user.id)) for user in tiny.users]
    for _ in range(5):
        await any_store.delete([load_key(tiny.manifest.release_id)])
        await publish(tiny.path, any_store)
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*writers)
    for user in tiny.users:
        assert (await history(any_store, user.id)).items == user.history + acknowledged[user.id]
        assert len(acknowledged[user.id]) > 3


@asynchronous
async def test_a_user_without_a_chain_has_neither_h_nor_steps_in_the_store(
    store: Store, tiny: TinyRelease, own: Path
) -> None:
    path = own / module.USERS
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[1]["steps"] = []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changed = resealed(tiny, own)
    await publish(changed.path, store)
    assert await reasoning(store, changed, rows[1]["user"]) is BlobMiss.absent
    assert await store.get([steps_key(user_tag(rows[1]["user"]), changed.manifest.release_id)]) == [None]
    assert (await history(store, rows[1]["user"])).items == rows[1]["history"]
    assert isinstance(await reasoning(store, changed, rows[0]["user"]), Reasoning)


@asynchronous
async def test_a_release_whose_users_have_no_chains_can_be_gone_back_to(
    store: Store, tiny: TinyRelease, older: TinyRelease, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    path = own / module.USERS
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in (rows[0], rows[4], rows[5]):  # of the second part, all
        row["steps"] = []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changed = resealed(tiny, own)
    for release in (changed, older):
        await publish(release.path, store)
    assert await rollback(store) == changed.manifest.release_id


@asynchronous
async def test_a_release_that_is_taken_away_while_it_is_loaded_does_not_go_live(
    store: Store, tiny: TinyRelease, older: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `gc` would, between a part's records and the word that they are there."""
    monkeypatch.setattr(module, "BATCH", 4)
    await publish(older.path, store)
    release = tiny.manifest.release_id

    class Collected(Watched):
        async def swap(self, key: bytes, old: bytes | None, new: bytes) -> bool:
            if key == load_key(release):
                found = await read_load(self.inner, release)
                assert isinstance(found, Load)
                await self.inner.put([(key, encode_load(replace(found, leaving=True)))])
            return await super().swap(key, old, new)

    with pytest.raises(StageError, match=f"another command works on release {release}"):
        await publish(tiny.path, Collected(store))
    assert await pointer(store) == older.manifest.release_id.encode()
    assert (await publish(tiny.path, store)).skipped == 0
    assert await pointer(store) == release.encode()


@asynchronous
async def test_int8_halves_the_values(store: Store, tiny: TinyRelease, own: Path) -> None:
    entry = tiny.manifest.models[0].reasoning
    assert entry is not None
    model = tiny.manifest.models[0].model_copy(update={"reasoning": entry.model_copy(update={"dtype": "int8"})})
    small = tiny.manifest.model_copy(update={"models": [model, *tiny.manifest.models[1:]]})
    altered = resealed(replace(tiny, manifest=small), own)
    await publish(altered.path, store)
    for user in tiny.users:
        found = await reasoning(store, altered, user.id)
        assert isinstance(found, Reasoning)
        scale = np.abs(user.matrix).max(axis=1, keepdims=True) / 127
        assert (np.abs(found.matrix - user.matrix) <= scale * 0.501).all()


@asynchronous
@pytest.mark.parametrize("kind", [b":reasoning:", b":steps:"])
async def test_what_the_store_does_not_return_stops_the_pointer(
    store: Store, tiny: TinyRelease, older: TinyRelease, kind: bytes
) -> None:
    await publish(older.path, store)
    lost = user_tag("user-5").encode() + b"}" + kind
    with pytest.raises(StageError, match="does not return what was written for user row 5: the pointer was not moved"):
        await publish(tiny.path, Watched(store, lose=lost))
    assert await pointer(store) == older.manifest.release_id.encode()


@asynchronous
async def test_a_history_that_grew_meanwhile_is_no_fault(store: Store, tiny: TinyRelease) -> None:
    await publish(tiny.path, Watched(store, lose=b":history"))
    assert await pointer(store) == tiny.manifest.release_id.encode()


@asynchronous
@pytest.mark.parametrize("row", [0, 5])
async def test_a_sample_spread_over_all_users_is_read_back(
    store: Store, tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    monkeypatch.setattr(module, "SAMPLE", 2)
    monkeypatch.setattr(module, "BATCH", 4)
    with pytest.raises(StageError, match=f"user row {row}"):
        await publish(tiny.path, Watched(store, lose=user_tag(f"user-{row}").encode() + b"}:steps"))
    assert await pointer(store) is None


FILES = ["manifest.json", "reasoning/scoter_h.npy", "reasoning/users.jsonl", "models/hstu/1/model.onnx"]


@asynchronous
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["gone", "cut", "altered"])
async def test_a_damaged_release_is_refused_before_anything_is_written(
    store: Store, own: Path, file: str, damage: str
) -> None:
    path = own / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(content if damage == "altered" else content[:-20])
    watched = Watched(store)
    with pytest.raises(ReleaseError):
        await publish(own, watched)
    assert watched.writes == []
    assert await pointer(store) is None


ROW: dict[str, Any] = {"user": "user-1", "history": ["item-1"], "steps": ["one"]}


@asynchronous
@pytest.mark.parametrize(
    "line, reason",
    [
        ("{", r"users\.jsonl, line 2: not an object with user, history and steps"),
        ("[1]", "line 2: not an object with"),
        (json.dumps({"user": "user-1", "history": []}), r"line 2: not an object with .*KeyError\('steps'\)"),
        (json.dumps(ROW | {"user": 1}), "line 2: user is no text"),
        (json.dumps(ROW | {"history": "item-1"}), "line 2: .*history or steps no list of texts"),
        (json.dumps(ROW | {"history": [1]}), "line 2: .*history or steps no list of texts"),
        (json.dumps(ROW | {"steps": None}), "line 2: .*history or steps no list of texts"),
        (f"{json.dumps(ROW)}\n{json.dumps(ROW)}", "line 7: the manifest speaks of 6 users"),
        (None, r"users\.jsonl holds 5 users, the manifest speaks of 6"),
    ],
)
async def test_users_that_do_not_belong_to_the_release_are_refused(
    store: Store, tiny: TinyRelease, own: Path, line: str | None, reason: str
) -> None:
    path = own / "reasoning" / "users.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1:2] = [] if line is None else [line]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    watched = Watched(store)
    with pytest.raises(ReleaseCorrupt, match=reason):
        await publish(resealed(tiny, own).path, watched)
    assert watched.writes == []


@asynchronous
@pytest.mark.parametrize(
    "matrix, reason",
    [
        (np.zeros((6, 3, 15), np.float16), r"scoter_h\.npy is \[6, 3, 15\], expected \[6, 3, 16\]"),
        (np.zeros((5, 3, 16), np.float16), r"scoter_h\.npy is \[5, 3, 16\], expected \[6, 3, 16\]"),
        (np.full((6, 3, 16), np.nan, np.float16), r"scoter_h\.npy, row 0: reasoning of user 'user-0' is not finite"),
        (None, r"scoter_h\.npy is no array"),
    ],
)
async def test_reasoning_that_does_not_belong_to_the_release_is_refused(
    store: Store, tiny: TinyRelease, own: Path, matrix: Any, reason: str
) -> None:
    path = own / "reasoning" / "scoter_h.npy"
    if matrix is None:
        path.write_bytes(b"not an array")
    else:
        np.save(path, matrix)
    watched = Watched(store)
    with pytest.raises(ReleaseCorrupt, match=reason):
        await publish(resealed(tiny, own).path, watched)
    assert watched.writes == []


@asynchronous
@pytest.mark.parametrize("file", ["reasoning/users.jsonl", "reasoning/scoter_h.npy"])
async def test_a_file_that_the_manifest_does_not_vouch_for_is_refused(
    store: Store, tiny: TinyRelease, own: Path, file: str
) -> None:
    aside = (own / file).rename(own.parent / "aside")
    altered = resealed(tiny, own).path
    aside.rename(altered / file)
    with pytest.raises(ReleaseCorrupt, match=f"the manifest does not list {file}"):
        await publish(altered, Watched(store))
    assert await pointer(store) is None


def exported(work: Path, stage: str, release: str, seconds: int) -> None:
    (work / stage).mkdir(parents=True)
    (work / stage / "release").write_text(release + "\n", encoding="ascii")
    os.utime(work / stage / "release", (seconds, seconds))


def test_the_release_exported_last_is_the_latest(tmp_path: Path) -> None:
    exported(tmp_path, "export-bbb", "b" * 16, 100)
    exported(tmp_path, "export-aaa", "a" * 16, 300)
    exported(tmp_path, "export-ccc", "c" * 16, 200)
    exported(tmp_path, "export-ddd.partial", "", 400)  # cut off
    assert latest_release(tmp_path) == tmp_path / "releases" / ("a" * 16)


@pytest.mark.parametrize("stage", [None, "export-aaa.partial", "evaluate-aaa"])
def test_without_an_export_there_is_no_latest_release(tmp_path: Path, stage: str | None) -> None:
    if stage:
        exported(tmp_path, stage, "a" * 16, 100)
    with pytest.raises(ReleaseMissing, match="holds no release: run `scoter run` first"):
        latest_release(tmp_path)
