"""Reports of the distillation stages as self-contained HTML pages."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from offline.page import html, picture, table


def write_page(
    folder: Path, summary: dict[str, Any], curve: list[dict[str, float]], shown: list[dict[str, str]]
) -> None:
    """`report.html` of stage `distill`; `shown` are a user and that user's chain by everybody, a dict each."""
    chains = summary["chains"]
    told = "knew the next purchase" if summary["hindsight"] else "did not know the next purchase"
    about = (
        f"Template: {' → '.join(summary['template'])}. The teacher {told}; students never do. Of {chains['asked']:,} "
        f"chains that it was asked for {chains['kept']:,} can be learnt from; {summary['held_out']:,} of them are held "
        "out from every student."
    )
    parts = [
        f"<h1>{escape(summary['dataset'])}: {escape(summary['student'])} learns from {escape(summary['teacher'])}</h1>",
        f"<p>{escape(about)}</p>",
        "<h2>On held-out users, before and after</h2>",
        table([_measured("undistilled", summary["before"]), _measured("distilled", summary["after"])]),
        picture(_curves(curve), "Loss by step: in training, and on held-out chains"),
        "<h2>Students</h2>",
        table(summary["students"]),
        "<h2>Why chains of the teacher were not learnt from</h2>",
        _counts(chains["rejected"] | ({"longer than max_length": chains["too_long"]} if chains["too_long"] else {})),
        "<h2>Why answers are no chains</h2>",
        *(f"<h3>{name}</h3>" + _counts(summary[key]["invalid"]) for name, key in _SIDES),
        "<h2>Chains of held-out users</h2>",
        *(
            f"<h3>{escape(name)}, user {escape(chain['user'])}</h3>" + _text(text)
            for chain in shown
            for name, text in chain.items()
            if name != "user"
        ),
    ]
    (folder / "report.html").write_text(html(f"Distillation: {summary['dataset']}", parts), encoding="utf-8")


_SIDES = (("undistilled", "before"), ("distilled", "after"))


def _measured(name: str, side: dict[str, Any]) -> dict[str, Any]:
    return {"model": name, **{key: value for key, value in side.items() if key != "invalid"}}


def _counts(reasons: dict[str, int]) -> str:
    return table([{"reason": reason, "chains": count} for reason, count in reasons.items()])


def _text(text: str) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in text.split("\n") if line.strip())


def _curves(rows: list[dict[str, float]]) -> Figure:
    figure, axes = plt.subplots(figsize=(8, 3.4))
    for fold in sorted({int(row["fold"]) for row in rows}):
        own = [row for row in rows if row["fold"] == fold]
        training = [row for row in own if "loss" in row]
        held = [row for row in own if "held_out_loss" in row]
        (line,) = axes.plot(
            [row["step"] for row in training], [row["loss"] for row in training], label=f"student {fold}", alpha=0.7
        )
        axes.plot(
            [row["step"] for row in held],
            [row["held_out_loss"] for row in held],
            "o--",
            color=line.get_color(),
            label=f"student {fold}, held out",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token of a chain")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
