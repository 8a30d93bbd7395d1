"""What a run at one rate says: latencies, statuses, sources and stages, and whether the generator may be believed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.client import Exchange
from loadtest.drive import Driven
from loadtest.server_timing import durations
from service.metrics import SLO_SECONDS

SLO_MS = SLO_SECONDS * 1000
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
TOTAL = "total"  # the service's own clock, from a request's first byte to its answer
REST = "rest of the service"  # of `total`, what no stage claims
OUTSIDE = "outside the service"  # network, queues of the kernel and of the event loop, the generator
LAG_SHARE = 0.2  # of a run's p99: what the generator may be late at its own p99
LAG_FLOOR_MS = 0.5  # and this is never held against it
BUSY = 0.8  # share of a core above which the generator measures itself
WAITED = 0.01  # share of requests that may wait for a connection of the generator: those above p99


@dataclass(frozen=True)
class Stage:
    """Milliseconds that one part of a request took."""

    mean: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Figures:
    """One target at one rate: a run, or the medians of several."""

    target: str
    rate: float  # requests/s meant
    offered: float  # requests/s that were due
    achieved: float  # answers/s with status 200
    requests: int
    latency_ms: dict[str, float | None]  # "p50": ...; None where too few requests were sent to say
    within_slo: float  # share of all requests: answered in time, and as well as the service can
    statuses: dict[str, int]  # HTTP status, or why there was no answer
    degraded: dict[str, int]
    sources: dict[str, int]
    stages: dict[str, Stage]
    lag_p99_ms: float  # by which the generator was late
    busy: float  # share of a core that the generator used
    waited: int  # requests that the generator had no connection for
    runs: int = 1
    valid_runs: int = 1

    @property
    def valid(self) -> bool:
        """Whether the generator kept up, in most of the runs."""
        return 2 * self.valid_runs > self.runs


def figures(target: str, rate: float, seconds: float, driven: Driven) -> Figures:
    """The figures of one run.

    Percentiles are those of the answers with status 200 and of requests that were never answered, which count with
    the time until they were given up. Refusals are quick; counted in, they would make an overloaded service look fast.
    """
    sent = driven.exchanges
    answers = {id(exchange): _answer(exchange) for exchange in sent if exchange.status == 200}
    timed = np.array([exchange.latency * 1000 for exchange in sent if exchange.status in {0, 200}])
    good = sum(
        exchange.status == 200 and exchange.latency <= SLO_SECONDS and not answers[id(exchange)]["degraded"]
        for exchange in sent
    )
    latency = {f"p{percent:g}": _percentile(timed, percent) for percent in PERCENTILES}
    lag = float(np.percentile([exchange.lag for exchange in sent], 99)) * 1000 if sent else 0.0
    tail = next((value for value in (latency["p99"], latency["p90"], latency["p50"]) if value is not None), 0.0)
    late = lag > max(LAG_FLOOR_MS, LAG_SHARE * tail)
    waited = sum(exchange.waited for exchange in sent)
    return Figures(
        target=target,
        rate=rate,
        offered=len(sent) / seconds,
        achieved=driven.answered / seconds,
        requests=len(sent),
        latency_ms=latency,
        within_slo=good / len(sent) if sent else 0.0,
        statuses=_counted(str(exchange.status) if exchange.status else exchange.failure for exchange in sent),
        degraded=_counted(reason for answer in answers.values() for reason in answer["degraded"]),
        sources=_counted(answer["source"] for answer in answers.values()),
        stages=_stages([exchange for exchange in sent if exchange.status == 200]),
        lag_p99_ms=lag,
        busy=driven.busy,
        waited=waited,
        valid_runs=int(not late and driven.busy <= BUSY and waited <= WAITED * len(sent)),
    )


def medians(runs: Sequence[Figures]) -> Figures:
    """One row for the runs of a target at a rate: medians of the valid ones, of all if there are none; counts added."""
    valid = [run for run in runs if run.valid_runs]
    used = valid or runs
    names = list(dict.fromkeys(name for run in used for name in run.stages))

    def median(values: list[float]) -> float:
        return float(np.median(values))

    def stage(name: str) -> Stage:
        found = [run.stages[name] for run in used if name in run.stages]
        return Stage(*(median([getattr(one, field) for one in found]) for field in ("mean", "p50", "p99")))

    def percentile(name: str) -> float | None:
        found = [value for run in used if (value := run.latency_ms[name]) is not None]
        return median(found) if found else None

    return Figures(
        target=runs[0].target,
        rate=runs[0].rate,
        offered=median([run.offered for run in used]),
        achieved=median([run.achieved for run in used]),
        requests=sum(run.requests for run in used),
        latency_ms={name: percentile(name) for name in runs[0].latency_ms},
        within_slo=median([run.within_slo for run in used]),
        statuses=_added([run.statuses for run in used]),
        degraded=_added([run.degraded for run in used]),
        sources=_added([run.sources for run in used]),
        stages={name: stage(name) for name in names},
        lag_p99_ms=median([run.lag_p99_ms for run in used]),
        busy=median([run.busy for run in used]),
        waited=sum(run.waited for run in used),
        runs=len(runs),
        valid_runs=len(valid),
    )


def ratios(mine: Sequence[Figures], base: Sequence[Figures]) -> dict[str, float | None]:
    """Latency of one target over another's at the same rate, round by round: the median of the rounds' ratios.

    Rounds in which the generator did not keep up with both are left out.
    """
    both = [(one, other) for one, other in zip(mine, base, strict=True) if one.valid and other.valid]
    found: dict[str, float | None] = {}
    for name in mine[0].latency_ms:
        pairs = [(one.latency_ms[name], other.latency_ms[name]) for one, other in both]
        shares = [one / other for one, other in pairs if one is not None and other]
        found[name] = float(np.median(shares)) if shares else None
    return found


def _answer(exchange: Exchange) -> dict[str, Any]:
    """`source` and `degraded` of an answer."""
    try:
        answer = json.loads(exchange.body)
        return {"source": str(answer["source"]), "degraded": [str(reason) for reason in answer["degraded"]]}
    except (ValueError, LookupError, TypeError):
        return {"source": "not an answer", "degraded": ["not an answer"]}


def _stages(answered: Sequence[Exchange]) -> dict[str, Stage]:
    """By name, in the header's order; what the header leaves unsaid is named too."""
    rows: list[dict[str, float]] = []
    for exchange in answered:
        row = durations(exchange.server_timing)
        if TOTAL in row:
            total = row.pop(TOTAL)
            row[REST] = max(0.0, total - sum(row.values()))
            row[OUTSIDE] = max(0.0, exchange.latency * 1000 - total)
            row[TOTAL] = total
        rows.append(row)
    own = dict.fromkeys(name for row in rows for name in row)
    names = sorted(own, key=lambda name: (REST, OUTSIDE, TOTAL).index(name) if name in {REST, OUTSIDE, TOTAL} else -1)
    stages: dict[str, Stage] = {}
    for name in names:
        # A stage that a request did not enter took no time: the means add up to the mean latency.
        values = [row.get(name, 0.0) for row in rows]
        stages[name] = Stage(float(np.mean(values)), *map(float, np.percentile(values, [50, 99])))
    return stages


def _percentile(values: np.ndarray[Any, np.dtype[np.float64]], percent: float) -> float | None:
    """None if fewer than one of the values would lie above it."""
    return float(np.percentile(values, percent)) if round(len(values) * (100 - percent), 6) >= 100 else None


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _added(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter()).most_common())
