"""The training objective (eq. 7 and 8): semantic-ID likelihood, contrastive alignment, catalogue head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from offline.models.beam import MISSING, child_log_probabilities
from offline.models.fusion import info_nce
from offline.models.recommender import Recommender
from offline.recipe import TrainRecipe


class Objective:
    """Loss of one batch. Position `-1` predicts the row's last training item and alone may see H."""

    def __init__(self, model: Recommender, recipe: TrainRecipe) -> None:
        self._model, self._recipe = model, recipe

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
        vectors = model.node_vectors()
        here = present[:, at]  # [B, G]
        following = targets[:, at]  # [B, G]
        logits = model.decoder.train_logits(context, present, at, model.item_codes[following])
        total = present.sum()
        loss = context.new_zeros(())
        chosen = following[here]  # [M]
        state = context[:, at][here]  # [M, d]
        tables = model.tables
        for level, scores in enumerate(logits):
            node = tables.path[chosen, level]
            parent = tables.path[chosen, level - 1] if level else torch.zeros_like(chosen)
            _, likelihood = child_log_probabilities(
                tables, level, parent[:, None], scores[here][:, None], vectors[level], state
            )
            likelihood = likelihood[:, 0]  # [M, F]
            slot = node - tables.table("first", level)[parent]
            picked = likelihood.gather(1, slot[:, None]).sum()
            if recipe.label_smoothing:
                exists = likelihood > MISSING
                even = (likelihood.masked_fill(~exists, 0).sum(1) / exists.sum(1)).sum()
                picked = (1 - recipe.label_smoothing) * picked + recipe.label_smoothing * even
            loss = loss - picked / total
        if catalogue and recipe.catalogue_weight:
            table = model.catalogue()
            scores = states[present] @ table.T  # [M, N]
            loss = loss + recipe.catalogue_weight * functional.cross_entropy(
                scores, targets[present] - 1, label_smoothing=recipe.label_smoothing
            )
        return loss
