"""Small models with random weights, and an exhaustive reference for the beam."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offline.models.inputs import ItemVectors
from offline.models.recommender import Recommender
from offline.recipe import BACKBONES, ModelRecipe, Recipe, Variant, reads_reasoning

STEPS, WIDTH = 5, 12


def recipe(**changes: object) -> ModelRecipe:
    values: dict[str, object] = {
        "length": 6,
        "dim": 10,
        "heads": 2,
        "qk_dim": 4,
        "v_dim": 6,
        "decoder_layers": 2,
        "decoder_heads": 2,
        "decoder_dim": 16,
        "decoder_ff": 24,
        "fusion_heads": 3,
        "beam": 5,
    }
    return ModelRecipe.model_validate(values | changes)


TIGER: dict[str, object] = {"dim": 12, "layers": 2, "heads": 2, "head_dim": 8, "ff": 24, "fusion_heads": 3}
SASREC: dict[str, object] = {"blocks": 2, "heads": 3, "ff": 20}


def whole(variant: Variant, levels: int, codebook: int, **changes: object) -> Recipe:
    """A recipe for tiny models; `changes` go into the section that the variant's size is from.

    `alignment` is its section, or the number of its axes alone: 0 for a model without one.
    """
    alignment = changes.pop("alignment", 0)
    if isinstance(alignment, int):
        alignment = {"dim": alignment, "weight": 2.0}
    tiger = BACKBONES[variant] == "tiger"
    shared = {name: changes[name] for name in ("length", "beam") if name in changes}
    own = {name: value for name, value in changes.items() if name not in shared}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "tokenize": {"levels": levels, "codebook": codebook},
            "model": (recipe(**shared) if tiger else recipe(**changes)).model_dump(),
            "sasrec": SASREC,
            "tiger": TIGER | (own if tiger else {}),
            "alignment": alignment,
        }
    )


def random_codes(items: int, levels: int, codebook: int, seed: int) -> NDArray[np.int64]:
    """Distinct semantic IDs, crowded under few first codes so that branches differ in size."""
    random = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < items:
        code = (random.random(levels) ** 1.7 * codebook).astype(int)
        found[tuple(map(int, code))] = None
    return np.array(list(found), np.int64)


def model(
    items: int = 60,
    levels: int = 4,
    codebook: int = 6,
    *,
    seed: int = 0,
    variant: Variant = "scoter_h",
    **changes: object,
) -> Recommender:
    """A model in evaluation mode whose weights are large enough to have opinions."""
    torch.manual_seed(seed)
    codes = random_codes(items, levels, codebook, seed)
    shape = (STEPS, WIDTH) if reads_reasoning(variant) else None
    body = whole(variant, levels, codebook, **changes)
    made = Recommender(body, variant, codes, shape, WIDTH if body.model.features else 0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    if body.model.features and isinstance(made.inputs, ItemVectors):
        made.inputs.place(texts(items, seed))
    if made.alignment is not None:
        made.alignment.place(texts(items, seed))
        torch.nn.init.normal_(made.alignment.steps)
    return made.eval()


def texts(items: int, seed: int = 0) -> NDArray[np.float32]:
    """Embeddings of item texts, not centred."""
    drawn = np.random.default_rng(seed).normal(0.3, 1.0, (items, WIDTH))
    return drawn.astype(np.float32)


def histories(made: Recommender, rows: int, seed: int = 0) -> Tensor:
    """Left-padded histories int64 [rows, T] of every length from 0 up."""
    random = np.random.default_rng(seed)
    length, items = made.recipe.length, len(made.item_codes) - 1
    out = np.zeros((rows, length), np.int64)
    for row in range(rows):
        size = row % (length + 1)
        out[row, length - size :] = random.integers(1, items + 1, size)
    return torch.from_numpy(out)


def reasoning(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, STEPS, WIDTH, generator=torch.Generator().manual_seed(seed))


def nearness(made: Recommender, reasoning: Tensor, seed: int = 0) -> Tensor:
    """r . v(t_i) of every item, [B, N], from the definition and by another way to the axes than the model's."""
    aligned = made.alignment
    assert aligned is not None
    items = torch.from_numpy(texts(len(made.item_codes) - 1, seed)).double()
    mean = items.mean(0)
    _, lengths, axes = torch.linalg.svd(items - mean, full_matrices=False)
    scale = (lengths / len(items) ** 0.5) ** -aligned.whiten

    def placed(embeddings: Tensor) -> Tensor:
        found: Tensor = ((embeddings - mean) @ axes.T * scale)[..., : aligned.axes.shape[1]]
        return found / found.norm(dim=-1, keepdim=True) if aligned.cosine else found

    share = torch.softmax(aligned.steps.detach().double(), dim=0)
    points = (aligned.weight * placed(reasoning.double()) * share[:, None]).sum(1)  # [B, a]
    near: Tensor = points @ placed(items).T
    return near.float()


@torch.inference_mode()
def all_scores(made: Recommender, context: Tensor, present: Tensor, nearness: Tensor | None = None) -> Tensor:
    """log p of every item [B, N] by teacher forcing, one item at a time: no trie table, no cache, no beam.

    `nearness` [B, N] is how near each item lies to the reasoning, of a model that reads it so; see `nearness`.
    """
    codes = made.item_codes[1:]
    items = made.embed(torch.arange(1, len(codes) + 1)) if made.catalogue() is not None else None  # [N, d]
    last = torch.tensor([context.shape[1] - 1])
    columns: list[Tensor] = []
    for code in codes:
        logits = made.decoder.train_logits(context, present, last, code.expand(len(context), 1, -1))
        total = torch.zeros(len(context))
        for level, scores in enumerate(logits):
            beneath = (codes[:, :level] == code[:level]).all(1)
            siblings = codes[beneath][:, level].unique()
            known = scores[:, 0, siblings]
            if items is not None:
                means = [items[beneath & (codes[:, level] == sibling)].mean(0) for sibling in siblings]
                known = known + context[:, -1] @ torch.stack(means, dim=1)
            if nearness is not None:
                means = [nearness[:, beneath & (codes[:, level] == sibling)].mean(1) for sibling in siblings]
                known = known + torch.stack(means, dim=1)
            total = total + torch.log_softmax(known, dim=1)[:, siblings == code[level]].squeeze(1)
        columns.append(total)
    return torch.stack(columns, dim=1)
