"""What the service needs of an inference engine, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.release.release import Release


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One request to a model."""

    history: NDArray[np.int64]  # [T] item indices, oldest first, left-padded with 0
    reasoning: NDArray[np.float32] | None  # [K, D], or None: the same graph, reasoning masked
    exclude: NDArray[np.int64]  # [E] item indices never to return; 0 means nothing
    allowed: NDArray[np.uint8] | None = None  # [A] trie nodes that a filter allows (`service.filters`); None: all


@dataclass(frozen=True, slots=True)
class Ranking:
    """A model's answer, best first. Where `valid` is False there was no further item."""

    items: NDArray[np.int64]  # [N] item indices
    scores: NDArray[np.float32]  # [N] log-probabilities
    valid: NDArray[np.bool_]  # [N]
    # [K] attention that each reasoning step received: sums to 1, or all 0 where there was no reasoning. None from a
    # model that reads none.
    attention: NDArray[np.float32] | None = None


class Engine(Protocol):
    """Runs the models of one release."""

    local: bool  # in this process: when it fails, another replica's may be well

    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        """Rank items for one request within so many seconds; concurrent calls may share a batch.

        A caller that is cancelled, or whose time is up, costs no inference that has not begun.
        Raises EngineUnavailable, EngineTimeout or EngineOverloaded.
        """
        ...

    async def ready(self, model: str) -> bool:
        """Whether `model` would be answered now."""
        ...

    async def close(self) -> None:
        """Finish what is running and give threads and connections back."""
        ...


class Engines(Protocol):
    """Makes the engine of each release that this process serves; holds what outlives a release, such as a client."""

    async def open(self, release: Release) -> Engine:
        """An engine with the release's models, checked against its manifest.

        Raises ReleaseCorrupt if a model is not what the manifest says, EngineUnavailable if it cannot be reached.
        """
        ...

    def waiting(self) -> int:
        """Requests that wait for inference in this process."""
        ...

    async def close(self) -> None:
        """Give back what outlived the releases; their engines are closed by now."""
        ...
