"""Prometheus metrics. No label ever holds a user or an item, and every label has few values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.degraded import Degraded
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
# Why an exposure may not be written.
_LOSSES = ("queue_full", "disk_full", "unwritable", "unavailable", "timeout", "closed", "unencodable")


class Metrics:
    """The service's metrics on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._responses = Counter(
            "scoter_responses_total", "Responses by route and HTTP status", ["route", "status"], registry=registry
        )
        self._recommendations = Counter(
            "scoter_recommendations_total",
            "Recommendations asked for, alone or in a batch, by the HTTP status that each has",
            ["status"],
            registry=registry,
        )
        for status in ("200", "500", "503"):
            self._recommendations.labels(status)  # shown from the start, so that a rate over the first one is not lost
        self._latency = Histogram(
            "scoter_request_seconds",
            "Time to answer a recommendation once its body is there, by arm, model and what became of the reasoning",
            ["arm", "model", "reasoning"],
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
        self._refused = Counter(
            "scoter_refused_total", "Recommendations turned away unanswered, by reason", ["reason"], registry=registry
        )
        for reason in ("overloaded", "deadline"):
            self._refused.labels(reason)
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
        for reason in get_args(Degraded):
            self._degraded.labels(reason)  # a first outage shorter than the interval of scrapes would be lost
        self._unknown = Counter(
            "scoter_unknown_history_items_total", "History items that the catalogue does not hold", registry=registry
        )
        self._histories = Counter(
            "scoter_history_misses_total",
            "Stored histories that were not there or not readable",
            ["reason"],
            registry=registry,
        )
        self._cache = Counter(
            "scoter_store_cache_reads_total",
            "Reads of reasoning and step texts, by what the cache held",
            ["result"],
            registry=registry,
        )
        self._events = Counter(
            "scoter_events_total", "Events received, by what became of them", ["result"], registry=registry
        )
        self._contended = Counter(
            "scoter_event_retries_total", "Appends begun anew because another writer came first", registry=registry
        )
        self._batches = Histogram(
            "scoter_engine_batch_requests", "Requests run together", ["model"], buckets=BATCH_BUCKETS, registry=registry
        )
        self._queue = Gauge("scoter_engine_queue_requests", "Requests waiting for inference", registry=registry)
        self._answering = Gauge("scoter_answering_requests", "Recommendations being answered", registry=registry)
        self._broken = Gauge("scoter_breakers_open", "Circuit breakers that keep an engine alone", registry=registry)
        self._watched: tuple[tuple[Gauge, Callable[[], int]], ...] = ()
        self._gone = Counter(
            "scoter_callers_gone_total", "Recommendations given up because their caller had left", registry=registry
        )
        self._swaps = Counter("scoter_swaps_total", "Changes of release, by outcome", ["outcome"], registry=registry)
        for outcome in ("done", "refused"):
            self._swaps.labels(outcome)  # shown from the start, so that a rate over the first one is not lost
        self._release = Gauge(
            "scoter_release_info", "1 for the release that is served", ["release", "dataset"], registry=registry
        )
        self._reloads = Counter(
            "scoter_experiments_reloads_total",
            "Looks at the experiments' source, by outcome",
            ["outcome"],
            registry=registry,
        )
        self._experiments_ok = Gauge(
            "scoter_experiments_ok",
            "0 if the last look at the experiments' source failed or found them wrong",
            registry=registry,
        )
        self._experiments_ok.set(1)  # without a source nothing is wrong with it
        self._experiments = Gauge(
            "scoter_experiments_info", "1 for the version of the experiments in use", ["version"], registry=registry
        )
        self._shadows_skipped = Counter(
            "scoter_shadows_skipped_total",
            "Shadow arms that were not computed, as answers needed the engines",
            registry=registry,
        )
        self._exposures = Counter(
            "scoter_exposures_written_total", "Exposures written, by sink", ["sink"], registry=registry
        )
        self._exposures_dropped = Counter(
            "scoter_exposures_dropped_total",
            "Exposures that were not written, by sink and reason",
            ["sink", "reason"],
            registry=registry,
        )

    def responded(self, route: str, status: int) -> None:
        """Count a response."""
        self._responses.labels(route, str(status)).inc()

    def recommended(self, status: int) -> None:
        """Count a recommendation that was answered or refused, alone or in a batch."""
        self._recommendations.labels(str(status)).inc()

    def answered(self, timings: StageTimings) -> None:
        """Observe how long a recommendation and its stages took; nothing if it is none."""
        if timings.answered is None:
            return
        self._latency.labels(*timings.answered).observe(timings.inside())
        for stage, seconds in timings.stages.items():
            self._stages.labels(stage).observe(seconds)

    def refused(self, reason: Literal["overloaded", "deadline"]) -> None:
        """Count a request that was turned away."""
        self._refused.labels(reason).inc()

    def reasoning_missed(self, reason: str) -> None:
        """Count a request answered without reasoning."""
        self._misses.labels(reason).inc()

    def degraded(self, reason: str) -> None:
        """Count one reason why an answer is degraded."""
        self._degraded.labels(reason).inc()

    def unknown_items(self, count: int) -> None:
        """Count history items that the catalogue does not hold."""
        self._unknown.inc(count)

    def history_missed(self, reason: str) -> None:
        """Count a stored history that was asked for and is absent or corrupt."""
        self._histories.labels(reason).inc()

    def cache_read(self, hit: bool) -> None:  # noqa: FBT001 - an observation, not an option
        """Count a read that the store's cache could have answered."""
        self._cache.labels("hit" if hit else "miss").inc()

    def events(self, result: str, count: int) -> None:
        """Count events: accepted, duplicate, or (of the accepted) of an unknown item."""
        if count:
            self._events.labels(result).inc(count)

    def contended(self) -> None:
        """Count an append that another writer got in the way of."""
        self._contended.inc()

    def batch(self, model: str, requests: int) -> None:
        """Observe the size of a batch; safe in any thread."""
        self._batches.labels(model).observe(requests)

    def watch(self, waiting: Callable[[], int], answering: Callable[[], int], broken: Callable[[], int]) -> None:
        """Have `look` read the queue's depth, the requests at work and the open breakers."""
        self._watched = ((self._queue, waiting), (self._answering, answering), (self._broken, broken))

    def look(self) -> None:
        """Read what is watched, in the thread that changes it; to be called before metrics are shown."""
        for gauge, read in self._watched:
            gauge.set(read())

    def caller_gone(self) -> None:
        """Count a request whose caller left before it was answered."""
        self._gone.inc()

    def swapped(self, outcome: Literal["done", "refused"]) -> None:
        """Count an attempt to serve another release."""
        self._swaps.labels(outcome).inc()

    def serving(self, release: str, dataset: str) -> None:
        """Say which release is served."""
        self._release.clear()
        self._release.labels(release, dataset).set(1)

    def experiments_looked(self, outcome: str, *, good: bool) -> None:
        """Count a look at the experiments' source: `loaded`, `unchanged`, `refused` or `unavailable`."""
        self._reloads.labels(outcome).inc()
        self._experiments_ok.set(good)

    def experimenting(self, version: str) -> None:
        """Say which version of the experiments is in use."""
        self._experiments.clear()
        self._experiments.labels(version).set(1)

    def shadows_skipped(self, arms: int) -> None:
        """Count shadow arms that had to make way for answers."""
        self._shadows_skipped.inc(arms)

    def exposing(self, sink: str) -> None:
        """Show a sink's losses from the start, so that a rate over the first one is not lost."""
        for reason in _LOSSES:
            self._exposures_dropped.labels(sink, reason)

    def exposures_written(self, sink: str, count: int) -> None:
        """Count exposures that a sink has taken."""
        self._exposures.labels(sink).inc(count)

    def exposures_dropped(self, sink: str, reason: str, count: int) -> None:
        """Count exposures that a sink will never see."""
        self._exposures_dropped.labels(sink, reason).inc(count)
