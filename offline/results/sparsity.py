"""Figures 4 and 8: who gains, by the length of a history and the popularity of a target."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.results.commands import KEEP, measured
from offline.results.lines import Line, Lines, repeated
from offline.results.markdown import decimals, folded, missing, section, table

FIGURES = {"beauty": "Figure 4", "sports": "Figure 8"}


def grouped(lines: Lines, dataset: str) -> list[tuple[Line, Line]]:
    """SCoTER-H and HSTU whose runs have figures by group."""
    pairs = [(line, lines.backbone(line)) for line in lines.full(dataset, "scoter_h")]
    return [(line, other) for line, other in pairs if other is not None and by_group(line, other, "users") is not None]


def drawn(lines: Lines, dataset: str) -> tuple[Line, Line] | None:
    """The pair of them that is plotted: the best of those with draws enough."""
    pairs = grouped(lines, dataset)
    enough = repeated([line for line, _ in pairs])
    kept = [pair for pair in pairs if pair[0] in enough]
    return max(kept, key=lambda pair: pair[0].mean("recall@10"), default=None)


def by_group(
    line: Line, other: Line, kind: str, metric: str = "recall@10"
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Means of both in each group, float64 [groups] each, over the draws that they share."""
    draws = [draw for draw in line.draws if draw in other.draws]
    ours, theirs = line.group(kind, metric, draws), other.group(kind, metric, draws)
    return None if ours is None or theirs is None else (ours, theirs)


def groups(lines: Lines, paper: dict[str, Any], plots: set[str]) -> list[str]:
    """Both figures."""
    return [_figure(lines, dataset, title, paper["groups"][dataset], plots) for dataset, title in FIGURES.items()]


def _figure(lines: Lines, dataset: str, title: str, paper: dict[str, dict[str, float]], plots: set[str]) -> str:
    heading = f"{title}: by groups of users and items, {dataset}"
    best = drawn(lines, dataset)
    if best is None:
        commands = [measured("beauty" if dataset == "beauty" else f"{dataset}.toml", dataset, dataset)]
        absent = missing(f"a report on {dataset} with figures by group (`report.json` has them)", *commands, KEEP)
        return section(heading, absent, level=3)
    parts = [f"{lines.name(best[0])}, against its backbone:"]
    if f"figure-{title[-1]}" in plots:
        parts.append(f"![Gain by group on {dataset}](results/figure-{title[-1]}.svg)")
    parts.append(_groups(*best, paper))
    others = [pair for pair in grouped(lines, dataset) if pair[0] is not best[0]]
    told = [f"{lines.name(line)}:\n\n{_groups(line, other, paper)}" for line, other in others]
    return section(heading, *parts, folded("Made in other ways", *told), level=3)


def _groups(line: Line, other: Line, paper: dict[str, dict[str, float]]) -> str:
    """A model and its backbone in each group."""
    bounds = next(run.body["groups"] for run in line.runs if "groups" in run.body)
    rows: list[list[str]] = []
    for kind, unit in (("users", "items in the history"), ("items", "training interactions of the target")):
        for metric in ("recall@10", "ndcg@10"):
            found = by_group(line, other, kind, metric)
            assert found is not None
            for one, first, second in zip(bounds[kind], *found, strict=True):
                told = paper[kind].get(str(one["group"])) if metric == "recall@10" else None
                rows.append(
                    [
                        f"{kind[:-1]} group {one['group']}: {one['from']} to {one['to']} {unit}",
                        f"{one['users']:,}",
                        metric,
                        decimals(float(first)),
                        decimals(float(second)),
                        f"{first / second - 1:+.1%}" if second else "–",
                        "–" if told is None else f"*{told:+.1%}*",
                    ]
                )
    head = ["group (0 is the sparsest)", "test users", "metric", "SCoTER-H", "HSTU", "relative", "*paper*"]
    return table(head, rows)
