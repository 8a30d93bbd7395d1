"""An event loop whose time passes by itself, so that what a machine takes or how long it stops changes no outcome."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable

TURN_SECONDS = 1e-6  # that a turn of the loop takes


class _Skipping(selectors.DefaultSelector):
    """Waits for no timer: it is that time at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += max(timeout or 0.0, TURN_SECONDS)
        return super().select(None if timeout is None else 0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs code that waits for timers alone, in the order of those; for `anyio_backend`."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        """Seconds by the clock of its timers."""
        return self._skipping.now


def clock() -> float:
    """What `time.monotonic` is to code that runs in such a loop."""
    return asyncio.get_running_loop().time()


BACKEND: tuple[str, dict[str, Callable[[], asyncio.AbstractEventLoop]]] = ("asyncio", {"loop_factory": VirtualLoop})
