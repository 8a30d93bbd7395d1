"""The semantic-ID decoder (A.1): a pre-norm Transformer that writes an item's L codes, one a step.

A group is one position to predict from: a start token made from that position's own encoder output, then the codes
written so far. Every token attends to its group's tokens and to the encoder outputs up to its position. In training
all positions of a sequence are groups of one call; in the beam every beam is a group, with cached keys and values.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Cache = list[tuple[Tensor, Tensor]]
"""Per layer, keys and values [B, G, S, dim] of the S tokens that each group has written so far."""

Memory = list[tuple[Tensor, Tensor]]
"""Per layer, keys [B, h, d_h, T] and values [B, h, T, d_h] of the encoder outputs; shared by all groups."""


class SidDecoder(Protocol):
    """What the objective and the beam ask of a decoder; G groups, each of which predicts one item."""

    def memory(self, sequence: Tensor) -> Memory:
        """What all groups attend to, from encoder outputs [B, S, d]."""
        ...

    def begin(self, sequence: Tensor) -> Tensor:
        """The first token of the beam [B, 1, dim]."""
        ...

    def token(self, level: int, code: Tensor) -> Tensor:
        """The token of a code that was written at a level: int64 [...] -> [..., dim]."""
        ...

    def train_logits(self, sequence: Tensor, present: Tensor, at: Tensor, codes: Tensor) -> list[Tensor]:
        """Logits of every level under teacher forcing, L tensors [B, G, codebook], see `Decoder.train_logits`."""
        ...

    def step(
        self, token: Tensor, level: int, memory: Memory, visible: Tensor, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        """One level of the beam: token [B, G, dim] -> logits [B, G, codebook] and the grown cache."""
        ...


class DecoderLayer(nn.Module):
    """Self-attention inside the group, attention to the sequence, feed-forward."""

    def __init__(self, dim: int, heads: int, ff: int, memory_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.self_norm = nn.LayerNorm(dim)
        self.self_qkv = nn.Linear(dim, 3 * dim)
        self.self_out = nn.Linear(dim, dim)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_query = nn.Linear(dim, dim)
        self.cross_key_value = nn.Linear(memory_dim, 2 * dim)
        self.cross_out = nn.Linear(dim, dim)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff_in = nn.Linear(dim, ff)
        self.ff_out = nn.Linear(ff, dim)
        self.dropout = nn.Dropout(dropout)

    def memory(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder outputs [B, T, d] -> keys [B, h, d_h, T], values [B, h, T, d_h]."""
        batch, length, _ = sequence.shape
        key, value = (
            self.cross_key_value(sequence).view(batch, length, 2, self.heads, self.head_dim).unbind(2)
        )  # [B, T, h, d_h]
        return key.permute(0, 2, 3, 1), value.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        memory: tuple[Tensor, Tensor],
        visible: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, G, S, dim], the S newest tokens of each group; visible bool [B, 1, G * S or 1, T].

        `past` holds the P earlier tokens of each group. Returns the new x and keys and values [B, G, P + S, dim].
        """
        batch, groups, tokens, dim = x.shape
        split = (batch, groups, -1, self.heads, self.head_dim)
        query, key, value = self.self_qkv(self.self_norm(x)).chunk(3, dim=-1)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        scores = query.view(split).transpose(2, 3) @ key.view(split).permute(0, 1, 3, 4, 2)  # [B, G, h, S, P + S]
        scores = scores / math.sqrt(self.head_dim)
        if tokens > 1:
            place = torch.arange(tokens, device=x.device)
            scores = scores.masked_fill(place[None, :] > place[:, None], -torch.inf)
        mixed = torch.softmax(scores, dim=-1) @ value.view(split).transpose(2, 3)
        x = x + self.dropout(self.self_out(mixed.transpose(2, 3).reshape(batch, groups, tokens, dim)))

        query = self.cross_query(self.cross_norm(x)).view(batch, groups * tokens, self.heads, self.head_dim)
        scores = query.transpose(1, 2) @ memory[0] / math.sqrt(self.head_dim)  # [B, h, G * S, T]
        weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
        mixed = (weights @ memory[1]).transpose(1, 2).reshape(batch, groups, tokens, dim)
        x = x + self.dropout(self.cross_out(mixed))

        hidden = functional.relu(self.ff_in(self.ff_norm(x)))
        return x + self.dropout(self.ff_out(hidden)), (key, value)


class Decoder(nn.Module):
    """Layers, code embeddings and one output head a level."""

    def __init__(
        self,
        *,
        levels: int,
        codebook: int,
        layers: int,
        heads: int,
        dim: int,
        ff: int,
        memory_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.start = nn.Linear(memory_dim, dim)
        self.codes = nn.ModuleList(nn.Embedding(codebook, dim) for _ in range(levels - 1))
        self.position = nn.Parameter(torch.randn(levels, dim) * 0.02)
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, ff, memory_dim, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleList(nn.Linear(dim, codebook) for _ in range(levels))
        for table in self.codes.parameters():
            nn.init.normal_(table, std=0.02)

    def memory(self, sequence: Tensor) -> Memory:
        """What all groups attend to, from encoder outputs [B, T, d]."""
        memory: Memory = []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            memory.append(layer.memory(sequence))
        return memory

    def begin(self, sequence: Tensor) -> Tensor:
        """The start token [B, 1, dim], made from the last encoder output."""
        return self.start(sequence[:, -1:])

    def token(self, level: int, code: Tensor) -> Tensor:
        """Codes [...] of a level -> [..., dim]."""
        return self.codes[level](code)

    def train_logits(self, sequence: Tensor, present: Tensor, at: Tensor, codes: Tensor) -> list[Tensor]:
        """Logits of every level under teacher forcing.

        sequence [B, T, d] encoder outputs; present bool [B, T]; at int64 [G], the positions to predict from;
        codes int64 [B, G, L] of the items that follow. Returns L tensors [B, G, codebook].
        """
        batch, groups, _ = codes.shape
        tokens = [self.start(sequence[:, at])]  # [B, G, dim]
        tokens += [self.codes[level](codes[:, :, level]) for level in range(self.levels - 1)]
        x = torch.stack(tokens, dim=2) + self.position  # [B, G, L, dim]
        place = torch.arange(sequence.shape[1], device=sequence.device)
        visible = present[:, None, :] & (place[None, None, :] <= at[None, :, None])  # [B, G, T]
        visible = visible | (place[None, None, :] == at[None, :, None])  # a padded row still sees something
        visible = visible[:, None, :, None, :].expand(-1, -1, -1, self.levels, -1)
        visible = visible.reshape(batch, 1, groups * self.levels, -1)
        for layer, memory in zip(self.layers, self.memory(sequence), strict=True):
            x, _ = layer(x, memory, visible, None)
        x = self.norm(x)
        return [head(x[:, :, level]) for level, head in enumerate(self.heads)]

    def step(
        self, token: Tensor, level: int, memory: Memory, visible: Tensor, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        """One level of the beam: token [B, G, dim] -> logits [B, G, codebook] and the grown cache."""
        x = (token + self.position[level])[:, :, None]  # [B, G, 1, dim]
        cache: Cache = []
        for index, layer in enumerate(self.layers):
            x, kept = layer(x, memory[index], visible, past[index] if past is not None else None)
            cache.append(kept)
        return self.heads[level](self.norm(x[:, :, 0])), cache
