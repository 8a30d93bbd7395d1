"""The command, as a process of its own with a real server."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from service.cli import app, store_settings
from service.settings import LmdbSettings, RedisSettings
from tests.ports import free_port
from tests.service.conftest import published_settings
from tests.service.server import PATIENT, ROOT, command, serving, variables
from tests.service.tiny_release import TinyRelease

pytestmark = pytest.mark.slow


def _ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def test_a_real_server_answers_drains_and_leaves(tiny: TinyRelease, tmp_path: Path) -> None:
    published_settings(tiny, tmp_path / "store")
    with (
        serving(tiny.path.parent, tmp_path / "store", tmp_path, environment=PATIENT) as server,
        httpx2.Client(base_url=server.address) as client,
    ):

        def ask(number: int) -> tuple[str, list[str]]:
            user = tiny.users[number % len(tiny.users)]
            body = client.post("/recommend", json={"user_id": user.id}).json()
            return user.id, [item["id"] for item in body["items"]]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(120)))
        for user in tiny.users:
            seen = [int(item.removeprefix("item-")) for item in user.history]
            expected = [f"item-{index}" for index, _ in tiny.expected(seen, user.matrix, set(seen), 10)]
            assert [items for asked, items in answers if asked == user.id] == [expected] * 20
        chunked = client.post(
            "/recommend", content=iter([b" " * 200_000] * 2), headers={"Content-Type": "application/json"}
        )
        assert chunked.status_code == 413

        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        lines = [json.loads(line) for line in server.lines()]
    events = [line["event"] for line in lines]
    assert "release_opened" in events
    assert "warmed_up" in events
    assert not any("user-" in json.dumps(line) for line in lines)


def test_an_idle_connection_is_the_callers_to_close(tiny: TinyRelease, tmp_path: Path) -> None:
    published_settings(tiny, tmp_path / "store")
    with serving(tiny.path.parent, tmp_path / "store", tmp_path, environment=PATIENT) as server:
        connection = HTTPConnection(server.address.removeprefix("http://"), timeout=10)
        for pause in (6, 0):  # longer than uvicorn's own patience
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
            time.sleep(pause)
        connection.close()


def test_a_real_server_on_redis(tiny: TinyRelease, redis_port: int, tmp_path: Path) -> None:
    import asyncio

    from service.store.redis import RedisStore
    from tests.conftest import redis_settings
    from tests.service.tiny_release import publish

    async def fill() -> None:
        store = RedisStore(redis_settings(redis_port))
        await publish(tiny, store)
        await store.close()

    asyncio.run(fill())
    redis = f"redis://127.0.0.1:{redis_port}/0"
    with serving(tiny.path.parent, redis, tmp_path, environment=PATIENT) as server:
        request = {"user_id": tiny.users[0].id, "explain": True}
        # On a busy test machine the store may be late.
        bodies = [httpx2.post(f"{server.address}/recommend", json=request).json() for _ in range(3)]
    body = min(bodies, key=lambda body: len(body["degraded"]))
    assert body["source"] == "model"
    assert body["history"]["source"] == "stored"
    assert [step["text"] for step in body["reasoning"]["steps"]] == tiny.users[0].steps


def test_a_damaged_release_is_one_line_and_status_1(own: Path, tiny: TinyRelease, tmp_path: Path) -> None:
    published_settings(tiny, tmp_path / "store")
    graph = own / "models/scoter_h/1/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-10])
    ended = subprocess.run(
        command(own.parent, tmp_path / "store", free_port()),
        cwd=ROOT,
        env=variables({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("scoter-serve: ")
    assert "models/scoter_h/1/model.onnx" in line
    assert ended.stdout == ""


def test_an_empty_store_is_named_as_its_folder_may_be_mistyped(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--releases", str(tmp_path), "--store", str(tmp_path / "stroe")])
    assert result.exit_code == 1
    assert result.output.startswith(f"scoter-serve: the LMDB store in {tmp_path / 'stroe'} names no live release: ")


def test_a_port_that_is_taken_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = CliRunner().invoke(app, ["--store", str(tmp_path / "store"), "--port", str(port)])
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith(f"scoter-serve: cannot listen on 127.0.0.1, port {port} (Address already in use): choose")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("host", ["", pytest.param("::", marks=pytest.mark.skipif(not _ipv6(), reason="no IPv6"))])
def test_addresses_that_the_server_can_listen_on_are_not_refused(tmp_path: Path, host: str) -> None:
    """No name is every address, as `SCOTER_HOST=` says; on `::` it takes those of IPv6 alone."""
    with socket.socket() as other:
        if host:
            other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1] or free_port()
        result = CliRunner().invoke(app, ["--store", str(tmp_path / "store"), "--host", host, "--port", str(port)])
    assert "names no live release" in result.output


def test_an_unknown_setting_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOTER_LIMITS__DEADLINE", "50")
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert result.output.startswith("scoter-serve: SCOTER_LIMITS__DEADLINE: no such setting: docs/serving.md")


def test_a_setting_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOTER_ENGINE__THREADS", "none")
    result = CliRunner().invoke(app, ["--port", "99999"])
    assert result.exit_code == 2
    assert "SCOTER_ENGINE__THREADS" in result.output
    assert "SCOTER_PORT" in result.output


def test_a_url_that_cannot_be_read_is_one_line_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    option = CliRunner().invoke(app, ["--store", "redis://:hunter2@host:port"])
    monkeypatch.setenv("SCOTER_STORE__URL", "redis+sentinel://:hunter2@host")
    variable = CliRunner().invoke(app, [])
    for result, name in ((option, "--store"), (variable, "SCOTER_STORE__URL")):
        assert result.exit_code == 2
        (line,) = result.output.splitlines()
        assert line.startswith(f"scoter-serve: {name}: ")
        assert "hunter2" not in line


@pytest.mark.parametrize("name", ["SCOTER_EXPOSURES__REDIS__URL", "SCOTER_STORE__URL"])
def test_a_setting_is_named_as_it_is_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SCOTER_STORE__KIND", "redis")
    monkeypatch.setenv("SCOTER_STORE__URL", "redis://localhost")
    monkeypatch.setenv(name, "localhost:6379")
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert result.output.startswith(f"scoter-serve: {name}: ")


@pytest.mark.parametrize("keys", ["hunter2", '["hunter2"', '["", "hunter2"]'])
def test_keys_that_cannot_be_are_one_line_without_them(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("SCOTER_ACCESS__API_KEYS", keys)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("scoter-serve: SCOTER_")
    assert "SCOTER_ACCESS__API_KEYS" in line
    assert "hunter2" not in line


def test_a_log_level_that_is_none_is_refused_with_those_there_are() -> None:
    result = CliRunner().invoke(app, ["--log-level", "loud"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    for word in ("loud", "debug", "info", "warning", "error"):
        assert word in result.output


def test_help_teaches() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in ("--releases", "--release", "--store", "--host", "--port", "SCOTER_STORE__KIND", "curl"):
        assert word in result.output


def test_a_store_is_a_folder_or_a_url() -> None:
    assert store_settings("out/store") == LmdbSettings(path=Path("out/store"))
    for url in ("redis://h:1/0", "rediss://h", "unix:///run/redis.sock", "redis+cluster://a,b"):
        chosen = store_settings(url)
        assert isinstance(chosen, RedisSettings)
        assert chosen.url.get_secret_value() == url


def test_what_a_url_leaves_open_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOTER_STORE__KIND", "lmdb")
    monkeypatch.setenv("SCOTER_STORE__PATH", "elsewhere")
    monkeypatch.setenv("SCOTER_STORE__URL", "redis://elsewhere")
    monkeypatch.setenv("SCOTER_STORE__READ_TIMEOUT_MS", "40")
    monkeypatch.setenv("SCOTER_STORE__CONNECTIONS", "7")
    chosen = store_settings("redis://here/0")
    assert isinstance(chosen, RedisSettings)
    assert (chosen.url.get_secret_value(), chosen.read_timeout_ms, chosen.connections) == ("redis://here/0", 40, 7)
    assert store_settings("out/store") == LmdbSettings(path=Path("out/store"))


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("SCOTER_STORE__READ_TIMEOUT_MS", "-1", "SCOTER_STORE__READ_TIMEOUT_MS in the environment: "),
        ("SCOTER_STORE__READ_TIMEOUT", "40", "SCOTER_STORE__READ_TIMEOUT in the environment: a Redis has no such"),
        ("SCOTER_STORE", "redis", "SCOTER_STORE in the environment is no JSON"),
    ],
)
def test_a_mistaken_setting_beside_a_url_is_named(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["--store", "redis://:hunter2@here/0"])
    assert result.exit_code == 2
    assert said in result.output
    assert "hunter2" not in result.output
