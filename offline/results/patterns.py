"""Tables 2, 3 and 11 and Figure 3: what the reasoning template is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offline.discover.estimate import Estimate, wilson
from offline.ranking import TOP
from offline.results.commands import KEEP, measured, name, recipe, under
from offline.results.lines import Line, Lines, gain
from offline.results.markdown import counted, decimals, figure, folded, missing, quoted, section, table
from offline.results.overall import against
from offline.results.runs import Run
from offline.results.settings import BACKBONE, NAMES

TEMPLATES = ("two-step", "three-step", "five-step", "discovered")
TOP_K = "top-k.json"  # as `discover` calls the template from the best single chains


def by_template(lines: Lines, model: str) -> dict[str, tuple[Line, Line]]:
    """A model on beauty with its backbone, by the template of its chains, otherwise made alike.

    Of several ways to make it: the one with most templates, of those the one with most runs, and then the best.
    """
    ways: dict[str, dict[str, tuple[Line, Line]]] = {}
    for line in lines.full("beauty", model):
        backbone = lines.backbone(line)
        if backbone is not None and line.setting.template in TEMPLATES:
            way = lines.ways.letters(line.setting)
            ways.setdefault(way, {}).setdefault(line.setting.template, (line, backbone))

    def known(way: dict[str, tuple[Line, Line]]) -> tuple[int, int, float]:
        made = [line for line, _ in way.values()]
        return len(made), sum(line.trainings for line in made), max(line.mean(f"recall@{TOP}") for line in made)

    return max(ways.values(), key=known, default={})


def templates(lines: Lines, paper: dict[str, Any], plots: set[str]) -> str:
    """Figure 3."""
    parts: list[str] = []
    absent: dict[str, list[str]] = {}
    for model in ("scoter_h", "scoter_t"):
        found = by_template(lines, model)
        for template in TEMPLATES:
            if template not in found:
                absent.setdefault(template, []).append(model)
        rows = [
            [
                lines.name(line),
                counted(line),
                figure(line),
                f"{gain(line, backbone):+.1%}",
                _percent(paper["templates"][model].get(template)),
            ]
            for template, (line, backbone) in found.items()
        ]
        if rows:
            head = ["model", "runs", "Recall@10 / NDCG@10", "over its backbone, Recall@10", "*paper*"]
            parts.append(table(head, rows))
        if f"figure-3-{model}" in plots:
            parts.append(f"![Gain over the backbone by template](results/figure-3-{model}.svg)")
    commands: list[str] = []
    for template, models in absent.items():
        called = "-".join(["beauty", template, *(model.replace("_", "-") for model in models)])
        both = ", ".join(f'"{one}"' for model in models for one in (BACKBONE[model], model))
        edits = [name("beauty"), f"1 i models = [{both}]", under("reason", f'template = "{template}"')]
        commands += [recipe("beauty", called, *edits), measured(f"{called}.toml", "beauty", called)]
    if absent:
        told = ", ".join(f"{one} ({' and '.join(NAMES[model] for model in models)})" for one, models in absent.items())
        parts.append(missing(told, *commands, KEEP))
    return section("Figure 3: manual templates and the discovered one", *parts)


def discovery(runs: Sequence[Run], lines: Lines, paper: dict[str, Any]) -> str:
    """Table 2, Table 3 and what `discover` itself measured."""
    head = ["SCoTER-H", "runs", "Recall@10 / NDCG@10", "over its backbone, Recall@10", "p", "*paper*"]
    told = paper["discovery"]
    selected = [
        *_trained(lines, "beauty", "discovered", "the best cluster, beauty", told["clustering"]),
        *_trained(lines, "beauty", TOP_K, "the ten best single chains, beauty", told["top-k"]),
    ]
    carried = [
        row
        for source, dataset in (("beauty", "beauty"), ("sports", "beauty"), ("sports", "sports"), ("beauty", "sports"))
        for row in _trained(
            lines,
            dataset,
            "discovered" if source == dataset else f"{source}.json",
            f"found on {source}, used on {dataset}",
            paper["transfer"][f"{source}-{dataset}"],
        )
    ]
    parts = [
        "Table 2: how the chains are chosen that a template is mined from.\n\n" + table(head, selected),
        "Table 3: on which data set it was found.\n\n" + table(head, carried),
        *_untrained(lines),
    ]
    found = [run for run in runs if run.stage == "discover"]
    measured_alone = []
    for run in found:
        judges = run.body.get("panels", {}).get("judge", 0)
        cells = [
            [called, decimals(value), _interval(wilson(round(value * judges), judges)) if judges else "–"]
            for called, value in run.body.get("recall@20", {}).items()
        ]
        about = f"{run.name}: what `discover` measured on {run.dataset} with {run.body.get('backend', 'its backend')}"
        asked = (
            f"{judges:,} users who had no part in finding templates" if judges else "users whose number was not kept"
        )
        measured_alone.append(
            f"{about}, the recommendations in the chains themselves, {asked}:\n\n"
            + table(["who", "Recall@20", "95 % over users"], cells)
        )
    parts.append(folded("What `discover` measures by itself, without a model", *measured_alone))
    return section("Tables 2 and 3: how a template is found, and whether it travels", *parts)


def _trained(lines: Lines, dataset: str, template: str, what: str, quote: list[float]) -> list[list[str]]:
    """Models whose chains follow a template, or a row that says that there is none."""
    rows: list[list[str]] = []
    for line in lines.full(dataset, "scoter_h"):
        backbone = lines.backbone(line)
        if line.setting.template == template and backbone is not None:
            _, _, relative, _, p, _ = against(line, backbone)
            called = f"{what} [{lines.ways.letters(line.setting)}]"
            rows.append([called, counted(line), figure(line), relative, p, quoted(quote)])
    return rows or [[what, "0", "–", "–", "–", quoted(quote)]]


def _untrained(lines: Lines) -> list[str]:
    """What trains the models that are missing from Tables 2 and 3."""
    commands: list[str] = []
    told: list[str] = []
    for dataset, template in (
        ("beauty", "discovered"),
        ("beauty", TOP_K),
        ("beauty", "sports.json"),
        ("sports", "discovered"),
        ("sports", "beauty.json"),
    ):
        if template in {line.setting.template for line in lines.full(dataset, "scoter_h")}:
            continue
        told.append(f"{dataset} under {template}")
        called = f"{dataset}-{template.removesuffix('.json')}-template"
        if template != "discovered":
            source, file = (dataset, TOP_K) if template == TOP_K else (template[: -len(".json")], "template.json")
            commands += [
                f"scoter discover beauty --data data/{source} --work out/{source}",
                f"cp out/{source}/discover-*/{file} {template}",
            ]
        commands += [
            recipe("beauty", called, name(dataset), under("reason", f'template = "{template}"')),
            measured(f"{called}.toml", dataset, called),
        ]
    return [missing(f"a model on {', on '.join(told)}", *commands, KEEP)] if told else []


def recommenders(runs: Sequence[Run], paper: dict[str, Any]) -> str:
    """Table 11."""
    rows = [[f"paper, {one}", quoted(values[:2]), quoted(values[2:])] for one, values in paper["recommender"].items()]
    parts = [table(["Recall@20 / NDCG@20", "large teacher", "fine-tuned 8B student"], rows)]
    found = [run for run in runs if run.stage == "compare"]
    for run in found:
        cells = [
            [
                *(str(row[column]) for column in ("who", "query", "history")),
                decimals(row["recall@20"]),
                _interval(Estimate(row["recall@20"], row["low"], row["high"])) if "low" in row else "–",
                decimals(row["ndcg@20"]),
            ]
            for row in run.body["results"]
        ]
        head = ["who", "query", "history", "Recall@20", "95 % over users", "NDCG@20"]
        parts.append(f"{run.name}, {run.body['users']:,} users of {run.dataset}:\n\n" + table(head, cells, text=3))
    if not found:
        parts.append(
            missing(
                "teacher and students as recommenders",
                "scoter distill beauty --data data/beauty --work out/distill --compare",
                "scoter results add out/distill/compare-* --name beauty-compare",
                KEEP,
            )
        )
    return section("Table 11: language models as recommenders, without a backbone", *parts)


def _interval(share: Estimate) -> str:
    """The ends of its interval."""
    return f"[{decimals(share.low)}, {decimals(share.high)}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"*{value:+.1%}*"
