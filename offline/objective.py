"""The training objective (eq. 7 and 8): semantic-ID likelihood, contrastive alignment, catalogue head."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from offline.models.fusion import info_nce
from offline.models.recommender import Recommender
from offline.recipe import TrainRecipe
from offline.trie import Trie


def child_masks(trie: Trie) -> list[Tensor]:
    """Per level, bool [parents, codebook]: which codes lead to an item."""
    masks: list[Tensor] = []
    above = 1
    for level in trie.levels:
        mask = np.zeros((above, trie.codebook), np.bool_)
        mask[level.parent, level.code] = True
        masks.append(torch.from_numpy(mask))
        above = len(level)
    return masks


class Objective:
    """Loss of one batch. Position `-1` predicts the row's last training item and alone may see H."""

    def __init__(self, model: Recommender, recipe: TrainRecipe, device: torch.device) -> None:
        self._model, self._recipe = model, recipe
        self._masks = [mask.to(device) for mask in child_masks(model.trie)]
        self._path = torch.from_numpy(model.trie.path).to(device)

    def __call__(self, inputs: Tensor, targets: Tensor, reasoning: Tensor | None, keep: Tensor | None) -> Tensor:
        """inputs, targets int64 [B, T]; reasoning float32 [B, K, D] and keep bool [B] (rows that see H), or None."""
        model, recipe = self._model, self._recipe
        sequence, present = model.encode(inputs)
        place = torch.arange(inputs.shape[1], device=inputs.device)
        if reasoning is None:
            context = model.fuse(sequence, None, None)
            return self._recommendation(context, context, present, place, targets)
        assert model.adapter is not None
        assert keep is not None
        steps = model.adapter(functional.dropout(reasoning, recipe.reasoning_dropout, training=True))
        without = model.fuse(sequence, steps, torch.zeros_like(keep))
        fused = model.fuse(sequence, steps, keep)
        at_end = torch.cat([without[:, :-1], fused[:, -1:]], dim=1)
        last = targets[:, -1]
        loss = self._recommendation(fused, at_end, present, place[-1:], targets)
        if len(place) > 1:
            earlier = self._recommendation(without, without, present, place[:-1], targets, catalogue=False)
            loss = loss + earlier
        aligned = info_nce(steps[keep, -1], model.embed(last[keep]), last[keep], recipe.temperature)
        return loss + recipe.contrastive_weight * torch.nan_to_num(aligned)

    def _recommendation(
        self,
        context: Tensor,
        states: Tensor,
        present: Tensor,
        at: Tensor,
        targets: Tensor,
        *,
        catalogue: bool = True,
    ) -> Tensor:
        """Sum over the predicted positions divided by *all* present positions of the batch, so that parts add up."""
        model, recipe = self._model, self._recipe
        here = present[:, at]  # [B, G]
        following = targets[:, at]  # [B, G]
        logits = model.decoder.train_logits(context, present, at, model.item_codes[following])
        total = present.sum()
        loss = context.new_zeros(())
        for level, scores in enumerate(logits):
            chosen = following[here]  # [M]
            parent = self._path[chosen, level - 1] if level else torch.zeros_like(chosen)
            allowed = self._masks[level][parent]  # [M, codebook]
            likelihood = torch.log_softmax(scores[here].masked_fill(~allowed, -torch.inf), dim=1)
            picked = likelihood.gather(1, model.item_codes[chosen, level][:, None]).sum()
            if recipe.label_smoothing:
                even = (likelihood.masked_fill(~allowed, 0).sum(1) / allowed.sum(1)).sum()
                picked = (1 - recipe.label_smoothing) * picked + recipe.label_smoothing * even
            loss = loss - picked / total
        if catalogue and recipe.catalogue_weight:
            table = model.catalogue()
            scores = states[present] @ table.T  # [M, N]
            loss = loss + recipe.catalogue_weight * functional.cross_entropy(
                scores, targets[present] - 1, label_smoothing=recipe.label_smoothing
            )
        return loss
