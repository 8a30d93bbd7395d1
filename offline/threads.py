"""Sums in one order: numerical work whose result must not depend on how many threads a machine gives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Run BLAS, OpenMP and torch on one thread.

    Several threads add up their parts in the order in which they finish, or in as many parts as there are threads:
    results then differ in the last bit, and a code of some item with them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
