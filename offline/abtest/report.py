"""The report of an A/B test: as one object for machines, as text for terminals, as a page with plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape as escape_html
from textwrap import fill
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from offline.abtest.attribution import HOLDOUT, Answers, Arm, Experiment, experiments
from offline.abtest.effects import METRICS, Metric, adjusted, effect, interval, rate, split, strata
from offline.abtest.logs import Rejected
from offline.errors import DataError
from offline.page import html, picture, table

CONTROL = "control"
OVERALL = "all"
NAME_WIDTH = 8  # characters of a name on one line, at least
LABELS = {metric.name: metric for metric in METRICS}


def analyse(
    answers: Answers,
    rejected: Rejected,
    *,
    control: str | None,
    only: str | None,
    groups: int,
    confidence: float,
    window: float,
) -> dict[str, Any]:
    """Everything that is to be said, as JSON can hold it. Raises DataError if there is nothing to analyse."""
    found = [one for one in experiments(answers) if only in {None, one.name}]
    if not found:
        there = ", ".join(one.name for one in experiments(answers)) or "none"
        what = "no experiment" if only is None else f"no experiment {only!r}"
        raise DataError(f"{what} in {answers.counts['used']:,} exposures; the log has: {there}")
    if control is not None and not any(arm.variation == control for one in found for arm in one.arms):
        raise DataError(f"no experiment in the log has a variation {control!r} to compare with")
    reports = [_experiment(one, control, groups, confidence) for one in found]
    # Of all experiments together; strata are looked at, not tested.
    overall = [one for report in reports for one in report["effects"] if one["stratum"] == OVERALL]
    for one, q in zip(overall, adjusted([one["p"] for one in overall]), strict=True):
        one["q"] = q
    tested = sum(one["p"] is not None for one in overall)
    return {
        "from": datetime.fromtimestamp(float(answers.ts.min()), UTC).isoformat(),
        "to": datetime.fromtimestamp(float(answers.ts.max()), UTC).isoformat(),
        "users": len(answers.users),
        "counts": answers.counts,
        "rejected": {
            "count": rejected.count,
            "rows": [{"place": place, "reason": reason} for place, reason in rejected.rows],
        },
        "window_hours": window / 3600,
        "confidence": confidence,
        "comparisons": tested,
        "experiments": reports,
    }


def _experiment(experiment: Experiment, control: str | None, groups: int, confidence: float) -> dict[str, Any]:
    base = _control(experiment, control)
    metrics = [metric for metric in METRICS if any(metric.numerator(arm).sum() for arm in experiment.arms)]
    checked = split(experiment)
    cut = [(OVERALL, experiment.arms), *strata(experiment, groups)]
    effects = [
        asdict(effect(metric, control_arm, arm, name, confidence))
        for name, arms in cut
        for control_arm in [next(arm for arm in arms if arm.variation == base)]
        for metric in metrics
        for arm in arms
        if arm.variation != base
    ]
    return {
        "experiment": experiment.name,
        "control": base,
        "arms": [_arm(arm, metrics, confidence) for arm in experiment.arms],
        "split": None
        if checked is None
        else {
            "observed": checked.observed,
            "expected": checked.expected,
            "p": checked.p,
            "mismatch": checked.mismatch,
        },
        "strata": [{"stratum": name, "users": sum(len(arm.answers) for arm in arms)} for name, arms in cut[1:]],
        "effects": effects,
        "warnings": _warnings(experiment, checked is None) + _doubts(experiment, base, control),
    }


def _arm(arm: Arm, metrics: Sequence[Metric], confidence: float) -> dict[str, Any]:
    rates = {}
    for metric in metrics:
        found = rate(metric, arm)
        low, high = interval(found, confidence)
        rates[metric.name] = {"value": found.value, "low": low, "high": high, "users_with_event": found.events}
    return {
        "variation": arm.variation,
        "weight": arm.weight,
        "users": len(arm.answers),
        "answers": int(arm.answers.sum()),
        "reasoning_used": arm.reasoned,
        "degraded": arm.degraded,
        "metrics": rates,
    }


def _control(experiment: Experiment, wanted: str | None) -> str:
    variations = [arm.variation for arm in experiment.arms]
    if experiment.name == HOLDOUT:
        return "holdout"
    if wanted is not None and wanted in variations:
        return wanted
    return CONTROL if CONTROL in variations else variations[0]


def _doubts(experiment: Experiment, base: str, wanted: str | None) -> list[str]:
    """What to say if the control was chosen for want of a better one. Variations without a name are numbers from 0."""
    if experiment.name == HOLDOUT or len(experiment.arms) < 2 or base in {wanted, CONTROL, "0"}:
        return []
    return [
        f"no variation is called {wanted or CONTROL!r}: {base!r} stands for it, as the first by name (see --control)"
    ]


def _warnings(experiment: Experiment, unchecked: bool) -> list[str]:  # noqa: FBT001 - private
    found: list[str] = []
    if len(experiment.arms) < 2:
        found.append("only one variation is in the log: there is nothing to compare")
    if experiment.crossed:
        found.append(f"{experiment.crossed:,} users were seen in several variations and are left out of all")
    if experiment.reweighted:
        found.append(
            "the shares of the variations changed during the log: analyse the time before and after separately, or "
            "users who came early weigh differently in each arm"
        )
    elif unchecked and experiment.name != HOLDOUT:
        found.append("the intended shares are not known: the split was not checked")
    return found


# ---- as text


def show(console: Console, report: dict[str, Any]) -> None:
    """Print the report."""
    counts = report["counts"]
    console.print(
        f"{counts['used']:,} answers to {report['users']:,} users, {report['from'][:16]} to {report['to'][:16]} UTC; "
        f"left out: {counts['shadow']:,} shadow, {counts['forced']:,} forced, {counts['repeated']:,} repeated\n"
        f"{counts['attributed']:,} of {counts['outcomes']:,} outcomes belong to an answer "
        f"(within {report['window_hours']:g} h)"
    )
    for note in _notes(counts):
        console.print(f"[yellow]warning:[/] {escape(note)}", soft_wrap=True)
    show_rejected(console, report["rejected"])
    for one in report["experiments"]:
        _show_experiment(console, one, report["confidence"])
    console.print(f"[dim]{escape(_footnote(report))}[/]")


def _notes(counts: dict[str, int]) -> list[str]:
    found: list[str] = []
    if counts["outcomes_repeated"]:
        found.append(f"{counts['outcomes_repeated']:,} outcomes bear an event_id that came before, and are left out")
    if counts["alike"]:
        found.append(
            f"{counts['alike']:,} purchases are like another one to the last digit, and all of them count: if the same "
            "rows were exported twice, GMV is too high (an event_id in each row would tell)"
        )
    return found


def show_rejected(console: Console, rejected: dict[str, Any]) -> None:
    """Say how many rows could not be read, and which the first ones were."""
    if rejected["count"]:
        console.print(f"[yellow]{rejected['count']:,} rows could not be read and are left out[/], such as:")
        for row in rejected["rows"][:5]:
            console.print(f"  {escape(row['place'])}: {escape(row['reason'])}", soft_wrap=True)


def _show_experiment(console: Console, one: dict[str, Any], confidence: float) -> None:
    console.rule(f"[bold]{escape(one['experiment'])}[/]  control: {escape(one['control'])}", align="left")
    if one["split"] and one["split"]["mismatch"]:
        console.print(Panel(escape(_mismatch(one["split"])), title="SAMPLE RATIO MISMATCH", style="bold red"))
    for warning in one["warnings"]:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    names = list(one["arms"][0]["metrics"])
    columns = ("variation", "users", "answers", "reasoning", "degraded", *(LABELS[name].label for name in names))
    arms = [
        (
            arm["variation"],
            f"{arm['users']:,}",
            f"{arm['answers']:,}",
            f"{arm['reasoning_used']:.1%}",
            f"{arm['degraded']:.1%}",
            *(_value(LABELS[name], arm["metrics"][name]["value"]) for name in names),
        )
        for arm in one["arms"]
    ]
    _show_table(console, columns, arms, texts=1)
    lifts = [
        (
            LABELS[row["metric"]].label,
            row["variation"],
            row["stratum"],
            _signed(row["lift"]),
            f"{_signed(row['lift_low'])}, {_signed(row['lift_high'])}" if row["lift_low"] is not None else "",
            _probability(row["p"]) + ("*" if row["few"] else ""),
            _probability(row.get("q")),
        )
        for row in one["effects"]
    ]
    if lifts:
        columns = ("metric", "variation", "users", "lift", f"{confidence:.0%} interval", "p", "q")
        _show_table(console, columns, lifts, texts=3)
    console.print()


def _show_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> None:
    """Print a table whose first `texts` columns hold texts, the others figures.

    Where there is little room, as in a file, texts go on in the next line, and then lines are longer than there is
    room for: half a name or half a figure would be another one.
    """
    drawn = Table(box=None, padding=(0, 1, 0, 0))
    needed = 0
    for place, column in enumerate(columns):
        longest = max(len(row[place]) for row in rows)
        if place < texts:
            width = min(max(longest, len(column)), NAME_WIDTH)
            drawn.add_column(column, overflow="fold", min_width=width)
        else:
            width = max(longest, *map(len, column.split()))
            drawn.add_column(fill(column, width), min_width=width, no_wrap=True, justify="right")
        needed += width + 1
    for row in rows:
        drawn.add_row(*map(escape, row))
    if needed > console.width:
        drawn.width = needed
    console.print(drawn, crop=False)


def _mismatch(found: dict[str, Any]) -> str:
    cells = ", ".join(
        f"{name} {count:,} where {found['expected'][name]:,.0f} were expected"
        for name, count in found["observed"].items()
    )
    return (
        f"{cells} (p = {found['p']:.2g}). Users are missing from an arm, or were counted in one that is not theirs. "
        "Do not act on the figures below: find out why first (crashes, time-outs, lost exposures or bots in one arm)."
    )


def _footnote(report: dict[str, Any]) -> str:
    return (
        f"Lift is relative to the control. Intervals and p-values take users as the unit (delta method, Welch's t). "
        f"{report['comparisons']} comparisons were made over all users: one in twenty would have p < .05 by chance, so "
        "read q, the p-value adjusted for their number (Benjamini-Hochberg). Strata are not adjusted for: they are "
        "to be looked at, not decided on. *: fewer than 20 users with an event in an arm; a hint at most."
    )


def _value(metric: Metric, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3%}" if metric.percent else f"{value:.4f}"


def _signed(share: float | None) -> str:
    return "" if share is None else f"{share:+.2%}"


def _probability(p: float | None) -> str:
    return "" if p is None else f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


# ---- as a page


def page(report: dict[str, Any]) -> str:
    """The report as one self-contained HTML page."""
    counts = report["counts"]
    summary = (
        f"{counts['used']:,} answers to {report['users']:,} users, {report['from'][:16]} to {report['to'][:16]} UTC. "
        f"{counts['attributed']:,} of {counts['outcomes']:,} outcomes belong to an answer, within "
        f"{report['window_hours']:g} hours. Left out: {counts['shadow']:,} shadow, {counts['forced']:,} forced and "
        f"{counts['repeated']:,} repeated exposures, {report['rejected']['count']:,} rows that could not be read."
    )
    parts = ["<h1>A/B test</h1>", f"<p>{summary}</p>"]
    parts += [f"<p>Warning: {escape_html(note)}.</p>" for note in _notes(counts)]
    for one in report["experiments"]:
        parts += _experiment_parts(one, report["confidence"])
    if report["rejected"]["rows"]:
        parts += ["<h2>Rows that could not be read</h2>", table(report["rejected"]["rows"])]
    parts.append(f"<p>{escape_html(_footnote(report))}</p>")
    return html("A/B test", parts)


def _experiment_parts(one: dict[str, Any], confidence: float) -> list[str]:
    parts = [f"<h2>{escape_html(one['experiment'])}, against {escape_html(one['control'])}</h2>"]
    if one["split"] and one["split"]["mismatch"]:
        parts.append(
            '<p style="background:#b00020;color:#fff;padding:.6rem"><strong>Sample ratio mismatch.</strong> '
            f"{escape_html(_mismatch(one['split']))}</p>"
        )
    parts += [f"<p>Warning: {escape_html(warning)}.</p>" for warning in one["warnings"]]
    drawn = [row for row in one["effects"] if row["lift_low"] is not None]
    if drawn:
        parts.append(picture(_forest(drawn), f"Lift against {one['control']}, {confidence:.0%} intervals"))
    parts.append(
        table(
            [
                {
                    "variation": arm["variation"],
                    "users": arm["users"],
                    "answers": arm["answers"],
                    "reasoning used": arm["reasoning_used"],
                    "degraded": arm["degraded"],
                    **{LABELS[name].label: found["value"] for name, found in arm["metrics"].items()},
                }
                for arm in one["arms"]
            ]
        )
    )
    parts.append(
        table(
            [
                {
                    "metric": LABELS[row["metric"]].label,
                    "variation": row["variation"],
                    "users": row["stratum"],
                    "lift": _signed(row["lift"]),
                    "from": _signed(row["lift_low"]),
                    "to": _signed(row["lift_high"]),
                    "p": _probability(row["p"]) + ("*" if row["few"] else ""),
                    "q": _probability(row.get("q")),
                }
                for row in one["effects"]
            ]
        )
    )
    return parts


def _forest(rows: list[dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(figsize=(8, 0.34 * len(rows) + 1))
    for place, row in enumerate(rows):
        good = row["lift"] > 0 if LABELS[row["metric"]].better == "higher" else row["lift"] < 0
        clear = row["lift_low"] > 0 or row["lift_high"] < 0
        colour = "#777777" if not clear else "#228833" if good else "#cc3311"
        axes.plot([100 * row["lift_low"], 100 * row["lift_high"]], [place, place], color=colour, linewidth=2)
        axes.plot([100 * row["lift"]], [place], "o", color=colour)
    names = [f"{LABELS[row['metric']].label}, {row['variation']}, {row['stratum']}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_xlabel("lift in %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
