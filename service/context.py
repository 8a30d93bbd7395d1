"""What accompanies one request through the service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers

from service.deadline import Deadline
from service.errors import HeaderInvalid
from service.settings import LimitSettings
from service.timings import StageTimings

DEADLINE_HEADER = "x-deadline-ms"
ENVOY_DEADLINE_HEADER = "x-envoy-expected-rq-timeout-ms"  # what Envoy will wait, which it adds by itself


@dataclass(slots=True)
class Context:
    """One request's identity, clock and time limit."""

    request_id: str
    timings: StageTimings
    deadline: Deadline
    forced: str = ""  # "experiment=variation, ..." that the caller insists on
    after: Callable[[Callable[[], None]], object] | None = None  # takes what is to be done once a batch is answered
    history_length: int = 0  # distinct items of the user's history that the catalogue holds, once it is read


def allowed_seconds(headers: Headers, limits: LimitSettings) -> float:
    """Time to answer from the caller's header, or else the service's default. Raises HeaderInvalid."""
    for name in (DEADLINE_HEADER, ENVOY_DEADLINE_HEADER):
        text = headers.get(name)
        if text is not None:
            try:
                milliseconds = float(text)
            except ValueError:
                milliseconds = -1.0
            if not 0 < milliseconds < float("inf"):
                raise HeaderInvalid(f"{name}: must be a positive number of milliseconds, not {text[:40]!r}")
            return min(milliseconds, limits.deadline_ceiling_ms) / 1000
    return limits.deadline_ms / 1000
