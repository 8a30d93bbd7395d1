"""Curves of an open-loop measurement: latency against rate, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from loadtest.figures import OUTSIDE, REST, SLO_MS, TOTAL, Figures
from loadtest.sample import Sample

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREYS = {REST: "#9a9a9a", OUTSIDE: "#d4d4d4"}
STYLE = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "legend.frameon": False,
}


def draw(rows: Sequence[Figures], file: Path) -> None:
    """Write the picture: p50 and p99 of each target over the rate on top, mean time by stage beneath."""
    targets = list(dict.fromkeys(row.target for row in rows))
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.5, 8.0), layout="constrained")
        grid = figure.add_gridspec(2, len(targets), height_ratios=(1.25, 1))
        _curves(figure.add_subplot(grid[0, :]), rows, targets)
        below: list[Axes] = []
        for column, target in enumerate(targets):
            axes = figure.add_subplot(grid[1, column], sharey=below[0] if below else None)
            _stack(axes, [row for row in rows if row.target == target], _stage_colours(rows))
            axes.set_title(f"Mean time by stage: {target}" if len(targets) > 1 else "Mean time by stage")
            below.append(axes)
        below[0].set_ylabel("ms")
        below[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), reverse=True)
        figure.savefig(file, dpi=150)


def draw_soak(samples: Sequence[Sample], file: Path) -> None:
    """Write the picture of a soak: memory on top, descriptors, connections and threads beneath, over time."""
    minutes = [sample.seconds / 60 for sample in samples]
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9.5, 6.0), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        memory = {
            "resident": [sample.rss for sample in samples],
            "unique to the process": [sample.uss for sample in samples],
            "private: judged": [sample.private for sample in samples],
        }
        counts = {
            "file descriptors": [sample.fds for sample in samples],
            "TCP connections": [sample.connections for sample in samples],
            "threads": [sample.threads for sample in samples],
        }
        for colour, (name, values) in zip(COLOURS, memory.items(), strict=False):
            top.plot(minutes, [value / 2**20 for value in values], color=colour, linewidth=1.5, label=name)
        for colour, (name, values) in zip(COLOURS, counts.items(), strict=False):
            bottom.plot(minutes, values, color=colour, linewidth=1.2, label=name)
        top.set_title("Memory of the service")
        top.set_ylabel("MiB")
        bottom.set_title("What it holds open")
        bottom.set_xlabel("minutes under load")
        for axes in (top, bottom):
            axes.set_ylim(bottom=0)
            axes.grid(visible=True, color="#dddddd", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        figure.savefig(file, dpi=150)


def _curves(axes: Axes, rows: Sequence[Figures], targets: Sequence[str]) -> None:
    for colour, target in zip(COLOURS * len(targets), targets, strict=False):
        mine = [row for row in rows if row.target == target]
        for name, line in (("p50", ":"), ("p99", "-")):
            points = [(row.rate, row.latency_ms[name], row.valid) for row in mine]
            shown = [(rate, value, valid) for rate, value, valid in points if value is not None]
            label = f"{target} {name}" if len(targets) > 1 else name
            axes.plot([p[0] for p in shown], [p[1] for p in shown], line, color=colour, linewidth=1.8, label=label)
            for valid in (True, False):
                dots = [(rate, value) for rate, value, kept in shown if kept is valid]
                axes.scatter(
                    [dot[0] for dot in dots],
                    [dot[1] for dot in dots],
                    s=26,
                    zorder=3,
                    color=colour if valid else "white",
                    edgecolor=colour,
                )
    if any(not row.valid for row in rows):
        axes.scatter([], [], s=26, color="white", edgecolor="#555555", label="generator too late")
    axes.axhline(SLO_MS, color="#b00020", linewidth=1.2, linestyle="--", label=f"SLO {SLO_MS:g} ms")
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_formatter(FuncFormatter(_plain))
    axes.tick_params(axis="y", which="minor", labelsize=7.5, labelcolor="#777777")
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
    axes.grid(visible=True, which="minor", axis="y", color="#eeeeee", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlim(left=0)
    axes.set_xlabel("requests per second offered (Poisson arrivals)")
    axes.set_ylabel("ms, from when the request was due")
    axes.set_title("Latency against rate")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _stack(axes: Axes, rows: Sequence[Figures], colours: dict[str, str]) -> None:
    places = range(len(rows))
    bottoms = [0.0] * len(rows)
    for name, colour in colours.items():
        heights = [row.stages[name].mean if name in row.stages else 0.0 for row in rows]
        axes.bar(places, heights, 0.65, bottoms, color=colour, label=name)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, top in zip(places, bottoms, strict=True):
        axes.annotate(
            f"{top:.2g}" if top < 10 else f"{top:.0f}",
            (place, top),
            (0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color="#444444",
        )
    axes.set_xticks(places, [f"{row.rate:g}" for row in rows])
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=True, axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("requests per second offered")


def _stage_colours(rows: Sequence[Figures]) -> dict[str, str]:
    """A colour for each stage, in the order in which they are stacked."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row.stages) if name != TOTAL]
    own = [name for name in names if name not in GREYS]
    return dict(zip(own, COLOURS * len(own), strict=False)) | {name: GREYS[name] for name in GREYS if name in names}


def _plain(value: float, _position: int | None) -> str:
    return f"{value:g}"
