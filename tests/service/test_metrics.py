from __future__ import annotations

import re

from prometheus_client import CollectorRegistry

import service.recommend
from service.metrics import Metrics


def test_every_reason_of_a_lesser_answer_is_shown_before_there_is_one() -> None:
    """Or the first outage of a process counts from the second scrape on: what it had at the first is no increase."""
    registry = CollectorRegistry()
    Metrics(registry)
    (table,) = (part for part in (service.recommend.__doc__ or "").split("\n\n") if part.startswith("    "))
    reasons = re.findall(r"\b(?:store|engine|no)_[a-z]+", table)
    assert len(reasons) == 6
    for reason in reasons:
        assert registry.get_sample_value("scoter_degraded_total", {"reason": reason}) == 0, reason
