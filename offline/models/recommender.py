"""A whole model: inputs, backbone, fusion (if it reads reasoning) and semantic-ID decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offline.models.alignment import Alignment
from offline.models.backbone import Backbone
from offline.models.beam import Beam, TrieTables, beam_search
from offline.models.decoder import Decoder, SidDecoder
from offline.models.fusion import Adapter, Fusion
from offline.models.hstu import HSTU
from offline.models.inputs import CodeTokens, ItemVectors
from offline.models.sasrec import SASRec
from offline.recipe import (
    BACKBONES,
    PLAIN_SEARCH,
    ModelRecipe,
    Recipe,
    SearchRecipe,
    TigerRecipe,
    Variant,
    reads_reasoning,
)
from offline.trie import Trie, build_trie


class Recommender(nn.Module):
    """One of the variants; those that read reasoning are made for `reasoning=(K, D)`.

    `features` is how many an item has, where the recipe names any. `causal` says that the output at a position depends
    on no later one.
    """

    def __init__(
        self,
        recipe: Recipe,
        variant: Variant,
        codes: NDArray[np.integer],
        reasoning: tuple[int, int] | None,
        features: int = 0,
    ) -> None:
        super().__init__()
        assert (reasoning is not None) == reads_reasoning(variant)
        self.recipe, self.variant = recipe.model, variant
        codebook, levels = recipe.tokenize.codebook, codes.shape[1]
        self.trie: Trie = build_trie(codes, codebook)
        self.tables = TrieTables(self.trie)
        item_codes = torch.from_numpy(np.concatenate([np.zeros((1, levels), np.int64), codes.astype(np.int64)]))
        is_tiger = BACKBONES[variant] == "tiger"
        self.causal = not is_tiger
        shape: TigerRecipe | ModelRecipe = recipe.tiger if is_tiger else recipe.model
        self.dim = shape.dim
        self.inputs: CodeTokens | ItemVectors
        if is_tiger:
            self.inputs = CodeTokens(item_codes, codebook, self.dim)
        else:
            assert bool(features) == bool(recipe.model.features)
            self.inputs = ItemVectors(item_codes, codebook, self.dim, features)
        self.backbone = _backbone(recipe, variant, self.inputs)
        # Fusion ends in the norm that the backbone alone ends in; TIGER's encoder has its own.
        self.norm = nn.LayerNorm(self.dim) if reasoning is None and not is_tiger else None
        self.adapter = None
        self.fusion = None
        self.alignment = None
        if reasoning is not None:
            self.adapter = Adapter(*reasoning, self.dim, position=recipe.ablation.position)
            norm = _tiger_norm(recipe, self.inputs) if isinstance(self.inputs, CodeTokens) else None
            self.fusion = Fusion(self.dim, shape.fusion_heads, shape.fusion_dropout, shape.gate_bias, norm)
            if recipe.alignment.dim:
                self.alignment = Alignment(len(codes), *reasoning, recipe.alignment)
        self.decoder = _decoder(recipe, self.inputs, levels)
        self.inputs.initialise()
        self.register_load_state_dict_pre_hook(_older_names)  # type: ignore[no-untyped-call] # torch's own

    def stand_on(self, backbone: Recommender) -> None:
        """Take over a trained backbone and leave it alone: what training chooses from here on only reads reasoning.

        It starts as good, but for what an alignment adds: A of eq. 3 is zero, and g of eq. 4 one number for all, which
        the norm of eq. 5 takes out.
        """
        assert self.fusion is not None
        last = "backbone.stack.final_layer_norm." if isinstance(self.inputs, CodeTokens) else "norm."
        weights = {
            f"fusion.norm.{name.removeprefix(last)}" if name.startswith(last) else name: value
            for name, value in backbone.state_dict().items()
        }
        left = self.load_state_dict(weights, strict=False)
        assert not left.unexpected_keys
        assert all(name.startswith(("adapter.", "fusion.", "alignment.")) for name in left.missing_keys)
        for name, parameter in self.named_parameters():
            if name in weights:
                parameter.requires_grad = False
        for made in (self.fusion.out.weight, self.fusion.out.bias, self.fusion.gate.weight):
            nn.init.zeros_(made)

    @property
    def item_codes(self) -> Tensor:
        """Semantic IDs int64 [N + 1, L], row i for item i."""
        return self.inputs.item_codes

    def embed(self, items: Tensor) -> Tensor:
        """Item indices [...] -> vectors [..., d_item]."""
        return self.inputs.embed(items)

    def catalogue(self) -> Tensor | None:
        """Vectors of all items [N, d_item], row i - 1 for item i, if the backbone reads items as such."""
        return self.inputs.catalogue() if isinstance(self.inputs, ItemVectors) else None

    def item_vectors(self) -> Tensor | None:
        """What `query` is compared with, [N, q]: item vectors and where the items' texts lie, as far as there are."""
        items = self.catalogue()
        texts = self.alignment.texts if self.alignment is not None else None
        known = [part for part in (items, texts) if part is not None]
        return torch.cat(known, dim=1) if known else None

    def node_vectors(self) -> list[Tensor] | None:
        """Per level of the trie, the mean of `item_vectors` of the items beneath each node, [n, q]."""
        items = self.item_vectors()
        if items is None:
            return None
        vectors: list[Tensor] = []
        for level, size in enumerate(self.tables.sizes):
            total = items.new_zeros(size, items.shape[1]).index_add(0, self.tables.path[1:, level], items)
            vectors.append(total / self.tables.table("leaves", level)[:, None])
        return vectors

    def encode(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """History int64 [B, T], left-padded with 0 -> h_seq [B, S, d], present bool [B, S]."""
        x, present = self.inputs(history)
        return self.backbone(x, present), present

    def project(self, reasoning: Tensor) -> Tensor:
        """Step embeddings [B, K, D] -> steps [B, K, p]: z_pos of eq. 2 and, with an alignment, where they point."""
        assert self.adapter is not None
        steps = self.adapter(reasoning)
        return steps if self.alignment is None else torch.cat([steps, self.alignment.points(reasoning)], dim=-1)

    def fuse(self, sequence: Tensor, steps: Tensor | None, has_reasoning: Tensor | None) -> Tensor:
        """h_seq [B, S, d] -> what the decoder reads; a model with reasoning needs `steps` [B, K, p] and bool [B]."""
        if self.fusion is None:
            return sequence if self.norm is None else self.norm(sequence)
        return self.mix(sequence, steps, has_reasoning)[0]

    def mix(self, sequence: Tensor, steps: Tensor | None, has_reasoning: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `fuse`, and the attention that each step receives; see `Fusion`."""
        assert self.fusion is not None
        assert steps is not None
        assert has_reasoning is not None
        return self.fusion(sequence, steps[..., : self.dim], has_reasoning)

    def query(self, context: Tensor, steps: Tensor | None, has_reasoning: Tensor | None) -> Tensor:
        """Fused states [B, S, d] -> what the vectors of items and nodes are compared with, [B, S, q]."""
        if self.alignment is None:
            return context
        assert steps is not None
        assert has_reasoning is not None
        pointed = self.alignment(steps[..., self.dim :], has_reasoning)[:, None].expand(-1, context.shape[1], -1)
        return torch.cat([context, pointed], dim=-1) if isinstance(self.inputs, ItemVectors) else pointed

    def recommend(
        self,
        history: Tensor,
        exclude: Tensor,
        width: int,
        steps: Tensor | None = None,
        has_reasoning: Tensor | None = None,
        search: SearchRecipe = PLAIN_SEARCH,
        allowed: Tensor | None = None,
        vectors: list[Tensor] | None = None,
    ) -> Beam:
        """The best `width` items: history int64 [B, T], exclude int64 [B, E], steps [B, K, p], bool [B].

        How they are searched for, `search` says; `allowed` uint8 [B, A] is a filter over the trie's nodes (see
        `TrieTables.alive`); `vectors` are `node_vectors`, from whoever asks often enough to have taken them beforehand.
        """
        sequence, present = self.encode(history)
        context = self.fuse(sequence, steps, has_reasoning)
        query = self.query(context[:, -1:], steps, has_reasoning)[:, 0]
        vectors = self.node_vectors() if vectors is None else vectors
        how = self.searched(search)
        return beam_search(self.decoder, self.tables, context, present, exclude, query, vectors, width, how, allowed)

    def searched(self, search: SearchRecipe) -> SearchRecipe:
        """What of `search` applies: who knows items by their codes alone has no second way to put them in order."""
        return search if self.catalogue() is not None else search.model_copy(update={"rerank": 0.0})


def parameters(model: nn.Module) -> int:
    """How many numbers training chooses."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _backbone(recipe: Recipe, variant: Variant, inputs: ItemVectors | CodeTokens) -> Backbone:
    shape = recipe.model
    match BACKBONES[variant]:
        case "hstu":
            return HSTU(
                dim=shape.dim,
                blocks=shape.blocks,
                heads=shape.heads,
                qk_dim=shape.qk_dim,
                v_dim=shape.v_dim,
                length=shape.length,
                dropout=shape.dropout,
            )
        case "sasrec":
            return SASRec(
                dim=shape.dim,
                blocks=recipe.sasrec.blocks,
                heads=recipe.sasrec.heads,
                ff=recipe.sasrec.ff,
                length=shape.length,
                dropout=shape.dropout,
            )
        case "tiger":
            from offline.models.tiger import T5Encoder, t5_config  # noqa: PLC0415 - transformers takes seconds

            assert isinstance(inputs, CodeTokens)
            return T5Encoder(t5_config(recipe.tiger, inputs.tokens.num_embeddings), normed=not reads_reasoning(variant))


def _tiger_norm(recipe: Recipe, inputs: CodeTokens) -> nn.Module:
    from offline.models.tiger import last_norm, t5_config  # noqa: PLC0415 - transformers takes seconds

    return last_norm(t5_config(recipe.tiger, inputs.tokens.num_embeddings))


def _decoder(recipe: Recipe, inputs: ItemVectors | CodeTokens, levels: int) -> SidDecoder:
    shape, codebook = recipe.model, recipe.tokenize.codebook
    if isinstance(inputs, CodeTokens):
        from offline.models.tiger import T5Decoder, t5_config  # noqa: PLC0415 - transformers takes seconds

        config = t5_config(recipe.tiger, inputs.tokens.num_embeddings, decoder=True)
        return T5Decoder(config, inputs.tokens, levels, codebook)
    return Decoder(
        levels=levels,
        codebook=codebook,
        layers=shape.decoder_layers,
        heads=shape.decoder_heads,
        dim=shape.decoder_dim,
        ff=shape.decoder_ff,
        memory_dim=shape.dim,
        dropout=shape.dropout,
    )


def _older_names(_module: nn.Module, state: dict[str, Any], *_: object) -> None:
    """Weights from when the item vectors were the model's own still load."""
    for name in [n for n in state if n.startswith(("items.", "codes."))]:
        state[f"inputs.{name}"] = state.pop(name)
