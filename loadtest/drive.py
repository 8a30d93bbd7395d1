"""Putting load on a target: at a rate, whatever it answers (open loop), or as fast as it answers (closed loop)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals import pace, poisson
from loadtest.client import Exchange, Pool, Request

PATIENCE = 10.0  # seconds
FULL = b'"degraded":[]'


@dataclass(frozen=True)
class Driven:
    """What an open loop has sent."""

    exchanges: list[Exchange]  # in the order of their due times, those of the run-in left out
    begun: float  # seconds on `perf_counter`: the end of the run-in
    answered: int  # 200s that arrived while requests were due, whenever they had been sent
    busy: float  # share of one core that the generator used


async def open_loop(
    pool: Pool,
    make: Callable[[], Request],
    rate: float,
    seconds: float,
    rng: np.random.Generator,
    *,
    run_in: float = 0.0,
) -> Driven:
    """Send requests at `rate` per second for `run_in + seconds` and wait for all answers.

    `make` is called for each of them, beforehand.
    """
    times = poisson(rate, run_in + seconds, rng)
    made = iter([make() for _ in times])
    exchanges: list[Exchange] = []
    # A collection would hold up the requests of that moment, and look like the target's doing.
    gc.collect()
    gc.disable()
    try:
        cpu, clock = process_time(), perf_counter()
        begun = await offer(pool, times, made.__next__, exchanges.append) + run_in
        busy = (process_time() - cpu) / (perf_counter() - clock)
        await pool.drained()
    finally:
        gc.enable()
    arrived = sum(exchange.status == 200 and begun <= exchange.done < begun + seconds for exchange in exchanges)
    return Driven([exchange for exchange in exchanges if exchange.due >= begun], begun, arrived, busy)


async def offer(
    pool: Pool, times: NDArray[np.float64], make: Callable[[], Request], before_send: Callable[[Exchange], None]
) -> float:
    """Send a request at each of `times`, float64 [n], seconds, after a call of `before_send`. Answers come later.

    Nothing that the target does delays a request that is due: its time runs from then. Returns what 0 is on the clock
    of `perf_counter`.
    """

    def hand_over(_number: int, due: float) -> None:
        exchange = Exchange(make(), due)
        before_send(exchange)
        pool.send(exchange)

    return await pace(times, hand_over)


async def closed_loop(pool: Pool, requests: Sequence[bytes], clients: int, seconds: float) -> float:
    """Full answers per second when each of `clients` sends its next request as soon as it has an answer.

    Degraded ones do not count: popular items at the deadline come at any rate.
    """

    async def client(first: int) -> int:
        number, answered = first, 0
        while perf_counter() < end:
            exchange = await pool.ask(Request(requests[number % len(requests)], PATIENCE))
            answered += exchange.status == 200 and FULL in exchange.body
            number += clients
        return answered

    end = perf_counter() + seconds
    return sum(await asyncio.gather(*map(client, range(clients)))) / seconds
