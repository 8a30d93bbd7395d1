"""Items as a backbone reads them: one vector each, or one token for each code."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from offline.models.backbone import Inputs


class ItemVectors(nn.Module):
    """An item is the sum of its id embedding and its L code embeddings (A.1, HSTU).

    With features, F = `features` of them, a linear map of those is added: our addition.
    """

    def __init__(self, item_codes: Tensor, codebook: int, dim: int, features: int = 0) -> None:
        super().__init__()
        self.item_codes: Tensor
        self.register_buffer("item_codes", item_codes, persistent=False)  # [N + 1, L]
        self.items = nn.Embedding(len(item_codes), dim)
        self.codes = nn.ModuleList(nn.Embedding(codebook, dim) for _ in range(item_codes.shape[1]))
        self.features: Tensor
        self.read: nn.Linear | None = None
        if features:
            self.register_buffer("features", torch.zeros(len(item_codes), features))
            self.read = nn.Linear(features, dim, bias=False)

    def initialise(self) -> None:
        """Draw the weights; not where they are made, or models of the same seed would differ from those there are."""
        for table in [self.items, *self.codes]:
            nn.init.normal_(table.weight, std=0.02)
        if self.read is not None:
            nn.init.normal_(self.read.weight, std=0.02)

    def place(self, features: NDArray[np.float32]) -> None:
        """Take the items' features, float32 [N, F]."""
        self.features[1:] = torch.from_numpy(features)

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """See `offline.models.backbone.Inputs`."""
        return self.embed(history), history > 0

    def embed(self, items: Tensor) -> Tensor:
        """Item indices [...] -> vectors [..., d_item]."""
        codes = self.item_codes[items]
        vectors = self.items(items) + sum(table(codes[..., level]) for level, table in enumerate(self.codes))
        return vectors if self.read is None else vectors + self.read(self.features[items])

    def catalogue(self) -> Tensor:
        """Vectors of all items [N, d_item], row i - 1 for item i."""
        codes = self.item_codes[1:]
        vectors = self.items.weight[1:] + sum(table(codes[:, level]) for level, table in enumerate(self.codes))
        return vectors if self.read is None else vectors + self.read(self.features[1:])

    def served(self) -> Inputs:
        """The same with the sums taken beforehand."""
        with torch.no_grad():
            return VectorTable(self.embed(torch.arange(len(self.item_codes))))


class VectorTable(nn.Module):
    """Looks item vectors up."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", table)  # [N + 1, d]

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """See `offline.models.backbone.Inputs`."""
        return self.table[history], history > 0


class CodeTokens(nn.Module):
    """An item is its L codes, each level with a vocabulary of its own (A.1, TIGER).

    Token 0 is padding and begins what the decoder writes; code c of level l is token 1 + l * codebook + c.
    """

    def __init__(self, item_codes: Tensor, codebook: int, dim: int) -> None:
        super().__init__()
        levels = item_codes.shape[1]
        tokens = 1 + torch.arange(levels) * codebook + item_codes
        tokens[0] = 0
        self.item_codes: Tensor
        self.item_tokens: Tensor
        self.register_buffer("item_codes", item_codes, persistent=False)  # [N + 1, L]
        self.register_buffer("item_tokens", tokens, persistent=False)  # [N + 1, L]
        self.tokens = nn.Embedding(1 + levels * codebook, dim)

    def initialise(self) -> None:
        """Draw the weights as T5 draws its own."""
        nn.init.normal_(self.tokens.weight)

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """See `offline.models.backbone.Inputs`; S = T * L."""
        tokens = self.item_tokens[history].flatten(1)  # [B, T * L]
        return self.tokens(tokens), tokens > 0

    def embed(self, items: Tensor) -> Tensor:
        """Item indices [...] -> the sum of their tokens' vectors [..., d_item]: what InfoNCE takes an item to be."""
        return self.tokens(self.item_tokens[items]).sum(-2)

    def served(self) -> Inputs:
        """As in training."""
        return self
