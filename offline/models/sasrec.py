"""SASRec (Kang & McAuley, 2018): a causal Transformer over item vectors, here with normalisation before each part."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class SASRecBlock(nn.Module):
    """Causal self-attention and feed-forward over [B, T, d]."""

    def __init__(self, dim: int, heads: int, ff: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, math.ceil(dim / heads)
        inner = heads * self.head_dim
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * inner)
        self.out = nn.Linear(inner, dim)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff_in = nn.Linear(dim, ff)
        self.ff_out = nn.Linear(ff, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, d]; mask bool [B, 1, T, T], True where attended, at one place of every row at least."""
        batch, length, _ = x.shape
        query, key, value = (
            self.qkv(self.norm(x)).view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        )  # [B, h, T, d_h]
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim)  # [B, h, T, T]
        weights = self.dropout(torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1))
        attended = (weights @ value).transpose(1, 2).reshape(batch, length, -1)  # [B, T, h * d_h]
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.ff_out(self.dropout(functional.relu(self.ff_in(self.ff_norm(x))))))


class SASRec(nn.Module):
    """Blocks over a left-padded sequence of item vectors."""

    def __init__(self, *, dim: int, blocks: int, heads: int, ff: int, length: int, dropout: float) -> None:
        super().__init__()
        self.position = nn.Embedding(length, dim)  # 0 is the most recent place
        self.blocks = nn.ModuleList(SASRecBlock(dim, heads, ff, dropout) for _ in range(blocks))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.position.weight, std=0.02)  # of the items' own scale, or places drown items

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """x [B, T, d] item vectors, oldest first; present bool [B, T], False for padding -> [B, T, d]."""
        place = torch.arange(x.shape[1], device=x.device)
        causal = place[:, None] >= place[None, :]
        own = place[:, None] == place[None, :]  # padding sees itself, as a softmax over nothing is not a number
        mask = (causal & present[:, None, :] | own)[:, None]  # [B, 1, T, T]
        x = self.dropout(x + self.position(place.flip(0))) * present[..., None]
        for block in self.blocks:
            x = block(x, mask)
        return x
