"""Experiments, exposures and events on the path of a request."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import serving
from service.app import create_app
from service.edition import Edition
from service.engine.base import ModelInput, Ranking
from service.engine.onnx import OnnxEngine, OnnxEngines
from service.errors import ExperimentsInvalid
from service.serving import FREED_AT_ONCE, Serving, put_away
from service.settings import (
    BreakerSettings,
    ExperimentSettings,
    ExposureSettings,
    LimitSettings,
    LmdbSettings,
    OnnxSettings,
    Settings,
)
from tests.service.conftest import PATIENT, published_settings
from tests.service.test_app import problem, sample
from tests.service.tiny_release import TinyRelease, seal

HALVES = {
    "key": "model",
    "hashVersion": 2,
    "variations": [{"model": "hstu"}, {"model": "scoter_h"}],
    "meta": [{"key": "control"}, {"key": "scoter"}],
}
WITHHELD = {
    "key": "reasoning",
    "hashVersion": 2,
    "condition": {"country": "DE"},
    "variations": [{"reasoning": False}, {"reasoning": True}],
    "meta": [{"key": "withheld"}, {"key": "used"}],
}


def features(**rules: Any) -> dict[str, Any]:
    return {"features": {name: {"defaultValue": {}, "rules": [rule]} for name, rule in rules.items()}}


Start = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture
def start(tiny: TinyRelease, tmp_path: Path) -> Start:
    """A service with experiments in a file and exposures in another."""

    @contextmanager
    def running(content: dict[str, Any], **changes: Any) -> Iterator[TestClient]:
        source = tmp_path / "experiments.json"
        source.write_text(json.dumps(content))
        settings = published_settings(tiny, tmp_path / "store").model_copy(
            update={
                "experiments": ExperimentSettings(source=str(source), reload_seconds=0.05, allow_forced=True),
                "exposures": ExposureSettings(file=tmp_path / "exposures.jsonl", user="id", linger_seconds=0),
                **changes,
            }
        )
        with TestClient(create_app(settings)) as client:
            yield client

    return running


def exposures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "exposures.jsonl").read_text().splitlines()]


def written(folder: Path) -> int:
    """How many exposures there are while the service runs."""
    file = folder / "exposures.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def ask(client: TestClient, user: str, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    response = client.post("/recommend", json={"user_id": user, **body}, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_each_user_gets_the_model_of_an_arm_and_the_log_says_so(
    start: Start, tiny: TinyRelease, tmp_path: Path
) -> None:
    with start(features(model=HALVES)) as client:
        answers = {user.id: ask(client, user.id) for user in tiny.users}
        again = {user.id: ask(client, user.id) for user in tiny.users}
        metrics = client.get("/metrics").text
    models = {"control": "hstu", "scoter": "scoter_h"}
    assert {answer["model"] for answer in answers.values()} == {"hstu", "scoter_h"}
    for user in tiny.users:
        (experiment,) = answers[user.id]["experiments"]
        assert answers[user.id]["model"] == models[experiment["variation"]]
        assert again[user.id]["experiments"] == answers[user.id]["experiments"]
        seen = [int(item.removeprefix("item-")) for item in user.history]
        matrix = user.matrix if experiment["variation"] == "scoter" else None
        expected = tiny.expected(seen, matrix, set(seen), 10)
        assert [item["id"] for item in answers[user.id]["items"]] == [f"item-{index}" for index, _ in expected]
    assert 'arm="model:control"' in metrics or 'arm="model=control"' in metrics
    logged = exposures(tmp_path)
    assert len(logged) == 2 * len(tiny.users)
    for line in logged:
        answer = answers[line["user_id"]]
        assert [item["id"] for item in line["items"]] == [item["id"] for item in answer["items"]]
        assert (line["release"], line["model"]) == (answer["release"], answer["model"])
        assert line["experiments"][0]["variation"] == answer["experiments"][0]["variation"]
        assert line["latency_ms"] > 0


def test_an_arm_may_withhold_the_reasoning_by_attributes_of_the_request(start: Start, tiny: TinyRelease) -> None:
    with start(features(reasoning=WITHHELD)) as client:
        used = set()
        for user in tiny.users:
            assert ask(client, user.id)["experiments"] == []
            answer = ask(client, user.id, attributes={"country": "DE"})
            (experiment,) = answer["experiments"]
            assert answer["reasoning"]["used"] is (experiment["variation"] == "used")
            used.add(answer["reasoning"]["used"])
        assert used == {True, False}


def test_a_request_that_names_its_model_is_in_no_experiment(start: Start, tmp_path: Path) -> None:
    with start(features(model=HALVES)) as client:
        for body in ({"model": "hstu"}, {"reasoning": False}):
            assert ask(client, "user-0", **body)["experiments"] == []
    assert [line["label"] for line in exposures(tmp_path)] == ["request", "request"]


def test_who_is_held_out_is_so_in_requests_that_name_their_model_too(start: Start, tmp_path: Path) -> None:
    content = features(model=HALVES)
    content["features"]["holdout"] = {
        "defaultValue": False,
        "rules": [{"force": True, "condition": {"user_id": "user-0"}}],
    }
    with start(content) as client:
        for user, held in (("user-0", True), ("user-1", False)):
            for body in ({}, {"model": "hstu"}, {"reasoning": False}):
                assert ask(client, user, **body)["holdout"] is held
    logged = exposures(tmp_path)
    assert [line["holdout"] for line in logged] == [True] * 3 + [False] * 3
    assert [line["label"] for line in logged][:3] == ["holdout", "request", "request"]


def test_quality_assurance_may_insist_on_an_arm_where_that_is_allowed(start: Start, tmp_path: Path) -> None:
    insists = {"X-Scoter-Arm": "model=control"}
    with start(features(model=HALVES)) as client:
        for number in range(6):
            answer = ask(client, f"user-{number}", insists)
            assert answer["model"] == "hstu"
            assert answer["experiments"] == [{"experiment": "model", "variation": "control", "forced": True}]
        wrong = client.post("/recommend", json={"user_id": "u"}, headers={"X-Scoter-Arm": "model=none"})
        assert "control, scoter" in problem(wrong, 400, "header-invalid")["detail"]
    assert {line["experiments"][0]["forced"] for line in exposures(tmp_path)} == {True}
    source = str(tmp_path / "experiments.json")
    with start(features(model=HALVES), experiments=ExperimentSettings(source=source)) as client:
        assert {ask(client, f"user-{number}", insists)["model"] for number in range(6)} == {"hstu", "scoter_h"}


def test_a_holdout_is_labelled(start: Start) -> None:
    content = features(model=HALVES)
    content["features"]["holdout"] = {"defaultValue": True}
    with start(content) as client:
        answer = ask(client, "user-0")
    assert (answer["holdout"], answer["experiments"], answer["model"]) == (True, [], "scoter_h")


def test_shadow_arms_are_logged_and_not_returned(start: Start, tiny: TinyRelease, tmp_path: Path) -> None:
    content = features(model=HALVES)
    content["features"]["shadow"] = {"defaultValue": [{"name": "bare", "model": "hstu"}]}
    with start(content) as client:
        before = sample(client, 'scoter_responses_total{route="/recommend",status="200"}')
        answers: dict[str, Any] = {}
        for user in tiny.users:
            answers[user.id] = ask(client, user.id)
            until(lambda: written(tmp_path) == 2 * len(answers))  # shadows of many at once would be skipped
        assert sample(client, 'scoter_responses_total{route="/recommend",status="200"}') == before + len(tiny.users)
    logged = exposures(tmp_path)
    shadows = [line for line in logged if line["shadow"]]
    assert len(logged) == 2 * len(tiny.users)
    assert {line["user_id"] for line in shadows} == {user.id for user in tiny.users}
    for line in shadows:
        assert (line["model"], line["arm"]["name"]) == ("hstu", "bare")
        assert line["request_id"] == answers[line["user_id"]]["request_id"]


def test_shadow_arms_make_way_while_requests_wait_for_inference(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = features()
    content["features"]["shadow"] = {"defaultValue": [{"model": "hstu"}, {"reasoning": False}]}
    with start(content) as client:
        with monkeypatch.context() as busy:
            busy.setattr(OnnxEngines, "waiting", lambda _: 1)
            ask(client, "user-0")
            until(lambda: sample(client, "scoter_shadows_skipped_total") == 2)
        ask(client, "user-1")
        until(lambda: written(tmp_path) == 4)
    assert [(line["user_id"], line["shadow"]) for line in exposures(tmp_path)] == [
        ("user-0", False),
        ("user-1", False),
        ("user-1", True),
        ("user-1", True),
    ]


def test_experiments_change_without_a_restart_and_a_bad_file_changes_nothing(start: Start, tmp_path: Path) -> None:
    with start(features()) as client:
        assert ask(client, "user-0")["experiments"] == []
        source = tmp_path / "experiments.json"
        source.write_text(json.dumps(features(model=HALVES)))
        until(lambda: bool(ask(client, "user-0")["experiments"]))
        before = ask(client, "user-0")["experiments"]
        source.write_text(json.dumps(features(model={**HALVES, "variations": [{"model": "tiger"}, {}]})))
        until(lambda: sample(client, "scoter_experiments_ok") == 0)
        assert ask(client, "user-0")["experiments"] == before
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert "/features/model/rules/0/variations/0/model" in ready.json()["parts"]["experiments"]


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_event_is_in_the_next_answer_and_the_reasoning_is_behind_by_it(start: Start, tiny: TinyRelease) -> None:
    user = tiny.users[0]
    bought = next(f"item-{i}" for i in range(1, 61) if f"item-{i}" not in user.history)
    with start(features()) as client:
        assert ask(client, user.id)["reasoning"]["behind"] == 0
        event = {"event_id": "order-1", "item_id": bought, "timestamp": time.time()}
        for accepted in (1, 0):  # the second time it is known
            response = client.post("/events", json={"user_id": user.id, "events": [event]})
            assert response.status_code == 200, response.text
            assert response.json()["accepted"] == accepted
        answer = ask(client, user.id)
    assert bought not in [item["id"] for item in answer["items"]]
    assert answer["history"]["used"] == len(user.history) + 1
    assert answer["reasoning"]["used"]
    assert answer["reasoning"]["behind"] == 1
    assert answer["reasoning"]["age_seconds"] > 0


def test_an_event_that_cannot_be_is_refused(start: Start) -> None:
    with start(features()) as client:
        tomorrow = {"event_id": "e", "item_id": "item-1", "timestamp": time.time() + 86_400}
        failed = problem(client.post("/events", json={"user_id": "u", "events": [tomorrow]}), 422, "request-invalid")
        assert failed["errors"][0]["pointer"] == "/events/0/timestamp"
        problem(client.post("/events", json={"user_id": "u", "events": []}), 422, "request-invalid")
        problem(
            client.post("/events", content="{", headers={"content-type": "application/json"}), 400, "body-malformed"
        )


def test_filters_hold_for_ranked_and_for_popular_items(start: Start, tiny: TinyRelease) -> None:
    user = tiny.users[0]
    with start(features()) as client:
        everything = ask(client, user.id)
        assert everything["filters"] is None
        wanted = {"allow": {"category": ["c1", "none"]}, "block": {"category": ["c2"]}}
        histories: list[dict[str, Any]] = [{}, {"history": []}]  # the second one has nothing to rank by
        for history in histories:
            answer = ask(client, user.id, filters=wanted, **history)
            assert answer["source"] == ("popular" if history else "model")
            assert answer["complete"]
            assert {int(item["id"].removeprefix("item-")) % 3 for item in answer["items"]} == {1}
            assert not {item["id"] for item in answer["items"]} & set([] if history else user.history)
            assert answer["filters"] == {"eligible": 20, "unknown": ["category=none"]}
        seen = [int(item.removeprefix("item-")) for item in user.history]
        others = {index for index in range(1, 61) if index % 3 != 1}
        expected = tiny.expected(seen, user.matrix, {*seen, *others}, 10)
        answer = ask(client, user.id, filters=wanted)
        assert [item["id"] for item in answer["items"]] == [f"item-{index}" for index, _ in expected]
        none = ask(client, user.id, filters={"allow": {"category": ["none"]}})
        assert (none["items"], none["complete"], none["filters"]["eligible"]) == ([], False, 0)


@pytest.mark.parametrize(
    "filters, pointer",
    [
        ({"allow": {"colour": ["red"]}}, "/filters/allow/colour"),
        ({"block": {"category": []}}, "/filters/block/category"),
        ({"allow": {"category": "c1"}}, "/filters/allow/category"),
        ({"only": {}}, "/filters/only"),
    ],
)
def test_a_filter_that_is_none_is_refused(start: Start, filters: dict[str, Any], pointer: str) -> None:
    with start(features()) as client:
        failed = problem(client.post("/recommend", json={"user_id": "u", "filters": filters}), 422, "request-invalid")
    assert [one["pointer"] for one in failed["errors"]] == [pointer]


def test_an_explanation_says_which_steps_the_model_attended_to(start: Start, tiny: TinyRelease) -> None:
    with start(features()) as client:
        steps = ask(client, tiny.users[0].id, explain=True)["reasoning"]["steps"]
        assert len(steps) == len(tiny.manifest.template)
        assert sum(step["attention"] for step in steps) == pytest.approx(1, abs=1e-3)
        assert ask(client, tiny.users[0].id)["reasoning"]["steps"] is None


def test_an_exposure_says_how_long_a_history_is_whatever_may_come_again(start: Start, tmp_path: Path) -> None:
    content = {"features": {"shadow": {"defaultValue": [{"model": "hstu"}], "rules": []}}}
    limits = LimitSettings(seen=0, deadline_ms=10_000, store_ms=10_000)
    with start(content, limits=limits) as client:
        answer = ask(client, "user-2")
        while written(tmp_path) < 2:
            time.sleep(0.01)
    assert answer["history"]["excluded"] == 0
    assert [line["history_length"] for line in exposures(tmp_path)] == [5, 5]


def test_a_shadow_that_fails_costs_no_answer(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OnnxEngine.infer

    async def heavy(self: OnnxEngine, model: str, request: ModelInput, seconds: float) -> Ranking:
        if model == "hstu":
            async with asyncio.timeout(seconds):  # a candidate that takes more than the default deadline
                await asyncio.sleep(0.3)
        return await plain(self, model, request, seconds)

    content = {"features": {"shadow": {"defaultValue": [{"model": "hstu"}], "rules": []}}}
    with start(content, limits=LimitSettings()) as client:  # shadows have the default deadline
        monkeypatch.setattr(OnnxEngine, "infer", heavy)
        for number in range(BreakerSettings().failures + 1):
            ask(client, "user-0")
            while written(tmp_path) < 2 * (number + 1):
                time.sleep(0.01)
        answer = ask(client, "user-1", headers={"X-Deadline-Ms": "9000"}, model="hstu")
    assert (answer["source"], answer["degraded"]) == ("model", [])
    shadows = [line for line in exposures(tmp_path) if line["shadow"]]
    assert {line["model"] for line in shadows} == {None}  # no model ranked


@pytest.mark.anyio
async def test_a_large_catalogue_is_freed_a_little_at_a_time_and_its_memory_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = [0]  # items freed in each turn of the loop
    given_back: list[int] = []  # items freed by then
    monkeypatch.setattr(serving, "trim", lambda: given_back.append(sum(turns)))

    class Counted:
        def __del__(self) -> None:
            turns[-1] += 1

    async def answered(_seconds: float) -> None:
        turns.append(0)

    size = 5 * FREED_AT_ONCE + 1
    catalogue = SimpleNamespace(items=[Counted() for _ in range(size)])
    edition: Any = SimpleNamespace(release=SimpleNamespace(catalogue=catalogue), retire=answered)
    work = asyncio.create_task(put_away(edition))
    del catalogue, edition
    while not work.done():
        turns.append(0)
        await asyncio.sleep(0)
    assert sum(turns) == size
    assert max(turns) <= FREED_AT_ONCE
    assert given_back == [size]


def workers() -> int:
    """Threads that run models."""
    return sum(thread.name.startswith("onnx-") for thread in threading.enumerate())


async def settled(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)


def without_reasoning(tiny: TinyRelease, own: Path) -> str:
    """The id of a release beside that one which has HSTU alone."""
    made = Path(shutil.copytree(own, own.parent / "made"))
    (hstu,) = (model for model in tiny.manifest.models if model.name == "hstu")
    size = tiny.manifest.dataset
    release_id = seal(made, [hstu], items=size.items, users=size.users).release_id
    made.rename(own.parent / release_id)
    return release_id


@pytest.fixture
async def swapping(tiny: TinyRelease, own: Path, tmp_path: Path) -> AsyncIterator[tuple[Serving, str, str]]:
    """A service whose release has no SCoTER-H, and the ids of that and of one that has.

    It looks for changes of `experiments.json` when it is told to, or when a release was swapped.
    """
    lesser = without_reasoning(tiny, own)
    source = tmp_path / "experiments.json"
    source.write_text(json.dumps(features()))
    settings = Settings(
        releases=own.parent,
        release=lesser,
        store=LmdbSettings(path=tmp_path / "store"),
        engine=OnnxSettings(threads=2),
        experiments=ExperimentSettings(source=str(source), reload_seconds=3600),
        limits=PATIENT,
    )
    application = create_app(settings)
    async with application.router.lifespan_context(application):
        yield application.state.serving, lesser, tiny.manifest.release_id


@pytest.mark.anyio
async def test_experiments_that_wait_for_a_model_begin_with_the_release_that_has_it(
    swapping: tuple[Serving, str, str], tmp_path: Path
) -> None:
    running, _, whole = swapping
    (tmp_path / "experiments.json").write_text(json.dumps(features(model=HALVES)))
    running.reload()

    async def told(said: str) -> None:
        async with asyncio.timeout(20):
            while said not in (await running.readiness())[1].get("experiments", "none is amiss"):
                await asyncio.sleep(0.02)

    await told("/features/model/rules/0/variations/1/model")
    await running.swap(whole)
    await told("none is amiss")


@pytest.mark.anyio
async def test_a_release_that_lacks_an_experiment_s_model_is_refused_and_its_engine_ends(
    swapping: tuple[Serving, str, str], tmp_path: Path
) -> None:
    """As does that of a release that was replaced: each would keep its models in memory and its threads."""
    running, lesser, whole = swapping
    before = workers()
    await running.swap(whole)
    await settled(lambda: workers() == before)
    experiments = running._experiments
    assert experiments is not None
    version = experiments.current.version
    (tmp_path / "experiments.json").write_text(json.dumps(features(model=HALVES)))
    running.reload()
    await settled(lambda: experiments.current.version != version)
    with pytest.raises(ExperimentsInvalid, match="scoter_h"):
        await running.swap(lesser)
    assert running.edition.release.id == whole
    await settled(lambda: workers() == before)


@pytest.mark.anyio
async def test_of_swaps_at_once_each_release_is_loaded_once_and_the_last_that_was_asked_for_stays(
    swapping: tuple[Serving, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, lesser, whole = swapping
    loaded: list[str] = []
    real = Edition.load

    async def load(wanted: str, *rest: Any, **names: Any) -> Any:
        loaded.append(wanted)
        return await real(wanted, *rest, **names)

    monkeypatch.setattr(Edition, "load", load)
    before = workers()
    await asyncio.gather(*(running.swap(wanted) for wanted in (whole, whole, lesser)))
    assert loaded == [whole, lesser]
    assert running.edition.release.id == lesser
    await settled(lambda: workers() == before)
