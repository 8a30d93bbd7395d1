from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from service.errors import ExperimentsInvalid, ExperimentsUnavailable
from service.experiments.live import LiveExperiments
from service.metrics import Metrics
from service.settings import ExperimentSettings

pytestmark = pytest.mark.anyio

MODELS = ["scoter_h", "hstu"]


def document(model: str) -> bytes:
    return json.dumps({"features": {"model": {"defaultValue": {"model": model}}}}).encode()


def replace_file(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.rename(path)


@asynccontextmanager
async def live(
    source: Path | str, models: list[str] | None = None, **changes: Any
) -> AsyncIterator[tuple[LiveExperiments, CollectorRegistry]]:
    registry = CollectorRegistry()
    settings = ExperimentSettings(source=str(source), reload_seconds=0.02, **changes)
    opened = await LiveExperiments.open(settings, lambda: MODELS if models is None else models, Metrics(registry))
    try:
        yield opened, registry
    finally:
        await opened.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def model_of(experiments: LiveExperiments) -> str | None:
    return experiments.current.assign("u1", {}).arm.model


async def test_a_changed_file_is_in_use_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "experiments.json"
    path.write_bytes(document("scoter_h"))
    async with live(path) as (opened, registry):
        before = opened.current.version
        assert model_of(opened) == "scoter_h"
        replace_file(path, document("hstu"))
        await until(lambda: model_of(opened) == "hstu")
        after = opened.current.version
        assert opened.problem is None
        assert after != before
        assert registry.get_sample_value("scoter_experiments_info", {"version": after}) == 1
        assert registry.get_sample_value("scoter_experiments_info", {"version": before}) is None
        assert registry.get_sample_value("scoter_experiments_reloads_total", {"outcome": "loaded"}) == 2


async def test_a_link_that_is_turned_to_another_folder_is_followed(tmp_path: Path) -> None:
    for name in MODELS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiments.json").write_bytes(document(name))
        os.utime(tmp_path / name / "experiments.json", (1, 1))
    link = tmp_path / "data"
    link.symlink_to("scoter_h")
    async with live(link / "experiments.json") as (opened, _):
        (tmp_path / "turned").symlink_to("hstu")
        (tmp_path / "turned").rename(link)
        await until(lambda: model_of(opened) == "hstu")


@pytest.mark.parametrize(
    "bad, reason",
    [
        (b"{", "line 1 column 2"),
        (document("gone"), "/features/model/defaultValue/model: the release holds no model 'gone'"),
        (b'{"features": {"model": {"rules": [{}]}}}', "/features/model/rules/0: needs `force` or `variations`"),
    ],
)
async def test_a_bad_file_is_refused_and_the_last_good_one_stays(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = tmp_path / "experiments.json"
    path.write_bytes(document("hstu"))
    async with live(path) as (opened, registry):
        version = opened.current.version
        replace_file(path, bad)
        await until(lambda: opened.problem)
        await asyncio.sleep(0.1)  # further looks find the same bad file: still bad, and counted once
        assert opened.problem is not None
        assert reason in opened.problem
        assert str(path) in opened.problem
        assert (opened.current.version, model_of(opened)) == (version, "hstu")
        assert registry.get_sample_value("scoter_experiments_ok") == 0
        assert registry.get_sample_value("scoter_experiments_reloads_total", {"outcome": "refused"}) == 1
        with pytest.raises(ExperimentsInvalid):
            await opened.reload()
        replace_file(path, document("scoter_h"))
        await until(lambda: opened.problem is None)
        assert model_of(opened) == "scoter_h"
        assert registry.get_sample_value("scoter_experiments_ok") == 1


async def test_a_file_that_goes_away_leaves_its_experiments_in_use(tmp_path: Path) -> None:
    path = tmp_path / "experiments.json"
    path.write_bytes(document("hstu"))
    async with live(path) as (opened, _):
        path.unlink()
        await until(lambda: opened.problem)
        assert "No such file" in str(opened.problem)
        assert model_of(opened) == "hstu"
        path.write_bytes(document("hstu"))
        await until(lambda: opened.problem is None)


async def test_a_file_that_is_too_large_is_so_at_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "experiments.json"
    path.write_bytes(document("scoter_h"))
    monkeypatch.setattr("service.experiments.source.SIZE_CEILING", 1024**2)
    async with live(path) as (opened, registry):
        looks = {"outcome": "unavailable"}
        replace_file(path, b" " * (1024**2 + 1))
        await until(lambda: (registry.get_sample_value("scoter_experiments_reloads_total", looks) or 0) > 2)
        assert registry.get_sample_value("scoter_experiments_ok") == 0
        assert "more than 1 MiB" in str(opened.problem)
        assert model_of(opened) == "scoter_h"
        replace_file(path, document("hstu"))
        await until(lambda: model_of(opened) == "hstu")
        assert registry.get_sample_value("scoter_experiments_ok") == 1


async def test_the_same_file_is_checked_anew_when_another_release_is_served(tmp_path: Path) -> None:
    path = tmp_path / "experiments.json"
    path.write_bytes(document("tiger"))
    models = ["hstu", "tiger"]
    async with live(path, models) as (opened, _):
        models.remove("tiger")
        with pytest.raises(ExperimentsInvalid, match="no model 'tiger', only hstu"):
            await opened.reload()
        models.append("tiger")
        await opened.reload()
        assert opened.problem is None


async def test_a_file_that_is_wrong_at_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExperimentsUnavailable, match="No such file"):
        async with live(tmp_path / "experiments.json"):
            pass
    (tmp_path / "experiments.json").write_bytes(b"[]")
    with pytest.raises(ExperimentsInvalid):
        async with live(tmp_path / "experiments.json"):
            pass


async def test_without_a_source_everybody_gets_the_default() -> None:
    opened = await LiveExperiments.open(ExperimentSettings(), lambda: MODELS, Metrics(CollectorRegistry()))
    await opened.reload()
    assert opened.current.assign("u1", {}).label == "default"
    assert (opened.current.version, opened.problem) == ("none", None)
    await opened.close()


class Server:
    """What a URL answers, and what it was asked."""

    def __init__(self) -> None:
        self.status, self.body = 200, document("hstu")
        self.etag: str | None = '"1"'
        self.location: str | None = None
        self.asked: list[dict[str, str]] = []


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append({name.lower(): value for name, value in self.headers.items()})
            same = state.status == 200 and state.etag is not None and self.headers.get("If-None-Match") == state.etag
            self.send_response(304 if same else state.status)
            if state.etag is not None:
                self.send_header("ETag", state.etag)
            if state.location:
                self.send_header("Location", state.location)
            self.send_header("Content-Length", "0" if same else str(len(state.body)))
            self.end_headers()
            if not same:
                self.wfile.write(state.body)

        def log_message(self, *arguments: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state, f"http://127.0.0.1:{running.server_address[1]}/api/features/sdk-secret"
    running.shutdown()
    thread.join()
    running.server_close()


async def test_a_url_is_asked_with_its_etag_and_key(server: tuple[Server, str]) -> None:
    state, url = server
    async with live(url, api_key=SecretStr("top")) as (opened, registry):
        assert model_of(opened) == "hstu"
        await until(lambda: len(state.asked) > 3)
        assert "if-none-match" not in state.asked[0]
        assert state.asked[1]["if-none-match"] == '"1"'
        assert {asked["authorization"] for asked in state.asked} == {"Bearer top"}
        unchanged = registry.get_sample_value("scoter_experiments_reloads_total", {"outcome": "unchanged"})
        assert unchanged is not None
        assert unchanged >= 2
        state.body, state.etag = document("scoter_h"), '"2"'
        await until(lambda: model_of(opened) == "scoter_h")


async def test_an_answer_that_is_the_same_is_not_compiled_again_without_an_etag_either(
    server: tuple[Server, str],
) -> None:
    state, url = server
    state.etag = None
    models = ["hstu"]
    async with live(url, models) as (opened, registry):
        await until(lambda: len(state.asked) > 3)
        assert registry.get_sample_value("scoter_experiments_reloads_total", {"outcome": "loaded"}) == 1
        state.body = document("scoter_h")
        await until(lambda: opened.problem)
        count = len(state.asked)
        await until(lambda: len(state.asked) > count + 2)  # what was wrong stays wrong
        assert "holds no model 'scoter_h'" in (opened.problem or "")
        models.append("scoter_h")
        await opened.reload()  # as when a release is served that holds it
        assert (model_of(opened), opened.problem) == ("scoter_h", None)


async def test_a_url_that_fails_is_named_without_its_path_and_asked_again(server: tuple[Server, str]) -> None:
    state, url = server
    state.status = 500
    async with live(url) as (opened, _):  # starts with the default
        assert model_of(opened) is None
        problem = opened.problem
        assert problem is not None
        assert "answered 500" in problem
        assert "secret" not in problem
        state.status = 200
        await until(lambda: model_of(opened) == "hstu")
        assert opened.problem is None
        state.status = 404
        await until(lambda: opened.problem)
        assert model_of(opened) == "hstu"


async def test_a_redirect_is_not_followed_with_the_key(server: tuple[Server, str]) -> None:
    state, url = server
    state.status, state.location = 302, url
    async with live(url, api_key=SecretStr("top")) as (opened, _):
        assert "answered 302" in str(opened.problem)
        assert model_of(opened) is None


async def test_a_url_where_nobody_listens_is_no_reason_not_to_start() -> None:
    async with live("http://127.0.0.1:9/x", timeout_seconds=0.5) as (opened, registry):
        assert "did not answer" in str(opened.problem)
        assert registry.get_sample_value("scoter_experiments_ok") == 0
