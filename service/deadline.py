"""The time that is left to answer one request."""

from __future__ import annotations

from time import monotonic


class Deadline:
    """A point in time by the clock that never jumps."""

    __slots__ = ("_end",)

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    def left(self) -> float:
        """Seconds that remain; negative once it has passed."""
        return self._end - monotonic()
