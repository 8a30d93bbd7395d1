"""Tensors on disk: weights, and what training goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from offline.errors import StageError


def save_tensors(what: Any, path: Path) -> None:  # noqa: ANN401 - anything torch saves
    """Write so that a reader sees the old file or the new one. Raises OSError where it cannot be written.

    What could not be written to its end is removed: on a disk that is full it would only be in the way.
    """
    temporary = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        with temporary.open("wb") as out:
            torch.save(what, out)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # What torch raises says at which byte it was; why, as that the disk is full, is in what it came from.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
    temporary.replace(path)


def load_tensors(path: Path) -> Any:  # noqa: ANN401 - whatever was saved
    """Read onto the CPU, wherever it was written. Raises StageError if that is no such file, or half of one."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle have a different one for each way in which bytes can be wrong
        gone = path if path.parent.suffix == ".partial" else path.parent
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise StageError(f"{path} cannot be read ({reason}): remove {gone} and run again") from error
