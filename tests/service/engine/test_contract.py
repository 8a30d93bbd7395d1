"""What every engine must do; the `engine` fixture runs each test on all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.base import Engine, ModelInput, Ranking
from service.engine.open import open_engines
from service.errors import EngineTimeout, EngineUnavailable
from service.filters import Filters
from service.release.release import Release
from service.settings import OnnxSettings, TritonSettings
from tests.service.tiny_release import BEAM, D, K, T, TinyRelease, attention
from tests.triton_server import Triton

pytestmark = pytest.mark.anyio

PATIENT = 30.0  # seconds


@pytest.fixture(params=["onnx", "triton"])
async def engine(request: pytest.FixtureRequest, tiny: TinyRelease) -> AsyncIterator[Engine]:
    release = Release.open(tiny.path)
    settings: OnnxSettings | TritonSettings
    if request.param == "onnx":
        settings = OnnxSettings(threads=2, max_batch=8, queue_limit=1000)
    else:
        server: Triton = request.getfixturevalue("triton")
        await server.deploy(release)
        settings = server.settings(in_flight=1000)
    engines = open_engines(settings)
    running = await engines.open(release)
    yield running
    await running.close()
    await engines.close()


def asked(
    history: list[int],
    matrix: NDArray[np.float32] | None = None,
    exclude: list[int] | None = None,
    allowed: NDArray[np.uint8] | None = None,
) -> ModelInput:
    padded = np.zeros(T, np.int64)
    padded[T - len(history[-T:]) :] = history[-T:]
    return ModelInput(padded, matrix, np.array(exclude or [], np.int64), allowed)


def check(ranking: Ranking, expected: list[tuple[int, float]]) -> None:
    assert ranking.items.dtype == np.int64
    assert ranking.scores.dtype == np.float32
    assert ranking.valid.dtype == np.bool_
    assert ranking.items[ranking.valid].tolist() == [index for index, _ in expected]
    np.testing.assert_allclose(ranking.scores[ranking.valid], [score for _, score in expected], rtol=1e-3, atol=1e-4)


async def test_the_ranking_is_the_models(engine: Engine, tiny: TinyRelease) -> None:
    check(await engine.infer("hstu", asked([3, 1, 4]), PATIENT), tiny.expected([3, 1, 4], None, set(), BEAM))


async def test_reasoning_changes_the_ranking_and_no_reasoning_masks_it(engine: Engine, tiny: TinyRelease) -> None:
    matrix = tiny.users[0].matrix
    fused = await engine.infer("scoter_h", asked([3, 1, 4], matrix), PATIENT)
    masked = await engine.infer("scoter_h", asked([3, 1, 4]), PATIENT)
    zero = await engine.infer("scoter_h", asked([3, 1, 4], np.zeros((K, D), np.float32)), PATIENT)
    check(fused, tiny.expected([3, 1, 4], matrix, set(), BEAM))
    check(masked, tiny.expected([3, 1, 4], None, set(), BEAM))
    assert fused.items.tolist() != masked.items.tolist()
    assert zero.items.tolist() == masked.items.tolist()


async def test_excluded_items_never_come_back(engine: Engine, tiny: TinyRelease) -> None:
    first = await engine.infer("hstu", asked([3]), PATIENT)
    exclude = first.items[:5].tolist()
    second = await engine.infer("hstu", asked([3], exclude=exclude), PATIENT)
    check(second, tiny.expected([3], None, set(exclude), BEAM))
    assert second.items[:5].tolist() == first.items[5:].tolist()


async def test_too_few_items_are_marked_invalid(engine: Engine, tiny: TinyRelease) -> None:
    exclude = list(range(1, 58))
    ranking = await engine.infer("hstu", asked([3], exclude=exclude), PATIENT)
    assert ranking.valid.tolist() == [True] * 3 + [False] * (BEAM - 3)
    check(ranking, tiny.expected([3], None, set(exclude), BEAM))


async def test_a_filter_leaves_what_it_allows(engine: Engine, tiny: TinyRelease) -> None:
    chosen = Filters(Release.open(tiny.path).catalogue).resolve({"category": ["c1"]}, {})
    eligible = set(np.flatnonzero(chosen.passes(np.arange(61))).tolist())
    ranking = await engine.infer("hstu", asked([3, 1, 4], exclude=[4], allowed=chosen.mask([4])), PATIENT)
    check(ranking, tiny.expected([3, 1, 4], None, {4}, BEAM, eligible))
    exclusions_in_the_mask = await engine.infer("hstu", asked([3, 1, 4], allowed=chosen.mask([4])), PATIENT)
    check(exclusions_in_the_mask, tiny.expected([3, 1, 4], None, {4}, BEAM, eligible))


async def test_filtered_and_unfiltered_requests_share_batches(engine: Engine, tiny: TinyRelease) -> None:
    filters = Filters(Release.open(tiny.path).catalogue)
    rng = np.random.default_rng(1)
    cases = []
    for number in range(60):
        history, exclude = rng.integers(1, 61, size=4).tolist(), rng.integers(1, 61, size=number % 9).tolist()
        chosen = filters.resolve({"category": [f"c{number % 4}"]}, {}) if number % 3 else None  # nothing is in c3
        cases.append((history, exclude, chosen))
    rankings = await asyncio.gather(
        *(
            engine.infer(
                "hstu", asked(history, None, exclude, None if chosen is None else chosen.mask(exclude)), PATIENT
            )
            for history, exclude, chosen in cases
        )
    )
    for ranking, (history, exclude, chosen) in zip(rankings, cases, strict=True):
        eligible = None if chosen is None else set(np.flatnonzero(chosen.passes(np.arange(61))).tolist())
        check(ranking, tiny.expected(history, None, set(exclude), BEAM, eligible))


async def test_each_step_is_told_its_attention(engine: Engine, tiny: TinyRelease) -> None:
    matrix = tiny.users[0].matrix
    fused, masked, plain = await asyncio.gather(
        engine.infer("scoter_h", asked([3], matrix), PATIENT),
        engine.infer("scoter_h", asked([3]), PATIENT),
        engine.infer("hstu", asked([3]), PATIENT),
    )
    assert fused.attention is not None
    assert fused.attention.dtype == np.float32
    np.testing.assert_allclose(fused.attention, attention(matrix), rtol=1e-3, atol=1e-4)
    assert masked.attention is not None
    assert masked.attention.tolist() == [0.0] * K
    assert plain.attention is None


async def test_concurrent_requests_each_get_their_own_answer(engine: Engine, tiny: TinyRelease) -> None:
    rng = np.random.default_rng(0)
    cases = []
    for number in range(200):
        history = rng.integers(1, 61, size=rng.integers(1, T + 1)).tolist()
        matrix = tiny.users[number % 6].matrix if number % 3 else None
        exclude = rng.integers(1, 61, size=rng.integers(0, 20)).tolist()
        model = "hstu" if number % 5 == 0 else "scoter_h"
        cases.append((model, history, None if model == "hstu" else matrix, exclude))
    rankings = await asyncio.gather(
        *(engine.infer(model, asked(history, matrix, exclude), PATIENT) for model, history, matrix, exclude in cases)
    )
    for ranking, (_, history, matrix, exclude) in zip(rankings, cases, strict=True):
        check(ranking, tiny.expected(history, matrix, set(exclude), BEAM))


async def test_a_cancelled_request_takes_nobody_with_it(engine: Engine, tiny: TinyRelease) -> None:
    expected = tiny.expected([5], None, set(), BEAM)
    for delay in (0.0, 0.0001, 0.001):
        tasks = [asyncio.create_task(engine.infer("hstu", asked([5]), PATIENT)) for _ in range(20)]
        await asyncio.sleep(delay)
        for task in tasks[::2]:
            task.cancel()
        for ranking in await asyncio.gather(*tasks[1::2]):
            check(ranking, expected)
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_answer_that_takes_too_long_is_a_timeout(engine: Engine, tiny: TinyRelease) -> None:
    with pytest.raises(EngineTimeout, match="hstu"):
        await engine.infer("hstu", asked([1]), 1e-9)
    check(await engine.infer("hstu", asked([5]), PATIENT), tiny.expected([5], None, set(), BEAM))


async def test_an_unknown_model_is_unavailable(engine: Engine) -> None:
    assert not await engine.ready("tiger")
    with pytest.raises(EngineUnavailable, match="tiger"):
        await engine.infer("tiger", asked([1]), PATIENT)


async def test_ready_until_closed(engine: Engine) -> None:
    assert await engine.ready("hstu")
    assert await engine.ready("scoter_h")
    waiting = asyncio.create_task(engine.infer("hstu", asked([1]), PATIENT))
    await asyncio.sleep(0)
    await engine.close()
    assert (await waiting).valid.all()
    assert not await engine.ready("hstu")
    with pytest.raises(EngineUnavailable):
        await engine.infer("hstu", asked([1]), PATIENT)


async def test_input_that_the_graph_refuses_fails_that_request_alone(engine: Engine, tiny: TinyRelease) -> None:
    wrong = ModelInput(np.array([10**6] * T, np.int64), None, np.array([], np.int64))  # beyond the embeddings
    with pytest.raises(EngineUnavailable, match="inference"):
        await engine.infer("hstu", wrong, PATIENT)
    assert await engine.ready("hstu")
    check(await engine.infer("hstu", asked([5]), PATIENT), tiny.expected([5], None, set(), BEAM))
