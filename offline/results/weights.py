"""Figure 5: what the weight λ of the contrastive loss changes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace

from offline.results.commands import KEEP, base, measured, name, recipe, under
from offline.results.lines import Line, Lines, shared
from offline.results.markdown import counted, figure, folded, missing, section, table
from offline.results.overall import DROP, drop
from offline.results.settings import LAMBDA

LAMBDAS = (0.02, 0.05, 0.1, 0.2, 0.5)  # the paper's


def weights(lines: Lines, plots: set[str]) -> str:
    """A table for each way to make SCoTER-H: the one that is plotted, and the others folded."""
    parts: list[str] = []
    for dataset in ("beauty", "sports"):
        first, *others = [made for made in _ways(lines, dataset) if made.keys() != {LAMBDA}] or [{}]
        if first:
            parts.append(_table(lines, first))
        if f"figure-5-{dataset}" in plots:
            words = (
                f"Bars are what differs from λ of {LAMBDA:g}, 95 % over users; points that are joined are of the same "
                "runs of the backbone."
            )
            parts.append(f"{words}\n\n![Recall@10 by λ on {dataset}](results/figure-5-{dataset}.svg)")
        parts += [_alike(lines, made) for made in (first, *others)]
        parts.append(folded("Made in other ways", *(_table(lines, made) for made in others)))
    return section("Figure 5: weight λ of the contrastive loss", *parts, _missing(lines))


def by_weight(lines: Lines, dataset: str) -> dict[float, Line]:
    """SCoTER-H at each weight, otherwise made alike, in the way that is plotted."""
    return next(iter(_ways(lines, dataset)), {})


def _ways(lines: Lines, dataset: str) -> list[dict[float, Line]]:
    """SCoTER-H at each weight, by the way it is made: first where most models differ, then where most are the paper's.

    Where validation keeps the fusion as it starts, all weights give one model, and what they change cannot be seen.
    """
    found: dict[str, dict[float, Line]] = {}
    for line in lines.of(dataset):
        weight = _weight(line.setting.what)
        if line.setting.model == "scoter_h" and weight is not None:
            found.setdefault(line.setting.base, {})[weight] = line

    def telling(made: dict[float, Line]) -> tuple[int, int, int]:
        return len(_models(made)), len(made.keys() & set(LAMBDAS)), len(made)

    return sorted(found.values(), key=telling, reverse=True)


def _models(made: Mapping[float, Line]) -> list[list[float]]:
    """Weights, those together that gave the same figures with the same draw."""
    found: list[tuple[list[float], set[str]]] = []
    for weight, line in sorted(made.items()):
        rows = {json.dumps(row, sort_keys=True) for row in line.rows}
        same = next((one for one in found if one[1] & rows), None)
        if same is None:
            found.append(([weight], rows))
        else:
            same[0].append(weight)
            same[1].update(rows)
    return [alike for alike, _ in found]


def _weight(what: str) -> float | None:
    """The weight of a model from which nothing else is taken away."""
    if what in {"full", "no-contrastive"}:
        return LAMBDA if what == "full" else 0.0
    given = re.fullmatch(r"lambda (\S+)", what)
    return float(given[1]) if given else None


def same_draws(made: Mapping[float, Line]) -> dict[float, Line]:
    """Models by ascending weight over the draws that all of them have; over their own where there are none."""
    draws = shared(made.values())
    return {weight: line.among(draws) for weight, line in sorted(made.items())}


def _table(lines: Lines, made: Mapping[float, Line]) -> str:
    alike = same_draws(made)
    usual = alike.get(LAMBDA)
    rows = [
        [f"{weight:g}", counted(line), figure(line), *([""] * len(DROP) if line is usual else drop(line, usual))]
        for weight, line in alike.items()
    ]
    head = ["λ", "runs", "Recall@10 / NDCG@10", *(name.format(f"{LAMBDA:g}") for name in DROP)]
    draws = shared(made.values())
    seeds = sorted({draw[0] for draw in draws})
    over = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if draws else "each over runs of its own"
    return f"{_name(lines, made)}, on {next(iter(made.values())).dataset}, {over}:\n\n" + table(head, rows)


def _name(lines: Lines, made: Mapping[float, Line]) -> str:
    """What its models are called but for the weight."""
    return lines.ways.name(replace(next(iter(made.values())).setting, what="full"))


def _alike(lines: Lines, made: Mapping[float, Line]) -> str:
    """A sentence on weights that make no difference; empty where there are none."""
    told = [
        f"{_name(lines, made)}, with λ of {', '.join(f'{weight:g}' for weight in alike[:-1])} or {alike[-1]:g} is one "
        "model: validation kept the fusion as it starts, before a weight has changed anything."
        for alike in _models(made)
        if len(alike) > 1
    ]
    return " ".join(told)


def _missing(lines: Lines) -> str:
    """The commands for weights that neither the way that is plotted nor the recipe's own has; empty without any."""
    made = base("scoter_h")
    known = next((way for way in _ways(lines, "beauty") if next(iter(way.values())).setting.base == made), {})
    absent = [weight for weight in LAMBDAS if weight not in by_weight(lines, "beauty").keys() | known.keys()]
    if not absent:
        return ""
    if LAMBDA not in known:  # with which the others are compared
        absent = sorted({LAMBDA, *absent}, key=lambda weight: (weight != LAMBDA, weight))
    commands: list[str] = []
    for weight in absent:
        called = f"beauty-lambda-{weight:g}"
        edits = [name("beauty"), under("train", f"contrastive_weight = {weight:g}")]
        commands += [recipe("beauty", called, *edits), measured(f"{called}.toml", "beauty", called)]
    return missing(f"λ of {', '.join(f'{weight:g}' for weight in absent)} on beauty", *commands, KEEP)
