"""Prometheus metrics. No label ever holds a user or an item, and every label has few values."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.timings import StageTimings

SLO_SECONDS = 0.025
# Fine around the SLO: a burn-rate rule needs it as a bucket bound, and a dashboard what lies on either side.
LATENCY_BUCKETS = (
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.010,
    0.015,
    0.020,
    SLO_SECONDS,
    0.035,
    0.050,
    0.100,
    0.250,
    1.0,
)
STAGE_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, *LATENCY_BUCKETS)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The service's metrics on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._responses = Counter(
            "scoter_responses_total", "Responses by route and HTTP status", ["route", "status"], registry=registry
        )
        self._latency = Histogram(
            "scoter_request_seconds",
            "Time to answer POST /recommend, by model and what became of the reasoning",
            ["model", "reasoning"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._stages = Histogram(
            "scoter_stage_seconds",
            "Time of one stage of a request",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self._misses = Counter(
            "scoter_reasoning_misses_total",
            "Requests answered without reasoning, by reason",
            ["reason"],
            registry=registry,
        )
        self._degraded = Counter(
            "scoter_degraded_total",
            "Answers that are worse than they should be, by reason",
            ["reason"],
            registry=registry,
        )
        self._unknown = Counter(
            "scoter_unknown_history_items_total", "History items that the catalogue does not hold", registry=registry
        )
        self._batches = Histogram(
            "scoter_engine_batch_requests", "Requests run together", ["model"], buckets=BATCH_BUCKETS, registry=registry
        )
        self._queue = Gauge("scoter_engine_queue_requests", "Requests waiting for inference", registry=registry)
        self._release = Gauge(
            "scoter_release_info", "1 for the release that is served", ["release", "dataset"], registry=registry
        )

    def responded(self, route: str, status: int, timings: StageTimings) -> None:
        """Count a response and, if it is a recommendation, observe how long it and its stages took."""
        self._responses.labels(route, str(status)).inc()
        if timings.answered is None:
            return
        self._latency.labels(*timings.answered).observe(timings.total())
        for stage, seconds in timings.stages.items():
            self._stages.labels(stage).observe(seconds)

    def reasoning_missed(self, reason: str) -> None:
        """Count a request answered without reasoning."""
        self._misses.labels(reason).inc()

    def degraded(self, reason: str) -> None:
        """Count one reason why an answer is degraded."""
        self._degraded.labels(reason).inc()

    def unknown_items(self, count: int) -> None:
        """Count history items that the catalogue does not hold."""
        self._unknown.inc(count)

    def batch(self, model: str, requests: int) -> None:
        """Observe the size of a batch; safe in any thread."""
        self._batches.labels(model).observe(requests)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Read the queue's depth from `waiting` whenever metrics are scraped."""
        self._queue.set_function(waiting)

    def serving(self, release: str, dataset: str) -> None:
        """Say which release is served."""
        self._release.clear()
        self._release.labels(release, dataset).set(1)
