"""What a row of a report was made with, told from its recipe: which rows differ in the seed alone, and what to call it.

Recipes are read as the plain tables that runs kept. Those of earlier versions have fewer keys; what they lack has its
default, which is how it was before one could choose.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from offline.recipe import BACKBONES, TEACHER_LOGISTICS, Recipe

LAMBDA = 0.1  # of the paper, and of every recipe unless it says otherwise
BACKBONE: dict[str, str] = {str(variant): str(backbone) for variant, backbone in BACKBONES.items()}
NAMES = {
    "popularity": "popularity",
    "knn": "co-occurrence kNN (untrained)",
    "hstu": "HSTU",
    "scoter_h": "SCoTER-H",
    "tiger": "TIGER",
    "scoter_t": "SCoTER-T",
    "sasrec": "SASRec + SIDs",
    "scoter_s": "SCoTER-S",
}
# In the order of a table: Table 1's baselines are RecBole's.
ORDER = ["popularity", "knn", "LightGCN", "Caser", "HGN", "BERT4Rec", "SASRec", *list(NAMES)[2:]]

_DEFAULTS: dict[str, Any] = Recipe(name="").model_dump(mode="json")

# What a backbone alone does not read: it is the same model whatever these say.
_FUSION = (
    "start",
    "fusion_heads",
    "fusion_dropout",
    "gate_bias",
    "contrastive_weight",
    "temperature",
    "reasoning_drop",
    "reasoning_dropout",
)


@dataclass(frozen=True, slots=True)
class Way:
    """What tables tell models of one kind apart by: switches of their recipes that are no ablation."""

    backbone: str
    made: str  # digest of the backbone's sizes, training and so on
    features: tuple[str, ...] = ()  # that item vectors read
    search: str = ""  # where it is not the plain beam
    writer: str = ""  # of the chains; empty for a backbone alone
    aligned: str = ""  # how items score by where their texts lie, if they do
    stands: bool = False  # on its trained backbone

    @property
    def alone(self) -> Way:
        """The way that its backbone is made."""
        return Way(self.backbone, self.made, self.features, self.search)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model was made, all but its seed."""

    model: str
    what: str  # what is taken away or put in another's place: "full", "mean", "shuffled", ... or "lambda 0.05"
    recipe: str
    base: str  # digest of all that a table of ablations keeps the same
    key: str  # digest of everything
    way: Way | None = None  # None: it is not made by our recipes
    template: str = ""  # of the chains; empty for what reads none


# What Tables 4 and 10 call it, and the controls.
TAKEN = {
    "full": "full",
    "no-position": "w/o position",
    "no-contrastive": "w/o contrastive",
    "whole": "w/o step-wise: chain as one text",
    "mean": "w/o step-wise: mean",
    "last": "w/o step-wise: last",
    "undistilled": "w/o student distillation",
    "shuffled": "H of another user",
    "successors": "kNN successors instead of chains",
    "matched": "as many parameters as with fusion",
    "withheld": "H withheld at test time",
}


def setting(recipe: dict[str, Any], row: dict[str, Any]) -> Setting:
    """How the model of a report's row was made. `recipe` may lack keys, as an earlier version's does."""
    model: str = row["model"]
    name = str(recipe.get("name", ""))
    if model not in BACKBONE:
        return Setting(model, "full", name, model, model)
    backbone = BACKBONE[model]
    made = _made(recipe, backbone)
    ablation = _section(recipe, "ablation")
    alone = _alone(made)
    way = Way(backbone, _digest(alone), tuple(made["model"].get("features", ())), _search(made["search"]))
    if model == backbone:
        what = "matched" if ablation["matched"] else "full"
        base = _digest({**alone, "model name": model})
        key = _digest({"base": base, "what": what})
        return Setting(model, what, name, base, key, way)
    training = made["tiger"]["train"] if backbone == "tiger" else made["train"]
    weight = training.pop("contrastive_weight", LAMBDA)
    reason = _section(recipe, "reason")
    writer, template = str(reason["writer"]), _template(reason["template"])
    what = _what(ablation, weight, writer)
    if not row["reasoning"]:
        what = "withheld" if what == "full" else f"{TAKEN.get(what, what)}, {TAKEN['withheld']}"
    source = {key: _section(recipe, key) for key in ("teacher", "discover", "distill")}
    for key, idle in (
        ("teacher", TEACHER_LOGISTICS),
        ("distill", {"compared"}),
    ):  # what changes nothing that is written
        source[key] = {name: value for name, value in source[key].items() if name not in idle}
    alignment = _section(recipe, "alignment")
    if alignment["dim"]:
        source["alignment"] = alignment
    if writer == "teacher":
        source.pop("distill")
    if template != "discovered":
        source.pop("discover")
    kept = {key: value for key, value in reason.items() if key not in {"writer", "batch", "backend"}}
    if isinstance(kept["template"], list):  # as 0.1 wrote the five-step one
        kept["template"] = template
    base = _digest({**made, "model name": model, "reason": kept, **source, "teacher writes": writer == "teacher"})
    key = _digest({"base": base, "what": what, "ablation": ablation, "weight": weight, "writer": writer})
    stands = training["start"] == "backbone"
    way = replace(way, writer=_writer(recipe, writer), aligned=_aligned(alignment), stands=stands)
    return Setting(model, what, name, base, key, way, template)


def _made(recipe: dict[str, Any], backbone: str) -> dict[str, Any]:
    """The sections that such a backbone is made by."""
    sections = ["prepare", "tokenize", "search"]
    sections += ["tiger", "model"] if backbone == "tiger" else ["model", "train"]
    if backbone == "sasrec":
        sections.append("sasrec")
    made = {section: _section(recipe, section) for section in sections}
    if made["tokenize"]["quantizer"] != "rqvae":
        del made["tokenize"]["rqvae"]
    if backbone == "tiger":  # its sizes are its own, and it knows items by their codes alone
        made["model"] = {key: made["model"][key] for key in ("length", "beam")}
        made["search"]["rerank"] = 0.0
    return made


def _alone(made: dict[str, Any]) -> dict[str, Any]:
    """The same without what a backbone alone does not read."""
    copied: dict[str, Any] = json.loads(json.dumps(made))
    tiger = copied.get("tiger", {})
    for section in (copied["model"], tiger, tiger.get("train", {}), copied.get("train", {})):
        for unread in _FUSION:
            section.pop(unread, None)
    return copied


def _search(section: dict[str, Any]) -> str:
    """How the beam was searched and ordered; empty for the plain one."""
    widen = "".join(f" x{times}" for times in section["widen"])
    parts = [f"first levels{widen}" if widen else "", f"rerank {section['rerank']:g}" if section["rerank"] else ""]
    return ", ".join(part for part in parts if part)


def _aligned(section: dict[str, Any]) -> str:
    """How steps and item texts are compared; empty where they are not."""
    if not section["dim"]:
        return ""
    whitened = f", whitened {section['whiten']:g}" if section["whiten"] else ""
    return f"{'directions' if section['cosine'] else 'places'} on {section['dim']} axes{whitened}"


def _what(ablation: dict[str, Any], weight: float, writer: str) -> str:
    """What is taken away; several things together are named together."""
    taken = [
        *([ablation["steps"]] if ablation["steps"] != "each" else []),
        *([ablation["control"]] if ablation["control"] != "none" else []),
        *([] if ablation["position"] else ["no-position"]),
        *(["undistilled"] if writer == "undistilled" else []),
        *(["no-contrastive"] if weight == 0 else [f"lambda {weight:g}"] if weight != LAMBDA else []),
    ]
    return taken[0] if len(taken) == 1 else ", ".join(TAKEN.get(one, one) for one in taken) if taken else "full"


def _writer(recipe: dict[str, Any], writer: str) -> str:
    """Who wrote the chains."""
    reason, teacher = recipe.get("reason", {}), recipe.get("teacher", {})
    backend = teacher.get("backend") or reason.get("backend", "analyst")
    who = "analyst" if backend == "analyst" else f"{teacher.get('model') or 'a model'}"
    if writer == "teacher":
        return who
    student = str(recipe.get("distill", {}).get("student", "student"))
    return student + (f", taught by {who}" if writer == "student" else "")


def _template(template: str | list[str]) -> str:
    """Its name, or its file's; one that is written out is counted, but for the five-step one of version 0.1."""
    steps = template if isinstance(template, list) else template.split(" -> ")
    if len(steps) > 1:
        return f"{len(steps)} steps: {steps[0]} ... {steps[-1]}" if isinstance(template, str) else "five-step"
    return PurePath(steps[0]).name


def _section(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of the recipe without its seeds, copied; what it lacks has its default."""
    copied: dict[str, Any] = json.loads(json.dumps(_DEFAULTS[name]))
    given: dict[str, Any] = json.loads(json.dumps(recipe.get(name, {})))
    nested = {key: value | given[key] for key, value in copied.items() if isinstance(value, dict) and key in given}
    copied |= given | nested
    copied.pop("seed", None)
    if isinstance(copied.get("train"), dict):
        copied["train"].pop("seed", None)
    return copied


def _digest(what: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
