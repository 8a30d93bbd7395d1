from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from service.metrics import Metrics


@pytest.mark.parametrize(
    "reason",
    ["store_timeout", "store_unavailable", "no_history", "engine_timeout", "engine_unavailable", "engine_fallback"],
)
def test_every_reason_of_a_lesser_answer_is_shown_before_there_is_one(reason: str) -> None:
    """Or the first outage of a process counts from the second scrape on: what it had at the first is no increase."""
    registry = CollectorRegistry()
    Metrics(registry)
    assert registry.get_sample_value("scoter_degraded_total", {"reason": reason}) == 0
