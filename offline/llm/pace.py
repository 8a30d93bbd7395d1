"""When to ask again: what a server's headers say, and how long to wait if they say nothing."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import anyio

FIRST_WAIT = 0.5  # seconds before the first retry; doubled at each one
LONGEST_WAIT = 60.0
SPREAD = 0.2  # seconds over which those who were held back come again
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def backoff(retry: int) -> float:
    """Seconds before retry 0, 1, ...: doubling, and half of it chance, so that callers do not come back together."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(retry, 30)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def asked_wait(headers: Mapping[str, str], tokens: int) -> float | None:
    """Seconds that a refusal asks to wait for, or None if it does not say.

    By `Retry-After`, in seconds or as a date, or by the limits that leave no room for a request of so many tokens.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return _reset(headers, tokens)


def spent_wait(headers: Mapping[str, str], tokens: int) -> float | None:
    """Seconds until a rate limit lets in another request of so many tokens, where an answer's headers say that."""
    return _reset(headers, tokens)


def _reset(headers: Mapping[str, str], tokens: int) -> float | None:
    waits = [
        seconds
        for kind, needed in (("requests", 1), ("tokens", tokens))
        if _number(headers.get(f"x-ratelimit-remaining-{kind}")) < needed
        and (seconds := _duration(headers.get(f"x-ratelimit-reset-{kind}", ""))) is not None
    ]
    return max(waits, default=None)


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else float("inf")
    except ValueError:
        return float("inf")


def _duration(text: str) -> float | None:
    """`6m0s`, `20ms`, or plain seconds."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not text or _DURATION.sub("", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


class Pace:
    """The moment before which nobody may ask: what one request was told holds for all."""

    def __init__(self) -> None:
        self._from = 0.0

    def hold(self, seconds: float) -> None:
        """Nobody asks for so long."""
        self._from = max(self._from, time.monotonic() + seconds)

    @property
    def wait(self) -> float:
        """Seconds until one may ask."""
        return max(0.0, self._from - time.monotonic())

    async def turn(self, stopped: anyio.Event) -> None:
        """Return when one may ask, or as soon as `stopped` is set."""
        while (seconds := self.wait) > 0 and not stopped.is_set():
            with anyio.move_on_after(seconds + random.uniform(0, SPREAD)):  # noqa: S311 - no secret
                await stopped.wait()
