"""What requests leave behind goes with them.

A cycle would wait for the garbage collector. A swap that comes first freezes it, and it then holds what it refers to
for as long as the process lives: the whole release that was served.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from service.app import create_app
from service.engine import onnx
from service.errors import StoreError
from service.settings import ExposureSettings, LmdbSettings, OnnxSettings, RedisSettings, Settings
from service.store.lmdb import LmdbStore
from service.store.redis import RedisStore
from tests.service.tiny_release import TinyRelease, publish, write_release

pytestmark = pytest.mark.anyio

USUAL: dict[str, Any] = {"user_id": "user-0"}
BATCH: dict[str, Any] = {"requests": [USUAL, {"user_id": "user-1", "k": 99}, {"nobody": True}]}
LARGE: dict[str, Any] = {"user_id": "u" * 300_000}


async def left_behind(act: Callable[[], Awaitable[None]]) -> set[str]:
    """Functions of the service whose frames, and objects of it that, only the garbage collector could free."""
    await act()  # the first one fills caches
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await act()
        await asyncio.sleep(0.2)  # whatever was begun has ended
        gc.collect()
        kinds = {f"{type(found).__module__}.{type(found).__name__}" for found in gc.garbage}
        frames = [found.f_code for found in gc.garbage if type(found).__name__ == "frame"]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    return {kind for kind in kinds if kind.startswith("service.")} | {
        code.co_qualname for code in frames if "/service/" in code.co_filename
    }


@pytest.fixture
async def app(tiny: TinyRelease, own: Path, tmp_path: Path) -> AsyncIterator[FastAPI]:
    store = LmdbStore(tmp_path / "store")
    await publish(tiny, store)
    await store.close()
    application = create_app(
        Settings(
            releases=own.parent,
            store=LmdbSettings(path=tmp_path / "store"),
            engine=OnnxSettings(threads=1),
            exposures=ExposureSettings(file=tmp_path / "exposures.jsonl", linger_seconds=0),
        )
    )
    async with application.router.lifespan_context(application):
        yield application


async def ask(app: FastAPI, path: str, body: dict[str, Any], *, leaves: bool = False) -> None:
    """A request as the server hands it over; the caller may leave while it is answered."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None: ...

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers, "state": {}}
    await app(scope, receive, send)


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("path,body", [("/recommend", USUAL), ("/recommend/batch", BATCH), ("/recommend", LARGE)])
async def test_requests_need_no_garbage_collector(
    app: FastAPI, path: str, body: dict[str, Any], *, leaves: bool
) -> None:
    assert await left_behind(lambda: ask(app, path, body, leaves=leaves)) == set()


async def test_an_engine_that_fails_needs_none(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(onnx, "run", fail)
    assert await left_behind(lambda: ask(app, "/recommend", USUAL)) == set()


async def test_a_release_that_was_swapped_away_needs_none(app: FastAPI, own: Path) -> None:
    serving, old = app.state.serving, weakref.ref(app.state.serving.edition.release.catalogue)
    other = write_release(own.parent, items=50)
    gc.disable()
    try:
        await ask(app, "/recommend/batch", BATCH)
        await serving.swap(other.manifest.release_id)
        await asyncio.sleep(0.2)  # it retires
        assert old() is None
    finally:
        gc.enable()


async def test_a_redis_that_is_late_or_away_needs_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], 1):
            store = RedisStore(RedisSettings(url=SecretStr(f"redis://127.0.0.1:{port}/0")))

            async def fail(store: RedisStore = store) -> None:
                with pytest.raises(StoreError):
                    await store.get([b"key"])

            assert await left_behind(fail) == set()
            await store.close()
