"""Memory of the process: what the C library keeps of it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX: while freed memory is kept, and by default.
_MALLOC = {-1: (2**31 - 1, 2**17), -2: (2**28, 2**17), -4: (0, 2**16)}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc reuse the memory of activations.

    It would hand such large blocks back to the kernel at every free, which then zeroes and maps them anew: a quarter of
    an epoch's time on a CPU. Given back at the end: scoring allocates blocks of ever other sizes, and would leave what
    is kept in pieces.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # another C library
        yield
        return
    for option, (kept, _) in _MALLOC.items():
        libc.mallopt(option, kept)
    try:
        yield
    finally:
        for option, (_, default) in _MALLOC.items():
            libc.mallopt(option, default)
        libc.malloc_trim(0)
