"""Reports as self-contained HTML pages: the evaluation's, and the parts that other reports are made of."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from offline.recipe import AblationRecipe

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; font-size: 13px }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #ddd; text-align: left }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1.5rem 0 } img { max-width: 100% } h1 { font-size: 1.5rem } h2 { font-size: 1.15rem }
"""
_HOW_SURE = (
    "low and high: a 95% interval of the difference, by bootstrap over users; p: by permutation of signs. One seed "
    "each, so neither says what another seed would do."
)


def write_page(path: Path, report: dict[str, Any], curves: dict[str, list[dict[str, Any]]]) -> None:
    """Write the page. `curves` holds each model's epochs as `offline.train` logged them."""
    parts = [
        f"<h1>{escape(report['dataset'])}, recipe {escape(report['recipe'])}</h1>",
        f"<p>{report['users']:,} users of the {escape(report['split'])} split, {report['items']:,} items.</p>",
        _taken_away(report["settings"]["ablation"]),
        picture(_bars(report["results"]), "Recall@10 by model, with the user's history masked"),
        "<h2>Results, with the switches they were measured under</h2>",
        table([{key: value for key, value in row.items() if key != "groups"} for row in report["results"]]),
        "<h2>With reasoning against the backbone alone, on the same users</h2>",
        f"<p>{_HOW_SURE}</p>",
        table(report["against_backbone"]),
        "<h2>By groups of users and of items</h2>",
        f"<p>{escape(_bounds(report['groups']))}</p>",
        picture(_groups(report), "Recall@10 by group, history masked, training labels"),
        "<h2>How often the beam is exact</h2>",
        table(report["beam"]),
        picture(_curves(curves), "Training loss, and NDCG@10 on validation users"),
        "<h2>Seconds by stage</h2>",
        table([{"stage": name, "seconds": seconds} for name, seconds in report["seconds"].items()]),
    ]
    path.write_text(html(f"SCoTER report: {report['dataset']}", parts), encoding="utf-8")


def html(title: str, parts: list[str]) -> str:
    """A page of its own from parts that are HTML already; the title is not."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        + "".join(parts)
        + "</html>\n"
    )


def _taken_away(ablation: dict[str, Any]) -> str:
    """What the recipe took from the reasoning: results without it are no results of the whole system."""
    without = AblationRecipe().model_dump()
    changed = [f"{name} = {value}" for name, value in ablation.items() if value != without[name]]
    return f"<p>Ablation: {escape(', '.join(changed))}.</p>" if changed else ""


def _bars(results: list[dict[str, Any]]) -> Figure:
    rows = [r for r in results if r["history"] == "masked" and r["scoring"] != "exact"]
    names = [
        r["model"] + (" + H" if r["reasoning"] else "") + ("" if r["labels"] == "train" else " (train+valid.)")
        for r in rows
    ]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(rows) + 1))
    places = range(len(rows))
    axes.barh(
        places, [r["recall@10"] for r in rows], color=["#4477aa" if r["labels"] == "train" else "#bbccee" for r in rows]
    )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel("Recall@10")
    for place, row in zip(places, rows, strict=True):
        axes.text(row["recall@10"], place, f" {row['recall@10']:.4f}", va="center", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    return figure


def _bounds(groups: dict[str, list[dict[str, Any]]]) -> str:
    """Which users and which targets are in which group."""
    return " ".join(
        f"{title}: " + ", ".join(f"group {one['group']} {one['from']} to {one['to']}" for one in groups[name]) + "."
        for name, title in (("users", "Items in a user's history"), ("items", "Training interactions of the target"))
    )


def _groups(report: dict[str, Any]) -> Figure:
    rows = [
        r
        for r in report["results"]
        if r["history"] == "masked" and r["labels"] == "train" and "groups" in r and r["scoring"] != "exact"
    ]
    figure, both = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, (name, title) in zip(both, (("users", "user group"), ("items", "item group")), strict=True):
        for row in rows:
            values = row["groups"][name]["recall@10"]
            axes.plot(range(len(values)), values, marker=".", label=row["model"] + (" + H" if row["reasoning"] else ""))
        axes.set_xticks([one["group"] for one in report["groups"][name]])
        axes.set_xlabel(f"{title} (0: sparsest)")
        axes.set_ylabel("Recall@10")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _curves(curves: dict[str, list[dict[str, Any]]]) -> Figure:
    figure, (loss, quality) = plt.subplots(1, 2, figsize=(9, 3.2))
    for name, epochs in curves.items():
        loss.plot([e["epoch"] for e in epochs], [e["loss"] for e in epochs], label=name)
        validated = [e for e in epochs if "ndcg@10" in e]
        quality.plot([e["epoch"] for e in validated], [e["ndcg@10"] for e in validated], marker=".", label=name)
    for axes, label in ((loss, "loss"), (quality, "validation NDCG@10")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    return figure


def picture(figure: Figure, caption: str) -> str:
    """A figure, drawn into the page and closed."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    data = base64.b64encode(stream.getvalue()).decode()
    alt = escape(caption, quote=True)
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{alt}</figcaption></figure>'


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table; the first row names the columns."""
    if not rows:
        return "<p>none</p>"

    def cell(tag: str, value: Any) -> str:  # noqa: ANN401 - whatever the report holds
        number = isinstance(value, int | float) and not isinstance(value, bool)
        shown = (
            f"{value:.4f}"
            if isinstance(value, float)
            else ("yes" if value is True else "no" if value is False else "–" if value is None else value)
        )
        return f"<{tag}{' class=number' if number else ''}>{escape(str(shown))}</{tag}>"

    columns = list(rows[0])
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(cell("td", row.get(c, "")) for c in columns) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
