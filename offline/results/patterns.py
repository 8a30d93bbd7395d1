"""Tables 2, 3 and 11: where a template was found, and what chains recommend by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offline.discover.estimate import Estimate, wilson
from offline.results.commands import KEEP, measured, name, recipe, under
from offline.results.lines import Lines
from offline.results.markdown import counted, decimals, figure, folded, missing, quoted, section, table
from offline.results.overall import against
from offline.results.runs import Run

TOP_K = "top-k.json"  # as `discover` calls the template from the best single chains


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
        "Rows of different ways, the letters in brackets, differ by more than the template.",
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
        if line.setting.template == template:
            _, _, relative, _, p, _ = ["–"] * 6 if backbone is None else against(line, backbone)
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
