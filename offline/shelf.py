"""What a store says of its releases: which it holds, which were live, how far each is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from offline.errors import StageError
from service.store.base import Store
from service.store.keys import RELEASE_POINTER, RELEASES, load_key, reasoning_key, steps_key, users_key
from service.store.records import (
    Load,
    RecordMiss,
    Shelf,
    decode_load,
    decode_shelf,
    decode_tags,
    encode_load,
    encode_shelf,
)

REMEMBERED = 50  # flips of the pointer
ATTEMPTS = 100


async def live_release(store: Store) -> str | None:
    """The id that the pointer names."""
    (pointer,) = await store.get([RELEASE_POINTER])
    return _named(pointer)


async def read_shelf(store: Store) -> Shelf:
    """The store's list of releases. Raises StageError if it cannot be read."""
    (record,) = await store.get([RELEASES])
    return _shelf(record)


async def update_shelf(store: Store, change: Callable[[Shelf], Shelf]) -> None:
    """Change the store's list of releases, whoever else does so meanwhile."""
    for _ in range(ATTEMPTS):
        (record,) = await store.get([RELEASES])
        before = _shelf(record)
        after = change(before)
        if after == before or await store.swap(RELEASES, record, encode_shelf(after)):
            return
        await asyncio.sleep(0.01)
    raise StageError(f"other commands kept changing {RELEASES.decode()}: try again when they have ended")


async def read_load(store: Store, release_id: str) -> Load | RecordMiss:
    """How far a release is loaded, or why nobody knows."""
    (record,) = await store.get([load_key(release_id)])
    return decode_load(record)


async def write_load(store: Store, release_id: str, load: Load) -> None:
    """Say how far a release is loaded."""
    await store.put([(load_key(release_id), encode_load(load))])


async def flip(store: Store, release_id: str) -> None:
    """Make a release the live one, and remember which was."""
    before = await _point(store, release_id)

    def remember(shelf: Shelf) -> Shelf:
        live = shelf.live
        for name in (before, release_id):  # `before`, in case that its own flip was cut off here
            if name is not None and live[-1:] != (name,):
                live = (*live, name)
        return replace(shelf, live=live[-REMEMBERED:])

    await update_shelf(store, remember)


async def _point(store: Store, release_id: str) -> str | None:
    """Move the pointer, whoever else does so meanwhile; return the id that it named before."""
    for _ in range(ATTEMPTS):
        (pointer,) = await store.get([RELEASE_POINTER])
        # A swap, as a Redis that is full takes those.
        if await store.swap(RELEASE_POINTER, pointer, release_id.encode()):
            return _named(pointer)
        await asyncio.sleep(0.01)
    raise StageError(f"other commands kept changing {RELEASE_POINTER.decode()}: try again when they have ended")


async def rollback(store: Store) -> str:
    """Make the release live again that was live before the one that is; return its id. Again goes one further back.

    Raises StageError if there is none, or if its records are not all there any more; the pointer has not moved then.
    """
    now = await live_release(store)
    live = (await read_shelf(store)).live
    last = len(live) - 1 - live[::-1].index(now) if now in live else len(live)
    earlier = [name for name in live[:last] if name != now]
    if now is None or not earlier:
        raise StageError(f"the store remembers no release that was live before {now or 'this'}: publish one by its id")
    target = earlier[-1]
    load = await read_load(store, target)
    if isinstance(load, RecordMiss) or load.leaving or load.done != load.users:
        raise StageError(f"release {target} is no longer whole in the store: `scoter publish --release {target}`")
    await _check_presence(store, target, load)
    await _point(store, target)
    place = max(index for index, name in enumerate(live[:last]) if name == target)
    await update_shelf(store, lambda shelf: replace(shelf, live=live[: place + 1]) if shelf.live == live else shelf)
    return target


def record_keys(release_id: str, names: Iterable[str], tags: Iterable[str]) -> list[bytes]:
    """Keys of all that a release alone has written of these users."""
    names = tuple(names)
    return [
        key
        for tag in tags
        for key in (steps_key(tag, release_id), *(reasoning_key(tag, release_id, name) for name in names))
    ]


def spread(total: int, wanted: int) -> list[int]:
    """At most `wanted` rows of `total`, spread over all of them, the first and the last included."""
    return sorted({*np.linspace(0, total - 1, min(wanted, total)).astype(int).tolist()}) if total else []


async def _check_presence(store: Store, release_id: str, load: Load) -> None:
    for row in spread(load.users, 100):
        part, place = divmod(row, load.part)
        (record,) = await store.get([users_key(release_id, part)])
        tags = decode_tags(record)  # of those who have a chain
        if isinstance(tags, RecordMiss):
            raise StageError(f"the store's list of users of release {release_id} is {tags}: publish it by its id")
        sampled = [tags[place % len(tags)]] if tags else []
        if None in await store.get(record_keys(release_id, load.names, sampled)):
            raise StageError(f"release {release_id} is no longer whole in the store: publish it by its id")


def _named(pointer: bytes | None) -> str | None:
    return pointer.decode("ascii", "replace") if pointer else None


def _shelf(record: bytes | None) -> Shelf:
    shelf = decode_shelf(record)
    if shelf is RecordMiss.corrupt:
        raise StageError(f"the store's list of releases ({RELEASES.decode()}) cannot be read: was it written by hand?")
    return shelf if isinstance(shelf, Shelf) else Shelf((), ())
