from __future__ import annotations

import numpy as np
import pytest

from loadtest.arrivals import poisson
from loadtest.client import Exchange, Pool, Request
from loadtest.drive import closed_loop, offer, open_loop
from loadtest.figures import figures
from tests.loadtest.conftest import answering
from tests.tries import three_tries

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

STALL = (0.7, 1.7)  # seconds


def stalled(seconds: float) -> float:
    """One second in which nobody is answered."""
    return STALL[1] - seconds if STALL[0] <= seconds < STALL[1] else 0.002


@three_tries
async def test_a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() -> None:
    async with answering(delay=stalled) as target:
        pool = Pool(target, 1)
        request = Request(target.post("/recommend", b"{}"), 5.0)
        waits: list[float] = []
        while sum(waits) < 3.0:
            waits.append((await pool.ask(request)).latency)
        await pool.close()
    assert max(waits) > 0.8  # the one request that met the stall
    assert np.percentile(waits, 99) < 0.3  # and vanishes among those sent before and after

    async with answering(delay=stalled) as target:
        pool = Pool(target, 1000)
        driven = await open_loop(pool, lambda: request, 200, 3.0, np.random.default_rng(0))
        await pool.close()
    row = figures("test", 200, 3.0, driven)
    # A third of the requests were due during the stall; those at its beginning waited for all of it.
    assert row.latency_ms["p99"] is not None
    assert row.latency_ms["p99"] > 700
    assert np.mean([exchange.latency > 0.05 for exchange in driven.exchanges]) > 0.25


@three_tries
async def test_waiting_for_a_connection_counts() -> None:
    async with answering(delay=stalled) as target:
        pool = Pool(target, 2)
        request = Request(target.post("/recommend", b"{}"), 5.0)
        driven = await open_loop(pool, lambda: request, 200, 2.0, np.random.default_rng(0))
        await pool.close()
    row = figures("test", 200, 2.0, driven)
    assert row.waited > 100
    assert not row.valid  # that was the generator's own queue, and the service was not asked
    assert row.statuses == {"200": len(driven.exchanges)}
    assert row.latency_ms["p99"] is not None
    assert row.latency_ms["p99"] > 800


@three_tries
async def test_the_run_in_is_left_out() -> None:
    async with answering(delay=lambda seconds: 0.3 if seconds < 0.3 else 0.0) as target:
        pool = Pool(target, 100)
        request = Request(target.post("/recommend", b"{}"), 5.0)
        driven = await open_loop(pool, lambda: request, 100, 1.0, np.random.default_rng(0), run_in=0.7)
        await pool.close()
    assert 60 < len(driven.exchanges) < 140
    assert all(driven.begun <= exchange.due < driven.begun + 1.0 for exchange in driven.exchanges)
    assert driven.answered == pytest.approx(len(driven.exchanges), abs=10)


@three_tries
async def test_what_is_offered_waits_for_no_answer() -> None:
    sent: list[Exchange] = []
    times = poisson(100, 0.5, np.random.default_rng(0))
    async with answering(delay=lambda _: 1.0) as target:
        pool = Pool(target, 100)
        request = Request(target.post("/recommend", b"{}"), 5.0)
        begun = await offer(pool, times, lambda: request, sent.append)
        assert len(sent) == len(times)
        assert not any(exchange.status for exchange in sent)
        await pool.drained()
        await pool.close()
    assert [exchange.due - begun for exchange in sent] == pytest.approx(times)
    assert all(exchange.status == 200 and exchange.latency >= 1.0 for exchange in sent)


@three_tries
async def test_a_closed_loop_counts_full_answers_only() -> None:
    async with answering(delay=lambda _: 0.01) as target:
        pool = Pool(target, 4)
        rate = await closed_loop(pool, [target.post("/recommend", b"{}")], 4, 0.5)
        await pool.close()
    assert 20 < rate <= 400
    poor = b'HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{"degraded":["no_history"]}'
    async with answering(answer=poor) as target:
        pool = Pool(target, 4)
        assert await closed_loop(pool, [target.post("/recommend", b"{}")], 4, 0.1) == 0
        await pool.close()
