"""Tables 4 and 10 and the controls: what is left when something is taken away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offline.results.commands import KEEP, base, last, measured, name, recipe, under
from offline.results.lines import Line, Lines
from offline.results.markdown import counted, decimals, figure, missing, quoted, section, table
from offline.results.overall import DROP, against, drop
from offline.results.settings import BACKBONE, NAMES, TAKEN

_STEPS = ["no-position", "no-contrastive", "whole", "mean", "last", "undistilled"]
_EDITS = {
    "no-position": last("ablation", "position = false"),
    "no-contrastive": under("train", "contrastive_weight = 0.0"),
    "whole": last("ablation", 'steps = "whole"'),
    "mean": last("ablation", 'steps = "mean"'),
    "last": last("ablation", 'steps = "last"'),
    "undistilled": under("reason", 'writer = "undistilled"'),
    "shuffled": last("ablation", 'control = "shuffled"'),
    "successors": last("ablation", 'control = "successors"'),
    "matched": last("ablation", "matched = true"),
}
_WHY = {
    "shuffled": "Everyone has somebody else's chains. What is left of a lift is not about the user.",
    "successors": "In place of chains, embeddings of the items that most often follow. What is left needs no chains.",
    "undistilled": "Chains by the student as it was before it learnt from the teacher.",
    "matched": "The backbone alone, widened to as many parameters as with fusion.",
}


def ablations(lines: Lines, paper: dict[str, Any], unmeasurable: Mapping[str, str]) -> list[str]:
    """Table 4 of beauty and sports, and Table 10; `unmeasurable` says why something cannot be measured."""
    tables = (("Table 4", "scoter_h", "beauty"), ("Table 4", "scoter_h", "sports"), ("Table 10", "scoter_t", "beauty"))
    return [
        _table(lines, title, model, dataset, paper["ablation"][model][dataset], unmeasurable)
        for title, model, dataset in tables
    ]


def _table(
    lines: Lines, title: str, model: str, dataset: str, paper: dict[str, list[float]], unmeasurable: Mapping[str, str]
) -> str:
    rows: list[list[str]] = []
    found: dict[str, list[Line]] = {what: lines.having(dataset, model, what) for what in _STEPS}
    whole_ones = lines.full(dataset, model)
    full = [line for line in whole_ones if _has(line, found)] or whole_ones[:1]
    for whole in full:
        rows.append([lines.name(whole), counted(whole), figure(whole), *[""] * len(DROP), quoted(paper["full"])])
        for what in _STEPS:
            for line in found[what]:
                if line.setting.base == whole.setting.base or what == "undistilled":
                    cells = [counted(line), figure(line), *drop(line, whole), quoted(paper.get(what))]
                    rows.append([TAKEN[what], *cells])
        alone = lines.backbone(whole)
        if alone is not None:
            cells = [counted(alone), figure(alone), *drop(alone, whole), quoted(paper["backbone"])]
            rows.append([lines.name(alone), *cells])
    bases = {line.setting.base for line in whole_ones}
    rows += [
        [lines.name(line), counted(line), figure(line), *drop(line, None), quoted(paper.get(what))]
        for what in _STEPS
        for line in found[what]
        if line.setting.base not in bases and (what != "undistilled" or not whole_ones)
    ]
    absent = [what for what in _STEPS if what in paper and not found[what]]
    head = ["Recall@10 / NDCG@10", "runs", "ours", *(name.format("full") for name in DROP), "*paper*"]
    parts = [table(head, rows)] if rows else []
    heading = f"{title}: {NAMES[model]} on {dataset}"
    return section(heading, *parts, *_absent(lines, dataset, model, absent, unmeasurable), level=3)


def _absent(lines: Lines, dataset: str, model: str, absent: list[str], unmeasurable: Mapping[str, str]) -> list[str]:
    """What there is no run of: why there is none, or the commands that would make it, and first of all its whole."""
    left = [what for what in absent if what not in unmeasurable]
    told = [f"{TAKEN[what]}: {unmeasurable[what]}" for what in absent if what in unmeasurable]
    if left:
        known = any(line.setting.base == base(model) for line in lines.full(dataset, model))
        named = [*([] if known else ["the whole (by the recipe as it is)"]), *(TAKEN[what] for what in left)]
        told.append(missing(", ".join(named), *_commands(dataset, model, left if known else ["full", *left])))
    return told


def _has(whole: Line, found: dict[str, list[Line]]) -> bool:
    return any(
        line.setting.base == whole.setting.base or what == "undistilled"
        for what, rows in found.items()
        for line in rows
    )


def controls(lines: Lines, unmeasurable: Mapping[str, str]) -> str:
    """What keeps us honest, on every data set that has them; `unmeasurable` says why something cannot be measured."""
    rows: list[list[str]] = []
    absent: list[str] = []
    for what in _WHY:
        found = [
            line
            for dataset in lines.datasets()
            for line in lines.of(dataset)
            if line.setting.what == what and line.setting.model in BACKBONE
        ]
        for line in found:
            other = lines.backbone(line)
            alone = [decimals(line.mean("recall@10")), "–", "–", "no backbone of this way", "–", counted(line)]
            rows.append([line.dataset, lines.name(line), *(alone if other is None else against(line, other))])
        if not found:
            absent.append(what)
    head = ["data set", "control", "Recall@10", "backbone", "relative", "difference, 95 % over users", "p", "runs"]
    parts = ["\n".join(f"- **{TAKEN[what]}.** {why}" for what, why in _WHY.items())]
    parts += [table(head, rows, text=2)] if rows else []
    return section("Controls", *parts, *_absent(lines, "beauty", "scoter_h", absent, unmeasurable))


def _commands(dataset: str, model: str, absent: list[str]) -> list[str]:
    commands: list[str] = []
    for what in absent:
        called = f"{dataset}-{model.replace('_', '-')}-{what}"
        edits = [name(dataset), *([] if what == "full" else [_EDITS[what]])]
        if model != "scoter_h":
            edits = [edit.replace(r"^\[train\]", r"^\[tiger.train\]") for edit in edits]
            edits.append(f'1 i models = ["{BACKBONE[model]}", "{model}"]')
        elif what == "matched":  # a backbone alone: what is fused beside it is the usual model
            edits.append(f'1 i models = ["{BACKBONE[model]}"]')
        commands += [recipe("beauty", called, *edits), measured(f"{called}.toml", dataset, called)]
    return [*commands, KEEP]
