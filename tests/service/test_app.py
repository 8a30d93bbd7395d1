"""The service over HTTP, in this process: real store, real ONNX Runtime, tiny release."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from service.app import create_app
from service.engine.base import ModelInput, Ranking
from service.engine.ladder import Ladder
from service.engine.onnx import OnnxEngine
from service.errors import EngineOverloaded, EngineUnavailable, ReleaseCorrupt, ReleaseMissing, StoreUnavailable
from service.logs import LogLevel, configure_logs
from service.problems import RECOMMEND_STATUSES
from service.recommend import EXCLUDED_SINGLY
from service.settings import BreakerSettings, LimitSettings, LmdbSettings, Settings
from service.store.keys import reasoning_key, user_tag
from service.store.lmdb import LmdbStore
from tests.service.conftest import PATIENT, published_settings
from tests.service.tiny_release import BEAM, TinyRelease, blob, write_release

JSON = {"Content-Type": "application/json"}


def ask(client: TestClient, **body: Any) -> httpx2.Response:
    return client.post("/recommend", json=body)


def problem(response: httpx2.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document of a failed response, after checking what all of them share."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["type"] == (kind if kind == "about:blank" else f"urn:scoter:problem:{kind}")
    assert body["title"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return body


def sample(client: TestClient, name: str) -> float:
    """The value of one line of /metrics."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_the_ranking_is_the_models_with_reasoning_and_without(client: TestClient, tiny: TinyRelease) -> None:
    for user in tiny.users:
        seen = [int(item.removeprefix("item-")) for item in user.history]
        for reasoning, matrix in ((True, user.matrix), (False, None)):
            body = ask(client, user_id=user.id, reasoning=reasoning).json()
            expected = tiny.expected(seen, matrix, set(seen), 10)
            assert [item["id"] for item in body["items"]] == [f"item-{index}" for index, _ in expected]
            assert [item["score"] for item in body["items"]] == pytest.approx([s for _, s in expected], rel=1e-3)
            assert body["reasoning"]["used"] is reasoning
            assert (body["source"], body["complete"], body["degraded"]) == ("model", True, [])


def test_reasoning_changes_what_is_recommended(client: TestClient, tiny: TinyRelease) -> None:
    changed = [
        ask(client, user_id=user.id).json()["items"] != ask(client, user_id=user.id, reasoning=False).json()["items"]
        for user in tiny.users
    ]
    assert all(changed)


def test_exclusion_is_complete(client: TestClient, tiny: TinyRelease) -> None:
    user = tiny.users[1]
    first = [item["id"] for item in ask(client, user_id=user.id).json()["items"]]
    second = [item["id"] for item in ask(client, user_id=user.id, exclude=first).json()["items"]]
    assert len(second) == 10
    assert not {*second} & {*first, *user.history}


def test_headers(client: TestClient, tiny: TinyRelease) -> None:
    response = client.post("/recommend", json={"user_id": tiny.users[0].id}, headers={"X-Request-Id": "abc-1.2:3"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "abc-1.2:3"
    stages = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert list(stages) == ["body", "store", "engine", "total"]
    assert float(stages["total"]) >= float(stages["engine"]) > 0


@pytest.mark.parametrize("offered", ["", "a" * 129, "a b", "<script>", "é".encode().decode("latin-1")])
def test_a_request_id_that_is_not_sane_is_replaced(client: TestClient, offered: str) -> None:
    made = client.get("/livez", headers={b"X-Request-Id": offered.encode("latin-1")}).headers["x-request-id"]
    assert made != offered
    assert len(made) == 32


def test_an_unknown_user_is_answered(client: TestClient) -> None:
    body = ask(client, user_id="nobody \U0001f600").json()
    assert (body["source"], body["degraded"], len(body["items"])) == ("popular", ["no_history"], 10)


def test_ten_thousand_items_of_history(client: TestClient) -> None:
    history = [f"item-{i % 45 + 1}" for i in range(9_000)] + [f"gone-{i}" for i in range(1_000)]
    response = ask(client, user_id="user-0", history=history)
    assert response.status_code == 200
    body = response.json()
    assert body["history"] == {"source": "request", "used": 8, "unknown": 1000, "excluded": 45}
    assert not {item["id"] for item in body["items"]} & {*history}


def test_a_history_of_everything_leaves_nothing_and_says_so(client: TestClient) -> None:
    body = ask(client, user_id="user-0", history=[f"item-{i}" for i in range(1, 61)]).json()
    assert (body["items"], body["complete"], body["source"]) == ([], False, "model")


@pytest.mark.parametrize(
    "body, pointer",
    [
        ({}, "/user_id"),
        ({"user_id": ""}, "/user_id"),
        ({"user_id": "u" * 257}, "/user_id"),
        ({"user_id": 7}, "/user_id"),
        ({"user_id": None}, "/user_id"),
        ({"user_id": "u", "history": "item-1"}, "/history"),
        ({"user_id": "u", "history": [1]}, "/history/0"),
        ({"user_id": "u", "history": [""]}, "/history/0"),
        ({"user_id": "u", "history": ["item-1"] * 10_001}, "/history"),
        ({"user_id": "u", "exclude": {"a": 1}}, "/exclude"),
        ({"user_id": "u", "exclude": ["a"] * 1_001}, "/exclude"),
        ({"user_id": "u", "k": 0}, "/k"),
        ({"user_id": "u", "k": -1}, "/k"),
        ({"user_id": "u", "k": BEAM + 1}, "/k"),
        ({"user_id": "u", "k": 10**30}, "/k"),
        ({"user_id": "u", "k": "3"}, "/k"),
        ({"user_id": "u", "k": 2.5}, "/k"),
        ({"user_id": "u", "k": True}, "/k"),
        ({"user_id": "u", "reasoning": "yes"}, "/reasoning"),
        ({"user_id": "u", "explain": 1}, "/explain"),
        ({"user_id": "u", "model": 1}, "/model"),
        ({"user_id": "u", "K": 3}, "/K"),
        ({"user_id": "u", "a/b~c": 3}, "/a~1b~0c"),
        ([], ""),
        (3, ""),
    ],
)
def test_fields_that_cannot_be_accepted(client: TestClient, body: Any, pointer: str) -> None:
    failed = problem(client.post("/recommend", json=body), 422, "request-invalid")
    assert pointer in [field["pointer"] for field in failed["errors"]]


def test_of_many_errors_the_first_are_listed_and_the_rest_counted(client: TestClient) -> None:
    response = ask(client, user_id="u", **{f"unknown-{number}": 1 for number in range(50)})
    failed = problem(response, 422, "request-invalid")
    assert [field["pointer"] for field in failed["errors"]] == [f"/unknown-{number}" for number in range(20)]
    assert failed["detail"].count("unknown-") == 20
    assert failed["detail"].endswith("; and 30 more")


def test_more_errors_than_are_read_are_counted(client: TestClient) -> None:
    response = ask(client, user_id="u", **{f"unknown-{number}": 1 for number in range(10_000)})
    failed = problem(response, 422, "request-invalid")
    assert failed["errors"] == [{"pointer": "", "detail": "holds 10,000 errors, too many to name"}]


@pytest.mark.parametrize("name", ["history", "exclude"])
def test_a_list_stops_at_its_first_wrong_element(client: TestClient, name: str) -> None:
    requests = [{"user_id": "u", name: ["item-1", *[1] * 5_000]}] * 12
    response = client.post("/recommend/batch", json={"requests": requests})
    for result in response.json()["results"]:
        assert result["status"] == 422
        assert [field["pointer"] for field in result["problem"]["errors"]] == [f"/{name}/1"]
    assert len(response.content) < 10_000


def test_null_is_no_request(client: TestClient) -> None:
    problem(client.post("/recommend", content=b"null", headers=JSON), 422, "request-invalid")


def test_k_out_of_range_names_the_bound(client: TestClient) -> None:
    failed = problem(ask(client, user_id="u", k=BEAM + 1), 422, "request-invalid")
    assert failed["errors"] == [
        {"pointer": "/k", "detail": f"must be between 1 and {BEAM}, the beam of model scoter_h"}
    ]


def test_an_unknown_model_names_those_there_are(client: TestClient) -> None:
    failed = problem(ask(client, user_id="u", model="gpt"), 422, "unknown-model")
    assert failed["errors"][0]["pointer"] == "/model"
    assert "scoter_h, hstu" in failed["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none(client: TestClient, number: str) -> None:
    response = client.post("/recommend", content=f'{{"user_id": "u", "k": {number}}}', headers=JSON)
    failed = problem(response, 422, "request-invalid")
    assert failed["errors"][0]["pointer"] == "/k"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        b'{"user_id": "u"} {}',
        b'{"user_id": "u",}',
        b'{"user_id": "\xff\xfe"}',
        b'{"user_id": "\xc3"}',
        b'{"user_id": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"[" * 100_000,
        b'{"user_id": "u", "k": ' + b"9" * 100_000 + b"}",
    ],
)
def test_a_body_that_is_not_json_in_utf8(client: TestClient, body: bytes) -> None:
    problem(client.post("/recommend", content=body, headers=JSON), 400, "body-malformed")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_a_body_of_another_type(client: TestClient, media_type: str) -> None:
    response = client.post("/recommend", content=b'{"user_id": "u"}', headers={"Content-Type": media_type})
    problem(response, 415, "body-unsupported")


@pytest.mark.parametrize("path", ["/recommend", "/recommend/batch", "/events"])
def test_a_compressed_body_is_called_one(client: TestClient, path: str) -> None:
    content, headers = gzip.compress(b'{"user_id": "u"}'), {"Content-Type": "application/json"}
    refused = problem(
        client.post(path, content=content, headers={**headers, "Content-Encoding": "gzip"}), 415, "body-unsupported"
    )
    assert "gzip" in refused["detail"]


def test_a_body_may_say_that_it_is_as_it_is(client: TestClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "identity"}
    assert client.post("/recommend", content=b'{"user_id": "u"}', headers=headers).status_code == 200


def test_json_with_a_charset_is_json(client: TestClient) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post("/recommend", content=b'{"user_id": "u"}', headers=headers).status_code == 200


def test_a_body_that_is_too_large(client: TestClient) -> None:
    limit = LimitSettings().body_bytes
    response = client.post("/recommend", content=b" " * (limit + 1), headers=JSON)
    assert str(limit) in problem(response, 413, "body-too-large")["detail"]
    padded = b'{"user_id": "u"}'.ljust(limit)
    assert client.post("/recommend", content=padded, headers=JSON).status_code == 200


def test_a_chunked_body_that_grows_too_large_is_not_read_to_its_end(client: TestClient) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 10_000

    problem(client.post("/recommend", content=chunks(), headers=JSON), 413, "body-too-large")
    assert client.post("/recommend", content=iter([b'{"user_', b'id": "u"}']), headers=JSON).status_code == 200


def test_other_paths_and_methods(client: TestClient) -> None:
    problem(client.get("/nothing"), 404, "about:blank")
    failed = client.get("/recommend")
    problem(failed, 405, "about:blank")
    assert failed.headers["allow"] == "POST"
    problem(client.delete("/livez"), 405, "about:blank")


class Failing:
    """An engine that is well but for what its heirs do."""

    local = True

    async def ready(self, model: str) -> bool:
        return True

    async def close(self) -> None: ...


class Full(Failing):
    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        raise EngineOverloaded("6 requests are waiting for inference already")


class Broken(Failing):
    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        raise RuntimeError("secret-detail")


def test_overload_says_when_to_come_back(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.state.serving.edition.recommender, "_ladder", Ladder([Full()], BreakerSettings()))
    response = ask(client, user_id="user-0")
    problem(response, 503, "overloaded")
    assert response.headers["retry-after"] == "1"


def test_an_unexpected_failure_is_a_problem_and_is_logged(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app.state.serving.edition.recommender, "_ladder", Ladder([Broken()], BreakerSettings()))
    response = ask(client, user_id="user-0")
    failed = problem(response, 500, "internal")
    assert "secret-detail" not in response.text
    assert failed["request_id"] in failed["detail"]
    logged = capsys.readouterr()
    assert failed["request_id"] in logged.out + logged.err
    assert ask(client, user_id="user-0", history=[]).status_code == 200


def test_livez_and_readyz(client: TestClient, tiny: TinyRelease) -> None:
    assert client.get("/livez").json() == {"status": "ok"}
    response = client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "release": tiny.manifest.release_id,
        "parts": {"store": "ok", "model:scoter_h": "ok", "model:hstu": "ok"},
    }


class Down:
    async def ping(self) -> None:
        raise StoreUnavailable("Redis failed: refused")


def test_readyz_names_what_is_not_ready(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(app.state.serving, "store", Down())
        patch.setattr(app.state.serving, "draining", True)
        patch.setattr(app.state.serving.edition.ladder._rungs[0].engine, "_closed", True)
        response = client.get("/readyz")
    assert response.status_code == 503
    parts = response.json()["parts"]
    assert parts["store"] == "Redis failed: refused"
    assert "ok" not in parts.values()
    assert client.get("/readyz").status_code == 200


def test_readyz_tells_of_an_engine_that_answers_nobody(
    tiny: TinyRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = published_settings(tiny, tmp_path / "store")
    quick = settings.model_copy(update={"breaker": BreakerSettings(open_ms=50)})
    with TestClient(create_app(quick)) as client:
        with monkeypatch.context() as patch:
            patch.setattr("service.engine.onnx.run", Mock(side_effect=RuntimeError("bad allocation")))
            for _ in range(quick.breaker.failures):
                assert ask(client, user_id="user-0").json()["degraded"] == ["engine_unavailable"]
            response = client.get("/readyz")
            assert response.status_code == 503
            assert "ok" not in response.json()["parts"]["model:scoter_h"]
            assert response.json()["parts"]["model:hstu"] == "ok"
        assert client.get("/readyz").status_code == 200  # before anybody has asked it again
        time.sleep(quick.breaker.open_ms / 1000)
        assert ask(client, user_id="user-0").json()["source"] == "model"


def test_a_store_that_is_down_takes_no_replica_out_of_rotation(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.serving, "store", Down())
    response = client.get("/readyz")
    assert response.status_code == 200
    assert response.json()["status"] == "degraded"
    assert response.json()["parts"]["store"] == "Redis failed: refused"


def test_metrics(client: TestClient, tiny: TinyRelease) -> None:
    used = 'scoter_request_seconds_count{arm="default",model="scoter_h",reasoning="used"}'
    before = sample(client, used)
    counted = {
        status: sample(client, f'scoter_recommendations_total{{status="{status}"}}') for status in (200, 404, 422)
    }
    ask(client, user_id=tiny.users[0].id)
    client.get("/nothing/at/all")
    ask(client, user_id="u", k=0)
    for status, more in ((200, 1), (404, 0), (422, 1)):
        assert sample(client, f'scoter_recommendations_total{{status="{status}"}}') == counted[status] + more
    text = client.get("/metrics").text
    assert sample(client, used) == before + 1
    assert f'scoter_release_info{{dataset="tiny",release="{tiny.manifest.release_id}"}} 1.0' in text
    assert 'scoter_responses_total{route="other",status="404"}' in text
    assert 'scoter_responses_total{route="/recommend",status="422"}' in text
    assert 'scoter_request_seconds_bucket{arm="default",le="0.025",model="scoter_h",reasoning="used"}' in text
    assert "scoter_engine_queue_requests 0.0" in text
    assert 'scoter_engine_batch_requests_count{model="scoter_h"}' in text
    assert "user-" not in text
    assert "item-" not in text


def test_metrics_are_written_beside_the_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of fifty arms take 60 ms, for which all requests would wait."""

    def written(_registry: CollectorRegistry) -> bytes:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return b"elsewhere"

    monkeypatch.setattr("service.app.generate_latest", written)
    assert client.get("/metrics").text == "elsewhere"


def test_warm_up_is_not_counted_as_traffic(tiny: TinyRelease, tmp_path: Path) -> None:
    with TestClient(create_app(published_settings(tiny, tmp_path))) as fresh:
        text = fresh.get("/metrics").text
    assert "scoter_request_seconds_count" not in text
    assert 'scoter_engine_batch_requests_count{model="hstu"} 6.0' in text


async def damage(folder: Path, tiny: TinyRelease) -> None:
    """Store a damaged blob, a foreign one and none for the first three users."""
    store = LmdbStore(folder)
    keys = [reasoning_key(user_tag(user.id), tiny.manifest.release_id, "scoter_h") for user in tiny.users]
    first = blob(tiny, tiny.users[0])
    await store.put([(keys[0], first[:-1] + bytes([first[-1] ^ 1])), (keys[1], first)])
    await store.delete([keys[2]])
    await store.close()


def test_unusable_blobs_are_answered_without_reasoning_and_counted(tiny: TinyRelease, tmp_path: Path) -> None:
    import asyncio

    settings = published_settings(tiny, tmp_path)
    asyncio.run(damage(tmp_path, tiny))
    with TestClient(create_app(settings)) as client:
        answers = [ask(client, user_id=user.id, explain=True).json() for user in tiny.users[:4]]
        counted = {
            reason: sample(client, f'scoter_reasoning_misses_total{{reason="{reason}"}}')
            for reason in ("checksum", "user", "absent")
        }
    assert [answer["reasoning"]["reason"] for answer in answers] == ["checksum", "user", "absent", None]
    assert [answer["reasoning"]["steps"] == [] for answer in answers] == [True, True, True, False]
    assert counted == {"checksum": 1, "user": 1, "absent": 1}
    assert answers[0]["source"] == "model"
    assert answers[1]["history"]["source"] == "none"  # that reply was another user's: none of it is believed


def test_openapi_declares_examples_and_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/recommend"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/RecommendRequest")
    request = document["components"]["schemas"]["RecommendRequest"]
    assert request["additionalProperties"] is False
    assert request["examples"][0]["user_id"]
    assert set(operation["responses"]) == {"200", *map(str, RECOMMEND_STATUSES)}
    for status, response in operation["responses"].items():
        assert {"X-Request-Id", "Server-Timing"} <= set(response["headers"])
        if status == "200":
            continue
        told = response["content"]["application/problem+json"]
        assert told["schema"] == {"$ref": "#/components/schemas/Problem"}
        examples = [one["value"] for one in told.get("examples", {}).values()]
        assert examples or status == "422"  # which the schema's own is of
        assert {one["status"] for one in examples} <= {int(status)}
    assert "Retry-After" in operation["responses"]["503"]["headers"]
    sent = client.post("/recommend", content=b"{user_id}", headers={"content-type": "application/json"}).json()
    (shown,) = operation["responses"]["400"]["content"]["application/problem+json"]["examples"].values()
    assert shown["value"] == {**sent, "request_id": shown["value"]["request_id"]}
    assert document["components"]["schemas"]["RecommendResponse"]["examples"]


def test_openapi_promises_the_sizes_that_this_service_takes(tiny: TinyRelease, tmp_path: Path, own: Path) -> None:
    settings = published_settings(tiny, tmp_path / "store", own.parent)
    limits = settings.limits.model_copy(update={"batch": 3, "history": 5, "exclude": 2, "deadline_ceiling_ms": 700.0})
    document = create_app(settings.model_copy(update={"limits": limits})).openapi()
    asked = document["components"]["schemas"]["RecommendRequest"]["properties"]
    assert asked["exclude"]["maxItems"] == 2
    assert asked["history"]["anyOf"][0]["maxItems"] == 5
    assert document["components"]["schemas"]["BatchRequest"]["properties"]["requests"]["maxItems"] == 3
    for path in ("/recommend", "/recommend/batch"):
        (deadline,) = (p for p in document["paths"][path]["post"]["parameters"] if p["name"] == "X-Deadline-Ms")
        assert deadline["schema"]["default"] == settings.limits.deadline_ms
        assert "up to 700" in deadline["description"]


def test_the_examples_of_the_documentation_are_accepted(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for example in document["components"]["schemas"]["RecommendRequest"]["examples"]:
        assert client.post("/recommend", json=example).status_code == 200


def start(settings: Settings) -> None:
    with TestClient(create_app(settings)):
        raise AssertionError("the service started")


def test_a_tampered_graph_stops_the_start(own: Path, tiny: TinyRelease, tmp_path: Path) -> None:
    graph = own / "models/hstu/1/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ReleaseCorrupt, match=r"hstu/1/model\.onnx"):
        start(published_settings(tiny, tmp_path / "store", own.parent))


def test_a_release_in_a_folder_of_another_name_stops_the_start(own: Path, tiny: TinyRelease, tmp_path: Path) -> None:
    own.rename(own.parent / ("0" * 16))
    settings = Settings(releases=own.parent, release="0" * 16, store=LmdbSettings(path=tmp_path / "store"))
    with pytest.raises(ReleaseCorrupt, match="holds release " + tiny.manifest.release_id):
        start(settings)


def test_nothing_published_stops_the_start(tiny: TinyRelease, tmp_path: Path) -> None:
    with pytest.raises(ReleaseMissing, match="scoter publish"):
        start(Settings(releases=tiny.path.parent, store=LmdbSettings(path=tmp_path)))


def test_a_pinned_release_needs_no_pointer(tiny: TinyRelease, tmp_path: Path) -> None:
    pinned = Settings(
        releases=tiny.path.parent,
        release=tiny.manifest.release_id,
        store=LmdbSettings(path=tmp_path / "empty"),
        limits=PATIENT,
    )
    with TestClient(create_app(pinned)) as client:
        assert client.get("/readyz").status_code == 200
        assert ask(client, user_id="u", history=["item-1"]).json()["reasoning"]["reason"] == "absent"


class Away(Failing):
    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        raise EngineUnavailable("connection refused")


@pytest.fixture
def written() -> Iterator[StringIO]:
    """What is logged, with logs set up as the command does, down to debug."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    configure_logs(LogLevel.debug)
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    stream = StringIO()
    handler.setStream(stream)
    structlog.configure(cache_logger_on_first_use=False)  # or loggers would keep this set-up beyond the test
    try:
        yield stream
    finally:
        structlog.configure(**before)
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize(
    "engine, status, batch_status", [(None, 200, 200), (Away, 200, 200), (Full, 503, 503), (Broken, 500, 500)]
)
def test_no_user_data_in_logs(
    app: FastAPI,
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    written: StringIO,
    engine: type[Away | Full | Broken] | None,
    status: int,
    batch_status: int,
) -> None:
    if engine is not None:
        monkeypatch.setattr(app.state.serving.edition.recommender, "_ladder", Ladder([engine()], BreakerSettings()))
    private: dict[str, Any] = {"user_id": "very-private-user", "history": ["item-17"], "exclude": ["item-23"]}
    logging.getLogger("test").info("heard")
    assert ask(client, **private).status_code == status
    assert ask(client, **private, k=0).status_code == 422
    (one,) = client.post("/recommend/batch", json={"requests": [private]}).json()["results"]
    assert one["status"] == batch_status
    event = {"event_id": "order-7", "item_id": "item-17", "timestamp": "2025-06-01T00:00:00Z"}
    assert client.post("/events", json={"user_id": "very-private-user", "events": [event]}).status_code == 200
    text = written.getvalue()
    assert "heard" in text
    assert text.count("request_failed") == (2 if engine is Broken else 0)
    for secret in ("very-private-user", user_tag("very-private-user"), "item-17", "item-23", "order-7"):
        assert secret not in text


@pytest.mark.parametrize("gone", [20, 300])
def test_what_one_request_excludes_lengthens_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    made = write_release(tmp_path / "releases", items=400)
    inputs: list[ModelInput] = []
    plain = OnnxEngine.infer

    async def infer(self: OnnxEngine, model: str, request: ModelInput, seconds: float) -> Ranking:
        inputs.append(request)
        return await plain(self, model, request, seconds)

    user = made.users[0]
    with TestClient(create_app(published_settings(made, tmp_path / "store"))) as client:
        monkeypatch.setattr(OnnxEngine, "infer", infer)
        body = {"user_id": user.id, "exclude": [f"item-{number}" for number in range(1, gone + 1)] * 2, "k": 5}
        answer = client.post("/recommend", json=body).json()
    indices = [int(item.removeprefix("item-")) for item in user.history]
    wanted = made.expected(indices, user.matrix, {*indices, *range(1, gone + 1)}, 5)
    assert [item["id"] for item in answer["items"]] == [f"item-{index}" for index, _ in wanted]
    (asked,) = inputs
    assert (asked.allowed is None) == (gone < EXCLUDED_SINGLY)
    assert len(asked.exclude) <= EXCLUDED_SINGLY
