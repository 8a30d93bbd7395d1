"""Which store the settings ask for."""

from __future__ import annotations

from typing import assert_never

from service.settings import LmdbSettings, RedisSettings
from service.store.base import Store
from service.store.lmdb import LmdbStore
from service.store.redis import RedisStore


def store_name(settings: LmdbSettings | RedisSettings) -> str:
    """What messages call the store. Not its URL, which may hold a password."""
    return f"the LMDB store in {settings.path}" if isinstance(settings, LmdbSettings) else "the Redis"


def open_store(settings: LmdbSettings | RedisSettings) -> Store:
    """Open the store. Raises StoreUnavailable if an embedded one cannot be opened; Redis connects on first use."""
    match settings:
        case LmdbSettings():
            return LmdbStore(settings.path)
        case RedisSettings():
            return RedisStore(settings)
        case _:
            assert_never(settings)
