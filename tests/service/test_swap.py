"""Changing the release of a running service."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.store.keys import RELEASE_POINTER
from service.store.lmdb import LmdbStore
from tests.service.server import PATIENT, Load, serving
from tests.service.tiny_release import TinyRelease, publish, write_release

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

ADMIN = {"Authorization": "Bearer root"}


@pytest.fixture
async def two(tmp_path: Path) -> dict[str, TinyRelease]:
    """Two releases with the same users and items, whose models and reasoning differ."""
    made = [write_release(tmp_path / "releases", seed=seed) for seed in (1, 2)]
    store = LmdbStore(tmp_path / "store")
    for release in reversed(made):  # the first one is live
        await publish(release, store)
    await store.close()
    return {release.manifest.release_id: release for release in made}


def checked(two: dict[str, TinyRelease]) -> Any:
    """Fails unless model, reasoning and label of an answer are all of one release."""

    def check(request: dict[str, Any], answer: dict[str, Any]) -> None:
        release = two[answer["release"]]
        user = next(user for user in release.users if user.id == request["user_id"])
        seen = [int(item.removeprefix("item-")) for item in request["history"]]
        assert answer["reasoning"]["used"], answer
        expected = release.expected(seen, user.matrix, set(seen), 10)
        assert [item["id"] for item in answer["items"]] == [f"item-{index}" for index, _ in expected]

    return check


def body(two: dict[str, TinyRelease]) -> Any:
    users = next(iter(two.values())).users
    return lambda number: {"user_id": users[number % len(users)].id, "history": users[number % len(users)].history}


async def point(folder: Path, release_id: str) -> None:
    store = LmdbStore(folder / "store")
    await store.put([(RELEASE_POINTER, release_id.encode())])
    await store.close()


async def live(address: str) -> str:
    async with httpx2.AsyncClient() as client:
        return str((await client.get(f"{address}/readyz")).json()["release"])


async def until(address: str, release_id: str) -> None:
    async with asyncio.timeout(30):
        while await live(address) != release_id:
            await asyncio.sleep(0.02)


async def test_the_service_follows_the_pointer_and_no_request_is_lost_or_mixed(
    two: dict[str, TinyRelease], tmp_path: Path
) -> None:
    first, second = two
    settings = {**PATIENT, "SCOTER_POLL_SECONDS": "0.05"}
    with serving(tmp_path / "releases", tmp_path / "store", tmp_path, environment=settings) as server:
        load = Load(server.address, body(two), checked(two))
        running = asyncio.create_task(load.run())
        for wanted in (second, first, second, first, second):
            await asyncio.sleep(0.3)
            await point(tmp_path, wanted)
            await until(server.address, wanted)
        await asyncio.sleep(0.3)
        load.stop()
        await running
        assert set(load.statuses) == {200}
        assert load.statuses[200] > 100
        assert set(load.degraded) == {"none"}
        assert server.metric('scoter_swaps_total{outcome="done"}') == 5


async def test_a_bad_release_is_refused_and_the_old_one_stays(two: dict[str, TinyRelease], tmp_path: Path) -> None:
    first, second = two
    whole = shutil.copytree(two[second].path, tmp_path / "whole")
    graph = two[second].path / "models/scoter_h/1/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-20])
    environment = {**PATIENT, "SCOTER_POLL_SECONDS": "0.05", "SCOTER_ACCESS__ADMIN_TOKEN": "root"}
    with serving(tmp_path / "releases", tmp_path / "store", tmp_path, environment=environment) as server:
        async with httpx2.AsyncClient(base_url=server.address, headers=ADMIN) as client:
            refused = await client.post("/admin/release", json={"release": second})
            assert refused.status_code == 503
            assert refused.json()["type"] == "urn:scoter:problem:release"
            assert "model.onnx" in refused.json()["detail"]
            absent = await client.post("/admin/release", json={"release": "0" * 16})
            assert absent.status_code == 404
            assert await live(server.address) == first
            await point(tmp_path, second)  # and the poll refuses it as well
            async with asyncio.timeout(20):
                while server.metric('scoter_swaps_total{outcome="refused"}') < 4:
                    await asyncio.sleep(0.05)
            assert await live(server.address) == first
            answer = (await client.post("/recommend", json=body(two)(0))).json()
            checked(two)(body(two)(0), answer)
            shutil.rmtree(two[second].path)
            whole.rename(two[second].path)
            await until(server.address, second)


async def test_an_administrator_swaps_and_nobody_else(two: dict[str, TinyRelease], tmp_path: Path) -> None:
    first, second = two
    environment = {**PATIENT, "SCOTER_ACCESS__ADMIN_TOKEN": "root", "SCOTER_ACCESS__API_KEYS": '["key"]'}
    with serving(tmp_path / "releases", tmp_path / "store", tmp_path, environment=environment) as server:
        async with httpx2.AsyncClient(base_url=server.address) as client:
            for headers in ({}, {"Authorization": "Bearer key"}, {"X-API-Key": "key"}):
                response = await client.post("/admin/release", json={"release": second}, headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
            response = await client.post("/admin/release", json={"release": second}, headers=ADMIN)
            assert response.json() == {"release": second, "previous": first}
            assert await live(server.address) == second
            # Back to what the store names.
            response = await client.post("/admin/release", json={}, headers=ADMIN)
            assert response.json() == {"release": first, "previous": second}
            refused = await client.post("/recommend", json=body(two)(0))
            assert refused.status_code == 401
            allowed = await client.post("/recommend", json=body(two)(0), headers={"X-API-Key": "key"})
            assert allowed.status_code == 200


async def test_a_hangup_looks_at_the_pointer_at_once(two: dict[str, TinyRelease], tmp_path: Path) -> None:
    import signal

    _, second = two
    environment = {"SCOTER_POLL_SECONDS": "3600"}
    with serving(tmp_path / "releases", tmp_path / "store", tmp_path, environment=environment) as server:
        await point(tmp_path, second)
        server.process.send_signal(signal.SIGHUP)
        await until(server.address, second)
