"""Figure 3: manual templates and the discovered one, by the way to make a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offline.ranking import TOP
from offline.results.commands import KEEP, measured, name, recipe, under
from offline.results.lines import Line, Lines, shared
from offline.results.markdown import counted, figure, missing, section, table
from offline.results.overall import against
from offline.results.settings import BACKBONE, NAMES

TEMPLATES = ("two-step", "three-step", "five-step", "discovered")


def by_template(lines: Lines, model: str) -> dict[str, dict[str, tuple[Line, Line]]]:
    """A model on beauty with its backbone, by the letter of the way it was made, and by the template of its chains."""
    ways: dict[str, dict[str, tuple[Line, Line]]] = {}
    for line in lines.full("beauty", model):
        backbone = lines.backbone(line)
        if backbone is not None and line.setting.template in TEMPLATES:
            ways.setdefault(lines.ways.letters(line.setting), {}).setdefault(line.setting.template, (line, backbone))
    return {way: dict(sorted(ways[way].items(), key=lambda one: TEMPLATES.index(one[0]))) for way in sorted(ways)}


def plotted(lines: Lines, model: str) -> dict[str, tuple[Line, Line]]:
    """By template, the way with most templates, of those the one with most runs, and then the best."""

    def known(way: Mapping[str, tuple[Line, Line]]) -> tuple[int, int, float]:
        made = [line for line, _ in way.values()]
        return len(made), sum(line.trainings for line in made), max(line.mean(f"recall@{TOP}") for line in made)

    return max(by_template(lines, model).values(), key=known, default={})


def alike(found: Mapping[str, tuple[Line, Line]]) -> dict[str, tuple[Line, Line]]:
    """The same over the draws that all of these models and their backbones have, if there are any."""
    draws = shared(line for pair in found.values() for line in pair)
    return {template: (line.among(draws), backbone.among(draws)) for template, (line, backbone) in found.items()}


def templates(lines: Lines, paper: dict[str, Any], plots: set[str]) -> str:
    """The tables and plots of both models that read H."""
    parts: list[str] = []
    absent: dict[str, list[str]] = {}
    for model in ("scoter_h", "scoter_t"):
        ways = by_template(lines, model)
        for template in TEMPLATES:
            if not any(template in found for found in ways.values()):
                absent.setdefault(template, []).append(model)
        rows = [row for found in ways.values() for row in _rows(lines, found, paper["templates"][model])]
        if rows:
            head = ["model", "runs", "seeds", "Recall@10 / NDCG@10", "over its backbone, Recall@10", "p", "*paper*"]
            parts.append(table(head, rows))
        if f"figure-3-{model}" in plots:
            letters = lines.ways.letters(next(iter(plotted(lines, model).values()))[0].setting)
            parts.append(
                f"Figures of a way are over the runs that all its templates have, on the same backbones. Those of "
                f"{NAMES[model]} [{letters}]:\n\n![Gain over the backbone by template](results/figure-3-{model}.svg)"
            )
    return section("Figure 3: manual templates and the discovered one", *parts, _missing(absent) if absent else "")


def _rows(lines: Lines, found: Mapping[str, tuple[Line, Line]], paper: Mapping[str, float]) -> list[list[str]]:
    """A row for each template of a way."""
    rows: list[list[str]] = []
    for template, (line, backbone) in alike(found).items():
        told = paper.get(template)
        _, _, relative, _, p, _ = against(line, backbone)
        seeds = ", ".join(str(draw[0]) for draw in sorted(draw for draw in line.draws if draw is not None))
        quote = "–" if told is None else f"*{told:+.1%}*"
        rows.append([lines.name(line), counted(line), seeds, figure(line), relative, p, quote])
    return rows


def _missing(absent: Mapping[str, list[str]]) -> str:
    """The commands for templates that no way of a model has."""
    commands: list[str] = []
    for template, models in absent.items():
        called = "-".join(["beauty", template, *(model.replace("_", "-") for model in models)])
        both = ", ".join(f'"{one}"' for model in models for one in (BACKBONE[model], model))
        edits = [name("beauty"), f"1 i models = [{both}]", under("reason", f'template = "{template}"')]
        commands += [recipe("beauty", called, *edits), measured(f"{called}.toml", "beauty", called)]
    told = ", ".join(f"{one} ({' and '.join(NAMES[model] for model in models)})" for one, models in absent.items())
    return missing(told, *commands, KEEP)
