"""Where the time of one request went: one object that feeds the Server-Timing header and the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

BODY = "body"  # the stage in which the request's body arrives: the caller's doing, not the service's
ReasoningState = Literal["used", "masked", "none"]  # none: no model was asked


class StageTimings:
    """Seconds per stage of one request; the clock of `total` starts with the object, when a request's head is there."""

    def __init__(self) -> None:
        self._started = perf_counter()
        self._total: float | None = None
        self.stages: dict[str, float] = {}  # seconds, in the order of their ends
        self.answered: tuple[str, str, ReasoningState] | None = None  # arm, model and reasoning of a recommendation

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block; a stage that is entered again adds up, and one that raises counts too."""
        started = perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + perf_counter() - started

    def stop(self) -> None:
        """Stop the clock of `total`: the response is on its way."""
        self._total = self.total()

    def total(self) -> float:
        """Seconds from the request's arrival, the wait for its body included, until now or until the clock stopped."""
        return perf_counter() - self._started if self._total is None else self._total

    def inside(self) -> float:
        """Seconds of `total` that the service itself took: those without the wait for the body."""
        return self.total() - self.stages.get(BODY, 0.0)

    def server_timing(self) -> str:
        """The value of the Server-Timing header, in milliseconds: `body;dur=0.01, store;dur=0.05, total;dur=4.9`."""
        durations = {**self.stages, "total": self.total()}
        return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in durations.items())
