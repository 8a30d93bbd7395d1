"""TIGER (Rajput et al., 2023; A.1): a T5 that reads and writes semantic IDs.

The modules, their weights and their initialisation are those of Hugging Face's T5, and so is the encoder's forward
pass. The decoder's is written here, over the same weights: beams stand in the query dimension, so that keys and
values of the history exist once however wide the beam, and each level takes one step from a cache.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import (
    T5Attention,
    T5Block,
    T5LayerCrossAttention,
    T5LayerFF,
    T5LayerNorm,
    T5LayerSelfAttention,
    T5Stack,
)

from offline.models.decoder import Cache, Memory
from offline.recipe import TigerRecipe

_Layers: TypeAlias = tuple[T5LayerSelfAttention, T5LayerCrossAttention, T5LayerFF]


def t5_config(recipe: TigerRecipe, vocabulary: int, *, decoder: bool = False) -> T5Config:
    """The configuration of one half; token 0 is padding and the decoder's start."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=recipe.dim,
        d_kv=recipe.head_dim,
        d_ff=recipe.ff,
        num_layers=recipe.layers,
        num_heads=recipe.heads,
        dropout_rate=recipe.dropout,
        feed_forward_proj="relu",
        pad_token_id=0,
        eos_token_id=None,
        is_decoder=decoder,
        is_encoder_decoder=False,
        use_cache=False,
    )
    config._attn_implementation = "eager"  # noqa: SLF001 - as transformers sets it; the one that exports to plain operators
    return config


def _stack(config: T5Config) -> T5Stack:
    stack = T5Stack(config)
    stack.set_input_embeddings(None)  # the model's inputs hold them, for both halves
    return stack


class T5Encoder(nn.Module):
    """A bidirectional encoder of the history's tokens.

    It ends in its norm, or before it where the norm is to come after a fusion.
    """

    def __init__(self, config: T5Config, *, normed: bool = True) -> None:
        super().__init__()
        self.stack = _stack(config)
        if not normed:
            self.stack.final_layer_norm = nn.Identity()  # type: ignore[assignment] # so that T5's forward stays T5's

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """x [B, S, d] token vectors; present bool [B, S], False for padding -> [B, S, d]."""
        place = torch.arange(x.shape[1], device=x.device)
        seen = present | (place == x.shape[1] - 1)  # an empty history still sees something
        encoded: Tensor = self.stack(inputs_embeds=x, attention_mask=seen).last_hidden_state
        return encoded


def last_norm(config: T5Config) -> nn.Module:
    """The norm that T5's encoder ends in."""
    return T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)


class T5Decoder(nn.Module):
    """Writes L codes, one a step; output and input embeddings are the same (T5)."""

    def __init__(self, config: T5Config, tokens: nn.Embedding, levels: int, codebook: int) -> None:
        super().__init__()
        self.levels, self.codebook = levels, codebook
        self.heads, self.head_dim = config.num_heads, config.d_kv
        self.tokens = tokens
        self.stack = _stack(config)

    def memory(self, sequence: Tensor) -> Memory:
        """Keys [B, h, d_h, S] and values [B, h, S, d_h] by layer, from encoder outputs [B, S, d]."""
        batch, length, _ = sequence.shape
        memory: Memory = []
        for _, cross, _ in self._layers():
            attention = cross.EncDecAttention
            key = attention.k(sequence).view(batch, length, self.heads, self.head_dim)
            value = attention.v(sequence).view(batch, length, self.heads, self.head_dim)
            memory.append((key.permute(0, 2, 3, 1), value.transpose(1, 2)))
        return memory

    def begin(self, sequence: Tensor) -> Tensor:
        """The start token [B, 1, d]."""
        return self.tokens(torch.zeros_like(sequence[:, -1:, 0], dtype=torch.int64))

    def token(self, level: int, code: Tensor) -> Tensor:
        """Codes [...] of a level -> [..., d]."""
        return self.tokens(1 + level * self.codebook + code)

    def train_logits(self, sequence: Tensor, present: Tensor, at: Tensor, codes: Tensor) -> list[Tensor]:
        """Logits of every level under teacher forcing, L tensors [B, 1, codebook].

        sequence [B, S, d]; present bool [B, S]; codes int64 [B, 1, L] of the items that follow. `at` is int64 [1] and
        the last position: every position has seen the whole history.
        """
        assert at.shape == (1,)
        tokens = [self.begin(sequence)]
        tokens += [self.token(level, codes[:, :, level]) for level in range(self.levels - 1)]
        x = torch.stack(tokens, dim=2)  # [B, 1, L, d]
        place = torch.arange(present.shape[1], device=present.device)
        visible = (present | (place == present.shape[1] - 1))[:, None, None]  # [B, 1, 1, S]
        x, _ = self._forward(x, 0, self.memory(sequence), visible, None)
        return [self._logits(x[:, :, level], level) for level in range(self.levels)]

    def step(
        self, token: Tensor, level: int, memory: Memory, visible: Tensor, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        """One level of the beam: token [B, G, d] -> logits [B, G, codebook] and the grown cache."""
        x, cache = self._forward(token[:, :, None], level, memory, visible, past)
        return self._logits(x[:, :, 0], level), cache

    def _layers(self) -> list[_Layers]:
        return [cast("_Layers", tuple(cast("T5Block", block).layer)) for block in self.stack.block]

    def _forward(
        self, x: Tensor, first: int, memory: Memory, visible: Tensor, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        """x [B, G, S, d], tokens `first` to first + S - 1 of each group -> the same, and the cache with them."""
        tokens = x.shape[2]
        own: T5Attention = self._layers()[0][0].SelfAttention
        bias = own.compute_bias(tokens, first + tokens, past_seen_tokens=first)  # [1, h, S, first + S]
        if tokens > 1:
            place = torch.arange(tokens, device=x.device)
            bias = bias.masked_fill(place[None, :] > place[:, None], -torch.inf)
        x = self.stack.dropout(x)
        cache: Cache = []
        for index, (own_layer, cross_layer, ff) in enumerate(self._layers()):
            x, kept = self._attend_own(own_layer, x, bias, past[index] if past is not None else None)
            x = self._attend_history(cross_layer, x, memory[index], visible)
            x = ff(x)
            cache.append(kept)
        return self.stack.dropout(self.stack.final_layer_norm(x)), cache

    def _attend_own(
        self, layer: T5LayerSelfAttention, x: Tensor, bias: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """T5's self-attention inside each group: no scaling, a bias by distance."""
        attention: T5Attention = layer.SelfAttention
        batch, groups, tokens, _ = x.shape
        split = (batch, groups, -1, self.heads, self.head_dim)
        normed = layer.layer_norm(x)
        query, key, value = attention.q(normed), attention.k(normed), attention.v(normed)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        scores = query.view(split).transpose(2, 3) @ key.view(split).permute(0, 1, 3, 4, 2) + bias
        mixed = self._weights(scores, attention) @ value.view(split).transpose(2, 3)  # [B, G, h, S, d_h]
        mixed = attention.o(mixed.transpose(2, 3).reshape(batch, groups, tokens, -1))
        return x + layer.dropout(mixed), (key, value)

    def _attend_history(
        self, layer: T5LayerCrossAttention, x: Tensor, memory: tuple[Tensor, Tensor], visible: Tensor
    ) -> Tensor:
        """T5's cross-attention, of all groups at once and without a bias."""
        attention: T5Attention = layer.EncDecAttention
        batch, groups, tokens, _ = x.shape
        query = attention.q(layer.layer_norm(x)).view(batch, groups * tokens, self.heads, self.head_dim)
        scores = (query.transpose(1, 2) @ memory[0]).masked_fill(~visible, -torch.inf)  # [B, h, G * S, T]
        mixed = self._weights(scores, attention) @ memory[1]
        mixed = attention.o(mixed.transpose(1, 2).reshape(batch, groups, tokens, -1))
        return x + layer.dropout(mixed)

    def _weights(self, scores: Tensor, attention: T5Attention) -> Tensor:
        return nn.functional.dropout(torch.softmax(scores, dim=-1), attention.dropout, self.training)

    def _logits(self, x: Tensor, level: int) -> Tensor:
        """x [B, G, d] -> [B, G, codebook]: T5's tied and scaled head, the rows of one level."""
        first = 1 + level * self.codebook
        return (x * x.shape[-1] ** -0.5) @ self.tokens.weight[first : first + self.codebook].T
