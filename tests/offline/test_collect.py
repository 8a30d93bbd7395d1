from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from offline import publish as publishing
from offline.collect import Collected, collect
from offline.errors import StageError
from offline.publish import publish
from offline.shelf import read_load, read_shelf, record_keys, rollback
from service.errors import StoreUnavailable
from service.store.base import Change, Store
from service.store.keys import RELEASE_POINTER, RELEASES, history_key, user_tag, users_key
from service.store.records import Load, RecordMiss
from service.store.redis import RedisStore
from tests.conftest import redis_settings
from tests.redis_server import standalone
from tests.service.tiny_release import TinyRelease, write_release

pytestmark = pytest.mark.anyio


class Failing:
    """A store that goes away at its n-th change."""

    def __init__(self, inner: Store, changes: int) -> None:
        self.inner = inner
        self.left = changes

    def _change(self) -> None:
        if not self.left:
            raise StoreUnavailable("the store went away")
        self.left -= 1

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self.inner.get(keys)

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._change()
        await self.inner.put(pairs)

    async def swap(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        self._change()
        return await self.inner.swap(key, old, new)

    async def swap_all(self, changes: Iterable[Change]) -> list[bool]:
        self._change()
        return await self.inner.swap_all(changes)

    async def delete(self, keys: Iterable[bytes]) -> None:
        self._change()
        await self.inner.delete(keys)

    async def ping(self) -> None:
        await self.inner.ping()

    async def close(self) -> None:
        await self.inner.close()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[TinyRelease]:
    folder = tmp_path_factory.mktemp("four")
    return [write_release(folder / str(seed), seed=seed) for seed in range(4)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "BATCH", 4)


def release_id(release: TinyRelease) -> str:
    return release.manifest.release_id


async def left(store: Store, release: TinyRelease) -> int:
    """How many records of a release's own are in the store."""
    name = release_id(release)
    keys = record_keys(name, ["scoter_h"], [user_tag(user.id) for user in release.users])
    return sum(value is not None for value in await store.get([*keys, users_key(name, 0), users_key(name, 1)]))


async def histories(store: Store, release: TinyRelease) -> list[bytes | None]:
    return await store.get([history_key(user_tag(user.id)) for user in release.users])


async def test_old_releases_leave_and_the_rest_stays(any_store: Store, four: list[TinyRelease]) -> None:
    for release in four:
        await publish(release.path, any_store)
    before = await histories(any_store, four[0])
    assert await collect(any_store, 2) == [Collected(release_id(r), 6) for r in four[:2]]
    assert [await left(any_store, release) for release in four] == [0, 0, 14, 14]
    assert await histories(any_store, four[0]) == before
    shelf = await read_shelf(any_store)
    assert shelf.loaded == shelf.live == tuple(map(release_id, four[2:]))
    assert await read_load(any_store, release_id(four[0])) is RecordMiss.absent
    assert await collect(any_store, 2) == []


async def test_the_live_and_the_pinned_release_stay(store: Store, four: list[TinyRelease]) -> None:
    for release in (*four, four[0]):
        await publish(release.path, store)
    await store.put([(RELEASE_POINTER, release_id(four[1]).encode())])  # by hand
    gone = await collect(store, 1, frozenset([release_id(four[2])]))
    assert [one.release_id for one in gone] == [release_id(four[3])]
    assert [await left(store, release) for release in four] == [14, 14, 14, 0]


async def test_a_pin_that_names_no_release_removes_nothing(store: Store, four: list[TinyRelease]) -> None:
    for release in four[:2]:
        await publish(release.path, store)
    with pytest.raises(
        StageError, match=f"no release {release_id(four[0])[:8]} to pin; it holds .*{release_id(four[0])}"
    ):
        await collect(store, 1, frozenset({release_id(four[0])[:8]}))
    assert [await left(store, release) for release in four[:2]] == [14, 14]


@pytest.mark.parametrize("changes", range(8))
async def test_a_collection_that_was_cut_off_is_gone_on_with(
    store: Store, four: list[TinyRelease], changes: int
) -> None:
    for release in four[:2]:
        await publish(release.path, store)
    with pytest.raises(StoreUnavailable):
        await collect(Failing(store, changes), 1)
    if changes:
        with pytest.raises(StageError, match="no longer whole"):
            await rollback(store)
    assert [one.release_id for one in await collect(store, 1)] == [release_id(four[0])]
    assert [await left(store, release) for release in four[:2]] == [0, 14]


@pytest.mark.parametrize("changes", [1, 3, 5])
async def test_a_release_half_collected_is_loaded_anew(store: Store, four: list[TinyRelease], changes: int) -> None:
    for release in four[:2]:
        await publish(release.path, store)
    with pytest.raises(StoreUnavailable):
        await collect(Failing(store, changes), 1)
    done = await publish(four[0].path, store)
    assert (done.skipped, done.records) == (0, 18)
    assert [await left(store, release) for release in four[:2]] == [14, 14]
    assert await read_load(store, release_id(four[0])) == Load(6, 4, ("scoter_h",), done=6)


@pytest.mark.parametrize("changes", range(2, 10))
async def test_what_a_cut_off_load_left_is_collected(store: Store, four: list[TinyRelease], changes: int) -> None:
    with pytest.raises(StoreUnavailable):
        await publish(four[0].path, Failing(store, changes))
    for release in four[1:3]:
        await publish(release.path, store)
    await collect(store, 1)
    assert [await left(store, release) for release in four[:3]] == [0, 0, 14]


async def test_a_release_that_is_made_live_meanwhile_is_let_be(store: Store, four: list[TinyRelease]) -> None:
    for release in four[:2]:
        await publish(release.path, store)

    class Flipping(Failing):
        async def delete(self, keys: Iterable[bytes]) -> None:
            await super().delete(keys)
            await self.inner.put([(RELEASE_POINTER, release_id(four[0]).encode())])

    assert await collect(Flipping(store, 100), 1) == []
    assert await left(store, four[0]) > 0
    assert release_id(four[0]) in (await read_shelf(store)).loaded


async def test_rolling_back_goes_further_each_time(any_store: Store, four: list[TinyRelease]) -> None:
    for release in (four[0], four[1], four[2], four[1]):
        await publish(release.path, any_store)
    for expected in (four[2], four[1], four[0]):
        assert await rollback(any_store) == release_id(expected)
        assert await any_store.get([RELEASE_POINTER]) == [release_id(expected).encode()]
    with pytest.raises(StageError, match="no release that was live before"):
        await rollback(any_store)
    assert await any_store.get([RELEASE_POINTER]) == [release_id(four[0]).encode()]
    await publish(four[3].path, any_store)
    assert (await read_shelf(any_store)).live == (release_id(four[0]), release_id(four[3]))


async def test_a_redis_that_is_full_can_be_gone_back_in_and_emptied(tmp_path: Path, four: list[TinyRelease]) -> None:
    with standalone(tmp_path) as server:
        store = RedisStore(redis_settings(server.port))
        try:
            for release in four[:3]:
                await publish(release.path, store)
            server.admin.config_set("maxmemory-policy", "noeviction")
            server.admin.config_set("maxmemory", "1")
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await publish(four[3].path, store)
            user = history_key(user_tag(four[0].users[0].id))
            (record,) = await store.get([user])
            assert record is not None
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await store.swap(user, record, record + bytes(32))  # no event of any length
            assert await rollback(store) == release_id(four[1])
            assert (await publish(four[0].path, store)).records == 0
            assert {one.release_id for one in await collect(store, 1)} == {*map(release_id, four[1:])}
            assert [await left(store, release) for release in four] == [14, 0, 0, 0]
        finally:
            await store.close()


async def test_a_store_without_releases_has_nothing_to_go_back_to_nor_to_collect(store: Store) -> None:
    with pytest.raises(StageError, match="no release that was live"):
        await rollback(store)
    assert await collect(store, 1) == []


async def test_nobody_goes_back_to_a_release_whose_records_are_gone(store: Store, four: list[TinyRelease]) -> None:
    for release in four[:2]:
        await publish(release.path, store)
    await store.delete(record_keys(release_id(four[0]), ["scoter_h"], [user_tag("user-5")]))
    with pytest.raises(StageError, match="no longer whole"):
        await rollback(store)
    assert await store.get([RELEASE_POINTER]) == [release_id(four[1]).encode()]


async def test_an_unreadable_list_of_releases_is_named(store: Store) -> None:
    await store.put([(RELEASES, b"{")])
    with pytest.raises(StageError, match="scoter:releases"):
        await collect(store, 1)


async def test_a_flip_that_was_cut_off_is_remembered_by_the_next(store: Store, four: list[TinyRelease]) -> None:
    await publish(four[0].path, store)
    await store.put([(RELEASE_POINTER, release_id(four[1]).encode())])  # and killed before it was written down
    await publish(four[2].path, store)
    assert (await read_shelf(store)).live == tuple(map(release_id, four[:3]))


async def test_publications_at_once_are_both_listed(store: Store, four: list[TinyRelease]) -> None:
    await asyncio.gather(*(publish(release.path, store) for release in four))
    assert {*(await read_shelf(store)).loaded} == {*map(release_id, four)}
