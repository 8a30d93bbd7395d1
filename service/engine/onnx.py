"""In-process ONNX Runtime with greedy micro-batching.

    event loop                              worker threads, one core each
    ----------                              -----------------------------
    infer: append to the model's queue ---> take what is waiting for that model, up to max_batch
           await the future            <--- run once, hand all rankings back in one call

An idle worker takes a request at once; requests that arrive while all workers are busy are taken together. There is
no timer: waiting for company would add to every request what only busy moments can repay.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter
from weakref import WeakSet

import onnxruntime

from service.engine.base import ModelInput, Ranking
from service.engine.tensors import differences, feeds, output_names, shown
from service.errors import EngineOverloaded, EngineTimeout, EngineUnavailable, ReleaseCorrupt
from service.release.manifest import ModelEntry
from service.release.release import Release
from service.settings import OnnxSettings

_DTYPES = {"tensor(int64)": "int64", "tensor(float)": "float32", "tensor(bool)": "bool", "tensor(uint8)": "uint8"}

_SMOOTHING = 0.2  # weight of the latest batch in what a request is expected to take

BatchObserver = Callable[[str, int], None]  # (model, requests in the batch), called in a worker thread


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: ModelInput
    future: asyncio.Future[Ranking]


@dataclass(frozen=True, slots=True)
class _Model:
    entry: ModelEntry
    session: onnxruntime.InferenceSession
    queue: deque[_Waiting]


class OnnxEngine:
    """Runs every model of a release in this process.

    Raises ReleaseCorrupt if a graph cannot be loaded or differs from what the manifest says of it.
    """

    local = True

    def __init__(
        self, release: Release, settings: OnnxSettings, observe: BatchObserver = lambda _model, _size: None
    ) -> None:
        self._settings = settings
        self._observe = observe
        self._models = {entry.name: _Model(entry, load(release, entry), deque()) for entry in release.manifest.models}
        # One token per request. Both kinds of queue are atomic by themselves, so no lock is held while a batch is
        # put together; a token whose request went with an earlier batch finds nothing and is dropped.
        self._tokens: SimpleQueue[_Model | None] = SimpleQueue()
        self._busy: set[int] = set()  # a set, because threads cannot count together without a lock
        self._pace = 0.0  # seconds of a worker that a request takes, as batches are now
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"onnx-{number}", daemon=True)
            for number in range(settings.threads)
        ]
        for worker in self._workers:
            worker.start()

    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        """Rank items for one request. Raises EngineUnavailable, EngineTimeout or EngineOverloaded."""
        target = self._models.get(model)
        if target is None or self._closed:
            raise EngineUnavailable(f"the engine is closed or holds no model {model!r}")
        waiting = self.waiting()
        if waiting >= self._settings.queue_limit:
            raise EngineOverloaded(f"{self._settings.queue_limit} requests are waiting for inference already")
        ahead = waiting * self._pace / len(self._workers)  # seconds until this one's turn
        if ahead > seconds:
            raise EngineOverloaded(
                f"{waiting} requests are waiting for inference already: about {ahead * 1000:.0f} ms, and only "
                f"{seconds * 1000:.0f} ms are left"
            )
        future: asyncio.Future[Ranking] = asyncio.get_running_loop().create_future()
        target.queue.append(_Waiting(request, future))
        self._tokens.put(target)
        try:
            async with asyncio.timeout(seconds):
                return await future  # cancelled when the time is up, and dropped by the worker that meets it
        except TimeoutError as error:
            raise EngineTimeout(f"model {model!r} did not answer within {seconds * 1000:.0f} ms") from error
        finally:
            del future  # it may hold an exception, whose traceback holds this frame

    async def ready(self, model: str) -> bool:
        """Whether `model` is loaded and every worker is alive."""
        return not self._closed and model in self._models and all(worker.is_alive() for worker in self._workers)

    async def close(self) -> None:
        """Answer what is waiting, then stop the workers."""
        self._closed = True
        for _ in self._workers:
            self._tokens.put(None)
        for worker in self._workers:
            await asyncio.to_thread(worker.join)

    def waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return sum(len(model.queue) for model in self._models.values())

    def _work(self) -> None:
        me = threading.get_ident()
        while (model := self._tokens.get()) is not None:
            batch = self._take(model)
            if batch:
                self._busy.add(me)
                self._answer(model, batch)
                self._busy.discard(me)

    def _take(self, model: _Model) -> list[_Waiting]:
        # Idle workers share what is waiting: two requests on two cores are faster apart than together.
        idle = max(1, len(self._workers) - len(self._busy))
        size = min(self._settings.max_batch, -(-len(model.queue) // idle))
        batch: list[_Waiting] = []
        while len(batch) < size:
            try:
                waiting = model.queue.popleft()
            except IndexError:
                break
            if not waiting.future.cancelled():  # nobody waits for it any more
                batch.append(waiting)
        return batch

    def _answer(self, model: _Model, batch: list[_Waiting]) -> None:
        answer: Sequence[Ranking] | EngineUnavailable
        try:
            self._observe(model.entry.name, len(batch))
            started = perf_counter()
            answer = run(model.session, model.entry, [waiting.request for waiting in batch])
            self._pace += _SMOOTHING * ((perf_counter() - started) / len(batch) - self._pace)
        except Exception as error:  # noqa: BLE001  # ONNX Runtime's share no base class, and a worker must survive them
            answer = EngineUnavailable(f"inference of model {model.entry.name!r} failed: {error}")
            answer.__cause__ = error.with_traceback(None)  # which would hold this frame, and so `answer`
        try:
            batch[0].future.get_loop().call_soon_threadsafe(_resolve, batch, answer)
        except RuntimeError:
            return  # the event loop has ended, and every caller with it


class OnnxEngines:
    """Opens releases in this process."""

    def __init__(self, settings: OnnxSettings, observe: BatchObserver = lambda _model, _size: None) -> None:
        self._settings = settings
        self._observe = observe
        self._open: WeakSet[OnnxEngine] = WeakSet()

    async def open(self, release: Release) -> OnnxEngine:
        """Load every model of a release. Raises ReleaseCorrupt."""
        engine = await asyncio.to_thread(OnnxEngine, release, self._settings, self._observe)
        self._open.add(engine)
        return engine

    def waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return sum(engine.waiting() for engine in self._open)

    async def close(self) -> None:
        """Nothing outlives the engines."""


def load(release: Release, entry: ModelEntry) -> onnxruntime.InferenceSession:
    """A single-threaded session of one model, checked against the manifest. Raises ReleaseCorrupt."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # A spinning thread would take its core from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    path = release.graph(entry)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # no common base class here either
        raise ReleaseCorrupt(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
    inputs = {arg.name: _described(arg) for arg in session.get_inputs()}
    outputs = {arg.name: _described(arg) for arg in session.get_outputs()}
    if wrong := differences(entry, "in the graph", inputs, outputs):
        raise ReleaseCorrupt(f"{path} is not the model that the manifest describes: " + "; ".join(wrong))
    return session


def run(session: onnxruntime.InferenceSession, entry: ModelEntry, requests: Sequence[ModelInput]) -> list[Ranking]:
    """Run one batch; the interpreter is free while ONNX Runtime computes."""
    answers = session.run(output_names(entry), feeds(entry, requests))
    return [Ranking(*(answer[row] for answer in answers)) for row in range(len(requests))]


def _resolve(batch: list[_Waiting], answer: Sequence[Ranking] | EngineUnavailable) -> None:
    for row, waiting in enumerate(batch):
        if waiting.future.done():  # cancelled while the batch ran
            continue
        if isinstance(answer, EngineUnavailable):
            waiting.future.set_exception(answer)
        else:
            waiting.future.set_result(answer[row])


def _described(arg: onnxruntime.NodeArg) -> str:
    return shown(
        _DTYPES.get(arg.type, arg.type), [size if isinstance(size, int) and size > 0 else None for size in arg.shape]
    )
