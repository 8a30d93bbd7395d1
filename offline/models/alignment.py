"""Reading reasoning in the space of item texts: what a step says lies near the items that it is about."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from offline.errors import TrainingError
from offline.recipe import AlignmentRecipe

LAST = 5.0  # s_K at the start: of five steps the last one has a share of 97 %
_FLAT = 1e-6  # variance of an axis on which all texts are one; unit vectors have at most 1 in all


class Alignment(nn.Module):
    """How near each item's text lies to what the steps say, as a term of its score.

        p_j = alpha v(e_j)      where step j points
        r = sum_j w_j p_j,      w = softmax(s)
        score(i) += r . v(t_i)
        v(x) = S C (x - m),     with `cosine` of length 1

    C and m are the catalogue's principal axes and mean; S divides each axis by its standard deviation to the power of
    `whiten`. None of them is trained, nor are the texts t_i: a mapping learnt from one row a user would learn the users
    by heart, and item embeddings move away from what the items are. Which steps count, s, is, and starts with the last
    one, which is the recommendation itself (eq. 6 holds it against the target, too).
    """

    def __init__(self, items: int, steps: int, width: int, recipe: AlignmentRecipe) -> None:
        super().__init__()
        self.weight, self.whiten, self.cosine = recipe.weight, recipe.whiten, recipe.cosine
        self.axes: Tensor  # S C
        self.mean: Tensor
        self.texts: Tensor  # v(t_i)
        self.register_buffer("axes", torch.zeros(width, recipe.dim))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("texts", torch.zeros(items, recipe.dim))
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
        variance, vectors = torch.linalg.eigh(centred.double().T @ centred.double() / len(texts))  # ascending
        axes = vectors[:, -dim:].flip(1).float()
        # An axis is as good as its opposite: the one with the larger sum, so that every machine takes the same.
        axes = axes * torch.where(axes.sum(0) < 0, -1.0, 1.0)
        spread = variance[-dim:].flip(0).float()
        # What all texts agree on, as in a catalogue of fewer items than axes, says nothing however it is stretched.
        self.axes.copy_(torch.where(spread > _FLAT, axes * spread.clamp_min(_FLAT) ** (-self.whiten / 2), 0.0))
        self.mean.copy_(mean)
        self.texts.copy_(self._placed(texts))
        return self

    def points(self, reasoning: Tensor) -> Tensor:
        """Step embeddings [B, K, D] -> p [B, K, a].

        They share a step's scale in an int8 blob with z_pos, beside which directions are small.
        """
        return self.weight * self._placed(reasoning)

    def forward(self, points: Tensor, has_reasoning: Tensor) -> Tensor:
        """p [B, K, a] -> r [B, a], zeros without reasoning."""
        share = torch.softmax(self.steps, dim=0)
        return (points * share[:, None]).sum(1) * has_reasoning[:, None]

    def _placed(self, embeddings: Tensor) -> Tensor:
        """v: [..., D] -> [..., a]."""
        found = (embeddings - self.mean) @ self.axes
        return functional.normalize(found, dim=-1) if self.cosine else found
