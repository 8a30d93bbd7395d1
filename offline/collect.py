"""Command `gc`: the records of releases that nobody needs any more leave the store.

A release's users are known from the lists that `publish` wrote beside them, so the store is never scanned. Removal
goes from the last part of the list to the first and says in the store how far it is: cut off, it is gone on with by
the next call, and a release of which a part is gone is never made live again without being loaded anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from offline.errors import StageError
from offline.progress import progress
from offline.shelf import live_release, read_load, read_shelf, record_keys, update_shelf
from service.store.base import Store
from service.store.keys import load_key, users_key
from service.store.records import Load, RecordMiss, Shelf, decode_load, decode_tags, encode_load


@dataclass(frozen=True, slots=True)
class Collected:
    """A release that left the store, and how many users it had there."""

    release_id: str
    users: int


async def collect(store: Store, keep: int, pinned: frozenset[str] = frozenset()) -> list[Collected]:
    """Remove H and steps of every release but the live one, the `pinned` ones and the `keep` most recent.

    Most recent is what was live last, then what was loaded last. Raises StoreError, calling again goes on; StageError,
    before anything is removed, if the store holds no release of a pinned id, which may be a mistyped one.
    """
    shelf = await read_shelf(store)
    recent = dict.fromkeys(reversed((*shelf.loaded, *shelf.live)))  # ids, most recent first
    if unknown := pinned - recent.keys():
        raise StageError(
            f"nothing was removed: the store holds no release {', '.join(sorted(unknown))} to pin; it holds "
            f"{', '.join(sorted(recent)) or 'none'}"
        )
    kept = {*list(recent)[:keep], *pinned, await live_release(store)}
    gone: list[Collected] = []
    for release_id in reversed(recent):
        if release_id in kept:
            continue
        users = await _remove(store, release_id)
        if users is None:
            continue
        await update_shelf(store, lambda now, leaving=release_id: _without(now, leaving))  # type: ignore[misc]
        gone.append(Collected(release_id, users))
    return gone


async def _remove(store: Store, release_id: str) -> int | None:
    """Remove a release's records; None if it was made live or loaded again meanwhile."""
    found = await read_load(store, release_id)
    if isinstance(found, RecordMiss):  # never loaded, or all of it gone already
        return 0
    # What was being written when a load was cut off lies one part beyond what is done.
    before, load = found, replace(found, leaving=True)
    if not found.leaving:
        load = replace(load, done=min(found.users, found.done + found.part))
    parts = -(-load.users // load.part)
    with progress() as bars:
        bar = bars.add_task(f"remove {release_id}", total=parts)
        for part in range(-(-load.done // load.part) - 1, -1, -1):
            # Announced before, so that whoever loads it meanwhile ends this.
            load = replace(load, done=min(load.users, (part + 1) * load.part))
            if release_id == await live_release(store) or not await _announced(store, release_id, before, load):
                return None
            before = load
            (record,) = await store.get([users_key(release_id, part)])
            tags = decode_tags(record)
            if not isinstance(tags, RecordMiss):
                await store.delete(record_keys(release_id, load.names, tags))
            await store.delete([users_key(release_id, part)])
            bars.update(bar, completed=parts - part)
    await store.delete([load_key(release_id)])
    return load.users


async def _announced(store: Store, release_id: str, before: Load, after: Load) -> bool:
    """Write how far removal is, unless somebody else has written since."""
    (record,) = await store.get([load_key(release_id)])
    return decode_load(record) == before and await store.swap(load_key(release_id), record, encode_load(after))


def _without(shelf: Shelf, release_id: str) -> Shelf:
    return Shelf(
        tuple(name for name in shelf.loaded if name != release_id),
        tuple(name for name in shelf.live if name != release_id),
    )
