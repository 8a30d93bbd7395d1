"""Order-preserving fusion (section 3.3.2), whatever the backbone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Adapter(nn.Module):
    """Eq. 1 and 2: z_pos_j = LayerNorm(W_proj e_j + b_proj) + P_j. Acts on each step alone.

    Without `position` P is zero and stays so: then steps are told apart by what they say alone.
    """

    def __init__(self, steps: int, width: int, dim: int, *, position: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)
        drawn = torch.randn(steps, dim) * 0.02  # either way, so that all other weights start the same
        self.position = nn.Parameter(drawn if position else torch.zeros_like(drawn), requires_grad=position)

    def forward(self, reasoning: Tensor) -> Tensor:
        """Step embeddings [B, K, D] -> z_pos [B, K, d_item]."""
        return self.norm(self.project(reasoning)) + self.position


class Fusion(nn.Module):
    """Eq. 3 to 5: the sequence attends to the steps, and a gate mixes what it found.

        A = Attention(h, Z_pos, Z_pos)
        g = sigmoid(W_g [h; A] + b_g)
        E = LayerNorm(g * h + (1 - g) * A)

    Without reasoning the gate is closed (g = 1), so the same weights answer as the backbone alone. `norm` stands in for
    LayerNorm where a backbone ends in another one.
    """

    def __init__(self, dim: int, heads: int, dropout: float, gate_bias: float, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = math.ceil(dim / heads)
        inner = heads * self.head_dim
        self.query = nn.Linear(dim, inner)
        self.key_value = nn.Linear(dim, 2 * inner)
        self.out = nn.Linear(inner, dim)
        self.gate = nn.Linear(2 * dim, dim)
        nn.init.constant_(self.gate.bias, gate_bias)
        self.norm = nn.LayerNorm(dim) if norm is None else norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequence: Tensor, steps: Tensor, has_reasoning: Tensor) -> tuple[Tensor, Tensor]:
        """E_fused [B, T, d], and the attention that each step receives from the last position, [B, K].

        Of the sequence h [B, T, d], the steps z_pos [B, K, d] and has_reasoning bool [B]. The attention is eq. 3's
        weights averaged over the heads: it sums to 1, or is all zeros without reasoning.
        """
        attended, weights = self.attend(sequence, steps)
        gate = torch.sigmoid(self.gate(torch.cat([sequence, attended], dim=-1)))
        gate = torch.where(has_reasoning[:, None, None], gate, torch.ones_like(gate))
        fused = self.norm(gate * sequence + (1 - gate) * attended)
        return fused, weights[:, :, -1].mean(1) * has_reasoning[:, None]

    def attend(self, sequence: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 3, multi-head: A [B, T, d] and its weights [B, h, T, K]."""
        batch, length, _ = sequence.shape
        query = self.query(sequence).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        key, value = self.key_value(steps).view(batch, steps.shape[1], 2, self.heads, self.head_dim).unbind(2)
        weights = torch.softmax(query @ key.permute(0, 2, 3, 1) / math.sqrt(self.head_dim), dim=-1)
        attended = (self.dropout(weights) @ value.transpose(1, 2)).transpose(1, 2)  # [B, T, h, d_h]
        return self.out(attended.reshape(batch, length, -1)), weights


def info_nce(step: Tensor, items: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Eq. 6: the last step's z_pos [B, d] against its target's embedding, negatives from the batch.

    items [B, d] are the targets' embeddings and targets int64 [B] their indices: another row with the same target
    is no negative.
    """
    similarity = functional.normalize(step, dim=-1) @ functional.normalize(items, dim=-1).T / temperature  # [B, B]
    same = targets[:, None] == targets[None, :]
    same.fill_diagonal_(fill_value=False)
    return functional.cross_entropy(
        similarity.masked_fill(same, -torch.inf), torch.arange(len(targets), device=step.device)
    )
