"""A backbone as large as itself with fusion: what reasoning has to beat is not only more parameters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offline.models.recommender import Recommender, parameters
from offline.recipe import BACKBONES, Recipe, Variant, reads_reasoning


def matched(
    recipe: Recipe, variant: Variant, codes: NDArray[np.integer], reasoning: tuple[int, int], features: int = 0
) -> Recipe:
    """The recipe with d_item raised until the backbone has as many parameters as its fused variant, or nearest to that.

    codes int64 [N, L]; reasoning is (K, D); `features` as for a `Recommender`.
    """
    fused = next(v for v, backbone in BACKBONES.items() if backbone == variant and reads_reasoning(v))
    wanted = parameters(Recommender(recipe, fused, codes, reasoning, features))

    def size(dim: int) -> int:
        return parameters(Recommender(_widened(recipe, variant, dim), variant, codes, None, features))

    low = _dim(recipe, variant)
    high = low + 1
    while size(high) < wanted:
        low, high = high, high + 2 * (high - low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    return _widened(recipe, variant, min((low, high), key=lambda dim: abs(size(dim) - wanted)))


def _dim(recipe: Recipe, variant: Variant) -> int:
    return recipe.tiger.dim if BACKBONES[variant] == "tiger" else recipe.model.dim


def _widened(recipe: Recipe, variant: Variant, dim: int) -> Recipe:
    section = "tiger" if BACKBONES[variant] == "tiger" else "model"
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={"dim": dim})})
