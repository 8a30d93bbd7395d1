from __future__ import annotations

import time

import pytest

from service.timings import BODY, StageTimings


def test_stages_add_up_even_when_they_fail() -> None:
    timings = StageTimings()
    for _ in range(2):
        with timings.stage("store"):
            time.sleep(0.01)
    with pytest.raises(KeyError), timings.stage("engine"):
        raise KeyError
    assert timings.stages["store"] >= 0.02
    assert list(timings.stages) == ["store", "engine"]
    assert timings.total() >= timings.stages["store"]


def test_a_stopped_clock_stands_still() -> None:
    timings = StageTimings()
    timings.stop()
    total = timings.total()
    time.sleep(0.002)
    assert timings.total() == total


def test_the_wait_for_the_body_is_in_the_total_and_not_the_services_own() -> None:
    timings = StageTimings()
    with timings.stage(BODY):
        time.sleep(0.02)
    with timings.stage("engine"):
        time.sleep(0.002)
    timings.stop()
    assert timings.total() >= 0.022
    assert timings.inside() == pytest.approx(timings.total() - timings.stages["body"])
    assert 0.002 <= timings.inside() <= timings.total() - 0.02


def test_the_header_is_in_milliseconds() -> None:
    timings = StageTimings()
    timings.stages["store"] = 0.00125
    store, total = timings.server_timing().split(", ")
    assert store == "store;dur=1.250"
    assert total.startswith("total;dur=")
    assert 0 <= float(total.removeprefix("total;dur=")) < 1000
