"""A store in front of another, which keeps what never changes: the reasoning and the step texts of releases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cachetools import TTLCache

from service.settings import CacheSettings
from service.store.base import Change, Store
from service.store.keys import is_of_release


def cached(store: Store, settings: CacheSettings, observe: Callable[[bool], None]) -> Store:
    """The store with a cache in front, if the settings ask for one."""
    return CachedStore(store, settings, observe) if settings.entries else store


class CachedStore:
    """Reads through to `store`; answers what it has read before, for as long as the settings say.

    A key of a release names the release, so what is kept can outlive a release but never pass for another's. A
    record that is not there is asked for again each time. `observe(hit)` is called for each key that may be kept.
    """

    def __init__(self, store: Store, settings: CacheSettings, observe: Callable[[bool], None]) -> None:
        self._store = store
        self._kept: TTLCache[bytes, bytes] = TTLCache(settings.entries, settings.ttl_seconds)
        self._observe = observe

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys`, in order; one round trip for those that are not kept, none if all are."""
        found: dict[bytes, bytes | None] = {}
        for key in keys:
            if is_of_release(key):
                kept = self._kept.get(key)
                self._observe(kept is not None)
                if kept is not None:
                    found[key] = kept
        missing = [key for key in keys if key not in found]
        if missing:
            for key, value in zip(missing, await self._store.get(missing), strict=True):
                found[key] = value
                if value is not None and is_of_release(key):
                    self._kept[key] = value
        return [found[key] for key in keys]

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Write pairs, and forget what was kept of them."""
        batch = list(pairs)
        self._forget(key for key, _ in batch)
        await self._store.put(batch)
        self._forget(key for key, _ in batch)  # read meanwhile

    async def swap(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        """Compare and set in the store itself."""
        swapped = await self._store.swap(key, old, new)  # which waits less long than many do
        self._forget([key])
        return swapped

    async def swap_all(self, changes: Iterable[Change]) -> list[bool]:
        """Compare and set in the store itself."""
        batch = list(changes)
        answers = await self._store.swap_all(batch)
        self._forget(key for key, _, _ in batch)
        return answers

    async def delete(self, keys: Iterable[bytes]) -> None:
        """Remove keys, kept or not."""
        batch = list(keys)
        await self._store.delete(batch)
        self._forget(batch)

    async def ping(self) -> None:
        """Return if the store itself answers."""
        await self._store.ping()

    async def close(self) -> None:
        """Close the store and keep nothing."""
        self._kept.clear()
        await self._store.close()

    def _forget(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._kept.pop(key, None)
