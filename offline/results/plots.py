"""Figures 3, 4, 5 and 8, and the lifts of all data sets, as SVG, of the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offline.results.lines import Line, Lines, compare, gain, repeated, shared
from offline.results.settings import BACKBONE, LAMBDA, NAMES
from offline.results.sparsity import FIGURES, by_group, drawn
from offline.results.targets import LIFTS
from offline.results.templates import alike, plotted
from offline.results.weights import by_weight, same_draws

_METRICS = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10"}
_COLORS = {"recall@10": "#4477aa", "ndcg@10": "#ee8866"}


def plots(lines: Lines, paper: dict[str, Any]) -> dict[str, Figure]:
    """Those that there are runs for, by file name; `paper` are the paper's figures."""
    found: dict[str, Figure] = {}
    lifts = list(_lifted(lines, paper["overall"]))
    if lifts:
        found[LIFTS] = _lifts(lifts)
    for dataset, title in FIGURES.items():
        best = drawn(lines, dataset)
        if best is not None:
            found[f"figure-{title[-1]}"] = _groups(*best)
        weights = by_weight(lines, dataset)
        if len(weights) > 1:
            found[f"figure-5-{dataset}"] = _weights(weights)
    for model in ("scoter_t", "scoter_h"):
        pairs_by_template = plotted(lines, model)
        if len(pairs_by_template) > 1:
            found[f"figure-3-{model}"] = _templates(pairs_by_template, model)
    return found


def save(found: Mapping[str, Figure], folder: Path) -> None:
    """Write them, and remove figures of earlier that are not among them."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "scoter", "svg.fonttype": "none"}):
        for name, figure in found.items():
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
    for path in folder.glob("*.svg"):
        if path.stem not in found:
            path.unlink()


@dataclass(frozen=True, slots=True)
class _Lift:
    """A row of the plot, in percent of the backbone's Recall@10: value, and the ends of its interval."""

    name: str
    ours: tuple[float, float, float]
    control: tuple[float, float, float] | None
    paper: float | None


def _lifted(lines: Lines, paper: dict[str, dict[str, list[float]]]) -> Iterator[_Lift]:
    """Models that read H, those of most draws for each kind and data set."""
    for dataset in lines.datasets():
        shuffled = [line for line in lines.of(dataset) if line.setting.what == "shuffled"]
        for model, backbone in BACKBONE.items():
            for line in repeated(lines.full(dataset, model)) if model != backbone else ():
                ours = _percent(lines, line)
                if ours is None:
                    continue
                control = next((other for other in shuffled if other.setting.base == line.setting.base), None)
                told = paper.get(dataset, {})
                quoted = 100 * (told[model][1] / told[backbone][1] - 1) if model in told else None
                name = f"{dataset}, {lines.name(line)}"
                yield _Lift(name, ours, _percent(lines, control) if control else None, quoted)


def _percent(lines: Lines, line: Line) -> tuple[float, float, float] | None:
    backbone = lines.backbone(line)
    found = compare(line, backbone) if backbone is not None else None
    if found is None:
        return None
    return 100 * found.relative, 100 * found.low / found.second, 100 * found.high / found.second


def _lifts(rows: Sequence[_Lift]) -> Figure:
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.32 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        _dot(axes, place, row.ours, fill=_COLORS["recall@10"])
        if row.control is not None:
            _dot(axes, place + 0.25, row.control, fill="white")
        if row.paper is not None:
            axes.plot(row.paper, place, "x", color="#222", markersize=6)
    axes.axvline(0, color="#222", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Recall@10 over the backbone alone, %")
    _bare(axes)
    return figure


def _dot(axes: Axes, place: float, found: tuple[float, float, float], *, fill: str) -> None:
    """A value with its interval."""
    value, low, high = found
    color = _COLORS["recall@10"]
    axes.plot([low, high], [place, place], color=color, linewidth=1.2)
    axes.plot(value, place, "o", color=color, markerfacecolor=fill, markersize=5)


def _groups(line: Line, other: Line) -> Figure:
    """Relative gain in each group, users left and items right."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axes, kind in zip(both, ("users", "items"), strict=True):
        for place, (metric, label) in enumerate(_METRICS.items()):
            found = by_group(line, other, kind, metric)
            assert found is not None
            gains = [100 * (a / b - 1) if b else 0.0 for a, b in zip(*found, strict=True)]
            spots = [group + (place - 0.5) * 0.38 for group in range(len(gains))]
            axes.set_xticks(range(len(gains)), [f"group {group}" for group in range(len(gains))])
            bars = axes.bar(spots, gains, 0.36, label=label, color=_COLORS[metric])
            axes.bar_label(bars, fmt="%+.1f", fontsize=7, padding=2)
        axes.axhline(0, color="#222", linewidth=0.8)
        axes.set_title(f"{kind[:-1]} groups (0: sparsest)", fontsize=10)
        _bare(axes)
        axes.margins(y=0.15)
    both[0].set_ylabel(f"{NAMES[line.setting.model]} over {NAMES[other.setting.model]}, %")
    both[0].legend(frameon=False, fontsize=8)
    return figure


def _weights(found: Mapping[float, Line]) -> Figure:
    """Both metrics by weight, with the interval over users of what differs from the usual weight."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    alike = same_draws(found)
    joined = "-" if shared(found.values()) else "None"  # points of different trainings make no curve
    for axes, (metric, label) in zip(both, _METRICS.items(), strict=True):
        color = _COLORS[metric]
        heights = [line.mean(metric) for line in alike.values()]
        axes.plot(range(len(alike)), heights, linestyle=joined, marker="o", color=color)
        for place, (weight, line) in enumerate(alike.items()):
            told = compare(line, alike[LAMBDA], metric) if LAMBDA in alike and weight != LAMBDA else None
            if told is not None:
                ends = [[told.value - told.low], [told.high - told.value]]
                axes.errorbar(place, line.mean(metric), ends, capsize=3, color=color, linewidth=1.0)
        axes.set_xticks(range(len(alike)), [f"{weight:g}" for weight in alike])
        axes.set_xlabel("λ")
        axes.set_ylabel(label)
        _bare(axes)
    return figure


def _templates(found: Mapping[str, tuple[Line, Line]], model: str) -> Figure:
    """Relative gain over the backbone by template, over the draws that all of them have."""
    figure, axes = plt.subplots(figsize=(6, 3))
    for place, (metric, label) in enumerate(_METRICS.items()):
        gains = [100 * gain(*pair, metric) for pair in alike(found).values()]
        spots = [spot + (place - 0.5) * 0.38 for spot in range(len(found))]
        bars = axes.bar(spots, gains, 0.36, label=label, color=_COLORS[metric])
        axes.bar_label(bars, fmt="%+.1f", fontsize=7, padding=2)
    axes.axhline(0, color="#222", linewidth=0.8)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_ylabel(f"{NAMES[model]} over its backbone, %")
    axes.legend(frameon=False, fontsize=8)
    _bare(axes)
    return figure


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
