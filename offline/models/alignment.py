"""Reading reasoning in the space of item texts: what a step says lies near the items that it is about."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offline.errors import TrainingError

LAST = 5.0  # s_K at the start: of five steps the last one has a share of 97 %


class Alignment(nn.Module):
    """How near each item's text lies to what the steps say, as a term of its score.

        p_j = alpha C (e_j - m)      where step j points; C and m are the catalogue's principal axes and mean
        r = sum_j w_j p_j,   w = softmax(s)
        score(i) += r . C (t_i - m)

    C, m and the texts t_i are not trained: a mapping learnt from one row a user would learn the users by heart, and
    item embeddings move away from what the items are. Which steps count, s, is, and starts with the last one, which is
    the recommendation itself (eq. 6 holds it against the target, too).
    """

    def __init__(self, items: int, steps: int, width: int, dim: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.axes: Tensor
        self.mean: Tensor
        self.texts: Tensor
        self.register_buffer("axes", torch.zeros(width, dim))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("texts", torch.zeros(items, dim))
        self.steps = nn.Parameter(torch.zeros(steps))
        nn.init.constant_(self.steps[-1:], LAST)

    def place(self, embeddings: NDArray[np.float32]) -> Self:
        """Lay the items out by their texts, float32 [N, D]. Raises TrainingError if there are too few dimensions."""
        width, dim = self.axes.shape
        if embeddings.shape[1] != width or dim > width:
            raise TrainingError(
                f"alignment.dim = {dim}: steps have {width} dimensions and item texts {embeddings.shape[1]}; both must "
                "have as many, and no fewer than the alignment"
            )
        texts = torch.from_numpy(embeddings)
        mean = texts.mean(0)
        centred = texts - mean
        _, vectors = torch.linalg.eigh(centred.double().T @ centred.double())  # ascending
        axes = vectors[:, -dim:].flip(1).float()
        # An axis is as good as its opposite: the one with the larger sum, so that every machine takes the same.
        axes = axes * torch.where(axes.sum(0) < 0, -1.0, 1.0)
        self.axes.copy_(axes)
        self.mean.copy_(mean)
        self.texts.copy_(centred @ axes)
        return self

    def points(self, reasoning: Tensor) -> Tensor:
        """Step embeddings [B, K, D] -> p [B, K, a].

        alpha makes them about as large as z_pos, with which they share the scale of an int8 blob.
        """
        return self.weight * ((reasoning - self.mean) @ self.axes)

    def forward(self, points: Tensor, has_reasoning: Tensor) -> Tensor:
        """p [B, K, a] -> r [B, a], zeros without reasoning."""
        share = torch.softmax(self.steps, dim=0)
        return (points * share[:, None]).sum(1) * has_reasoning[:, None]
