"""Recipes: everything that decides what a run produces, as a typed TOML file.

`offline/recipes/paper.toml` holds the hyper-parameters of the paper's Tables 7 and 8; the others are sized for
two CPU cores. A recipe is found by name (`sample`, `beauty`, `paper`) or by path.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from offline.errors import RecipeError

BackboneName = Literal["hstu", "tiger", "sasrec"]
BaselineName = Literal["LightGCN", "Caser", "HGN", "BERT4Rec", "SASRec"]
Feature = Literal["text", "collaborative"]
Variant = Literal["hstu", "scoter_h", "tiger", "scoter_t", "sasrec", "scoter_s"]
BACKBONES: dict[Variant, BackboneName] = {
    "hstu": "hstu",
    "scoter_h": "hstu",
    "tiger": "tiger",
    "scoter_t": "tiger",
    "sasrec": "sasrec",
    "scoter_s": "sasrec",
}


def reads_reasoning(variant: Variant) -> bool:
    """Whether the model fuses H into its backbone."""
    return variant != BACKBONES[variant]


class _Section(BaseModel):
    # Strict: TOML has types of its own, and `epochs = "3"` or `refit = 1` is a slip.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PrepareRecipe(_Section):
    """Section 4.1: 5-core filtering and the text of an item."""

    min_interactions: int = Field(5, ge=1)
    text: list[str] = ["title", "brand", "categories", "description"]
    attributes: list[str] = ["brand", "categories"]


class RqvaeRecipe(_Section):
    """Table 7: the network of RQ-VAE and its training."""

    hidden: list[Annotated[int, Field(ge=1)]] = [512, 256, 128]  # widths between embedding and latent vector
    latent: int = Field(32, ge=1)  # e_dim
    commitment: float = Field(0.25, ge=0)  # beta
    reconstruction: float = Field(1.0, gt=0)  # weight of the mean squared error
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    batch: int = Field(1024, ge=1)
    epochs: int = Field(20000, ge=1)


class TokenizeRecipe(_Section):
    """Table 7: embeddings of the items, levels and codes of the semantic IDs."""

    # What items are told by: texts, or who was bought together in training; `auto` takes texts if there are any.
    embeddings: Literal["auto", "text", "collaborative"] = "auto"
    encoder: str = "minilm"
    precision: Literal["float32", "bfloat16"] = "float32"  # of the encoder
    width: int = Field(64, ge=1)  # of collaborative embeddings
    quantizer: Literal["rqkmeans", "rqvae"] = "rqkmeans"
    levels: int = Field(4, ge=2, le=8)
    codebook: int = Field(256, ge=2, le=65536)
    iterations: int = Field(50, ge=1)  # of k-means
    rqvae: RqvaeRecipe = RqvaeRecipe()
    # Items with the same codes: all but one move to the nearest free codes, or one more code counts them.
    unique: Literal["nearest", "extra"] = "nearest"
    seed: int = 7


# Of a teacher: price, patience and room for work, which change nothing that it says.
TEACHER_LOGISTICS = frozenset(
    {"concurrency", "timeout", "retries", "prompt_price", "completion_price", "budget", "batch"}
)


class TeacherRecipe(_Section):
    """Who writes candidate paths, abstracts the template and writes the chains that a student learns from.

    `analyst` is no language model: it writes from statistics. `endpoint` is any OpenAI-compatible server, its key in
    the environment as SCOTER_LLM_API_KEY. `local` is a Hugging Face or GGUF model on this machine.
    """

    backend: Literal["analyst", "endpoint", "local"] = "analyst"
    model: str = ""  # endpoint: its name there; local: a folder, a hub name, or `smollm2`, which comes as a package
    base_url: str = ""  # endpoint: up to and with /v1
    structured: Literal["none", "json", "regex"] = "none"  # endpoint: how it can be held to a format
    concurrency: int = Field(8, ge=1)  # endpoint: requests at a time
    timeout: float = Field(120.0, gt=0)  # endpoint: seconds for one answer
    retries: int = Field(5, ge=0)  # endpoint: of one request
    prompt_price: float = Field(0.0, ge=0)  # of a million tokens
    completion_price: float = Field(0.0, ge=0)  # of a million tokens
    budget: float = Field(0.0, ge=0)  # stop before more than this is spent; 0: no limit
    batch: int = Field(16, ge=1)  # local: answers at a time
    precision: Literal["float32", "bfloat16"] = "float32"  # local: of the weights
    seed: int = 7

    @model_validator(mode="after")
    def _a_budget_has_prices(self) -> Self:
        if self.budget and not (self.prompt_price or self.completion_price):
            raise ValueError("budget needs prompt_price and completion_price to be held to")
        return self

    def words(self) -> dict[str, Any]:
        """What decides what the teacher says, and so whose answers are the same: no price, patience or room for work.

        A run may go on with a larger budget or another batch.
        """
        return self.model_dump(exclude=set(TEACHER_LOGISTICS))


class DiscoverRecipe(_Section):
    """Section 3.2: Generate, Validate and Mine."""

    users: int = Field(500, ge=1)  # sampled
    chains: int = Field(4, ge=1)  # per user
    items: int = Field(20, ge=1)  # of a history, the most recent ones, that a prompt shows
    text_chars: int = Field(200, ge=0)  # of what an item's text adds to its title
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    max_tokens: int = Field(1500, ge=1)
    similarity: float = Field(0.85, gt=0, le=1)  # gamma: of two paths more alike than this one is kept
    clusters: list[Annotated[int, Field(ge=2)]] = Field([2, 3, 4, 5, 6, 8, 10, 12], min_length=1)  # candidates for k
    shrinkage: float = Field(50.0, ge=0)  # a cluster's mean is drawn to the mean of all as if by that many chains
    exemplars: int = Field(10, ge=1)  # N
    candidates: int = Field(8, ge=1)  # paths that are applied to many users, for Score(C) as an expectation
    path_users: int = Field(200, ge=1)  # users that each of them, and as many others that each template is applied to
    seed: int = 7


class DistillRecipe(_Section):
    """Section 3.3.1: the student, and how it learns from the teacher's chains."""

    student: str = "smollm2"  # a folder, a hub name, or `smollm2`
    users: int = Field(400, ge=2)  # whose chains it learns from, over all folds
    folds: int = Field(2, ge=1)  # cross-fitting: no user's training H comes from a student that saw that user's chain
    hindsight: bool = True  # the teacher is told the training target
    items: int = Field(10, ge=1)  # of a history, the most recent ones, that teacher and student are shown
    text_chars: int = Field(80, ge=0)  # of what an item's text adds to its title
    temperature: float = Field(0.7, ge=0)  # of the teacher
    top_p: float = Field(0.9, gt=0, le=1)  # of the teacher
    max_tokens: int = Field(1500, ge=16)  # of a chain that the teacher writes
    method: Literal["lora", "full"] = "lora"
    rank: int = Field(16, ge=1)  # of LoRA
    epochs: int = Field(2, ge=1)
    batch: int = Field(4, ge=1)
    accumulate: int = Field(4, ge=1)  # batches to one step
    learning_rate: float = Field(2e-4, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    max_length: int = Field(1024, ge=64)  # tokens of prompt and chain
    held_out: float = Field(0.1, gt=0, lt=1)  # share of chains that no student learns from, for loss and validity
    generated: int = Field(32, ge=1)  # held-out users for whom chains are written before and after, for validity
    compared: int = Field(200, ge=1)  # users of `--compare`: teacher and students as recommenders
    seed: int = 7

    @model_validator(mode="after")
    def _hindsight_is_cross_fitted(self) -> Self:
        if self.hindsight and self.folds == 1:
            raise ValueError(
                "with hindsight, folds = 1 has a student write the training chains of users whose targets it has seen: "
                "take folds = 2 or more, or hindsight = false"
            )
        return self


class ReasonRecipe(_Section):
    """Section 3.3.1: who writes the chains under which template, and what encodes their steps."""

    writer: Literal["teacher", "student", "undistilled"] = "teacher"
    template: str = "five-step"  # `discovered`, `two-step`, `three-step`, `five-step`, `A -> B -> C`, or a .json file
    students: str = ""  # a distill stage's folder, to go on with its students on new data; empty: those of this run
    max_tokens: int = Field(320, ge=16)  # of a chain that a language model writes
    batch: int = Field(16, ge=1)  # prompts at a time
    encoder: str = "minilm"
    precision: Literal["float32", "bfloat16"] = "float32"  # of the encoder


class ModelRecipe(_Section):
    """Table 8: HSTU, its decoder and its fusion. `length` and `beam` hold for every backbone."""

    length: int = Field(20, ge=2)  # T, most recent interactions
    dim: int = Field(50, ge=4)  # d_item
    # What item vectors read besides ids and codes: the text's embedding, and who was bought near whom in training.
    features: list[Feature] = []
    blocks: int = Field(2, ge=1)
    heads: int = Field(1, ge=1)
    qk_dim: int = Field(50, ge=4)  # per head
    v_dim: int = Field(50, ge=4)  # per head
    dropout: float = Field(0.2, ge=0, lt=1)
    decoder_layers: int = Field(3, ge=1)
    decoder_heads: int = Field(4, ge=1)
    decoder_dim: int = Field(256, ge=8)
    decoder_ff: int = Field(1024, ge=8)
    fusion_heads: int = Field(4, ge=1)  # 4.1; each is `dim` / heads wide, rounded up
    fusion_dropout: float = Field(0.1, ge=0, lt=1)
    gate_bias: float = 0.0  # b_g of eq. 4 at the start; above 0 favours the sequence over the reasoning
    beam: int = Field(20, ge=1)

    @field_validator("features")
    @classmethod
    def _features_are_named_once(cls, features: list[Feature]) -> list[Feature]:
        if len(set(features)) < len(features):
            raise ValueError(f"{', '.join(features)} names a feature twice")
        return features

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.decoder_dim % self.decoder_heads:
            raise ValueError(f"decoder_dim = {self.decoder_dim} is no multiple of decoder_heads = {self.decoder_heads}")
        return self


class TrainRecipe(_Section):
    """Appendix A.2: optimisation."""

    # Where a model that reads H starts: from nothing, or from its trained backbone, which then stays as it is.
    start: Literal["scratch", "backbone"] = "scratch"
    batch: int = Field(512, ge=1)  # sequences; of TIGER, sequences up to one of their items
    optimizer: Literal["adamw", "adam"] = "adamw"  # the same without weight decay
    precision: Literal["float32", "bfloat16"] = "float32"  # of the matrix products
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.0, ge=0, lt=1)  # share of all steps
    schedule: Literal["constant", "cosine"] = "constant"
    epochs: int = Field(300, ge=1)
    patience: int = Field(20, ge=1)  # validations without a better NDCG@10
    validate_every: int = Field(1, ge=1)  # epochs; after the last one too
    validation_users: int = Field(0, ge=0)  # 0: all
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    catalogue_weight: float = Field(0.0, ge=0)  # auxiliary cross-entropy over all items
    contrastive_weight: float = Field(0.1, ge=0)  # lambda of eq. 8
    temperature: float = Field(0.1, gt=0)  # tau of eq. 6
    reasoning_drop: float = Field(0.2, ge=0, le=1)  # share of samples trained without H
    reasoning_dropout: float = Field(0.0, ge=0, lt=1)  # on the step embeddings
    seed: int = 1


class AlignmentRecipe(_Section):
    """Items score by how near their texts lie to what the steps say, too: our addition to eq. 1 to 5."""

    dim: int = Field(0, ge=0)  # principal axes of the item texts that are compared; 0: no such term
    weight: float = Field(4.0, ge=0)  # alpha
    whiten: float = Field(0.0, ge=0, le=1)  # how far axes on which item texts differ little count as much as the others
    cosine: bool = False  # compare directions alone


class SasrecRecipe(_Section):
    """A third backbone beside the paper's two. Width, dropout, decoder and fusion are those of `[model]`."""

    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    ff: int = Field(256, ge=4)


class TigerTrainRecipe(TrainRecipe):
    """Table 8, where TIGER's differs from HSTU's."""

    batch: int = Field(256, ge=1)
    epochs: int = Field(200, ge=1)


class TigerRecipe(_Section):
    """A.1 and Table 8: TIGER, a T5 over the codes of the history's items, and its fusion."""

    dim: int = Field(128, ge=4)  # d_item
    layers: int = Field(4, ge=1)  # of the encoder, and as many of the decoder
    heads: int = Field(6, ge=1)
    head_dim: int = Field(64, ge=1)
    ff: int = Field(1024, ge=4)
    dropout: float = Field(0.1, ge=0, lt=1)
    fusion_heads: int = Field(6, ge=1)
    fusion_dropout: float = Field(0.1, ge=0, lt=1)
    gate_bias: float = 0.0  # as `model.gate_bias`
    train: TigerTrainRecipe = TigerTrainRecipe()

    @model_validator(mode="after")
    def _trains_as_tiger_can(self) -> Self:
        if self.train.catalogue_weight:
            raise ValueError(
                "train.catalogue_weight must be 0: TIGER knows items by their codes and has no item vectors"
            )
        return self


class AblationRecipe(_Section):
    """Tables 4 and 10, and controls: what is taken from the reasoning. See also `train.contrastive_weight`."""

    # What the model sees of a chain: each step; their mean; the last one; or one embedding of the whole text.
    steps: Literal["each", "mean", "last", "whole"] = "each"
    # Whose reasoning it is: the user's; another user's; or none, but embeddings of items that often follow.
    control: Literal["none", "shuffled", "successors"] = "none"
    position: bool = True  # P_j of eq. 2
    matched: bool = False  # backbones are widened until they have as many parameters as with fusion

    @model_validator(mode="after")
    def _successors_are_no_text(self) -> Self:
        if self.control == "successors" and self.steps == "whole":
            raise ValueError("steps = 'whole' embeds a text, and control = 'successors' has none: choose one")
        return self


class SearchRecipe(_Section):
    """The beam as it is evaluated and served; a model that is trained already need not be trained again for it."""

    widen: list[Annotated[int, Field(ge=1)]] = []  # how many times `model.beam` the first levels keep
    rerank: float = Field(0.0, ge=0, le=1)  # share of the item vectors' own product in the order of leaves


PLAIN_SEARCH = SearchRecipe()


class EvaluateRecipe(_Section):
    """Section 4.1: what is measured on the test split."""

    users: int = Field(0, ge=0)  # 0: all
    exact_users: int = Field(0, ge=0)  # users whose beam is compared with exact top-k; 0: all
    batch: int = Field(256, ge=1)
    refit: bool = False  # also train on the validation items, for results under "train+validation" labels


class BaselinesRecipe(_Section):
    """Table 1's baselines, trained by RecBole on our split; histories are as long as `model.length`.

    `grid` has the values to try of RecBole's own parameters, by model: every combination is trained, and the best on
    the validation split is tested.
    """

    models: list[BaselineName] = Field(["LightGCN", "Caser", "HGN", "BERT4Rec", "SASRec"], min_length=1)
    grid: dict[
        BaselineName, dict[str, Annotated[list[bool | int | float | str | list[float]], Field(min_length=1)]]
    ] = {
        "LightGCN": {"learning_rate": [1e-3], "n_layers": [2, 3], "reg_weight": [1e-5, 1e-3]},
        "Caser": {"learning_rate": [1e-3], "dropout_prob": [0.2, 0.5], "reg_weight": [1e-4, 1e-2]},
        "HGN": {"learning_rate": [1e-3], "pooling_type": ["average", "max"], "reg_weight": [[0.0, 0.0], [1e-3, 1e-3]]},
        "BERT4Rec": {"learning_rate": [1e-3], "hidden_dropout_prob": [0.2, 0.5], "mask_ratio": [0.2, 0.4]},
        "SASRec": {"learning_rate": [1e-3], "hidden_dropout_prob": [0.2, 0.5], "attn_dropout_prob": [0.2, 0.5]},
    }
    batch: int = Field(2048, ge=1)  # training questions
    epochs: int = Field(200, ge=1)
    patience: int = Field(10, ge=1)  # validations without a better NDCG@10
    validate_every: int = Field(1, ge=1)  # epochs
    seed: int = 1

    @model_validator(mode="after")
    def _an_epoch_is_validated(self) -> Self:
        if self.validate_every > self.epochs:
            raise ValueError(
                f"validate_every = {self.validate_every} is more than epochs = {self.epochs}: RecBole keeps the "
                "weights of validated epochs, and there would be none"
            )
        return self


class ExportRecipe(_Section):
    """What goes into the release."""

    layout: Literal["projected", "raw"] = "projected"
    dtype: Literal["float16", "float32", "int8"] = "float16"  # of the stored H; int8 has one scale for each step
    warmup_requests: int = Field(64, ge=1)


class Recipe(_Section):
    """A whole run."""

    name: str
    models: list[Variant] = Field(["hstu", "scoter_h"], min_length=1)  # trained, evaluated and served
    prepare: PrepareRecipe = PrepareRecipe()
    tokenize: TokenizeRecipe = TokenizeRecipe()
    teacher: TeacherRecipe = TeacherRecipe()
    discover: DiscoverRecipe = DiscoverRecipe()
    distill: DistillRecipe = DistillRecipe()
    reason: ReasonRecipe = ReasonRecipe()
    model: ModelRecipe = ModelRecipe()
    train: TrainRecipe = TrainRecipe()
    alignment: AlignmentRecipe = AlignmentRecipe()
    sasrec: SasrecRecipe = SasrecRecipe()
    tiger: TigerRecipe = TigerRecipe()
    ablation: AblationRecipe = AblationRecipe()
    search: SearchRecipe = SearchRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    baselines: BaselinesRecipe = BaselinesRecipe()
    export: ExportRecipe = ExportRecipe()

    @field_validator("models")
    @classmethod
    def _models_are_named_once(cls, models: list[Variant]) -> list[Variant]:
        if len(set(models)) < len(models):
            raise ValueError(f"{', '.join(models)} names a model twice")
        return models

    @model_validator(mode="after")
    def _alignment_compares_in_one_space(self) -> Self:
        if self.alignment.dim and self.reason.encoder != self.tokenize.encoder:
            raise ValueError(
                f"alignment.dim = {self.alignment.dim} compares steps with item texts: reason.encoder = "
                f"{self.reason.encoder!r} and tokenize.encoder = {self.tokenize.encoder!r} must be the same"
            )
        return self

    def training(self, variant: Variant) -> TrainRecipe:
        """How that model is trained."""
        return self.tiger.train if BACKBONES[variant] == "tiger" else self.train


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
        faults = "; ".join(_fault(e["loc"], e["type"], e["msg"]) for e in error.errors())
        raise RecipeError(f"recipe {name_or_path}: {faults}") from error


def _fault(place: Sequence[int | str], kind: str, message: str) -> str:
    said = _no_key(place) if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, place))}: {said}".removeprefix(": ")


def _no_key(place: Sequence[int | str]) -> str:
    """That a key does not exist, and which one may be meant."""
    section: type[BaseModel] = Recipe
    for part in place[:-1]:
        inner = section.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return "no such key"
        section = inner
    near = get_close_matches(str(place[-1]), section.model_fields, 1)
    return f"no such key; is {near[0]} meant?" if near else f"no such key, only {', '.join(section.model_fields)}"
