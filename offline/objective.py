"""The training objective (eq. 7 and 8): semantic-ID likelihood, contrastive alignment, catalogue head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from offline.models.beam import MISSING, child_log_probabilities
from offline.models.fusion import info_nce
from offline.models.recommender import Recommender
from offline.recipe import TrainRecipe

_CELLS = 1 << 28  # scores of all items that are held at a time, and as many again for their gradients


class Objective(nn.Module):
    """Loss of one batch. Position `-1` predicts the row's last training item and alone may see H.

    A causal model is trained at every position; one whose positions see the whole history, or whose backbone stays as
    it is, at the last alone.
    """

    def __init__(self, model: Recommender, recipe: TrainRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, inputs: Tensor, targets: Tensor, reasoning: Tensor | None, keep: Tensor | None) -> Tensor:
        """inputs, targets int64 [B, T]; reasoning float32 [B, K, D] and keep bool [B] (rows that see H), or None."""
        model, recipe = self.model, self.recipe
        sequence, present = model.encode(inputs)
        if reasoning is None:
            context = model.fuse(sequence, None, None)
            if model.causal:
                return self._everywhere(context, present, targets)
            return self._last(context, context, present, targets)
        assert model.adapter is not None
        assert keep is not None
        steps = model.project(functional.dropout(reasoning, recipe.reasoning_dropout, training=True))
        last = targets[:, -1]
        if model.causal and recipe.start == "scratch":
            loss = self._everywhere_fused(sequence, present, steps, keep, targets)
        else:
            context = model.fuse(sequence, steps, keep)
            loss = self._last(context, model.query(context, steps, keep), present, targets)
        aligned = info_nce(steps[keep, -1, : model.dim], model.embed(last[keep]), last[keep], recipe.temperature)
        return loss + recipe.contrastive_weight * torch.nan_to_num(aligned)

    def _everywhere(self, context: Tensor, present: Tensor, targets: Tensor) -> Tensor:
        """Of a model that sees no reasoning, or is not to."""
        place = torch.arange(targets.shape[1], device=targets.device)
        return self._recommendation(context, context, present, place, targets)

    def _everywhere_fused(
        self, sequence: Tensor, present: Tensor, steps: Tensor, keep: Tensor, targets: Tensor
    ) -> Tensor:
        """The last position with reasoning in the rows to keep, all others without."""
        model = self.model
        place = torch.arange(targets.shape[1], device=targets.device)
        without = model.fuse(sequence, steps, torch.zeros_like(keep))
        fused = model.fuse(sequence, steps, keep)
        before = model.query(without[:, :-1], steps, torch.zeros_like(keep))
        queries = torch.cat([before, model.query(fused[:, -1:], steps, keep)], dim=1)
        loss = self._recommendation(fused, queries, present, place[-1:], targets)
        if len(place) > 1:
            loss = loss + self._recommendation(without, queries, present, place[:-1], targets, catalogue=False)
        return loss

    def _recommendation(
        self,
        context: Tensor,
        queries: Tensor,
        present: Tensor,
        at: Tensor,
        targets: Tensor,
        *,
        catalogue: bool = True,
    ) -> Tensor:
        """Sum over the predicted positions divided by *all* present positions of the batch, so that parts add up."""
        model = self.model
        vectors = model.node_vectors()
        here = present[:, at]  # [B, G]
        following = targets[:, at]  # [B, G]
        logits = model.decoder.train_logits(context, present, at, model.item_codes[following])
        loss = self._unlikelihood(
            [scores[here] for scores in logits], following[here], vectors, queries[:, at][here], present.sum()
        )
        if catalogue:
            loss = loss + self._over_the_catalogue(queries[present], targets[present])
        return loss

    def _last(self, context: Tensor, queries: Tensor, present: Tensor, targets: Tensor) -> Tensor:
        """Mean over the rows, each of which predicts its last target."""
        end = torch.tensor([context.shape[1] - 1], device=context.device)
        following = targets[:, -1]
        logits = self.model.decoder.train_logits(context, present, end, self.model.item_codes[following][:, None])
        rows = torch.tensor(len(following), device=context.device)
        vectors = self.model.node_vectors()
        loss = self._unlikelihood([scores[:, 0] for scores in logits], following, vectors, queries[:, -1], rows)
        return loss + self._over_the_catalogue(queries[:, -1], following)

    def _over_the_catalogue(self, queries: Tensor, targets: Tensor) -> Tensor:
        """Auxiliary cross-entropy of queries [M, q] over all items, targets int64 [M]; 0 without item vectors."""
        recipe = self.recipe
        table = self.model.item_vectors() if recipe.catalogue_weight else None
        if table is None:
            return queries.new_zeros(())

        def term(some: Tensor, chosen: Tensor, reduction: str) -> Tensor:
            scores = some @ table.T  # [M, N]
            return functional.cross_entropy(
                scores, chosen - 1, label_smoothing=recipe.label_smoothing, reduction=reduction
            )

        together = max(1, _CELLS // len(table))
        if len(queries) <= together:
            return recipe.catalogue_weight * term(queries, targets, "mean")
        # Computed a second time for the gradient, rather than kept: a batch's scores of a million items are gigabytes.
        parts = [
            checkpoint(term, some, chosen, "sum", use_reentrant=False)
            for some, chosen in zip(queries.split(together), targets.split(together), strict=True)
        ]
        return recipe.catalogue_weight * torch.stack(parts).sum() / len(queries)

    def _unlikelihood(
        self, logits: list[Tensor], chosen: Tensor, vectors: list[Tensor] | None, query: Tensor, total: Tensor
    ) -> Tensor:
        """-log p of items `chosen` [M] by logits [M, codebook] by level and queries [M, q], summed over `total`."""
        tables, smoothing = self.model.tables, self.recipe.label_smoothing
        loss = query.new_zeros(())
        for level, scores in enumerate(logits):
            node = tables.path[chosen, level]
            parent = tables.path[chosen, level - 1] if level else torch.zeros_like(chosen)
            of_nodes = vectors[level] if vectors is not None else None
            _, likelihood, _ = child_log_probabilities(tables, level, parent[:, None], scores[:, None], of_nodes, query)
            likelihood = likelihood[:, 0]  # [M, F]
            slot = node - tables.table("first", level)[parent]
            picked = likelihood.gather(1, slot[:, None]).sum()
            if smoothing:
                exists = likelihood > MISSING
                even = (likelihood.masked_fill(~exists, 0).sum(1) / exists.sum(1)).sum()
                picked = (1 - smoothing) * picked + smoothing * even
            loss = loss - picked / total
        return loss
