"""GrowthBook's hash: from a seed and a value to a bucket, the same in every one of its SDKs."""

from __future__ import annotations

import math
from decimal import Decimal

_OFFSET = 0x811C9DC5
_PRIME = 0x01000193
_MASK = 0xFFFFFFFF
_FIXED_FROM, _FIXED_BELOW = 1e-6, 1e21  # where JavaScript writes numbers without an exponent


def fnv1a(text: str, state: int = _OFFSET) -> int:
    """FNV-1a in 32 bits over the UTF-16 code units of a text, going on from `state`."""
    if text.isascii():
        for unit in text.encode():
            state = ((state ^ unit) * _PRIME) & _MASK
        return state
    units = memoryview(text.encode("utf-16-le", "surrogatepass"))
    for low, high in zip(units[::2], units[1::2], strict=True):
        state = ((state ^ (low | high << 8)) * _PRIME) & _MASK
    return state


class Bucketer:
    """Buckets values under one seed: in 10,000 steps by version 2, in 1,000 by version 1.

    Experiments in one namespace ask about the same value in turn: the last answer is kept.
    """

    __slots__ = ("_last", "_seed", "_seeded", "_version")

    def __init__(self, seed: str, version: int) -> None:
        self._seed = seed
        self._version = version  # 1 or 2
        self._seeded = fnv1a(seed)  # version 2 hashes the seed first: once for all users
        self._last = ("", 0.0)  # one object, so that threads cannot see half of it

    def bucket(self, value: str) -> float:
        """The bucket of a value, in [0, 1)."""
        asked, bucket = self._last
        if asked == value and value:
            return bucket
        if self._version == 2:
            bucket = (fnv1a(str(fnv1a(value, self._seeded))) % 10_000) / 10_000
        else:
            bucket = (fnv1a(value + self._seed) % 1_000) / 1_000
        self._last = (value, bucket)
        return bucket


def hashable_text(value: object) -> str:
    """What is hashed for an attribute: text or a number other than 0. Anything else is "", which is in no bucket."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
        return ""
    return number_text(value)


def number_text(value: float) -> str:
    """A number as JavaScript writes it; "" if it is not finite."""
    try:
        number = float(value)
    except OverflowError:
        return ""
    if not math.isfinite(number):
        return ""
    if number == 0:
        return "0"
    if _FIXED_FROM <= abs(number) < _FIXED_BELOW:
        return format(Decimal(repr(number)), "f").removesuffix(".0")
    digits, _, exponent = repr(number).partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent):+d}"
