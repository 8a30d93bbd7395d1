"""HSTU (Zhai et al., 2024), the encoder of A.1: pointwise-aggregated attention, no softmax.

U, V, Q, K = split(SiLU(f1(norm(X))))
A V        = SiLU(Q K^T / sqrt(d_qk) + rab) V / T
Y          = X + f2(norm(A V) * U)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class HSTUBlock(nn.Module):
    """One block over [B, T, d] with a learnt relative position bias per head."""

    def __init__(self, dim: int, heads: int, qk_dim: int, v_dim: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.qk_dim, self.v_dim, self.length = heads, qk_dim, v_dim, length
        self.norm = nn.LayerNorm(dim)
        self.uvqk = nn.Linear(dim, heads * (2 * v_dim + 2 * qk_dim))
        self.bias = nn.Parameter(torch.zeros(heads, length))  # by distance into the past
        self.attended_norm = nn.LayerNorm(heads * v_dim)
        self.out = nn.Linear(heads * v_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, distance: Tensor) -> Tensor:
        """x [B, T, d]; mask bool [B, 1, T, T], True where attended; distance int64 [T, T]."""
        batch, length, _ = x.shape
        sizes = [self.heads * self.v_dim] * 2 + [self.heads * self.qk_dim] * 2
        u, v, q, k = functional.silu(self.uvqk(self.norm(x))).split(sizes, dim=-1)
        q = q.view(batch, length, self.heads, self.qk_dim).transpose(1, 2)  # [B, h, T, d_qk]
        k = k.view(batch, length, self.heads, self.qk_dim).transpose(1, 2)
        v = v.view(batch, length, self.heads, self.v_dim).transpose(1, 2)  # [B, h, T, d_v]
        scores = q @ k.transpose(2, 3) / math.sqrt(self.qk_dim) + self.bias[:, distance]  # [B, h, T, T]
        weights = functional.silu(scores) * mask / self.length
        attended = (weights @ v).transpose(1, 2).reshape(batch, length, -1)  # [B, T, h * d_v]
        return x + self.dropout(self.out(self.attended_norm(attended) * u))


class HSTU(nn.Module):
    """Blocks over a left-padded sequence of item vectors."""

    def __init__(
        self, *, dim: int, blocks: int, heads: int, qk_dim: int, v_dim: int, length: int, dropout: float
    ) -> None:
        super().__init__()
        self.length = length
        self.position = nn.Embedding(length, dim)  # 0 is the most recent place
        self.blocks = nn.ModuleList(HSTUBlock(dim, heads, qk_dim, v_dim, length, dropout) for _ in range(blocks))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.position.weight, std=0.02)  # of the items' own scale, or places drown items

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """x [B, T, d] item vectors, oldest first; present bool [B, T], False for padding -> [B, T, d]."""
        length = x.shape[1]
        place = torch.arange(length, device=x.device)
        distance = (place[:, None] - place[None, :]).clamp(min=0)  # [T, T]
        causal = place[:, None] >= place[None, :]
        mask = (causal & present[:, None, :])[:, None]  # [B, 1, T, T]
        x = self.dropout(x + self.position(place.flip(0))) * present[..., None]
        for block in self.blocks:
            x = block(x, mask, distance)
        return x
