from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.context import Context
from service.deadline import Deadline
from service.engine.base import ModelInput, Ranking
from service.engine.ladder import Ladder
from service.errors import (
    EngineError,
    EngineOverloaded,
    EngineUnavailable,
    RequestInvalid,
    StoreTimeout,
    UnknownModel,
)
from service.filters import Filters
from service.metrics import Metrics
from service.recommend import Recommender
from service.release.release import Release
from service.schemas import RecommendRequest, RecommendResponse
from service.settings import BreakerSettings, LimitSettings
from service.store.base import Store
from service.timings import StageTimings
from tests import virtual_time
from tests.service.test_profile import Recording
from tests.service.tiny_release import BEAM, TEMPLATE, K, T, TinyRelease, publish

pytestmark = pytest.mark.anyio


class Scripted:
    """An engine that remembers its input and answers as told."""

    local = True

    def __init__(self, answer: Ranking | EngineError | None = None) -> None:
        self.answer = answer if answer is not None else ranking(range(1, BEAM + 1))
        self.asked: list[tuple[str, ModelInput]] = []

    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        self.asked.append((model, request))
        if isinstance(self.answer, EngineError):
            raise self.answer
        return self.answer

    async def ready(self, model: str) -> bool:
        return not isinstance(self.answer, EngineError)

    async def close(self) -> None:
        self.asked.clear()


def ranking(items: Any, valid: int = BEAM, score: float = -1.0) -> Ranking:
    indices = np.array(list(items), np.int64)
    return Ranking(indices, np.full(len(indices), score, np.float32), np.arange(len(indices)) < valid)


class Bench:
    """A recommender on a scripted engine."""

    def __init__(self, tiny: TinyRelease, store: Store, engine: Scripted, limits: LimitSettings) -> None:
        self.registry = CollectorRegistry()
        self.engine = engine
        ladder = Ladder([engine], BreakerSettings())
        release = Release.open(tiny.path)
        filters = Filters(release.catalogue)
        self._recommender = Recommender(release, filters, store, ladder, limits, Metrics(self.registry))

    async def ask(self, deadline: float = 10, **body: Any) -> RecommendResponse:
        self.timings = StageTimings()
        self.context = Context("r-1", self.timings, Deadline(deadline))
        return await self._recommender.recommend(RecommendRequest(**body), self.context)

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


MakeBench = Callable[..., Bench]


@pytest.fixture
async def bench(tiny: TinyRelease) -> MakeBench:
    filled = Recording()
    await publish(tiny, filled)

    def make(answer: Ranking | EngineError | None = None, store: Store = filled, **limits: int) -> Bench:
        return Bench(tiny, store, Scripted(answer), LimitSettings(**limits))

    return make


async def test_the_whole_answer(bench: MakeBench, tiny: TinyRelease) -> None:
    user = tiny.users[2]
    one = bench()
    response = await one.ask(user_id=user.id, k=3, explain=True)
    body = response.model_dump(mode="json")
    assert body["reasoning"].pop("age_seconds") > 3e7
    assert body == {
        "request_id": "r-1",
        "release": tiny.manifest.release_id,
        "model": "scoter_h",
        "source": "model",
        "items": [
            {"rank": rank, "id": f"item-{rank}", "title": f"Title of {rank} – №{rank}", "score": -1.0}
            for rank in (1, 2, 3)
        ],
        "reasoning": {
            "used": True,
            "reason": None,
            "written": "2025-06-01T03:12:45Z",
            "history_length": 5,
            "behind": 0,
            "steps": [{"step": step, "text": f"{step}: user 2", "attention": None} for step in TEMPLATE],
        },
        "history": {"source": "stored", "used": 5, "unknown": 0, "excluded": 5},
        "filters": None,
        "experiments": [],
        "holdout": False,
        "complete": True,
        "degraded": [],
    }
    ((model, asked),) = one.engine.asked
    seen = [int(item.removeprefix("item-")) for item in user.history]
    assert model == "scoter_h"
    assert asked.history.tolist() == [0] * (T - 5) + seen
    assert asked.exclude.tolist() == seen[::-1]
    assert asked.reasoning is not None
    assert asked.reasoning.shape == (K, 16)
    assert one.timings.answered == ("default", "scoter_h", "used")
    assert list(one.timings.stages) == ["store", "engine"]


async def test_steps_only_when_asked(bench: MakeBench, tiny: TinyRelease) -> None:
    assert (await bench().ask(user_id=tiny.users[0].id)).reasoning.steps is None


async def test_a_requests_history_wins_and_only_its_last_known_items_feed_the_model(bench: MakeBench) -> None:
    one = bench()
    history = ["nope", *[f"item-{i}" for i in range(1, 13)], "item-1", "gone"]
    response = await one.ask(user_id="user-0", history=history, exclude=["item-40", "nope", "item-41"])
    ((_, asked),) = one.engine.asked
    assert asked.history.tolist() == [6, 7, 8, 9, 10, 11, 12, 1]
    assert asked.exclude.tolist() == [1, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 40, 41]
    assert response.history.model_dump() == {"source": "request", "used": T, "unknown": 2, "excluded": 12}
    assert one.counted("scoter_unknown_history_items_total") == 2


async def test_seen_items_are_excluded_up_to_the_bound_latest_first(bench: MakeBench) -> None:
    one = bench(seen=3)
    response = await one.ask(user_id="u", history=[f"item-{i}" for i in range(1, 11)], exclude=["item-30"])
    ((_, asked),) = one.engine.asked
    assert asked.exclude.tolist() == [10, 9, 8, 30]
    assert response.history.excluded == 3


async def test_where_what_was_seen_may_come_again_popular_items_do_too(bench: MakeBench, tiny: TinyRelease) -> None:
    best = [f"item-{index + 1}" for index in np.argsort(-tiny.bias[1:])[:2]]
    one = bench(EngineUnavailable("gone"), seen=0)
    response = await one.ask(user_id="u", history=[*best, best[0]], k=2)
    assert (response.source, response.history.excluded) == ("popular", 0)
    assert [item.id for item in response.items] == best
    assert one.context.history_length == 2  # of the exposure: how long the history is, not how much of it is left out


async def test_no_reasoning_when_the_request_wants_none(bench: MakeBench, tiny: TinyRelease) -> None:
    one = bench()
    response = await one.ask(user_id=tiny.users[0].id, reasoning=False, explain=True)
    assert one.engine.asked[0][1].reasoning is None
    assert (response.reasoning.used, response.reasoning.reason) == (False, "disabled")
    assert response.reasoning.steps == []
    assert response.degraded == []
    assert one.counted("scoter_reasoning_misses_total", reason="disabled") == 1
    assert one.timings.answered == ("default", "scoter_h", "masked")


async def test_a_model_that_reads_no_reasoning(bench: MakeBench, tiny: TinyRelease) -> None:
    one = bench()
    response = await one.ask(user_id=tiny.users[0].id, model="hstu")
    assert one.engine.asked[0][0] == "hstu"
    assert (response.model, response.reasoning.used, response.reasoning.reason) == ("hstu", False, "unsupported")


async def test_an_unknown_user_gets_popular_items(bench: MakeBench, tiny: TinyRelease) -> None:
    one = bench()
    response = await one.ask(user_id="nobody", k=4, exclude=["item-1", "item-2"])
    popularity = np.exp(tiny.bias[1:].astype(np.float64))
    best = [index + 1 for index in np.argsort(-popularity) if index + 1 not in (1, 2)][:4]
    assert [item.id for item in response.items] == [f"item-{index}" for index in best]
    assert (response.source, response.degraded, response.complete) == ("popular", ["no_history"], True)
    assert (response.reasoning.used, response.reasoning.reason) == (False, "absent")
    assert response.history.model_dump() == {"source": "none", "used": 0, "unknown": 0, "excluded": 0}
    assert one.engine.asked == []
    assert [item.score for item in response.items] == sorted((item.score for item in response.items), reverse=True)
    assert one.counted("scoter_degraded_total", reason="no_history") == 1
    assert one.timings.answered == ("default", "scoter_h", "none")


@pytest.mark.parametrize("history", [[], ["gone"], ["gone"] * 100])
async def test_a_history_with_nothing_known_gets_popular_items(bench: MakeBench, history: list[str]) -> None:
    response = await bench().ask(user_id="user-0", history=history)
    assert (response.source, response.degraded) == ("popular", ["no_history"])
    assert response.reasoning.used is False
    assert response.reasoning.reason == "no_history"
    assert response.history.model_dump() == {"source": "request", "used": 0, "unknown": len(history), "excluded": 0}


async def test_a_failing_store_is_answered_and_labelled(bench: MakeBench) -> None:
    one = bench(store=Recording(error=StoreTimeout("late")))
    with_history = await one.ask(user_id="user-0", history=["item-1"])
    assert (with_history.source, with_history.degraded) == ("model", ["store_timeout"])
    assert with_history.reasoning.reason == "store_timeout"
    without = await one.ask(user_id="user-0")
    assert (without.source, without.degraded) == ("popular", ["store_timeout", "no_history"])
    assert one.counted("scoter_degraded_total", reason="store_timeout") == 2
    assert one.counted("scoter_reasoning_misses_total", reason="store_timeout") == 2


@pytest.mark.parametrize("anyio_backend", [virtual_time.BACKEND])
@pytest.mark.parametrize("store_ms, deadline, share", [(20, 1, 0.02), (10_000, 1, 0.5)])
async def test_a_store_that_hangs_leaves_the_engine_half_of_the_time_at_least(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch, store_ms: int, deadline: float, share: float
) -> None:
    class Hanging(Recording):
        async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
            await asyncio.sleep(60)
            return await super().get(keys)

    for module in ("service.deadline", "service.engine.ladder"):
        monkeypatch.setattr(f"{module}.monotonic", virtual_time.clock)
    one = bench(store=Hanging(), store_ms=store_ms)
    began = virtual_time.clock()
    response = await one.ask(deadline, user_id="user-0", history=["item-1"])
    assert virtual_time.clock() - began == pytest.approx(share, abs=0.01)
    assert (response.source, response.degraded) == ("model", ["store_timeout"])
    assert response.reasoning.reason == "store_timeout"


async def test_a_failing_engine_yields_popular_unseen_items(bench: MakeBench, tiny: TinyRelease) -> None:
    one = bench(EngineUnavailable("gone"))
    user = tiny.users[0]
    response = await one.ask(user_id=user.id)
    assert (response.source, response.degraded) == ("popular", ["engine_unavailable"])
    assert not {item.id for item in response.items} & set(user.history)
    assert len(response.items) == 10
    assert (response.reasoning.used, response.reasoning.reason) == (False, "engine_unavailable")


async def test_overload_is_the_callers_to_know(bench: MakeBench) -> None:
    with pytest.raises(EngineOverloaded):
        await bench(EngineOverloaded("full")).ask(user_id="user-0")


@pytest.mark.parametrize("index", [0, -1, 61, 10**9])
async def test_an_item_beyond_the_catalogue_is_never_served(bench: MakeBench, index: int) -> None:
    response = await bench(ranking([1, index, 3])).ask(user_id="user-0", k=3)
    assert (response.source, response.degraded) == ("popular", ["engine_unavailable"])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
async def test_a_score_that_is_no_number_is_never_served(bench: MakeBench, score: float) -> None:
    response = await bench(ranking([1, 2], score=score)).ask(user_id="user-0", k=2)
    assert (response.source, response.degraded) == ("popular", ["engine_unavailable"])


async def test_fewer_valid_items_come_back_flagged(bench: MakeBench) -> None:
    answer = Ranking(np.array([5, 0, 7, 0], np.int64), np.full(4, -1, np.float32), np.array([True, False, True, False]))
    response = await bench(answer).ask(user_id="user-0", k=3)
    assert [(item.rank, item.id) for item in response.items] == [(1, "item-5"), (2, "item-7")]
    assert response.complete is False
    assert response.source == "model"


async def test_nothing_is_an_answer_only_where_nothing_is_left(bench: MakeBench, tiny: TinyRelease) -> None:
    """A graph whose numbers are none calls every item invalid: an empty list that looks like an answer."""
    everything = [item.id for item in Release.open(tiny.path).catalogue.items]
    some: list[dict[str, Any]] = [
        {},
        {"exclude": everything[:-1]},
        {"filters": {"allow": {"category": ["c1"]}}},
        {"filters": {"allow": {"category": ["c1"]}}, "exclude": everything[:-3]},
    ]
    for body in some:
        response = await bench(ranking(range(1, BEAM + 1), valid=0)).ask(user_id="u", history=everything[:1], **body)
        assert (response.source, response.degraded) == ("popular", ["engine_unavailable"])
        assert response.items
    none: list[dict[str, Any]] = [
        {"exclude": everything},
        {"filters": {"allow": {"category": ["c1"]}}, "exclude": everything},
        {"filters": {"allow": {"category": ["nothing"]}}},
    ]
    for body in none:
        response = await bench(ranking(range(1, BEAM + 1), valid=0)).ask(user_id="u", history=everything[:1], **body)
        assert (response.source, response.degraded, response.items) == ("model", [], [])


async def test_k(bench: MakeBench) -> None:
    assert len((await bench().ask(user_id="user-0", k=BEAM)).items) == BEAM
    assert len((await bench(k=4).ask(user_id="user-0")).items) == 4
    assert len((await bench(k=500).ask(user_id="user-0")).items) == BEAM
    with pytest.raises(RequestInvalid, match=f"/k: must be between 1 and {BEAM}"):
        await bench().ask(user_id="user-0", k=BEAM + 1)


async def test_every_broken_bound_is_named(bench: MakeBench) -> None:
    with pytest.raises(RequestInvalid) as caught:
        await bench(history=2, exclude=1).ask(user_id="u", k=99, history=["a"] * 3, exclude=["b"] * 2)
    assert [field.pointer for field in caught.value.fields] == ["/k", "/history", "/exclude"]


async def test_an_unknown_model(bench: MakeBench) -> None:
    with pytest.raises(UnknownModel, match="scoter_h, hstu"):
        await bench().ask(user_id="u", model="gpt")
