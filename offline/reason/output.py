"""The stage's output: written in row order from what is kept, and read by the stages after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline.stage import read_json, read_rows


def load_reasoning(folder: Path, split: str) -> NDArray[np.float16]:
    """H of every user, float16 [U, K, D], mapped from disk; zeros where there is none (see `present`)."""
    reasoning: NDArray[np.float16] = np.load(folder / f"{split}.npy", mmap_mode="r")
    return reasoning


def present(reasoning: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows of [U, K, D] are somebody's reasoning, bool [U]: a step is a unit vector, an absent chain is zeros."""
    found: NDArray[np.bool_] = np.any(reasoning.reshape(len(reasoning), -1) != 0, axis=1)
    return found


def load_steps(folder: Path, split: str) -> list[list[str]]:
    """The step texts of every user, in row order; an empty list for a user without a chain."""
    return [row["steps"] for row in read_rows(folder / f"{split}.jsonl")]


def load_template(folder: Path) -> list[str]:
    """Names of the K steps that the chains were written in."""
    names: list[str] = read_json(folder / "summary.json")["template"]
    return names
