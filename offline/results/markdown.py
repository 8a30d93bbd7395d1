"""Tables and figures of numbers in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from offline.results.lines import Line
from offline.significance import FLOOR


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A table whose first columns are text; the others are figures."""
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * text + " ---: |" * (len(head) - text),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def section(title: str, *parts: str, level: int = 2) -> str:
    """A heading and what is under it."""
    return "\n\n".join([f"{'#' * level} {title}", *(part for part in parts if part)])


def decimals(value: float) -> str:
    """A share with four places and no zero before the point."""
    return f"{value:.4f}".removeprefix("0")


def figure(line: Line | None, metrics: Sequence[str] = ("recall@10", "ndcg@10")) -> str:
    """.0911 / .0531, with ± the standard deviation where there are several seeds; a dash where there is none."""
    if line is None:
        return "–"
    found = [line.over_trainings(metric) for metric in metrics]
    return " / ".join(decimals(one.mean) + (f" ± {decimals(one.sd)}" if one.sd is not None else "") for one in found)


def counted(*lines: Line) -> str:
    """How many runs a row is the mean of, under each of its switches, and on how many sets of IDs if on several."""
    runs = " or ".join(map(str, sorted({line.trainings for line in lines}, reverse=True)))
    return runs + mixed(*lines)


def mixed(*lines: Line) -> str:
    """A clause where runs of a row stand on different semantic IDs, which is more than another seed; else empty."""
    sets = max(len(line.ids) for line in lines)
    return f", on {sets} sets of semantic IDs" if sets > 1 else ""


def chance(p: float) -> str:
    """A p with two digits; below `FLOOR` a bound."""
    return f"≤ {FLOOR:.2g}" if p <= FLOOR else f"{p:.2g}"


def quoted(values: Sequence[float] | None) -> str:
    """Figures of the paper, set apart from ours."""
    return "–" if values is None else "*" + " / ".join(decimals(value) for value in values) + "*"


def folded(title: str, *parts: str) -> str:
    """What few look for: its title, which opens it. Empty without any parts."""
    told = [part for part in parts if part]
    return "\n\n".join([f"<details><summary>{title}</summary>", *told, "</details>"]) if told else ""


def missing(what: str, *commands: str) -> str:
    """What to run for a section that nothing has been run for."""
    lines = "\n".join(commands)
    return f"No run yet: {what}.\n\n" + folded("Commands", f"```sh\n{lines}\n```")
