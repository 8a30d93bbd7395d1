"""What surrounds a recommendation over HTTP: deadlines, places, batches, callers that leave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from fastapi import FastAPI
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from service.app import create_app
from service.engine.base import ModelInput, Ranking
from service.engine.ladder import Ladder
from service.errors import EngineTimeout
from service.settings import (
    BreakerSettings,
    ExposureSettings,
    LimitSettings,
    OnnxSettings,
    Settings,
)
from service.store.keys import user_tag
from service.store.redis import RedisStore
from tests.conftest import redis_settings
from tests.service.conftest import PATIENT, published_settings
from tests.service.test_app import problem, sample
from tests.service.tiny_release import BEAM, TinyRelease, publish


class Slow:
    """An engine that takes its time, and notes who did not wait."""

    local = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun = 0
        self.dropped = 0

    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        self.begun += 1
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(self.seconds)
        except TimeoutError as error:
            raise EngineTimeout(model) from error
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        return Ranking(np.arange(1, BEAM + 1), np.full(BEAM, -1, np.float32), np.ones(BEAM, np.bool_))

    async def ready(self, model: str) -> bool:
        return True

    async def close(self) -> None: ...


def http() -> dict[str, Any]:
    """The scope of a POST /recommend, as the server makes it."""
    headers = [(b"content-type", b"application/json")]
    return {
        "type": "http",
        "method": "POST",
        "path": "/recommend",
        "query_string": b"",
        "headers": headers,
        "state": {},
    }


@pytest.fixture(scope="module")
def app(tiny: TinyRelease, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    settings = published_settings(tiny, tmp_path_factory.mktemp("store"))
    limits = PATIENT.model_copy(update={"concurrency": 2, "batch": 3})
    return create_app(settings.model_copy(update={"limits": limits}))


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as running:
        yield running


@pytest.fixture
def slow(app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Slow:
    engine = Slow(0.3)
    monkeypatch.setattr(app.state.serving.edition.recommender, "_ladder", Ladder([engine], BreakerSettings()))
    return engine


def test_a_late_engine_costs_the_ranking_not_the_answer(client: TestClient, slow: Slow) -> None:
    times, responses = [], []
    for _ in range(3):  # a busy test machine may stop for a while
        started = time.perf_counter()
        responses.append(client.post("/recommend", json={"user_id": "user-0"}, headers={"X-Deadline-Ms": "60"}))
        times.append(time.perf_counter() - started)
    assert min(times) < 0.2
    assert responses[0].status_code == 200
    body = responses[0].json()
    assert body["source"] == "popular"
    assert body["degraded"] == ["engine_timeout"]


def test_the_callers_time_may_be_up_before_anything_begins(client: TestClient) -> None:
    before = sample(client, 'scoter_refused_total{reason="deadline"}')
    response = client.post("/recommend", json={"user_id": "user-0"}, headers={"X-Deadline-Ms": "0.000001"})
    problem(response, 503, "deadline")
    assert response.headers["retry-after"] == "1"
    assert sample(client, 'scoter_refused_total{reason="deadline"}') == before + 1


async def halting(app: FastAPI, pause: float, deadline_ms: str) -> list[dict[str, Any]]:
    """What a caller is sent whose body comes in two chunks, with a pause between them."""
    chunks = [(b'{"user_id":', True), (b' "user-0"}', False)]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not chunks:
            await asyncio.Event().wait()  # the caller stays until it is answered
        if len(chunks) == 1:
            await asyncio.sleep(pause)
        body, more = chunks.pop(0)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = http()
    scope["headers"].append((b"x-deadline-ms", deadline_ms.encode()))
    await app(scope, receive, send)
    return sent


def test_a_body_that_outlasts_the_deadline_is_turned_away(app: FastAPI, client: TestClient) -> None:
    before = sample(client, 'scoter_refused_total{reason="deadline"}')
    assert client.portal is not None
    start, body = client.portal.call(halting, app, 0.1, "60")
    assert start["status"] == 503
    assert b"urn:scoter:problem:deadline" in body["body"]
    assert sample(client, 'scoter_refused_total{reason="deadline"}') == before + 1


def test_what_the_body_took_is_missing_to_the_engine(app: FastAPI, client: TestClient, slow: Slow) -> None:
    assert client.portal is not None
    # 0.2 s are left, and the engine takes 0.3; a test machine that stops for a while may leave no time at all.
    answers = [client.portal.call(halting, app, 0.3, "500") for _ in range(3)]
    start, body = min(answers, key=lambda answer: int(answer[0]["status"]))
    assert start["status"] == 200
    assert json.loads(body["body"])["degraded"] == ["engine_timeout"]


def test_a_slow_body_is_a_stage_of_its_own_and_no_latency_of_the_service(app: FastAPI, client: TestClient) -> None:
    latency = 'scoter_request_seconds_sum{arm="default",model="scoter_h",reasoning="used"}'
    stage = 'scoter_stage_seconds_sum{stage="body"}'
    assert client.portal is not None
    latencies = []
    for _ in range(3):  # a busy test machine may stop for a while
        before = sample(client, latency), sample(client, stage)
        start, _ = client.portal.call(halting, app, 0.5, "9000")
        assert start["status"] == 200
        latencies.append(sample(client, latency) - before[0])
        assert sample(client, stage) - before[1] >= 0.5
        timing = dict(part.split(";dur=") for part in dict(start["headers"])[b"server-timing"].decode().split(", "))
        assert float(timing["total"]) >= float(timing["body"]) >= 500
    assert min(latencies) < 0.4


def test_a_deadline_that_is_none_is_refused(client: TestClient) -> None:
    failed = client.post("/recommend", json={"user_id": "user-0"}, headers={"X-Deadline-Ms": "soon"})
    assert "x-deadline-ms" in problem(failed, 400, "header-invalid")["detail"]


def test_one_request_more_than_there_are_places_is_turned_away_at_once(client: TestClient, slow: Slow) -> None:
    before = sample(client, 'scoter_refused_total{reason="overloaded"}')
    batch = {"requests": [{"user_id": f"user-{number}"} for number in range(3)]}
    results = client.post("/recommend/batch", json=batch).json()["results"]
    assert [result["status"] for result in results] == [200, 200, 503]
    assert results[2]["problem"]["type"] == "urn:scoter:problem:overloaded"
    assert sample(client, 'scoter_refused_total{reason="overloaded"}') == before + 1
    assert sample(client, "scoter_answering_requests") == 0


def counted(client: TestClient) -> dict[int, int]:
    """Recommendations by status so far."""
    statuses = (200, 422, 500, 503)
    return {status: int(sample(client, f'scoter_recommendations_total{{status="{status}"}}')) for status in statuses}


def test_each_recommendation_of_a_batch_is_counted_by_its_status(client: TestClient, slow: Slow) -> None:
    before = counted(client)
    requests: list[dict[str, Any]] = [{"user_id": "user-0"}, {"user_id": "user-0"}, {"user_id": "user-0"}]
    response = client.post("/recommend/batch", json={"requests": requests})  # two places for three
    assert response.status_code == 200
    assert counted(client) == {**before, 200: before[200] + 2, 503: before[503] + 1}
    client.post("/recommend/batch", json={"requests": []})  # refused whole
    assert counted(client)[422] == before[422] + 1


class Breaking(Slow):
    """Fails for whoever has no reasoning, in a way that nobody has thought of."""

    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        if request.reasoning is None:
            raise RuntimeError("secret-detail")
        return await super().infer(model, request, seconds)


def test_an_unexpected_failure_costs_a_batch_one_answer(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder = Ladder([Breaking(0)], BreakerSettings())
    monkeypatch.setattr(app.state.serving.edition.recommender, "_ladder", ladder)
    before = counted(client)
    requests = [{"user_id": "user-0"}, {"user_id": "user-0", "reasoning": False}]
    with capture_logs() as logged:
        response = client.post("/recommend/batch", json={"requests": requests}, headers={"X-Request-Id": "b"})
    assert response.status_code == 200
    assert [result["status"] for result in response.json()["results"]] == [200, 500]
    assert "secret-detail" not in response.text
    assert [(line["event"], line["request_id"]) for line in logged] == [("request_failed", "b.1")]
    assert counted(client) == {**before, 200: before[200] + 1, 500: before[500] + 1}


def test_each_request_of_a_batch_has_an_answer_of_its_own(client: TestClient, tiny: TinyRelease) -> None:
    alone = [client.post("/recommend", json={"user_id": user.id}).json()["items"] for user in tiny.users[:2]]
    counted = sample(client, 'scoter_request_seconds_count{arm="default",model="scoter_h",reasoning="used"}')
    requests: list[dict[str, Any]] = [{"user_id": user.id} for user in tiny.users[:2]]
    response = client.post("/recommend/batch", json={"requests": requests}, headers={"X-Request-Id": "b"})
    results = response.json()["results"]
    assert [result["response"]["items"] for result in results] == alone
    assert [result["response"]["request_id"] for result in results] == ["b.0", "b.1"]
    wrong = [{"user_id": "user-0", "k": BEAM + 1}, {"user_id": "user-0", "model": "tiger"}]
    results = client.post("/recommend/batch", json={"requests": wrong}).json()["results"]
    assert [result["status"] for result in results] == [422, 422]
    assert [result["problem"]["errors"][0]["pointer"] for result in results] == ["/k", "/model"]
    now = sample(client, 'scoter_request_seconds_count{arm="default",model="scoter_h",reasoning="used"}')
    assert now == counted + 2


@pytest.mark.parametrize(
    "body, pointer",
    [
        ({"requests": []}, "/requests"),
        ({"requests": [{"user_id": "u"}] * 4}, "/requests"),
        ({"requests": {"user_id": "u"}}, "/requests"),
        ({}, "/requests"),
    ],
)
def test_a_batch_that_is_none_is_refused_whole(client: TestClient, body: dict[str, Any], pointer: str) -> None:
    failed = problem(client.post("/recommend/batch", json=body), 422, "request-invalid")
    assert [one["pointer"] for one in failed["errors"]] == [pointer]


@pytest.mark.parametrize(
    "bad, pointer",
    [
        ({"user_id": "user-1", "k": 0}, "/k"),
        ({"user_id": "user-1", "k": BEAM + 1}, "/k"),
        ({"user_id": ""}, "/user_id"),
        ({"user_id": "user-1", "exclude": [""]}, "/exclude/0"),
        ({"user_id": "user-1", "excluded": []}, "/excluded"),
        ("user-1", ""),
    ],
)
def test_a_bad_member_costs_a_batch_one_answer(client: TestClient, bad: object, pointer: str) -> None:
    requests = [{"user_id": "user-0"}, bad, {"user_id": "user-2"}]
    response = client.post("/recommend/batch", json={"requests": requests})
    assert response.status_code == 200
    first, middle, last = response.json()["results"]
    assert (first["status"], middle["status"], last["status"]) == (200, 422, 200)
    assert [one["pointer"] for one in middle["problem"]["errors"]] == [pointer]
    assert len(first["response"]["items"]) == len(last["response"]["items"]) > 0


def test_a_batch_that_nobody_got_was_shown_to_nobody(tiny: TinyRelease, tmp_path: Path) -> None:
    log = tmp_path / "exposures.jsonl"
    settings = published_settings(tiny, tmp_path / "store")
    app = create_app(settings.model_copy(update={"exposures": ExposureSettings(file=log, linger_seconds=0)}))
    sent: list[dict[str, Any]] = []

    class Uneven(Slow):
        """Quick with all requests but the second."""

        async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
            self.seconds = 5.0 * (self.begun == 1)
            return await super().infer(model, request, seconds)

    async def leave() -> None:
        engine = Uneven(0)
        app.state.serving.edition.recommender._ladder = Ladder([engine], BreakerSettings())
        body = json.dumps({"requests": [{"user_id": "user-0"}, {"user_id": "user-1"}]}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            while engine.begun < 2:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)  # the first of the two is done by now
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await app({**http(), "path": "/recommend/batch"}, receive, send)  # type: ignore[arg-type]

    with TestClient(app) as client:
        assert client.portal is not None
        client.portal.call(leave)
        client.post("/recommend/batch", json={"requests": [{"user_id": "user-2"}]})
    assert sent == []
    assert [json.loads(line)["user_tag"] for line in log.read_text().splitlines()] == [user_tag("user-2")]


def test_events_that_wait_for_a_redis_in_failover_take_no_answer_s_place(tiny: TinyRelease, redis_port: int) -> None:
    address = redis_settings(redis_port)

    async def fill() -> None:
        store = RedisStore(address)
        await publish(tiny, store)
        await store.close()

    asyncio.run(fill())
    settings = Settings(
        releases=tiny.path.parent,
        store=address,
        engine=OnnxSettings(threads=1),
        limits=PATIENT.model_copy(update={"concurrency": 4}),
    )
    server = redis.Redis(port=redis_port)
    app = create_app(settings)
    with TestClient(app) as client, ThreadPoolExecutor(4) as threads:
        server.execute_command("CLIENT", "PAUSE", "5000", "WRITE")  # as in a planned failover: reads are answered
        try:
            event = {"event_id": "e", "item_id": "item-9", "timestamp": 5}
            for number in range(4):
                threads.submit(client.post, "/events", json={"user_id": f"user-{number}", "events": [event]})
            while app.state.serving._appending.taken < 4:
                time.sleep(0.001)
            answer = client.post("/recommend", json={"user_id": "user-0"})
        finally:
            server.execute_command("CLIENT", "UNPAUSE")
    assert answer.status_code == 200
    assert answer.json()["source"] == "model"


def test_whoever_leaves_is_dropped_and_counted(app: FastAPI, client: TestClient, slow: Slow) -> None:
    """The server's side of a connection that breaks while the engine is at work."""
    sent: list[dict[str, Any]] = []

    async def leave() -> None:
        messages = [{"type": "http.request", "body": b'{"user_id": "user-0"}', "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            while not slow.begun:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(http(), receive, send)

    assert client.portal is not None
    client.portal.call(leave)
    assert sent == []
    assert (slow.begun, slow.dropped) == (1, 1)
    assert sample(client, "scoter_callers_gone_total") == 1
    assert sample(client, "scoter_answering_requests") == 0


def test_a_body_that_trickles_is_given_up(tiny: TinyRelease, tmp_path: Path) -> None:
    settings = published_settings(tiny, tmp_path)
    impatient = settings.model_copy(update={"limits": LimitSettings(body_ms=50)})
    sent: list[dict[str, Any]] = []

    trickling = create_app(impatient)

    async def trickle() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0.03)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        await trickling(http(), receive, send)

    with TestClient(trickling) as running:
        assert running.portal is not None
        running.portal.call(trickle)
    assert sent[0]["status"] == 408
