"""A whole model: item embeddings, backbone, fusion (if it reads reasoning) and semantic-ID decoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offline.models.beam import Beam, TrieTables, beam_search
from offline.models.decoder import Decoder
from offline.models.fusion import Adapter, Fusion
from offline.models.hstu import HSTU
from offline.recipe import ModelRecipe
from offline.trie import Trie, build_trie


class Recommender(nn.Module):
    """HSTU with semantic IDs, and with `reasoning=(K, D)` SCoTER-H.

    An item's input vector is the sum of its id embedding and its L code embeddings (A.1).
    """

    def __init__(
        self, recipe: ModelRecipe, codes: NDArray[np.integer], codebook: int, reasoning: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.recipe = recipe
        num_items, levels = codes.shape
        self.trie: Trie = build_trie(codes, codebook)
        self.tables = TrieTables(self.trie)
        padded = np.concatenate([np.zeros((1, levels), np.int64), codes.astype(np.int64)])
        self.register_buffer("item_codes", torch.from_numpy(padded), persistent=False)  # [N + 1, L]
        self.item_codes: Tensor
        self.items = nn.Embedding(num_items + 1, recipe.dim)
        self.codes = nn.ModuleList(nn.Embedding(codebook, recipe.dim) for _ in range(levels))
        self.backbone = HSTU(
            dim=recipe.dim,
            blocks=recipe.blocks,
            heads=recipe.heads,
            qk_dim=recipe.qk_dim,
            v_dim=recipe.v_dim,
            length=recipe.length,
            dropout=recipe.dropout,
        )
        self.norm = nn.LayerNorm(recipe.dim) if reasoning is None else None
        self.adapter = None if reasoning is None else Adapter(*reasoning, recipe.dim)
        self.fusion = (
            None
            if reasoning is None
            else Fusion(recipe.dim, recipe.fusion_heads, recipe.fusion_dropout, recipe.gate_bias)
        )
        self.decoder = Decoder(
            levels=levels,
            codebook=codebook,
            layers=recipe.decoder_layers,
            heads=recipe.decoder_heads,
            dim=recipe.decoder_dim,
            ff=recipe.decoder_ff,
            memory_dim=recipe.dim,
            dropout=recipe.dropout,
        )
        for table in [self.items, *self.codes]:
            nn.init.normal_(table.weight, std=0.02)

    def embed(self, items: Tensor) -> Tensor:
        """Item indices [...] -> input vectors [..., d_item]."""
        codes = self.item_codes[items]
        return self.items(items) + sum(table(codes[..., level]) for level, table in enumerate(self.codes))

    def catalogue(self) -> Tensor:
        """Input vectors of all items [N, d_item], row i - 1 for item i."""
        codes = self.item_codes[1:]
        return self.items.weight[1:] + sum(table(codes[:, level]) for level, table in enumerate(self.codes))

    def node_vectors(self) -> list[Tensor]:
        """Per level of the trie, the mean input vector of the items beneath each node, [n, d_item]."""
        items = self.catalogue()
        vectors: list[Tensor] = []
        for level, size in enumerate(self.tables.sizes):
            total = items.new_zeros(size, items.shape[1]).index_add(0, self.tables.path[1:, level], items)
            vectors.append(total / self.tables.table("leaves", level)[:, None])
        return vectors

    def encode(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """History int64 [B, T], left-padded with 0 -> h_seq [B, T, d], present bool [B, T]."""
        present = history > 0
        return self.backbone(self.embed(history), present), present

    def fuse(self, sequence: Tensor, steps: Tensor | None, has_reasoning: Tensor | None) -> Tensor:
        """h_seq [B, T, d] -> what the decoder reads. Of a model with reasoning, `steps` are z_pos [B, K, d]."""
        if self.norm is not None:
            normed: Tensor = self.norm(sequence)
            return normed
        assert self.fusion is not None
        assert steps is not None
        assert has_reasoning is not None
        fused: Tensor = self.fusion(sequence, steps, has_reasoning)
        return fused

    def recommend(
        self,
        history: Tensor,
        exclude: Tensor,
        width: int,
        steps: Tensor | None = None,
        has_reasoning: Tensor | None = None,
        widen: Sequence[int] = (),
        allowed: Tensor | None = None,
    ) -> Beam:
        """The best `width` items: history int64 [B, T], exclude int64 [B, E], z_pos [B, K, d], bool [B].

        The first levels keep `widen` times as many; `allowed` uint8 [B, A] is a filter over the trie's nodes (see
        `TrieTables.alive`).
        """
        sequence, present = self.encode(history)
        context = self.fuse(sequence, steps, has_reasoning)
        vectors = self.node_vectors()
        return beam_search(self.decoder, self.tables, context, present, exclude, vectors, width, widen, allowed)
