"""Programs that tests run: those on PATH, or those that `make tools` fetched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FETCHED = Path(__file__).parents[1] / ".tools"


def tool(name: str) -> str:
    """The path of a program."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:{FETCHED}")
    assert found is not None, f"{name} is neither on PATH nor in {FETCHED}: run `make tools`"
    return found
