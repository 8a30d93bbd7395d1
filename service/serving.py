"""The running service: the parts that live as long as the process, and the release that is served right now.

A swap loads and warms up another release beside the current one and then replaces it by one assignment. A request
takes hold of the edition it began with and keeps it, so that no answer mixes two releases.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Collection, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import structlog

from service.admission import Admission
from service.context import Context
from service.edition import UNANSWERED, Edition
from service.engine.base import Engines
from service.engine.open import open_engines
from service.errors import (
    DeadlineExceeded,
    EngineOverloaded,
    ExperimentsError,
    ExperimentsInvalid,
    Overloaded,
    ScoterError,
    StoreError,
)
from service.events import Events, EventsRequest, EventsResponse
from service.experiments.assignment import UNASSIGNED, Assignment
from service.experiments.live import LiveExperiments
from service.exposures.event import Exposure
from service.exposures.log import ExposureLog
from service.memory import trim
from service.metrics import Metrics
from service.pointer import Follower, published, published_at_start
from service.schemas import RecommendRequest, RecommendResponse
from service.settings import Settings
from service.shadows import Shadows
from service.store.base import Store
from service.store.cached import cached
from service.store.open import open_store, store_name

log = structlog.get_logger(__name__)

RETIRE_SECONDS = 30.0  # an edition's last requests are long past their deadlines by then
FREED_AT_ONCE = 1000  # items of an old catalogue, well under a millisecond


class Serving:
    """Answers requests from the live release, and swaps it."""

    def __init__(self, settings: Settings, store: Store, engines: Sequence[Engines], metrics: Metrics) -> None:
        self.store = store
        self.admission = Admission(settings.limits.concurrency)
        self._appending = Admission(settings.limits.concurrency)  # who waits for the disk takes no answer's place
        self.draining = False
        self._settings = settings
        self._engines = engines
        self._metrics = metrics
        self._edition: Edition | None = None
        self._swapping = asyncio.Lock()
        self._experiments: LiveExperiments | None = None
        self._exposures = ExposureLog(settings.exposures, metrics)
        self._shadows = Shadows(self._spare, settings.limits.deadline_ms / 1000, self._exposures, metrics)
        self._events = Events(store, settings.limits.stored_history, metrics)
        self._follower: Follower | None = None  # None: the release is pinned
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly

    @classmethod
    async def open(cls, settings: Settings, metrics: Metrics) -> Serving:
        """Open the store, the engines and the live release.

        Raises ReleaseError if the release cannot be served, StoreError if a pointer is needed and cannot be read,
        EngineUnavailable if a model does not answer.
        """
        store = cached(open_store(settings.store), settings.cache, metrics.cache_read)
        engines = [open_engines(settings.engine, metrics.batch)]
        if settings.fallback is not None:
            engines.append(open_engines(settings.fallback, metrics.batch))
        serving = cls(settings, store, engines, metrics)
        try:
            first = settings.release or await published_at_start(store, store_name(settings.store))
            await serving.swap(first)
            serving._experiments = await LiveExperiments.open(settings.experiments, serving.models, metrics)
        except BaseException:
            await serving.close()
            raise
        metrics.watch(
            waiting=serving._waiting,
            answering=lambda: serving.admission.taken,
            broken=serving.broken,
        )
        # What is loaded by now lives as long as the process: no garbage collection need walk it while requests wait.
        gc.collect()
        gc.freeze()
        if settings.release is None:
            serving._follower = Follower(store, serving.swap, first, settings.poll_seconds, metrics)
            serving.spawn(serving._follower.run())
        return serving

    @property
    def edition(self) -> Edition:
        """The release that is served now."""
        assert self._edition is not None, "only an opened service has an edition"  # noqa: S101
        return self._edition

    def models(self) -> Collection[str]:
        """The models that an experiment may name."""
        return [model.name for model in self.edition.release.manifest.models]

    async def recommend(self, request: RecommendRequest, context: Context) -> RecommendResponse:
        """Answer one request. Raises Overloaded, HeaderInvalid, and what `Recommender.recommend` raises."""
        try:
            with self.admission, self.edition as edition:
                assignment = self._assigned(request, context)
                response = await edition.recommender.recommend(request, context, assignment)
        except (Overloaded, EngineOverloaded):
            self._metrics.refused("overloaded")
            raise
        except DeadlineExceeded:
            self._metrics.refused("deadline")
            raise
        if self._exposures.enabled:
            after = context.after or asyncio.get_running_loop().call_soon  # once the answer is on its way
            after(partial(self._expose, edition, response, request, context, assignment))
        return response

    async def append(self, request: EventsRequest) -> EventsResponse:
        """Append events to a user's stored history. Raises Overloaded, RequestInvalid or StoreError."""
        with self._appending:
            return await self._events.append(request, self.edition.release.catalogue)

    def _assigned(self, request: RecommendRequest, context: Context) -> Assignment:
        if self._experiments is None:
            return UNASSIGNED
        experiments = self._experiments.current
        if request.model is not None or not request.reasoning:
            return experiments.pinned(request.user_id, request.attributes)  # the caller has decided
        insisted = context.forced if self._settings.experiments.allow_forced else ""
        forced = experiments.forced(insisted) if insisted else {}
        return experiments.assign(request.user_id, request.attributes, forced)

    def _expose(
        self,
        edition: Edition,
        response: RecommendResponse,
        request: RecommendRequest,
        context: Context,
        assignment: Assignment,
    ) -> None:
        latency = context.timings.inside() * 1000
        length = context.history_length
        self._exposures.record(Exposure.of(response, request.user_id, assignment, latency, length))
        if assignment.shadow:
            self.spawn(self._shadows.run(edition, request, context.request_id, assignment))

    def _waiting(self) -> int:
        return sum(maker.waiting() for maker in self._engines)

    def _spare(self) -> bool:
        # Places alone do not tell: they are far more than the engines can answer at once.
        return self.admission.spare() and not self._waiting()

    def broken(self) -> int:
        """Circuit breakers of the live release that are open."""
        return self.edition.ladder.broken()

    async def swap(self, release_id: str | None = None) -> str:
        """Serve another release, by default the one that the store names; returns the id of the one served then.

        Raises ReleaseError, StoreError or EngineUnavailable; the current release stays then.
        """
        async with self._swapping:
            wanted = release_id or await published(self.store)
            old = self._edition
            if old is not None and old.release.id == wanted:
                return wanted
            try:
                new = await Edition.load(
                    wanted, self._settings, self.store, self._engines, self._metrics, starting=old is None
                )
                if self._experiments is not None:
                    try:
                        self._experiments.current.check([model.name for model in new.release.manifest.models])
                    except ExperimentsInvalid:
                        await new.retire(0)
                        raise
            except ScoterError as error:
                if old is not None:
                    self._metrics.swapped("refused")
                    log.error("release_refused", release=wanted, kept=old.release.id, error=str(error))  # noqa: TRY400 - it says what is wrong
                raise
            self._edition = new
            self._metrics.serving(new.release.id, new.release.manifest.dataset.name)
            if old is not None:
                self._metrics.swapped("done")
                log.info("release_swapped", old=old.release.id, new=wanted)
                self.spawn(put_away(old))
                if self._experiments is not None:
                    self.spawn(self._reread(self._experiments))
            return wanted

    def reload(self) -> None:
        """Look at the store's pointer and at the experiments now instead of at the next poll."""
        if self._follower is not None:
            self._follower.hurry()
        if self._experiments is not None:
            self.spawn(self._reread(self._experiments))

    async def readiness(self) -> tuple[Literal["ok", "degraded", "not ready"], dict[str, str]]:
        """Whether requests should come here, and the state of every part: "ok", or what is wrong with it.

        What all replicas share, a store or a Triton server, costs answers their quality when it is down, not the
        callers their answers: "degraded", or an outage would take every replica out of rotation at once.
        """
        parts: dict[str, str] = {}
        try:
            await self.store.ping()
            parts["store"] = "ok"
        except StoreError as error:
            parts["store"] = str(error)
        parts |= await self.edition.readiness()
        if self._experiments is not None and (problem := self._experiments.problem) is not None:
            parts["experiments"] = problem
        if self.draining:
            parts["draining"] = "the service is about to stop"
        own = self.edition.ladder.local and UNANSWERED in parts.values()
        failing = any(state != "ok" for state in parts.values())
        return "not ready" if self.draining or own else "degraded" if failing else "ok", parts

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the requests; `close` ends it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Answer what is running and give everything back."""
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._experiments is not None:
            await self._experiments.close()
        if self._edition is not None:
            await self._edition.retire(0)
        await self._exposures.close()
        for maker in self._engines:
            await maker.close()
        await self.store.close()

    async def _reread(self, experiments: LiveExperiments) -> None:
        """Look at the experiments again: what named a model that was missing may be good now."""
        with suppress(ExperimentsError):  # logged where it was found
            await experiments.reload()


async def put_away(old: Edition) -> None:
    """Close an edition once it has answered, free its items a few at a time, and give their memory back.

    Requests would wait while all go at once with the catalogue, for half a second of a million.
    """
    await old.retire(RETIRE_SECONDS)
    items = [*old.release.catalogue.items]  # kept by this list alone when the edition is gone
    del old
    while items:
        del items[-FREED_AT_ONCE:]
        await asyncio.sleep(0)
    await asyncio.to_thread(trim)
