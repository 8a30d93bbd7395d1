"""The parts of a running service, put together from settings, checked and warmed up."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass, field
from time import perf_counter

import structlog
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from service.engine.base import Engine
from service.engine.onnx import OnnxEngine
from service.errors import EngineUnavailable, ReleaseCorrupt, ReleaseMissing, RequestInvalid, StoreError
from service.metrics import Metrics
from service.recommend import Recommender
from service.release.manifest import listed
from service.release.release import WARMUP, Release
from service.schemas import RecommendRequest
from service.settings import Settings
from service.store.base import Store
from service.store.keys import RELEASE_POINTER
from service.store.open import open_store
from service.timings import StageTimings

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Serving:
    """One release being served."""

    release: Release
    store: Store
    engine: Engine
    recommender: Recommender
    warm: bool = field(default=False)

    @classmethod
    async def open(cls, settings: Settings, metrics: Metrics) -> Serving:
        """Open the store, the release and the engine, and replay the release's warm-up requests.

        Raises ReleaseError if the release cannot be served, StoreError if a pointer is needed and cannot be read.
        """
        store = open_store(settings.store)
        try:
            release_id = settings.release or await published(store)
            started = perf_counter()
            # Reading and hashing block; the loop must stay free to answer signals.
            release = await asyncio.to_thread(Release.open, settings.releases / release_id)
            if release.id != release_id:
                raise ReleaseCorrupt(f"{release.path} holds release {release.id}: copy release {release_id} again")
            log.info("release_opened", release=release.id, seconds=round(perf_counter() - started, 3))
            engine = await asyncio.to_thread(OnnxEngine, release, settings.engine, metrics.batch)
        except BaseException:
            await store.close()
            raise
        metrics.serving(release.id, release.manifest.dataset.name)
        metrics.watch_queue(engine.waiting)
        serving = cls(release, store, engine, Recommender(release, store, engine, settings.limits, metrics))
        # The replay is not traffic: it is counted on a registry that nobody scrapes.
        rehearsal = Recommender(release, store, engine, settings.limits, Metrics(CollectorRegistry()))
        try:
            await serving.warm_up(rehearsal)
        except BaseException:
            await serving.close()
            raise
        return serving

    async def warm_up(self, rehearsal: Recommender) -> None:
        """Replay the release's real requests, those that name no model on every model.

        Raises ReleaseCorrupt if one is no request that the release can answer, EngineUnavailable if a model fails.
        """
        started = perf_counter()
        requests = await asyncio.to_thread(warmup_requests, self.release)
        for number, request in enumerate(requests, start=1):
            try:
                response = await rehearsal.recommend(request, f"warmup-{number}", StageTimings())
            except RequestInvalid as error:
                raise ReleaseCorrupt(f"{self.release.path / WARMUP} asks for what cannot be: {error}") from error
            if "engine_unavailable" in response.degraded:
                raise EngineUnavailable(
                    f"model {response.model} of release {self.release.id} fails on its own warm-up requests"
                )
        # What is loaded by now lives as long as the process: without this, every full garbage collection would walk
        # the whole catalogue and stall the requests of that moment.
        gc.collect()
        gc.freeze()
        self.warm = True
        log.info("warmed_up", requests=len(requests), seconds=round(perf_counter() - started, 3))

    async def readiness(self) -> dict[str, str]:
        """State of every part a request needs: "ok", or what is wrong with it."""
        parts: dict[str, str] = {}
        try:
            await self.store.ping()
            parts["store"] = "ok"
        except StoreError as error:
            parts["store"] = str(error)
        for model in self.release.manifest.models:
            ready = await self.engine.ready(model.name)
            parts[f"model:{model.name}"] = "ok" if ready else "the engine does not answer for this model"
        parts["warmup"] = "ok" if self.warm else "not finished"
        return parts

    async def close(self) -> None:
        """Answer what is running and give everything back."""
        self.warm = False
        await self.engine.close()
        await self.store.close()


async def published(store: Store) -> str:
    """The id of the live release. Raises ReleaseMissing if none was published, StoreError if the store is down."""
    (pointer,) = await store.get([RELEASE_POINTER])
    if pointer is None:
        raise ReleaseMissing(
            "the store names no live release: publish one with `scoter publish`, or pin one with --release"
        )
    release_id = pointer.decode("ascii", "replace")
    if not (len(release_id) == 16 and all(digit in "0123456789abcdef" for digit in release_id)):
        raise ReleaseCorrupt(f"the store's release pointer is no release id: {release_id!r}; publish again")
    return release_id


def warmup_requests(release: Release) -> list[RecommendRequest]:
    """The release's warm-up requests, each naming its model. Raises ReleaseCorrupt with file and line."""
    requests: list[RecommendRequest] = []
    for number, body in enumerate(release.warmup(), start=1):
        try:
            request = RecommendRequest.model_validate(body)
        except ValidationError as error:
            raise ReleaseCorrupt(f"{release.path / WARMUP}, line {number}: not a request: {listed(error)}") from error
        for model in release.manifest.models if request.model is None else ():
            k = None if request.k is None else min(request.k, model.beam)
            requests.append(request.model_copy(update={"model": model.name, "k": k}))
        if request.model is not None:
            requests.append(request)
    return requests
