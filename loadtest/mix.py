"""The traffic of a soak: what callers send on a good day, and what they send besides."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.client import Exchange, Request, Target
from loadtest.drive import FULL

BATCH = 8
PATIENCE = 10.0  # seconds that an ordinary caller waits
HURRY = 0.002  # seconds after which a caller that leaves has left
SHARES = {"known": 0.84, "unknown": 0.08, "invalid": 0.03, "leaves": 0.03, "batch": 0.02}
EXPECTED = {"known": 200, "unknown": 200, "invalid": 422, "leaves": 200, "batch": 200}  # HTTP status
REFUSED = 503  # right for all of them, as long as it is rare
LEFT = "left"
DEGRADED = "200, degraded"


@dataclass(frozen=True)
class Mix:
    """Draws requests of every kind."""

    target: Target
    bodies: Sequence[bytes]  # of POST /recommend, for users that exist
    random: random.Random

    def draw(self) -> Request:
        """The next request; its kind is one of `SHARES`."""
        (kind,) = self.random.choices(list(SHARES), list(SHARES.values()))
        body = self.random.choice(self.bodies)
        path = "/recommend"
        if kind == "unknown":
            body = json.dumps({"user_id": f"nobody-{self.random.random()}"}).encode()
        elif kind == "invalid":
            body = json.dumps({**json.loads(body), "k": 0}).encode()
        elif kind == "batch":
            path = "/recommend/batch"
            body = json.dumps(
                {"requests": [json.loads(self.random.choice(self.bodies)) for _ in range(BATCH)]}
            ).encode()
        return Request(self.target.post(path, body), HURRY if kind == "leaves" else PATIENCE, kind)


def outcome(exchange: Exchange) -> str:
    """What became of a request, in a word: a status, "degraded", "left", or why there was no answer."""
    if exchange.status == 200 and exchange.request.kind == "known" and FULL not in exchange.body:
        return DEGRADED
    if exchange.status:
        return str(exchange.status)
    return LEFT if exchange.request.kind == "leaves" else exchange.failure


def right(exchange: Exchange) -> bool:
    """Whether a request was answered as it should be, or refused."""
    return outcome(exchange) in {str(EXPECTED[exchange.request.kind]), str(REFUSED), DEGRADED, LEFT}
