from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from service.errors import StoreTimeout, StoreUnavailable
from service.settings import CacheSettings
from service.store.cached import CachedStore, cached
from service.store.keys import history_key, reasoning_key, steps_key
from service.store.lmdb import LmdbStore
from service.store.redis import RedisStore
from tests.conftest import redis_settings

pytestmark = pytest.mark.anyio

BLOB, STEPS, HISTORY = reasoning_key("t", "r1", "scoter_h"), steps_key("t", "r1"), history_key("t")


class Counting(LmdbStore):
    """A store that remembers what it was asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[list[bytes]] = []

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked.append(list(keys))
        return await super().get(keys)


class Setup:
    def __init__(self, path: Path, entries: int = 100, ttl: float = 60) -> None:
        self.store = Counting(path)
        self.hits: list[bool] = []
        self.cached = CachedStore(self.store, CacheSettings(entries=entries, ttl_seconds=ttl), self.hits.append)


async def test_reasoning_is_read_once_and_history_each_time(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    await setup.store.put([(BLOB, b"H"), (STEPS, b"[]"), (HISTORY, b"1")])
    assert await setup.cached.get([HISTORY, BLOB, STEPS]) == [b"1", b"H", b"[]"]
    await setup.store.put([(HISTORY, b"2")])
    assert await setup.cached.get([HISTORY, BLOB, STEPS]) == [b"2", b"H", b"[]"]
    assert await setup.cached.get([BLOB]) == [b"H"]
    assert setup.store.asked == [[HISTORY, BLOB, STEPS], [HISTORY]]
    assert setup.hits == [False, False, True, True, True]
    await setup.cached.close()


async def test_what_is_not_there_is_asked_for_again(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    assert await setup.cached.get([BLOB]) == [None]
    await setup.store.put([(BLOB, b"H")])
    assert await setup.cached.get([BLOB]) == [b"H"]
    await setup.cached.close()


async def test_what_is_not_there_takes_nobody_s_place(tmp_path: Path) -> None:
    """Or users who have no reasoning would drive out those who have."""
    setup = Setup(tmp_path, entries=1)
    await setup.store.put([(BLOB, b"H")])
    await setup.cached.get([BLOB])
    assert await setup.cached.get([reasoning_key("stranger", "r1", "scoter_h")]) == [None]
    assert await setup.cached.get([BLOB]) == [b"H"]
    assert setup.hits == [False, False, True]
    await setup.cached.close()


async def test_a_history_takes_nobody_s_place(tmp_path: Path) -> None:
    setup = Setup(tmp_path, entries=1)
    await setup.store.put([(BLOB, b"1"), (HISTORY, b"2")])
    for _ in range(2):
        assert await setup.cached.get([BLOB]) == [b"1"]
        assert await setup.cached.get([HISTORY]) == [b"2"]
    assert setup.hits == [False, True]
    await setup.cached.close()


async def test_what_is_read_while_it_is_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(tmp_path)
    await setup.store.put([(BLOB, b"old")])
    real = setup.store.put

    async def slowly(pairs: Iterable[tuple[bytes, bytes]]) -> None:
        assert await setup.cached.get([BLOB]) == [b"old"]
        await real(pairs)

    monkeypatch.setattr(setup.store, "put", slowly)
    await setup.cached.put([(BLOB, b"new")])
    assert await setup.cached.get([BLOB]) == [b"new"]
    await setup.cached.close()


async def test_it_is_as_well_as_the_store_behind_it_and_closes_with_it(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    await setup.cached.ping()
    await setup.cached.close()
    with pytest.raises(StoreUnavailable):
        await setup.cached.ping()
    with pytest.raises(StoreUnavailable):
        await setup.store.get([BLOB])


async def test_another_release_is_another_key(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    other = reasoning_key("t", "r2", "scoter_h")
    await setup.store.put([(BLOB, b"one"), (other, b"two")])
    assert await setup.cached.get([BLOB, other]) == [b"one", b"two"]
    assert await setup.cached.get([other, BLOB, other]) == [b"two", b"one", b"two"]
    await setup.cached.close()


async def test_the_cache_is_bounded_and_the_least_used_leave(tmp_path: Path) -> None:
    setup = Setup(tmp_path, entries=2)
    keys = [reasoning_key(tag, "r1", "scoter_h") for tag in "abc"]
    await setup.store.put((key, key) for key in keys)
    for key in (keys[0], keys[1], keys[0], keys[2], keys[0]):
        assert await setup.cached.get([key]) == [key]
    assert [asked for (asked,) in setup.store.asked] == [keys[0], keys[1], keys[2]]
    await setup.cached.get([keys[1]])
    assert setup.hits[-1] is False
    assert len(setup.cached._kept) == 2
    await setup.cached.close()


async def test_what_is_kept_grows_old(tmp_path: Path) -> None:
    setup = Setup(tmp_path, ttl=0.05)
    await setup.store.put([(BLOB, b"old")])
    await setup.cached.get([BLOB])
    await setup.store.put([(BLOB, b"new")])
    await asyncio.sleep(0.06)
    assert await setup.cached.get([BLOB]) == [b"new"]
    await setup.cached.close()


async def test_own_changes_are_seen_at_once(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    await setup.cached.put([(BLOB, b"1")])
    assert await setup.cached.get([BLOB]) == [b"1"]
    await setup.cached.put([(BLOB, b"2")])
    assert await setup.cached.get([BLOB]) == [b"2"]
    assert await setup.cached.swap(BLOB, b"2", b"3")
    assert await setup.cached.get([BLOB]) == [b"3"]
    assert await setup.cached.swap_all([(BLOB, b"3", b"4")]) == [True]
    assert await setup.cached.get([BLOB]) == [b"4"]
    await setup.cached.delete([BLOB])
    assert await setup.cached.get([BLOB]) == [None]
    await setup.cached.ping()
    await setup.cached.close()


async def test_a_swap_has_no_more_patience_than_without_a_cache() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = redis_settings(silent.getsockname()[1], write_timeout_ms=700, connect_timeout_ms=300, connections=1)
        store = CachedStore(RedisStore(settings), CacheSettings(entries=1), lambda _: None)
        started = time.monotonic()
        outcomes = await asyncio.gather(*(store.swap(HISTORY, None, b"1") for _ in range(12)), return_exceptions=True)
        assert time.monotonic() - started < 5  # one after the other they take 8 s
        assert all(isinstance(outcome, StoreTimeout) for outcome in outcomes)
        await store.close()


async def test_without_entries_there_is_no_cache(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    hits: list[bool] = []
    assert cached(store, CacheSettings(), hits.append) is store
    assert isinstance(cached(store, CacheSettings(entries=1), hits.append), CachedStore)
    await store.close()
