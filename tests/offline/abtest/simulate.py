"""Simulated traffic: users with tastes of their own, assigned by the real experiments, answered and observed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.experiments.assignment import Experiments
from service.exposures.event import ExposedItem, Exposure, encode

START = 1_763_800_000.0
PINNED = 0.3  # share of requests that name their model, of users who do
EXPERIMENTS = {
    "features": {
        "model": {
            "defaultValue": {"model": "hstu"},
            "rules": [
                {
                    "key": "model",
                    "hashVersion": 2,
                    "variations": [{"model": "hstu"}, {"model": "scoter_h"}],
                    "meta": [{"key": "control"}, {"key": "scoter"}],
                }
            ],
        }
    }
}


@dataclass(frozen=True)
class Traffic:
    """How users behave."""

    users: int = 2000
    click: float = 0.2  # share of answers with a click, in the control
    buy: float = 0.2  # share of clicks that end in a purchase
    lift: float = 0.0  # of clicks in `scoter`
    sparse_lift: float | None = None  # the same for users with short histories; None: as for all
    lost: float = 0.0  # share of `scoter`'s users whose exposures never arrive
    pinning: float = 0.0  # share of users who are more active, and pin their model now and then
    tagged: bool = True
    by_request: bool = False
    seed: int = 0
    experiments: Any = None


def simulate(folder: Path, traffic: Traffic) -> tuple[Path, Path]:
    """Write exposures.jsonl and outcomes.jsonl."""
    rng = np.random.default_rng(traffic.seed)
    experiments = Experiments.read(json.dumps(traffic.experiments or EXPERIMENTS).encode())
    exposures: list[bytes] = []
    outcomes: list[str] = []
    for number in range(traffic.users):
        user = f"s{traffic.seed}-{number}"
        assigned = experiments.assign(user, {})
        treated = any(one.variation == "scoter" for one in assigned.experiments)
        history = int(rng.geometric(0.1))
        taste = rng.gamma(4, 1 / 4)  # users differ: answers to one user are alike
        lift = traffic.lift if traffic.sparse_lift is None or history > 7 else traffic.sparse_lift
        rate = min(0.95, traffic.click * taste * (1 + lift * treated))
        if treated and rng.random() < traffic.lost:
            continue
        heavy = bool(traffic.pinning) and rng.random() < traffic.pinning
        for turn in range(1 + rng.poisson(12 if heavy else 3)):
            assignment = experiments.pinned(user, {}) if heavy and rng.random() < PINNED else assigned
            request, ts = f"{user}-{turn}", START + 7200.0 * turn + number
            items = tuple(ExposedItem(f"i{rng.integers(500)}", place, -0.1 * place) for place in range(1, 4))
            exposure = Exposure(
                ts=ts,
                request_id=request,
                user_id=user,
                arm=assignment.arm,
                label=assignment.label,
                experiments=assignment.experiments,
                holdout=assignment.holdout,
                shadow=False,
                release="0a9f42a2c9cd1e84",
                model=assignment.arm.model,
                reasoning=treated,
                reasoning_miss=None if treated else "unsupported",
                reasoning_age=60.0 if treated else None,
                history_length=history,
                items=items,
                degraded=(),
                latency_ms=3.0,
            )
            exposures.append(encode(exposure, tagged=traffic.tagged))
            if rng.random() < rate:
                who = {"request_id": request} if traffic.by_request else {"user_id": user}
                item = items[rng.integers(3)].id
                outcomes.append(json.dumps({"event": "click", "ts": ts + 30, "item_id": item, **who}))
                if rng.random() < traffic.buy:
                    sale = {"event": "purchase", "ts": ts + 300, "item_id": item, "value": float(rng.lognormal(3, 1))}
                    outcomes.append(json.dumps({**sale, **who}))
    exposed, observed = folder / "exposures.jsonl", folder / "outcomes.jsonl"
    exposed.write_bytes(b"\n".join(exposures) + b"\n")
    observed.write_text("\n".join(outcomes) + "\n", encoding="utf-8")
    return exposed, observed
