"""One release, loaded and warmed up: everything that changes together when another release goes live."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence
from time import perf_counter
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import structlog
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from service.context import Context
from service.deadline import Deadline
from service.engine.absent import AbsentEngine
from service.engine.base import Engine, Engines, ModelInput
from service.engine.ladder import Ladder
from service.errors import EngineError, EngineUnavailable, ReleaseCorrupt, RequestInvalid
from service.filters import Filters
from service.metrics import Metrics
from service.recommend import Recommender
from service.release.manifest import ModelEntry, listed
from service.release.release import WARMUP, Release
from service.schemas import RecommendRequest
from service.settings import LimitSettings, Settings
from service.store.base import Store
from service.timings import StageTimings

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_P = TypeVar("_P")

UNANSWERED = "the engine does not answer for this model"
WARMUP_SECONDS = 30.0  # for one request: a first inference may compile kernels


class Edition:
    """A release being served. `with edition:` keeps it open for one request, whatever is swapped in meanwhile."""

    def __init__(self, release: Release, ladder: Ladder, recommender: Recommender, unseen: Recommender) -> None:
        self.release = release
        self.ladder = ladder
        self.recommender = recommender
        self.unseen = unseen  # the same for answers that nobody gets, counted where nobody looks
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def load(
        cls,
        release_id: str,
        settings: Settings,
        store: Store,
        engines: Sequence[Engines],
        metrics: Metrics,
        *,
        starting: bool,
    ) -> Edition:
        """Open a release of `settings.releases` in every engine and replay its own warm-up requests.

        A service that is `starting` and has a fallback goes without its first engine until that one is there.
        Raises ReleaseError if the release cannot be served, EngineError if an engine does not answer for a model of it.
        """
        started = perf_counter()
        release = await _made(Release.open, settings.releases / release_id)
        if release.id != release_id:
            raise ReleaseCorrupt(f"{release.path} holds release {release.id}: copy release {release_id} again")
        opened: list[Engine] = []
        try:
            for number, maker in enumerate(engines, start=1):
                try:
                    opened.append(await maker.open(release))
                except EngineError:
                    if not starting or number == len(engines):
                        raise
                    opened.append(AbsentEngine(maker, release))
            log.info("release_opened", release=release.id, seconds=round(perf_counter() - started, 3))
            ladder = Ladder(opened, settings.breaker)
            filters = await _made(Filters, release.catalogue)
            apart = Ladder(opened, settings.breaker)  # what fails in the shadow keeps no answer from its model
            recommender, unseen = (
                Recommender(release, filters, store, rungs, settings.limits, counted)
                for rungs, counted in ((ladder, metrics), (apart, Metrics(CollectorRegistry())))
            )
            for engine in opened:
                if not isinstance(engine, AbsentEngine):
                    await _warm_up(release, filters, store, engine, settings)
        except BaseException:
            for engine in opened:
                await engine.close()
            raise
        return cls(release, ladder, recommender, unseen)

    def __enter__(self) -> Self:
        """Begin a request."""
        self._running += 1
        self._idle.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End a request."""
        self._running -= 1
        if self._running == 0:
            self._idle.set()

    async def readiness(self) -> dict[str, str]:
        """State of every model: "ok", "on the fallback engine", or UNANSWERED."""
        models = self.release.manifest.models
        # All at once: a server that hangs costs its time once.
        ready = await asyncio.gather(*(self.ladder.ready(model.name, _probe(model)) for model in models))
        return {f"model:{model.name}": _state(answers) for model, answers in zip(models, ready, strict=True)}

    async def retire(self, seconds: float) -> None:
        """Close the engines when the last request is answered, or after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("release_closed_while_busy", release=self.release.id, requests=self._running)
        await self.ladder.close()


async def _made(make: Callable[[_P], _T], part: _P) -> _T:
    """A large part of a release, made in a thread, which the garbage collector never walks.

    Reading and hashing block; the loop must stay free for requests and signals. And a full collection stops every
    thread to walk all that there is: several times while a catalogue grows, up to 0.5 s each of 200,000 items.
    """
    gc.disable()
    try:
        return await asyncio.to_thread(make, part)
    finally:
        gc.freeze()  # without collecting first, which would be such a walk
        gc.enable()


def _probe(model: ModelEntry) -> ModelInput:
    """The least that the model can be asked: a history of one item, without reasoning."""
    history = np.zeros(model.history_length, np.int64)
    history[-1] = 1
    return ModelInput(history, None, np.zeros(0, np.int64))


def _state(ready: list[bool]) -> str:
    if ready[0]:
        return "ok"
    return "on the fallback engine" if any(ready) else UNANSWERED


async def _warm_up(release: Release, filters: Filters, store: Store, engine: Engine, settings: Settings) -> None:
    """Replay the release's real requests on an engine, those that name no model on every model.

    Raises ReleaseCorrupt if one is no request that the release can answer, EngineUnavailable if a model fails.
    """
    started = perf_counter()
    requests = await asyncio.to_thread(warmup_requests, release, settings.limits)
    # A rehearsal is no traffic: it is counted on a registry that nobody scrapes, and opens nobody's breaker.
    ladder = Ladder([engine], settings.breaker)
    rehearsal = Recommender(release, filters, store, ladder, settings.limits, Metrics(CollectorRegistry()))
    for number, request in enumerate(requests, start=1):
        context = Context(f"warmup-{number}", StageTimings(), Deadline(WARMUP_SECONDS))
        try:
            response = await rehearsal.recommend(request, context)
        except RequestInvalid as error:
            raise ReleaseCorrupt(f"{release.path / WARMUP} asks for what cannot be: {error}") from error
        if any(reason.startswith("engine") for reason in response.degraded):
            raise EngineUnavailable(f"model {response.model} of release {release.id} fails on its warm-up requests")
    log.info("warmed_up", release=release.id, requests=len(requests), seconds=round(perf_counter() - started, 3))


def warmup_requests(release: Release, limits: LimitSettings) -> list[RecommendRequest]:
    """The release's warm-up requests, each naming its model. Raises ReleaseCorrupt with file and line.

    They are cut to what this deployment allows, the newest items kept: its limits are no fault of the release.
    """
    requests: list[RecommendRequest] = []
    for number, body in enumerate(release.warmup(), start=1):
        try:
            request = RecommendRequest.model_validate(body)
        except ValidationError as error:
            raise ReleaseCorrupt(f"{release.path / WARMUP}, line {number}: not a request: {listed(error)}") from error
        history = None if request.history is None else request.history[-limits.history :]
        exclude = request.exclude[max(0, len(request.exclude) - limits.exclude) :]  # none at all may be allowed
        request = request.model_copy(update={"history": history, "exclude": exclude})
        for model in release.manifest.models if request.model is None else ():
            k = None if request.k is None else min(request.k, model.beam)
            requests.append(request.model_copy(update={"model": model.name, "k": k}))
        if request.model is not None:
            requests.append(request)
    return requests
