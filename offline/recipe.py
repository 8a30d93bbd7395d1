"""Recipes: everything that decides what a run produces, as a typed TOML file.

`offline/recipes/paper.toml` holds the hyper-parameters of the paper's Tables 7 and 8; the others are sized for
two CPU cores. A recipe is found by name (`sample`, `beauty`, `paper`) or by path.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from offline.errors import RecipeError


class _Section(BaseModel):
    # Strict: TOML has types of its own, and `epochs = "3"` or `refit = 1` is a slip.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PrepareRecipe(_Section):
    """Section 4.1: 5-core filtering and the text of an item."""

    min_interactions: int = Field(5, ge=1)
    text: list[str] = ["title", "brand", "categories", "description"]
    attributes: list[str] = ["brand", "categories"]


class TokenizeRecipe(_Section):
    """Table 7: levels and codes of the semantic IDs."""

    encoder: str = "minilm"
    precision: Literal["float32", "bfloat16"] = "float32"  # of the encoder
    quantizer: Literal["rqkmeans"] = "rqkmeans"
    levels: int = Field(4, ge=2, le=8)
    codebook: int = Field(256, ge=2, le=65536)
    iterations: int = Field(50, ge=1)
    seed: int = 7


class ReasonRecipe(_Section):
    """Section 3.3.1: who writes the chains and what encodes their steps."""

    backend: Literal["analyst"] = "analyst"
    encoder: str = "minilm"
    precision: Literal["float32", "bfloat16"] = "float32"  # of the encoder
    template: list[str] = Field(
        default=[
            "Behavioral Data Analysis",
            "Interest Pattern Recognition",
            "Preference Trend Analysis",
            "Predictive Feature Generation",
            "Targeted Item Recommendation",
        ],
        min_length=5,
        max_length=5,
    )


class ModelRecipe(_Section):
    """Table 8: backbone, decoder and fusion."""

    length: int = Field(20, ge=2)  # T, most recent interactions
    dim: int = Field(50, ge=4)  # d_item
    blocks: int = Field(2, ge=1)
    heads: int = Field(1, ge=1)
    qk_dim: int = Field(50, ge=4)  # per head
    v_dim: int = Field(50, ge=4)  # per head
    dropout: float = Field(0.2, ge=0, lt=1)
    decoder_layers: int = Field(3, ge=1)
    decoder_heads: int = Field(4, ge=1)
    decoder_dim: int = Field(256, ge=8)
    decoder_ff: int = Field(1024, ge=8)
    fusion_heads: int = Field(1, ge=1)
    fusion_dropout: float = Field(0.1, ge=0, lt=1)
    gate_bias: float = 0.0  # b_g of eq. 4 at the start; above 0 favours the sequence over the reasoning
    beam: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.decoder_dim % self.decoder_heads:
            raise ValueError(f"decoder_dim = {self.decoder_dim} is no multiple of decoder_heads = {self.decoder_heads}")
        return self


class TrainRecipe(_Section):
    """Appendix A.2: optimisation."""

    batch: int = Field(512, ge=1)  # sequences
    precision: Literal["float32", "bfloat16"] = "float32"  # of the matrix products
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.0, ge=0, lt=1)  # share of all steps
    schedule: Literal["constant", "cosine"] = "constant"
    epochs: int = Field(300, ge=1)
    patience: int = Field(20, ge=1)  # validations without a better NDCG@10
    validate_every: int = Field(1, ge=1)  # epochs
    validation_users: int = Field(0, ge=0)  # 0: all
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    catalogue_weight: float = Field(0.0, ge=0)  # auxiliary cross-entropy over all items
    contrastive_weight: float = Field(0.1, ge=0)  # lambda of eq. 8
    temperature: float = Field(0.1, gt=0)  # tau of eq. 6
    reasoning_drop: float = Field(0.2, ge=0, le=1)  # share of samples trained without H
    reasoning_dropout: float = Field(0.0, ge=0, lt=1)  # on the step embeddings
    seed: int = 1


class SearchRecipe(_Section):
    """The beam as it is evaluated and served; a model that is trained already need not be trained again for it."""

    widen: list[Annotated[int, Field(ge=1)]] = []  # how many times `model.beam` the first levels keep


class EvaluateRecipe(_Section):
    """Section 4.1: what is measured on the test split."""

    users: int = Field(0, ge=0)  # 0: all
    exact_users: int = Field(0, ge=0)  # users whose beam is compared with exact top-k; 0: all
    batch: int = Field(256, ge=1)
    refit: bool = False  # also train on the validation items, for results under "train+validation" labels


class ExportRecipe(_Section):
    """What goes into the release."""

    layout: Literal["projected", "raw"] = "projected"
    dtype: Literal["float16", "float32", "int8"] = "float16"  # of the stored H; int8 has one scale for each step
    warmup_requests: int = Field(64, ge=1)


class Recipe(_Section):
    """A whole run."""

    name: str
    prepare: PrepareRecipe = PrepareRecipe()
    tokenize: TokenizeRecipe = TokenizeRecipe()
    reason: ReasonRecipe = ReasonRecipe()
    model: ModelRecipe = ModelRecipe()
    train: TrainRecipe = TrainRecipe()
    search: SearchRecipe = SearchRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    export: ExportRecipe = ExportRecipe()


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in files("offline.recipes").iterdir() if p.name.endswith(".toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by name or path. Raises RecipeError naming the key and what is wrong with it."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read recipe {path}: {error}") from error
    elif name_or_path in recipe_names():
        text = (files("offline.recipes") / f"{name_or_path}.toml").read_text(encoding="utf-8")
    else:
        raise RecipeError(f"no recipe {name_or_path!r}: give a .toml file or one of {', '.join(recipe_names())}")
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name_or_path} is not TOML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
        raise RecipeError(f"recipe {name_or_path}: {faults}") from error
