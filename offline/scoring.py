"""Ranking many users with a trained model: by the beam that serves, and exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offline.batches import left_pad
from offline.errors import TrainingError
from offline.models.recommender import Recommender
from offline.progress import track
from offline.ranking import Asked
from offline.reason.output import present
from offline.recipe import PLAIN_SEARCH, SearchRecipe


@dataclass(frozen=True, slots=True)
class History:
    """What a split knows of each user before its target."""

    items: NDArray[np.int64]  # [U, T], left-padded
    seen: list[NDArray[np.integer]]  # of each user [S], every item of the history; one has ten, another ten thousand
    targets: NDArray[np.int64]  # [U]
    reasoning: NDArray[np.float16] | None  # [U, K, D], zeros for users without

    @classmethod
    def of(cls, asked: Asked, length: int, reasoning: NDArray[np.float16] | None) -> Self:
        """The latest `length` items of those that are asked about; `reasoning` is the split's H of all users."""
        return cls(
            left_pad(asked.histories, length),
            [np.unique(history) for history in asked.histories],
            asked.targets,
            reasoning[asked.users] if reasoning is not None else None,
        )

    def excluded(self, rows: slice) -> NDArray[np.int64]:
        """What these users have seen, int64 [B, S], padded with 0 to the longest of them."""
        seen = self.seen[rows]
        return left_pad(seen, max(map(len, seen)))

    def take(self, rows: NDArray[np.int64]) -> History:
        """The same for some of the users."""
        return History(
            self.items[rows],
            [self.seen[row] for row in rows],
            self.targets[rows],
            self.reasoning[rows] if self.reasoning is not None else None,
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """Items best first and their scores; see `Beam` for `bound`."""

    items: NDArray[np.int64]  # [U, N]
    scores: NDArray[np.float32]  # [U, N]
    bound: NDArray[np.float32]  # [U]

    def exact(self, k: int) -> NDArray[np.bool_]:
        """Where nothing that was pruned can belong into the first k by log p, bool [U]; not after a rerank."""
        return self.scores[:, k - 1] >= self.bound


@torch.inference_mode()
def score_beam(
    model: Recommender,
    history: History,
    width: int,
    *,
    mask_history: bool,
    use_reasoning: bool = True,
    search: SearchRecipe = PLAIN_SEARCH,
    batch: int = 256,
    device: torch.device | None = None,
    progress: str | None = None,
) -> Scored:
    """Rank by the trie beam, as `search` has it; with `mask_history` no item the user has already had is returned."""
    device = device or torch.device("cpu")
    model.eval()
    vectors = model.node_vectors()  # of the whole catalogue: a large one takes longer than a batch's beam
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    starts = range(0, len(history.targets), batch)
    for start in track(starts, progress) if progress else starts:
        rows = slice(start, start + batch)
        items = torch.from_numpy(history.items[rows]).to(device)
        seen = torch.from_numpy(history.excluded(rows)).to(device) if mask_history else items[:, :0]
        steps, has_reasoning = None, None
        if model.adapter is not None:
            assert history.reasoning is not None
            matrix = history.reasoning[rows]
            steps = model.project(torch.from_numpy(matrix.astype(np.float32)).to(device))
            has_reasoning = torch.from_numpy(present(matrix) & use_reasoning).to(device)
        beam = model.recommend(items, seen, width, steps, has_reasoning, search, vectors=vectors)
        parts.append((beam.items.cpu(), beam.scores.cpu(), beam.bound.cpu()))
    found = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    return Scored(found[0], found[1], found[2])


def score_exact(
    model: Recommender,
    history: History,
    k: int,
    *,
    use_reasoning: bool = True,
    batch: int = 64,
    progress: str | None = None,
) -> NDArray[np.int64]:
    """The exact first k by log p of the items that each user has not had, int64 [U, k].

    A prefix's log-probability is never below that of an item under it. So a beam whose k-th item is not below the
    best prefix it pruned has found the true first k; where it has not, the beam is widened until it has. Raises
    TrainingError if scores are no numbers.
    """
    best = np.zeros((len(history.targets), k), np.int64)
    open_rows = np.arange(len(history.targets))
    width = max(4 * k, 20)
    while len(open_rows):
        scored = score_beam(
            model,
            history.take(open_rows),
            width,
            mask_history=True,
            use_reasoning=use_reasoning,
            batch=max(1, batch * 40 // width),
            progress=f"{progress}, beam {width}" if progress else None,
        )
        best[open_rows] = scored.items[:, :k]
        open_rows = open_rows[~scored.exact(k)]
        if len(open_rows) and width >= len(model.trie.item):  # nothing was pruned, so these are no numbers
            raise TrainingError(
                f"{model.variant}: the scores of {len(open_rows)} users are not numbers: train it again"
            )
        width *= 4
    return best
