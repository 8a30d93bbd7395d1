"""Arrays on disk that are larger than memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[Any]]:
    """A .npy file of zeros to write into. Raises OSError, and leaves no file, where it finds no room.

    Its room is taken now: a page that is written to and finds none later kills the process by a signal.
    """
    out: NDArray[Any] = open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    assert isinstance(out, np.memmap)
    if not hasattr(os, "posix_fallocate"):  # macOS
        return out
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
    return out
