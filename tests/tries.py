"""Tests of how long something takes, on a machine that may stop for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")


def three_tries(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """The test holds if it holds once: a pause of the machine spoils one try, what is slow spoils all of them."""

    @wraps(test)
    async def tried(*args: P.args, **names: P.kwargs) -> None:
        for _ in range(2):
            try:
                return await test(*args, **names)
            except AssertionError:
                pass
        return await test(*args, **names)

    return tried
