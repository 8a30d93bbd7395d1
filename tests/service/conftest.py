from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import LimitSettings, LmdbSettings, OnnxSettings, Settings
from service.store.lmdb import LmdbStore
from tests.service.tiny_release import TinyRelease, publish

# No answer is a lesser one because the test machine stopped for a moment, unless the test is about impatience.
PATIENT = LimitSettings(deadline_ms=10_000, store_ms=10_000)


def published_settings(tiny: TinyRelease, folder: Path, releases: Path | None = None) -> Settings:
    """Settings of a patient service whose LMDB store holds the release and its users."""

    async def fill() -> None:
        filled = LmdbStore(folder)
        await publish(tiny, filled)
        await filled.close()

    asyncio.run(fill())
    return Settings(
        releases=releases or tiny.path.parent,
        store=LmdbSettings(path=folder),
        engine=OnnxSettings(threads=2),
        limits=PATIENT,
    )


@pytest.fixture(scope="module")
def app(tiny: TinyRelease, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(published_settings(tiny, tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as running:
        yield running
