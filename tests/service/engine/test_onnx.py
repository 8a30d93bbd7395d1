from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.engine import onnx as module
from service.engine.base import ModelInput, Ranking
from service.engine.onnx import OnnxEngine, OnnxEngines, load
from service.engine.tensors import feeds
from service.errors import EngineOverloaded, ReleaseCorrupt
from service.release.manifest import ModelEntry, TensorEntry
from service.release.release import Release
from service.settings import OnnxSettings
from tests.service.tiny_release import D, K, T, TinyRelease, write_release

pytestmark = pytest.mark.anyio

PATIENT = 30.0  # seconds


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release whose models take milliseconds."""
    return Release.open(write_release(tmp_path_factory.mktemp("slow"), rounds=24).path)


class Batches(list[tuple[str, int]]):
    """Records batches as they start; while the gate is shut, a worker stays busy with its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def __call__(self, model: str, size: int) -> None:
        self.append((model, size))
        assert self.gate.wait(10)


@pytest.fixture
async def busy(tiny: TinyRelease) -> AsyncIterator[tuple[OnnxEngine, Batches]]:
    """One worker, busy behind the gate with a request; batches of up to 4, a queue of 6."""
    batches = Batches()
    engine = OnnxEngine(Release.open(tiny.path), OnnxSettings(threads=1, max_batch=4, queue_limit=6), batches)
    first = asyncio.create_task(engine.infer("hstu", asked(), PATIENT))
    while not batches:  # filled by a thread: there is no event to wait for
        await asyncio.sleep(0.001)
    yield engine, batches
    batches.gate.set()
    await first
    await engine.close()


def asked(*exclude: int) -> ModelInput:
    return ModelInput(np.arange(1, T + 1, dtype=np.int64), None, np.array(exclude, np.int64))


async def test_requests_that_wait_for_a_busy_worker_run_together(busy: tuple[OnnxEngine, Batches]) -> None:
    engine, batches = busy
    rest = [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for _ in range(6)]
    await asyncio.sleep(0)
    batches.gate.set()
    await asyncio.gather(*rest)
    assert batches == [("hstu", 1), ("hstu", 4), ("hstu", 2)]


async def test_models_are_not_mixed(busy: tuple[OnnxEngine, Batches]) -> None:
    engine, batches = busy
    models = ["scoter_h", "hstu", "scoter_h", "hstu"]
    rest = [asyncio.create_task(engine.infer(model, asked(), PATIENT)) for model in models]
    await asyncio.sleep(0)
    batches.gate.set()
    await asyncio.gather(*rest)
    assert batches == [("hstu", 1), ("scoter_h", 2), ("hstu", 2)]


async def test_idle_workers_share_what_is_waiting(slow: Release) -> None:
    batches = Batches()
    batches.gate.set()
    engine = OnnxEngine(slow, OnnxSettings(threads=2, max_batch=8, queue_limit=100), batches)
    await asyncio.gather(engine.infer("hstu", asked(), PATIENT), engine.infer("hstu", asked(), PATIENT))
    assert batches == [("hstu", 1), ("hstu", 1)]
    await engine.close()


async def test_a_full_queue_is_an_overload_and_passes(busy: tuple[OnnxEngine, Batches]) -> None:
    engine, batches = busy
    waiting = [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for _ in range(6)]
    await asyncio.sleep(0)
    with pytest.raises(EngineOverloaded, match="6 requests"):
        await engine.infer("scoter_h", asked(), PATIENT)
    batches.gate.set()
    await asyncio.gather(*waiting)
    assert (await engine.infer("scoter_h", asked(), PATIENT)).valid.all()


async def test_a_request_whose_turn_would_come_too_late_is_refused_at_once(slow: Release) -> None:
    engine = OnnxEngine(slow, OnnxSettings(threads=1, max_batch=1))
    for _ in range(10):  # how long one takes is learnt from those that ran
        await engine.infer("hstu", asked(), PATIENT)
    pace = engine._pace
    assert pace > 0
    waiting = [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for _ in range(9)]
    await asyncio.sleep(0)
    with pytest.raises(EngineOverloaded, match=r"about \d+ ms"):
        await engine.infer("hstu", asked(), 4 * pace)
    await asyncio.gather(*waiting)
    assert (await engine.infer("hstu", asked(), PATIENT)).valid.all()  # nothing is held against those who come later
    await engine.close()


async def test_busy_workers_are_counted_out_of_those_that_share_what_is_waiting(tiny: TinyRelease) -> None:
    batches = Batches()
    engine = OnnxEngine(Release.open(tiny.path), OnnxSettings(threads=2, max_batch=8), batches)
    hstu = engine._models["hstu"]

    def taken(waiting: int) -> int:
        """What a worker that finds so many waiting takes; no other one is woken."""
        hstu.queue.extend(module._Waiting(asked(), asyncio.Future()) for _ in range(waiting))
        size = len(engine._take(hstu))
        hstu.queue.clear()
        return size

    assert taken(4) == 2
    first = asyncio.create_task(engine.infer("hstu", asked(), PATIENT))
    while not batches:
        await asyncio.sleep(0.001)
    assert taken(4) == 4  # by the only one that is left
    batches.gate.set()
    await first
    async with asyncio.timeout(PATIENT):
        while taken(4) != 2:
            await asyncio.sleep(0.001)
    await engine.close()


async def test_what_waits_in_all_releases_is_told(tiny: TinyRelease) -> None:
    """As while one is swapped for another: shadows make way for it, and it is a gauge."""
    batches = Batches()
    engines = OnnxEngines(OnnxSettings(threads=1), batches)
    both = [await engines.open(Release.open(tiny.path)) for _ in range(2)]
    running = [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for engine in both]
    while len(batches) < 2:
        await asyncio.sleep(0.001)
    assert engines.waiting() == 0
    running += [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for engine in (*both, both[0])]
    await asyncio.sleep(0)
    assert engines.waiting() == 3
    batches.gate.set()
    await asyncio.gather(*running)
    for engine in both:
        await engine.close()
    assert engines.waiting() == 0


async def test_what_a_request_takes_is_its_share_of_a_batch(
    busy: tuple[OnnxEngine, Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that each batch of these models moves on by eight seconds."""
    engine, batches = busy
    seconds, plain = [0.0], module.run

    def slowly(*given: Any) -> list[Ranking]:
        seconds[0] += 8.0
        return plain(*given)

    monkeypatch.setattr(module, "run", slowly)
    monkeypatch.setattr(module, "perf_counter", lambda: seconds[0])
    engine._pace = 2.0
    rest = [asyncio.create_task(engine.infer("scoter_h", asked(), PATIENT)) for _ in range(4)]
    await asyncio.sleep(0)
    batches.gate.set()
    await asyncio.gather(*rest)
    assert batches == [("hstu", 1), ("scoter_h", 4)]
    # The first batch, of one, took 8 s, and each of four 2 s: the latest count for a fifth.
    assert engine._pace == pytest.approx(0.8 * (0.8 * 2.0 + 0.2 * 8.0) + 0.2 * 2.0)


async def test_workers_share_what_is_ahead_of_a_request(tiny: TinyRelease) -> None:
    batches = Batches()
    engine = OnnxEngine(Release.open(tiny.path), OnnxSettings(threads=2, max_batch=1), batches)
    rest: list[asyncio.Task[Ranking]] = []
    for number in (1, 2):  # a worker each, behind the gate
        rest.append(asyncio.create_task(engine.infer("hstu", asked(), PATIENT)))
        while len(batches) < number:
            await asyncio.sleep(0.001)
    rest += [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for _ in range(6)]
    await asyncio.sleep(0)
    engine._pace = 10.0
    with pytest.raises(EngineOverloaded, match="6 requests are waiting for inference already: about 30000 ms"):
        await engine.infer("hstu", asked(), 29.0)
    rest.append(asyncio.create_task(engine.infer("hstu", asked(), 31.0)))
    await asyncio.sleep(0)
    assert engine.waiting() == 7
    batches.gate.set()
    await asyncio.gather(*rest)
    await engine.close()


async def test_cancelled_requests_are_not_run(busy: tuple[OnnxEngine, Batches]) -> None:
    engine, batches = busy
    rest = [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for _ in range(4)]
    await asyncio.sleep(0)
    for task in rest[:3]:
        task.cancel()
    batches.gate.set()
    await rest[3]
    assert batches == [("hstu", 1), ("hstu", 1)]


async def test_the_event_loop_stays_free_while_models_run(slow: Release) -> None:
    engine = OnnxEngine(slow, OnnxSettings(threads=1))
    turns = 0
    for _ in range(20):
        running = asyncio.create_task(engine.infer("hstu", asked(), PATIENT))
        while not running.done():
            await asyncio.sleep(0)
            turns += 1
    assert turns > 200  # a model that held the interpreter would leave two or three turns each
    await engine.close()


def test_exclude_is_padded_to_powers_of_two(slow: Release) -> None:
    entry = slow.model("scoter_h")
    for longest, padded in [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1000, 1024)]:
        exclude = feeds(entry, [asked(), asked(*range(longest))])["exclude"]
        assert exclude.shape == (2, padded)
        assert exclude[1, :longest].tolist() == list(range(longest))
        assert not exclude[0].any()


def test_feeds_say_who_has_reasoning(slow: Release) -> None:
    matrix = np.ones((K, D), np.float32)
    inputs = feeds(slow.model("scoter_h"), [asked(), ModelInput(asked().history, matrix, asked().exclude)])
    assert inputs["has_reasoning"].tolist() == [False, True]
    assert inputs["reasoning"][0].sum() == 0
    assert inputs["reasoning"][1].sum() == K * D
    assert sorted(feeds(slow.model("hstu"), [asked()])) == ["allowed", "exclude", "history"]


def test_requests_without_a_filter_are_allowed_everything_beside_those_with_one(slow: Release) -> None:
    entry, mask = slow.model("scoter_h"), np.array([3, 0, 7], np.uint8)
    filtered = ModelInput(asked().history, None, asked().exclude, mask)
    together = feeds(entry, [asked(), filtered, asked()])["allowed"]
    assert together.dtype == np.uint8
    assert together.tolist() == [[0xFF] * 3, [3, 0, 7], [0xFF] * 3]
    assert feeds(entry, [asked(), asked()])["allowed"].tolist() == [[0xFF], [0xFF]]  # nothing to carry


def changed(entry: ModelEntry, **change: object) -> ModelEntry:
    return entry.model_copy(update=change)


def test_a_graph_that_is_not_the_manifests_is_refused(tiny: TinyRelease) -> None:
    release = Release.open(tiny.path)
    entry = release.model("scoter_h")
    assert load(release, entry) is not None
    assert entry.reasoning is not None
    other = entry.reasoning.model_copy(update={"width": D + 1})
    halved = [*entry.outputs[:1], TensorEntry(name="score", dtype="float32", shape=[None, 5]), *entry.outputs[2:]]
    cases = [
        (changed(entry, history_length=T + 1), rf"input 'history' is int64\[\*, {T}\] in the graph"),
        (changed(entry, beam=3), "output 'item'"),
        (changed(entry, reasoning=None), "input 'has_reasoning' is .* absent by the model's"),
        (changed(entry, reasoning=other), "input 'reasoning'"),
        (changed(entry, inputs=entry.inputs[:-1]), "input 'allowed' is .* absent in the manifest"),
        (changed(entry, outputs=entry.outputs[:-1]), "output 'attention' is .* absent in the manifest"),
        (changed(entry, outputs=halved), "output 'score'"),
        (changed(entry, file="models/hstu/1/model.onnx"), "input 'reasoning' is absent in the graph"),
    ]
    for wrong, message in cases:
        with pytest.raises(ReleaseCorrupt, match=message) as caught:
            load(release, wrong)
        assert "model.onnx" in str(caught.value)


def test_a_file_that_is_no_graph_is_refused(own: Path) -> None:
    release = Release.open(own)
    path = release.graph(release.model("hstu"))
    for content in (b"", b"no graph", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(ReleaseCorrupt, match=r"hstu/1/model\.onnx cannot be loaded"):
            load(release, release.model("hstu"))


def test_a_dtype_that_differs_is_refused(own: Path) -> None:
    release = Release.open(own)
    entry = release.model("hstu")
    proto = onnx.load(release.graph(entry))
    cast = onnx.helper.make_node("Cast", ["narrow"], ["item"], to=onnx.TensorProto.INT32)
    for node in proto.graph.node:
        node.output[:] = ["narrow" if name == "item" else name for name in node.output]
    proto.graph.node.append(cast)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    onnx.save(proto, release.graph(entry))
    with pytest.raises(ReleaseCorrupt, match=r"output 'item' is tensor\(int32\)\[\*, 10\] in the graph"):
        load(release, entry)
