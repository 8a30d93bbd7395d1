"""What is logged about one answer, as one JSON object. `scoter abtest` reads these."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic_core import to_json

from service.experiments.arm import Arm
from service.experiments.assignment import Assigned
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
    history_length: int | None  # items of history that are known of the user; None if the store did not answer
    items: tuple[ExposedItem, ...]
    degraded: tuple[str, ...]
    latency_ms: float
    user_tag: str | None = None


def encode(exposure: Exposure, *, tagged: bool) -> bytes:
    """The exposure as JSON on one line, without the line's end; `tagged` names the user by the tag of the store's keys.

    Raises ValueError if it holds what JSON in UTF-8 cannot, such as half a surrogate pair.
    """
    if tagged and exposure.user_id is not None:
        exposure = replace(exposure, user_id=None, user_tag=user_tag(exposure.user_id))
    return to_json(exposure, inf_nan_mode="null")
