"""A circuit breaker: stop asking what keeps failing, and find out by single probes when it is well again."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from service.settings import BreakerSettings


class Breaker:
    """Closed until `failures` in a row; then open for `open_ms`, after which one caller at a time may probe.

    Whoever is allowed must report back with `succeeded`, `failed` or `abandoned`.
    """

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float] = monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._failures = 0
        self._until: float | None = None  # when it may be probed again; None while closed
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether callers are kept away."""
        return self._until is not None

    def allows(self) -> bool:
        """Whether the caller may go ahead."""
        if self._until is None:
            return True
        if self._probing or self._clock() < self._until:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """All is well: close."""
        self._failures, self._until, self._probing = 0, None, False

    def failed(self) -> None:
        """Count a failure; enough of them in a row, or one of a probe, open the circuit."""
        self._failures += 1
        self._probing = False
        if self._failures >= self._settings.failures:
            self._until = self._clock() + self._settings.open_ms / 1000

    def recovered(self) -> None:
        """The other side answered what no caller had asked: close, if the next caller would be let through anyway.

        One failure opens it again: what was asked may have been less than callers ask.
        """
        if self._until is not None and not self._probing and self._clock() >= self._until:
            self._until = None

    def abandoned(self) -> None:
        """The call says nothing about the other side: its caller left, or gave it too little time."""
        self._probing = False
