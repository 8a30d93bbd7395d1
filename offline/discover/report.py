"""The report of a discovery as one page: which template, how good, how it was found, and what that cost."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from offline.chains.template import MANUAL
from offline.discover.evidence import CUTOFF, told
from offline.page import html, picture, table

_STYLE = """<style>
.chain { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; margin: 1rem 0 }
.chain span { background: #e8f0f8; border: 1px solid #4477aa; border-radius: .4rem; padding: .4rem .7rem }
.chain.won span { background: #4477aa; color: #fff; font-weight: 600 }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.4rem, 1fr)); gap: .6rem; margin: 1rem 0 }
.cards div { border: 1px solid #ddd; border-radius: .4rem; padding: .6rem .8rem }
.cards b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums }
.note { background: #fff6dd; border-left: 4px solid #ddaa33; padding: .6rem .9rem }
.example { border: 1px solid #ddd; border-radius: .4rem; padding: .2rem 1rem; margin: 1rem 0 }
.example ol { columns: 2; column-gap: 2rem; padding-left: 1.4rem }
.example li { break-inside: avoid } .hit { background: #d5efd5; font-weight: 600 }
td { vertical-align: top } small, figcaption { color: #555 } h2 { margin-top: 2.2rem }
</style>"""
_BLUE, _GREY, _GREEN = "#4477aa", "#999999", "#228833"
_REASON_CHARS = 900
_APART = 0.25  # a silhouette below which clusters are hardly clusters


def page(evidence: dict[str, Any]) -> str:
    """The page; `evidence` is what evidence.json holds. Everything in it that others wrote is escaped."""
    parts = [
        _STYLE,
        f"<h1>How to reason about the shoppers of {escape(evidence['dataset'])}</h1>",
        (
            f"<p>Written by {escape(evidence['backend'])}; texts compared by {escape(evidence['encoder'])}. "
            "Only training data were read: histories without their last three purchases, the first of which is to be "
            "found.</p>"
        ),
        *_warnings(evidence),
        *_template(evidence),
        *_found(evidence),
        *_patterns(evidence["mine"]),
        *_candidates(evidence),
        *_wording(evidence),
        *_examples(evidence),
        *_cost(evidence),
        _GLOSSARY,
    ]
    return html(f"Reasoning template of {evidence['dataset']}", parts)


_GLOSSARY = f"""<h2>How to read this</h2><ul>
<li><b>Recall@{CUTOFF}</b>: the share of shoppers whose next purchase is among the items suggested. A suggestion is a
description; the item of the catalogue that is most like it counts, also when the shopper has it already. <i>Unseen
items</i> is Recall with items that the shopper has stepped past.</li>
<li><b>NDCG@{CUTOFF}</b> also asks how far up the list it is.</li>
<li><b>Intervals</b> are 95%: they hold the true value for 19 of 20 such measurements. Two templates are told apart by
their <i>difference on the same shoppers</i>, whose interval then leaves out 0. Answers about one shopper resemble each
other, so that the intervals of patterns are a little too narrow.</li>
<li><b>Quality</b> of a pattern is the recall of its answers, drawn towards the mean of all the more the fewer there
are, and allowing for one group of shoppers being harder to guess than the other.</li>
<li><b>Three groups of shoppers</b> without one in common: paths are found with the first, chosen with the second,
and templates judged with the third.</li></ul>"""


def _warnings(evidence: dict[str, Any]) -> list[str]:
    notes: list[str] = []
    if evidence["teacher"] == "analyst":
        notes.append(
            "No language model took part. <code>analyst</code> writes from purchase statistics: this shows that the "
            "pipeline works and how its statistics behave, and says nothing about what an LLM's reasoning is worth."
        )
    hits = next(row for row in evidence["templates"] if row["name"] == "mined")["hits"]
    if hits < 10:
        notes.append(
            f"The template found {hits} purchases among {evidence['panels']['judge']:,} shoppers. That is too few to "
            "rank templates by: raise <code>discover.path_users</code> before deciding anything on this."
        )
    if not evidence["mined"]["by_backend"]:
        notes.append(
            "The backend did not put the pattern into words that can be read "
            f"({escape(', '.join(evidence['mined']['reasons']))}): the template is the cluster's most typical path."
        )
    return [f'<p class="note">{note}</p>' for note in notes]


# ---- the template and what it is worth


def _template(evidence: dict[str, Any]) -> list[str]:
    rows = evidence["templates"]
    mined = next(row for row in rows if row["name"] == "mined")
    manual = max((row for row in rows if row["name"] in MANUAL), key=lambda row: row["recall@20"]["value"])
    against = manual["against"]["recall@20"]
    verdict = {
        "better": "the mined template is better",
        "worse": "the mined template is worse",
        "not told apart": "this measurement does not tell the two apart",
    }[told(manual)]
    unreadable = any(row["unreadable"] for row in rows)
    references = "; ".join(f"{escape(row['name'])} {_share(row['recall@20'])}" for row in evidence["references"])
    return [
        "<h2>The template</h2>",
        _chain(mined["steps"], won=True),
        (
            f"<p>Of {mined['users']:,} shoppers who had no part in finding or choosing it, it found the next purchase "
            f"of <b>{mined['hits']:,}</b>: Recall@{CUTOFF} {_share(mined['recall@20'])}. The best manual template, "
            f"{escape(manual['name'])}, found {manual['hits']:,}: {_share(manual['recall@20'])}. On the same shoppers "
            f"that is a difference of {_points(against, ' points')} (p = {against['p']:.2g}): {verdict}.</p>"
        ),
        f"<p>For scale, untrained recommenders on these shoppers: {references}.</p>",
        picture(
            _forest([*rows, *evidence["references"]]),
            f"Recall@{CUTOFF} on the same {mined['users']:,} shoppers, with 95% intervals",
        ),
        table(
            [
                {
                    "template": row["name"],
                    "steps": _path(row["steps"]),
                    "found": row["hits"],
                    f"Recall@{CUTOFF}": row["recall@20"]["value"],
                    f"NDCG@{CUTOFF}": row["ndcg@20"],
                    "unseen items": row["masked_recall@20"]["value"],
                    "mined minus this, points": "" if row is mined else _points(row["against"]["recall@20"]),
                    **({"unreadable": row["unreadable"]} if unreadable else {}),
                }
                for row in rows
            ]
        ),
    ]


def _forest(rows: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = plt.subplots(figsize=(8.5, 0.42 * len(rows) + 1))
    for place, row in enumerate(rows):
        found = row["recall@20"]
        colour = _BLUE if row["name"] == "mined" else "#222222" if row["steps"] else _GREY
        axes.plot([100 * found["low"], 100 * found["high"]], [place, place], color=colour, linewidth=2)
        axes.plot([100 * found["value"]], [place], "o", color=colour)
        axes.annotate(
            f"{found['value']:.1%}",
            (100 * found["value"], place),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colour,
        )
    axes.set_yticks(range(len(rows)), [_plain(row["name"]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"Recall@{CUTOFF} in %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# ---- how it was found


def _found(evidence: dict[str, Any]) -> list[str]:
    found, panels = evidence["generate"], evidence["panels"]
    cards = [
        (f"{panels['explore']:,}", "shoppers asked about"),
        (f"{found['answers']:,}", "answers"),
        (f"{found['readable']:,}", f"could be read, {found['repaired']:,} of them after repair"),
        (f"{found['different_paths']:,}", "different paths"),
        (f"{found['kept']:,}", f"kept; {found['pruned']:,} are near-duplicates (cosine above {found['similarity']:g})"),
        (f"{evidence['mine']['k']}", "patterns" if evidence["mine"]["k"] > 1 else "pattern"),
        (f"{found['recall']['value']:.2%}", f"Recall@{CUTOFF} of these answers ({found['hits']:,} found)"),
    ]
    shown = "".join(f"<div><b>{escape(number)}</b>{escape(what)}</div>" for number, what in cards)
    return [
        "<h2>How it was found</h2>",
        f'<div class="cards">{shown}</div>',
        (
            f"<p>An answer suggests {found['recommendations']:.1f} products on average, which are "
            f"{found['different_items']:.1f} different items of the catalogue's {evidence['items']:,}.</p>"
        ),
    ]


def _patterns(mined: dict[str, Any]) -> list[str]:
    winner = mined["winner"]
    clusters = sorted(mined["clusters"], key=lambda one: -one["quality"]["value"])
    if len(clusters) == 1:
        sure = "There is one pattern: the paths are too few or too much alike to be divided."
    elif mined["clear"]:
        sure = f"Pattern {winner} is ahead of all others by more than the intervals."
    else:
        sure = f"Pattern {winner} has the highest quality, but its interval overlaps others: the choice is not certain."
    apart = max(mined["silhouette"].values(), default=None)
    blurred = (
        f" With a silhouette of {apart:.2f} they shade into each other: this is one of several possible cuts."
        if apart is not None and apart < _APART
        else ""
    )
    return [
        "<h2>The patterns</h2>",
        (
            f"<p>{sure}{blurred} All answers together find {mined['mean']:.2%}; every pattern starts from there, as if "
            f"{mined['shrinkage']:g} answers had said so, and its own answers move it.</p>"
        ),
        picture(
            _map(mined),
            f"The kept paths, laid flat: alike is near ({mined['map']['variance']:.0%} of all differences are in these "
            "two directions). Right: how well the paths fall apart into k patterns",
        ),
        picture(_qualities(clusters, winner), "Quality of the patterns, with 95% intervals"),
        table(
            [
                {
                    "pattern": f"{one['cluster']}{' ★' if one['cluster'] == winner else ''}",
                    "most typical path": _path(one["typical"]),
                    "paths": one["paths"],
                    "answers": one["answers"] + one["applied"],
                    "found": one["hits"] + one["applied_hits"],
                    "recall": f"{one['recall']['value']:.2%}",
                    "quality": f"{one['quality']['value']:.2%}",
                    "from": f"{one['quality']['low']:.2%}",
                    "to": f"{one['quality']['high']:.2%}",
                }
                for one in clusters
            ]
        ),
    ]


def _map(mined: dict[str, Any]) -> Figure:
    figure, (axes, curve) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=[3, 2])
    colours = plt.get_cmap("tab20" if mined["k"] > 10 else "tab10")
    for one in range(mined["k"]):
        points = [point for point in mined["map"]["points"] if point[2] == one]
        won = one == mined["winner"]
        axes.scatter(
            [point[0] for point in points],
            [point[1] for point in points],
            s=[14 + 6 * min(point[3], 40) ** 0.8 for point in points],
            color=colours(one),
            alpha=0.85 if won else 0.45,
            edgecolors="#111111" if won else "none",
            linewidths=0.8,
            label=f"{one}{' ★' if won else ''}",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.08)
    axes.legend(title="pattern", fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("paths; larger: more answers", fontsize=10)
    ks = [int(k) for k in mined["silhouette"]]
    if ks:
        values = list(mined["silhouette"].values())
        curve.plot(ks, values, marker=".", color=_BLUE)
        best = max(range(len(ks)), key=lambda place: values[place])
        curve.plot([ks[best]], [values[best]], "o", color=_BLUE, markersize=9)
        curve.set_xticks(ks)
        curve.set_ylim(min(0.0, *values), max(0.3, *values) * 1.05)
    else:
        curve.text(0.5, 0.5, "too few paths", ha="center", va="center", transform=curve.transAxes)
    curve.set_xlabel("k")
    curve.set_title("silhouette", fontsize=10)
    curve.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _qualities(clusters: Sequence[dict[str, Any]], winner: int) -> Figure:
    figure, axes = plt.subplots(figsize=(8.5, 0.36 * len(clusters) + 1))
    for place, one in enumerate(clusters):
        colour = _BLUE if one["cluster"] == winner else "#777777"
        found = one["quality"]
        axes.plot([100 * found["low"], 100 * found["high"]], [place, place], color=colour, linewidth=2)
        axes.plot([100 * found["value"]], [place], "o", color=colour)
        axes.plot([100 * one["recall"]["value"]], [place], "|", color="#222222", markersize=9)
    axes.set_yticks(range(len(clusters)), [f"pattern {one['cluster']}" for one in clusters])
    axes.set_ylim(len(clusters) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("quality in %  (upright bar: plain recall of its answers)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _candidates(evidence: dict[str, Any]) -> list[str]:
    rows = evidence["candidates"]
    unreadable = any(row["unreadable"] for row in rows)
    return [
        "<h2>The most promising paths, tried on other shoppers</h2>",
        (
            f"<p>Each was applied to the same {evidence['panels']['choose']:,} shoppers. What they found counts for "
            "the quality of their patterns.</p>"
        ),
        table(
            [
                {
                    "path": _path(row["steps"]),
                    "pattern": row["cluster"],
                    "found": row["hits"],
                    f"Recall@{CUTOFF}": f"{row['recall@20']['value']:.2%}",
                    "from": f"{row['recall@20']['low']:.2%}",
                    "to": f"{row['recall@20']['high']:.2%}",
                    "best minus this, points": _points(row["against"]["recall@20"]),
                    **({"unreadable": row["unreadable"]} if unreadable else {}),
                }
                for row in sorted(rows, key=lambda row: -row["recall@20"]["value"])
            ]
        ),
    ]


def _wording(evidence: dict[str, Any]) -> list[str]:
    mined = evidence["mined"]
    notes = [f"<li><b>{escape(name.capitalize())}</b>: {escape(text)}</li>" for name, text in mined["notes"].items()]
    exemplars = [f"<li>{escape(_path(path))}</li>" for path in mined["exemplars"]]
    who = "The backend put the winning pattern into one path" if mined["by_backend"] else "The first was taken"
    return [
        "<h2>How it was worded</h2>",
        f"<p>{who}, from those that are nearest the middle of the pattern:</p>",
        f"<ol>{''.join(exemplars)}</ol>",
        *(["<p>In its own words:</p>", f"<ul>{''.join(notes)}</ul>"] if notes else []),
    ]


# ---- examples and cost


def _examples(evidence: dict[str, Any]) -> list[str]:
    parts = ["<h2>Answers of the winning pattern</h2>"]
    for one in evidence["examples"]:
        reason = one["reason"]
        shown = reason if len(reason) <= _REASON_CHARS else reason[:_REASON_CHARS].rsplit(" ", 1)[0] + "…"
        items = "".join(
            f"<li{' class=hit' if row['hit'] else ''}>{escape(row['text'])} <small>→ {escape(row['item'])}</small></li>"
            for row in one["recommendations"]
        )
        outcome = f"found at place {one['rank']}" if one["rank"] else "not found"
        parts.append(
            f'<div class="example"><p><b>Bought</b>: {escape("; ".join(one["history"]))}</p>'
            f"{_chain(one['path'])}<p>{escape(shown)}</p>"
            f"<p><b>Suggested</b>, and the item that each is taken for:</p><ol>{items}</ol>"
            f"<p><b>Bought next</b>: {escape(one['target'])} ({outcome})</p></div>"
        )
    return parts


def _cost(evidence: dict[str, Any]) -> list[str]:
    cost = evidence["cost"]
    spent = f", at the recipe's prices {cost['cost']:,.2f}" if cost["cost"] else ""
    rejected = evidence["rejected"]
    repairs = evidence["generate"]["repairs"]
    return [
        "<h2>Cost, and what could not be used</h2>",
        (
            f"<p>{cost['requests']:,} requests ({cost['retries']:,} repeated, {cost['failed']:,} failed), "
            f"{cost['cached']:,} answered from the cache; {cost['prompt_tokens']:,} tokens read and "
            f"{cost['completion_tokens']:,} written in {cost['seconds']:,.0f} s{spent}.</p>"
        ),
        f"<p>Rejected: {sum(row['count'] for row in rejected):,}.</p>",
        *([table(rejected)] if rejected else []),
        *(
            ["<p>Repaired:</p>", table([{"repair": name, "answers": n} for name, n in repairs.items()])]
            if repairs
            else []
        ),
    ]


# ---- words


def _chain(steps: Sequence[str], *, won: bool = False) -> str:
    spans = " → ".join(f"<span>{escape(step)}</span>" for step in steps)
    return f'<div class="chain{" won" if won else ""}">{spans}</div>'


def _share(found: dict[str, float]) -> str:
    return f"{found['value']:.2%} (95% interval {found['low']:.2%} to {found['high']:.2%})"


def _points(found: dict[str, float], unit: str = "") -> str:
    """A difference of shares, in percentage points; its parts do not break apart."""
    value, low, high = (f"{100 * found[part]:+.1f}".replace("-", "−") for part in ("value", "low", "high"))
    return f"{value}{unit} ({low} to {high})".replace(" ", "\N{NO-BREAK SPACE}")


def _path(steps: Sequence[str]) -> str:
    return " → ".join(steps)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # else matplotlib sets formulas
