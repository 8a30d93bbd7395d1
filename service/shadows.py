"""Shadow arms: what they would have answered is computed and logged while nobody has to wait for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from service.context import Context
from service.deadline import Deadline
from service.edition import Edition
from service.errors import ScoterError
from service.experiments.assignment import Assignment
from service.exposures.event import Exposure
from service.exposures.log import ExposureLog
from service.metrics import Metrics
from service.schemas import RecommendRequest
from service.timings import StageTimings

log = structlog.get_logger(__name__)

# At work at the same time. An answer that comes meanwhile has as many inferences before it at most.
ROOM = 2


class Shadows:
    """Computes the shadow arms of requests that have been answered, a few at a time, on engines with an empty queue."""

    def __init__(
        self,
        spare: Callable[[], bool],  # whether no answer would wait for another inference
        seconds: float,  # for one arm
        exposures: ExposureLog,
        metrics: Metrics,
    ) -> None:
        self._spare = spare
        self._seconds = seconds
        self._exposures = exposures
        self._metrics = metrics
        self._at_work = 0

    async def run(self, edition: Edition, request: RecommendRequest, request_id: str, assignment: Assignment) -> None:
        """Log what the shadow arms would have answered, one after the other; what there is no room for is counted."""
        if self._at_work >= ROOM:
            self._metrics.shadows_skipped(len(assignment.shadow))
            return
        self._at_work += 1
        try:
            for arm in assignment.shadow:
                if not self._spare():  # they wait for nothing: who waits now is answered first, and more may come
                    self._metrics.shadows_skipped(1)
                    continue
                timings = StageTimings()
                context = Context(request_id, timings, Deadline(self._seconds))
                try:
                    with edition:
                        response = await edition.unseen.recommend(request, context, replace(assignment, arm=arm))
                except ScoterError as error:
                    log.warning("shadow_failed", arm=arm.name or arm.model, error=str(error))
                    continue
                latency, length = timings.total() * 1000, context.history_length
                self._exposures.record(Exposure.of(response, request.user_id, assignment, latency, length, shadow=arm))
        finally:
            self._at_work -= 1
