from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from service.errors import StoreError, StoreTimeout, StoreUnavailable
from service.profile import Profile, Profiles
from service.release.blob import BlobMiss
from service.settings import RedisSettings
from service.store.base import Change, Store
from service.store.keys import history_key, reasoning_key, steps_key, user_tag
from service.store.records import History, RecordMiss, encode_history, encode_steps
from tests.conftest import Connect
from tests.service.tiny_release import WRITTEN, TinyRelease, User, blob, publish

pytestmark = pytest.mark.anyio


class Recording:
    """A store that remembers the keys it was asked for, or fails."""

    def __init__(self, values: dict[bytes, bytes] | None = None, error: StoreError | None = None) -> None:
        self.values = values or {}
        self.error = error
        self.asked: list[list[bytes]] = []

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked.append(list(keys))
        if self.error:
            raise self.error
        return [self.values.get(key) for key in keys]

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self.values.update(pairs)

    async def swap(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        raise NotImplementedError

    async def swap_all(self, changes: Iterable[Change]) -> list[bool]:
        raise NotImplementedError

    async def delete(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.values.pop(key, None)

    async def ping(self) -> None:
        if self.error:
            raise self.error

    async def close(self) -> None:
        self.values.clear()


async def fetch(
    tiny: TinyRelease, store: Store, user: str, *, reasoning: bool = True, steps: bool = False, history: bool = True
) -> Profile:
    entry = tiny.manifest.models[0].reasoning
    profiles = Profiles(store, tiny.manifest.release_id)
    return await profiles.fetch(user, entry, history=history, reasoning=reasoning, steps=steps, seconds=10)


async def test_a_whole_profile_from_every_store(tiny: TinyRelease, store: Store) -> None:
    await publish(tiny, store)
    for user in tiny.users:
        profile = await fetch(tiny, store, user.id, steps=True)
        assert profile.history == user.history
        assert profile.miss is None
        assert profile.reasoning is not None
        np.testing.assert_array_equal(profile.reasoning.matrix, user.matrix)
        assert profile.steps == user.steps
    nobody = await fetch(tiny, store, "nobody", steps=True)
    assert nobody == Profile(None, BlobMiss.absent, history_miss=RecordMiss.absent)


async def test_one_round_trip_for_what_is_asked_and_no_more(tiny: TinyRelease) -> None:
    tag, release = user_tag("u"), tiny.manifest.release_id
    history, reasoning, steps = history_key(tag), reasoning_key(tag, release, "scoter_h"), steps_key(tag, release)
    store = Recording()
    await fetch(tiny, store, "u")
    await fetch(tiny, store, "u", steps=True)
    await fetch(tiny, store, "u", reasoning=False, steps=True)
    await fetch(tiny, store, "u", history=False)
    assert store.asked == [[history, reasoning], [history, reasoning, steps], [history], [reasoning]]
    assert await fetch(tiny, store, "u", history=False, reasoning=False) == Profile(None, "disabled")
    assert len(store.asked) == 4


async def test_a_model_without_reasoning_asks_for_none(tiny: TinyRelease) -> None:
    store = Recording()
    profiles = Profiles(store, tiny.manifest.release_id)
    profile = await profiles.fetch("u", None, history=True, reasoning=True, steps=True, seconds=10)
    assert profile == Profile(None, "unsupported", history_miss=RecordMiss.absent)
    assert store.asked == [[history_key(user_tag("u"))]]


@pytest.mark.parametrize(
    "error, label", [(StoreTimeout("late"), "store_timeout"), (StoreUnavailable("down"), "store_unavailable")]
)
async def test_a_failing_store_is_a_labelled_miss(tiny: TinyRelease, error: StoreError, label: str) -> None:
    profile = await fetch(tiny, Recording(error=error), "u", steps=True)
    assert (profile.miss, profile.store_failure, profile.history, profile.reasoning) == (label, label, None, None)
    unasked = await fetch(tiny, Recording(error=error), "u", reasoning=False)
    assert (unasked.miss, unasked.store_failure) == ("disabled", label)


def stored(tiny: TinyRelease, user: User, record: bytes) -> Recording:
    tag = user_tag(user.id)
    release = tiny.manifest.release_id
    return Recording(
        {
            history_key(tag): encode_history(History(user.history, 1)),
            reasoning_key(tag, release, "scoter_h"): record,
            steps_key(tag, release): encode_steps(user.steps),
        }
    )


async def test_a_damaged_blob_keeps_the_history_and_loses_the_steps(tiny: TinyRelease) -> None:
    user = tiny.users[0]
    record = blob(tiny, user)
    for damaged, miss in [(record[:-1], BlobMiss.truncated), (record[:-1] + b"\x7f", BlobMiss.checksum)]:
        profile = await fetch(tiny, stored(tiny, user, damaged), user.id, steps=True)
        assert profile == Profile(None, miss, user.history, history_length=len(user.history))


async def test_another_users_reply_is_not_believed_at_all(tiny: TinyRelease) -> None:
    user, other = tiny.users[:2]
    profile = await fetch(tiny, stored(tiny, user, blob(tiny, other)), user.id, steps=True)
    assert profile == Profile(None, BlobMiss.user)


async def test_a_blob_of_another_release_is_a_miss(tiny: TinyRelease) -> None:
    user = tiny.users[0]
    other = replace(tiny, manifest=tiny.manifest.model_copy(update={"release_id": "f" * 16}))
    profile = await fetch(tiny, stored(tiny, user, blob(other, user)), user.id)
    assert profile.miss is BlobMiss.release


async def test_unreadable_records_beside_a_good_blob(tiny: TinyRelease) -> None:
    user = tiny.users[0]
    store = stored(tiny, user, blob(tiny, user))
    store.values[history_key(user_tag(user.id))] = b"{"
    store.values[steps_key(user_tag(user.id), tiny.manifest.release_id)] = b"{"
    profile = await fetch(tiny, store, user.id, steps=True)
    assert profile.reasoning is not None
    assert (profile.history, profile.history_miss, profile.steps) == (None, RecordMiss.corrupt, [])
    assert (profile.history_length, profile.behind) == (None, None)


async def test_reasoning_older_than_the_history_says_by_how_much(tiny: TinyRelease) -> None:
    user = tiny.users[0]
    store = stored(tiny, user, blob(tiny, user))
    fresh = await fetch(tiny, store, user.id)
    assert (fresh.history_length, fresh.behind) == (len(user.history), 0)
    assert fresh.age_seconds is not None
    assert abs(fresh.age_seconds - (time.time() - WRITTEN)) < 5
    later = History([*user.history[2:], "new", "newer"], 2, times=[7, 8], marks=["a", "b"], dropped=2)
    store.values[history_key(user_tag(user.id))] = encode_history(later)
    aged = await fetch(tiny, store, user.id)
    assert aged.history == [*user.history[2:], "new", "newer"]
    assert (aged.history_length, aged.behind) == (len(user.history) + 2, 2)
    own = await fetch(tiny, store, user.id, history=False)
    assert (own.history_length, own.behind) == (None, None)
    without = await fetch(tiny, store, user.id, reasoning=False)
    assert (without.history_length, without.behind, without.age_seconds) == (len(user.history) + 2, None, None)


@pytest.mark.slow
async def test_a_cancelled_fetch_never_shows_one_user_what_is_another_s(
    tiny: TinyRelease, connect: Connect, any_redis: RedisSettings
) -> None:
    store = connect(any_redis.model_copy(update={"connections": 4}))
    await publish(tiny, store)
    rng = random.Random(5)
    outcomes = {"cancelled": 0, "answered": 0}

    async def ask(user: User) -> None:
        task = asyncio.create_task(fetch(tiny, store, user.id, steps=True))
        if rng.random() < 0.6:
            await asyncio.sleep(rng.random() * 0.004)
            task.cancel()
        try:
            profile = await task
        except asyncio.CancelledError:
            outcomes["cancelled"] += 1
            return
        assert profile.miss is None
        assert profile.reasoning is not None
        np.testing.assert_array_equal(profile.reasoning.matrix, user.matrix)
        assert (profile.history, profile.steps) == (user.history, user.steps)
        outcomes["answered"] += 1

    for _ in range(40):
        await asyncio.gather(*(ask(tiny.users[number % len(tiny.users)]) for number in range(50)))
    assert min(outcomes.values()) > 200
