from __future__ import annotations

import json
from dataclasses import replace

import pytest

from loadtest.client import Exchange, Request
from loadtest.drive import Driven
from loadtest.figures import OUTSIDE, REST, TOTAL, Figures, figures, medians, ratios


def exchange(ms: float, status: int = 200, lag: float = 0.0, **answer: object) -> Exchange:
    body = json.dumps({"source": "model", "degraded": [], **answer}).encode()
    made = Exchange(Request(b"", 5.0), due=10.0)
    made.handed, made.done, made.status, made.body = 10.0 + lag, 10.0 + ms / 1000, status, body
    made.failure = "" if status else "no answer in time"
    made.server_timing = b"store;dur=1.0, engine;dur=3.0, total;dur=5.0"
    return made


def row(*exchanges: Exchange, busy: float = 0.1) -> Figures:
    return figures("service", 100, 2.0, Driven([*exchanges], 10.0, len(exchanges), busy))


def test_only_full_answers_in_time_are_within_the_slo() -> None:
    found = row(
        exchange(24),
        exchange(26),
        exchange(5, status=503),
        exchange(5, degraded=["engine_timeout"], source="popular"),
        exchange(5000, status=0),
    )
    assert found.within_slo == 0.2
    assert found.statuses == {"200": 3, "503": 1, "no answer in time": 1}
    assert found.degraded == {"engine_timeout": 1}
    assert found.sources == {"model": 2, "popular": 1}


def test_refusals_do_not_make_a_service_look_fast_nor_silence_fast_enough() -> None:
    found = row(exchange(20), *[exchange(1, status=503)] * 50, exchange(5000, status=0), exchange(20))
    assert found.latency_ms["p50"] == pytest.approx(20)
    slow = row(exchange(20), *[exchange(5000, status=0)] * 2)
    assert slow.latency_ms["p50"] == pytest.approx(5000)


def test_a_percentile_needs_requests_above_it() -> None:
    few = row(*[exchange(10)] * 99).latency_ms
    assert few["p90"] == pytest.approx(10)
    assert few["p99"] is None
    many = row(*[exchange(10)] * 1000).latency_ms
    assert many["p99.9"] == pytest.approx(10)


def test_stages_add_up_to_the_latency() -> None:
    found = row(*[exchange(9)] * 4).stages
    assert list(found) == ["store", "engine", REST, OUTSIDE, TOTAL]
    assert found[REST].mean == pytest.approx(1)
    assert found[OUTSIDE].mean == pytest.approx(4)
    assert sum(stage.mean for name, stage in found.items() if name != TOTAL) == pytest.approx(9)


def test_a_generator_that_was_late_makes_its_row_invalid() -> None:
    assert row(*[exchange(20, lag=0.003)] * 200).valid
    assert not row(*[exchange(20, lag=0.005)] * 200).valid
    assert row(*[exchange(0.6, lag=0.0004)] * 200).valid
    assert not row(*[exchange(20)] * 200, busy=0.95).valid


def test_a_generator_that_had_no_connections_makes_its_row_invalid() -> None:
    found = [exchange(20) for _ in range(200)]
    for one in found[:2]:  # above p99
        one.waited = True
    assert row(*found).valid
    found[2].waited = True
    assert (row(*found).waited, row(*found).valid) == (3, False)


def test_medians_leave_invalid_runs_out() -> None:
    good = [row(*[exchange(ms)] * 200) for ms in (10, 12, 30)]
    late = row(*[exchange(500, lag=0.4)] * 200)
    found = medians([*good, late])
    assert found.latency_ms["p50"] == pytest.approx(12)
    assert found.stages[OUTSIDE].mean == pytest.approx(7)
    assert (found.runs, found.valid_runs, found.valid) == (4, 3, True)
    assert found.statuses == {"200": 600}
    assert not medians([good[0], late, late]).valid
    assert medians([late]).latency_ms["p50"] == pytest.approx(500)


def test_ratios_are_taken_round_by_round() -> None:
    base = [row(*[exchange(ms)] * 200) for ms in (10, 100, 20)]
    twice = [row(*[exchange(2 * ms)] * 200) for ms in (10, 100, 20)]
    found = ratios([replace(one, target="other") for one in twice], base)
    assert found["p50"] == pytest.approx(2)
    assert found["p99.9"] is None


def test_ratios_leave_out_what_the_generator_was_too_late_for() -> None:
    base = [row(*[exchange(10)] * 200) for _ in range(3)]
    other = [row(*[exchange(20)] * 200), *[row(*[exchange(900, lag=0.4)] * 200)] * 2]
    assert ratios(other, base)["p50"] == pytest.approx(2)
    assert ratios(base, other)["p50"] == pytest.approx(0.5)
    assert ratios(other[1:], base[1:])["p50"] is None
