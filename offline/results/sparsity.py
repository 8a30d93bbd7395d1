"""Figures 4 and 8: who gains, by the length of a history and the popularity of a target. Table 9: at what price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.results.commands import KEEP, measured
from offline.results.lines import Line, Lines, repeated
from offline.results.markdown import decimals, missing, section, table
from offline.results.runs import Run
from offline.results.settings import NAMES

FIGURES = {"beauty": "Figure 4", "sports": "Figure 8"}


def grouped(lines: Lines, dataset: str) -> list[tuple[Line, Line]]:
    """SCoTER-H and HSTU whose runs have figures by group."""
    pairs = [(line, lines.backbone(line)) for line in lines.full(dataset, "scoter_h")]
    return [(line, other) for line, other in pairs if other is not None and by_group(line, other, "users") is not None]


def drawn(lines: Lines, dataset: str) -> tuple[Line, Line] | None:
    """The pair of them that is plotted: the best of those with seeds enough."""
    pairs = grouped(lines, dataset)
    enough = repeated([line for line, _ in pairs])
    kept = [pair for pair in pairs if pair[0] in enough]
    return max(kept, key=lambda pair: pair[0].mean("recall@10"), default=None)


def by_group(
    line: Line, other: Line, kind: str, metric: str = "recall@10"
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Means of both in each group, float64 [groups] each, over the seeds that they share."""
    seeds = [seed for seed in line.seeds if seed in other.seeds]
    ours, theirs = line.group(kind, metric, seeds), other.group(kind, metric, seeds)
    return None if ours is None or theirs is None else (ours, theirs)


def groups(lines: Lines, paper: dict[str, Any], plots: set[str]) -> list[str]:
    """Both figures."""
    return [_figure(lines, dataset, title, paper["groups"][dataset], plots) for dataset, title in FIGURES.items()]


def _figure(lines: Lines, dataset: str, title: str, paper: dict[str, dict[str, float]], plots: set[str]) -> str:
    parts: list[str] = []
    for line, other in grouped(lines, dataset):
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
        parts.append(f"{line.setting.name}:\n\n" + table(head, rows))
    plotted = drawn(lines, dataset)
    if plotted is not None and f"figure-{title[-1]}" in plots:
        image = f"![Gain by group on {dataset}](results/figure-{title[-1]}.svg)"
        parts.append(f"{plotted[0].setting.name}, against its backbone:\n\n{image}")
    if not parts:
        commands = [measured("beauty" if dataset == "beauty" else f"{dataset}.toml", dataset, dataset)]
        parts.append(missing(f"a report on {dataset} with figures by group (`report.json` has them)", *commands, KEEP))
    return section(f"{title}: by groups of users and items, {dataset}", *parts, level=3)


def efficiency(runs: Sequence[Run], paper: dict[str, Any]) -> str:
    """Table 9."""
    rows: list[list[str]] = []
    told_before: list[list[dict[str, Any]]] = []  # a later evaluation of the same training has the same curve
    for run in runs:
        seconds = run.body.get("seconds", {})
        for stage, epochs in run.curves.items():
            model = stage.removeprefix("train-").removesuffix("-refit")
            if run.stage != "evaluate" or stage.endswith("-refit") or model not in NAMES or epochs in told_before:
                continue
            told_before.append(epochs)
            each = sum(epoch["seconds"] for epoch in epochs) / len(epochs)
            inference = seconds.get(f"evaluate {stage}")
            told = paper["efficiency"].get(run.dataset, {}).get(model)
            rows.append(
                [
                    run.dataset,
                    f"{NAMES[model]} ({run.name})",
                    f"{each:.1f}",
                    str(len(epochs)),
                    "–" if inference is None else f"{inference:.0f}",
                    "–" if told is None else f"*{told[0]:.2f}, {told[1]:.2f}*",
                ]
            )
    head = ["data set", "model", "seconds an epoch", "epochs", "evaluation, s", "*paper: epoch, inference*"]
    words = (
        "Ours on two CPU cores, shared with other work; the paper's on one NVIDIA H20. An evaluation is all that the "
        "report has of a model: both histories, with and without H, and exact scoring of a sample. What one request "
        "costs is in [load.md](load.md)."
    )
    if not rows:
        return section("Table 9: time", missing("a trained model", measured("beauty", "beauty", "beauty"), KEEP))
    return section("Table 9: time", words, table(head, rows))
