"""The service level objectives: what share of requests may go wrong, and how that share is counted.

In each expression `{window}` stands for a range such as 5m.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.metrics import SLO_SECONDS

SERVER_ERRORS = 'status=~"5.."'
# A new user is no fault of the service, and the fallback engine ranks where the engine's own reason is counted already.
FAULTS = 'reason!~"no_history|engine_fallback"'
WITHIN = f'le="{SLO_SECONDS}"'


@dataclass(frozen=True, slots=True)
class Objective:
    """A share of good requests that is promised over 30 days."""

    name: str
    promise: str  # in words
    target: float  # the promised share
    bad: str  # PromQL: the share that went wrong


OBJECTIVES = (
    Objective(
        name="availability",
        promise="99.9 % of recommendations are not answered with a server error, being turned away included",
        target=0.999,
        bad=f"(sum(rate(scoter_recommendations_total{{{{{SERVER_ERRORS}}}}}[{{window}}])) or vector(0))"
        " / sum(rate(scoter_recommendations_total[{window}]))",
    ),
    Objective(
        name="latency",
        promise=f"99 % of recommendations are ready within {SLO_SECONDS * 1000:.0f} ms",
        target=0.99,
        bad=f"1 - sum(rate(scoter_request_seconds_bucket{{{{{WITHIN}}}}}[{{window}}]))"
        " / sum(rate(scoter_request_seconds_count[{window}]))",
    ),
    Objective(
        name="quality",
        promise="99 % of recommendations are not degraded by a fault (an answer with two reasons counts twice)",
        target=0.99,
        bad=f"(sum(rate(scoter_degraded_total{{{{{FAULTS}}}}}[{{window}}])) or vector(0))"
        " / sum(rate(scoter_request_seconds_count[{window}]))",
    ),
)
