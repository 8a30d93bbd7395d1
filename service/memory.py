"""Memory of the process, as the system sees it."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Give what is free back to the system; blocks for tens of milliseconds. Does nothing where malloc is not glibc's.

    glibc keeps freed memory for itself, for each thread's allocations apart: of 200,000 items that were swapped away
    180 MiB stayed, which the next release, read by another thread, could not use.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
