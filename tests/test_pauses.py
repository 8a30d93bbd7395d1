"""A machine that stops for a while fails no test that is about something else."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_a_pause_in_an_example_refutes_no_property() -> None:
    pauses = [0.25]

    @given(st.integers())
    @settings(max_examples=3)
    def holds(number: int) -> None:
        if pauses:
            time.sleep(pauses.pop())

    holds()
    assert HealthCheck.too_slow in settings().suppress_health_check  # a pause while values are drawn
