"""What item vectors read besides an item's id and codes: its text, and who was bought near whom in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline.collaborative import collaborative_embeddings
from offline.errors import TrainingError
from offline.prepare import Dataset
from offline.recipe import Feature, TokenizeRecipe
from offline.tokenize import load_embeddings, with_neighbours


def item_features(
    wanted: Sequence[Feature], dataset: Dataset, tokens: Path, recipe: TokenizeRecipe, *, include_validation: bool
) -> NDArray[np.float32]:
    """Features float32 [N, F] of items 1..N, each kind about its mean and of length 1 on average.

    `text` is the embedding in the folder `tokens`; an item without text has its neighbours', and where no item has one
    the kind is left out. `collaborative` is of `recipe.width` columns; rows of items that nothing is known of are zero.
    Raises TrainingError if nothing is left.
    """
    kinds: list[NDArray[np.float32]] = []
    if "text" in wanted and any(item.text for item in dataset.items):
        kinds.append(with_neighbours(dataset, load_embeddings(tokens, dataset.num_items)))
    if "collaborative" in wanted:
        known = dataset.trainings(include_validation=include_validation)
        kinds.append(collaborative_embeddings(known, dataset.num_items, recipe.width, recipe.seed))
    if not kinds:
        raise TrainingError(
            'model.features = ["text"], and no item of this data set has a text: take ["collaborative"], or none'
        )
    return np.concatenate([_even(kind) for kind in kinds], axis=1)


def _even(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centred, with a mean square length of 1; rows of zeros stay so."""
    known: NDArray[np.bool_] = np.any(vectors, axis=1)
    if not known.any():
        return vectors
    centred = vectors - vectors[known].mean(axis=0)
    length = np.sqrt(np.square(centred[known]).sum(axis=1).mean())
    even: NDArray[np.float32] = np.where(known[:, None], centred / max(length, 1e-6), 0.0).astype(np.float32)
    return even
