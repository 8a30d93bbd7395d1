"""When requests are due, and a clock that hands them over at that time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray


def poisson(rate: float, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Arrival times of a Poisson process, float64 [n], in seconds from 0 to `seconds`, ascending.

    Callers who know nothing of each other arrive like this: the times between two arrivals are exponential.
    """
    # Given their number, the arrivals of a Poisson process are independent and uniform.
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


async def pace(times: NDArray[np.float64], hand_over: Callable[[int, float], None]) -> float:
    """Call `hand_over(number, due)` in the event loop for each of `times`, as close to it as the machine allows.

    `due` is when the call was meant to be, on the clock of `perf_counter`; returns what 0 is on that clock.
    """
    # The loop's own timers tick in milliseconds, which is as long as an answer takes. A thread sleeps to tens of
    # microseconds.
    loop = asyncio.get_running_loop()
    stop = threading.Event()
    begun = perf_counter() + 0.01

    def due(first: int, last: int) -> None:
        if not stop.is_set():
            for number in range(first, last):
                hand_over(number, begun + float(times[number]))

    def wait() -> None:
        first = 0
        while first < len(times):
            left = begun + float(times[first]) - perf_counter()
            if stop.wait(left) if left > 0 else stop.is_set():
                return
            last = max(first + 1, int(np.searchsorted(times, perf_counter() - begun)))
            loop.call_soon_threadsafe(due, first, last)
            first = last

    try:
        await asyncio.to_thread(wait)
        await asyncio.sleep(0)  # what was called for last has run by then
    finally:
        stop.set()
    return begun
