from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.server_timing import durations
from service.timings import StageTimings


@pytest.mark.parametrize(
    "header, expected",
    [
        (b"", {}),
        (b"store;dur=0.213, engine;dur=3.485, total;dur=4.350", {"store": 0.213, "engine": 3.485, "total": 4.35}),
        (b'cache;desc="hit, warm; dur=9";dur=1.5,miss', {"cache": 1.5}),
        (b'a; DUR="2" ;desc=x', {"a": 2.0}),
        (b"a;dur=soon, b;dur=1", {"b": 1.0}),
    ],
)
def test_durations_are_found_by_name(header: bytes, expected: dict[str, float]) -> None:
    assert durations(header) == expected


@given(st.dictionaries(st.text("abc_", min_size=1, max_size=8), st.floats(0, 1000), max_size=5))
def test_what_the_service_writes_is_read(stages: dict[str, float]) -> None:
    timings = StageTimings()
    timings.stages = stages
    found = durations(timings.server_timing().encode())
    assert set(found) == {*stages, "total"}
    assert all(found[name] == pytest.approx(stages[name] * 1000, abs=0.001) for name in stages)


@given(st.binary())
def test_nothing_breaks_it(header: bytes) -> None:
    assert all(isinstance(milliseconds, float) for milliseconds in durations(header).values())
