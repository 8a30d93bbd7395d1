"""What is logged about one answer, as one JSON object. `scoter abtest` reads these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import time

from pydantic_core import to_json

from service.experiments.arm import Arm
from service.experiments.assignment import Assigned, Assignment
from service.schemas import RecommendResponse
from service.store.keys import user_tag


@dataclass(frozen=True, slots=True)
class ExposedItem:
    """One item of an answer."""

    id: str
    position: int  # 1 is best
    score: float


@dataclass(frozen=True, slots=True)
class Exposure:
    """One answer, or the answer that a shadow arm would have given. Of `user_id` and `user_tag`, one is set."""

    ts: float  # when it was answered, seconds since 1970, UTC
    request_id: str
    user_id: str | None  # always set by who records; the log may write its tag instead
    arm: Arm
    label: str  # as in the metrics
    experiments: tuple[Assigned, ...]
    holdout: bool
    shadow: bool  # never returned to the caller
    release: str
    model: str | None  # None: no model ranked
    reasoning: bool  # H was used
    reasoning_miss: str | None  # why not
    reasoning_age: float | None  # seconds since H was written
    history_length: int | None  # distinct items of the user's history; None if the store did not answer
    items: tuple[ExposedItem, ...]
    degraded: tuple[str, ...]
    latency_ms: float
    user_tag: str | None = None

    @classmethod
    def of(
        cls,
        response: RecommendResponse,
        user_id: str,
        assignment: Assignment,
        latency_ms: float,
        history_length: int,  # distinct items of the history that was read
        shadow: Arm | None = None,  # the shadow arm that gave this response; None: the one that was returned
    ) -> Exposure:
        """The exposure of a response that is being given now."""
        now = time()
        written = response.reasoning.written
        # The store did not answer, and the request brought no history: it may be long.
        unknown = response.history.source == "none" and any(why.startswith("store_") for why in response.degraded)
        return cls(
            ts=now,
            request_id=response.request_id,
            user_id=user_id,
            arm=assignment.arm if shadow is None else shadow,
            label=assignment.label,
            experiments=assignment.experiments,
            holdout=assignment.holdout,
            shadow=shadow is not None,
            release=response.release,
            model=response.model if response.source == "model" else None,
            reasoning=response.reasoning.used,
            reasoning_miss=response.reasoning.reason,
            reasoning_age=None if written is None else round(now - written.timestamp(), 3),
            history_length=None if unknown else history_length,
            items=tuple(ExposedItem(item.id, item.rank, item.score) for item in response.items),
            degraded=tuple(response.degraded),
            latency_ms=round(latency_ms, 3),
        )


def encode(exposure: Exposure, *, tagged: bool) -> bytes:
    """The exposure as JSON on one line, without the line's end; `tagged` names the user by the tag of the store's keys.

    Raises ValueError if it holds what JSON in UTF-8 cannot, such as half a surrogate pair.
    """
    if tagged and exposure.user_id is not None:
        exposure = replace(exposure, user_id=None, user_tag=user_tag(exposure.user_id))
    return to_json(exposure, inf_nan_mode="null")
