"""Table 1: every model under every switch, and what reasoning adds to each backbone."""

from __future__ import annotations

from typing import Any

from offline.ranking import TOP
from offline.results.commands import KEEP, last, measured, name, recipe, under
from offline.results.lines import SWITCHES, Line, Lines, common, compare, gain, paired, ranked, trainings
from offline.results.markdown import chance, counted, decimals, figure, folded, missing, quoted, section, table
from offline.results.settings import BACKBONE, NAMES

DATASETS = {"beauty": "Amazon Beauty", "sports": "Amazon Sports", "instruments": "Amazon Instruments"}
_SWITCHES = [
    "train, masked",
    "train, not masked",
    "train + validation, masked",
    "train + validation, not masked",
]
SEEDS = (1, 2, 3)  # of the headline comparison
_TABLE_1 = ["LightGCN", "Caser", "HGN", "BERT4Rec", "SASRec", "hstu", "scoter_h", "tiger", "scoter_t"]


def overall(lines: Lines, paper: dict[str, Any]) -> list[str]:
    """A section for each data set."""
    names = list(dict.fromkeys([*DATASETS, *lines.datasets()]))
    return [_dataset(lines, dataset, paper["overall"].get(dataset, {})) for dataset in names]


def _dataset(lines: Lines, dataset: str, paper: dict[str, list[float]]) -> str:
    title = f"Table 1: {DATASETS.get(dataset, dataset)}"
    shown = list({line.setting.key: line for switch in SWITCHES for line in lines.of(dataset, *switch)}.values())
    shown = [line for line in shown if line.setting.what == "full" or _withheld(line)]
    absent = [model for model in _TABLE_1 if model not in {line.setting.model for line in shown}]
    missed = missing(
        f"{', '.join(NAMES.get(model, f'{model} (RecBole)') for model in absent)}", *_commands(dataset, absent)
    )
    if not shown:
        return section(title, missed, level=3)
    tables: list[str] = []
    for cutoff, columns in ((10, (1, 3)), (5, (0, 2))):
        rows = []
        for line in shown:
            values = paper.get(line.setting.model)
            chosen = [values[column] for column in columns] if values and line.setting.what == "full" else None
            cells = [figure(lines.same(line, *switch), (f"recall@{cutoff}", f"ndcg@{cutoff}")) for switch in SWITCHES]
            measured_under = [same for switch in SWITCHES if (same := lines.same(line, *switch)) is not None]
            rows.append([lines.name(line), counted(*measured_under), *cells, quoted(chosen)])
        head = [f"Recall@{cutoff} / NDCG@{cutoff}", "runs", *_SWITCHES, "*paper*"]
        tables.append(table(head, rows))
    parts = [tables[0], folded("Recall@5 and NDCG@5", tables[1]), *_lifts(lines, dataset)]
    return section(title, *parts, missed if absent else "", _more_seeds(lines, dataset), level=3)


def _withheld(line: Line) -> bool:
    """A model whose H is withheld at test time, where that is not its backbone's ranking."""
    way = line.setting.way
    return line.setting.what == "withheld" and way is not None and not way.stands


def _more_seeds(lines: Lines, dataset: str) -> str:
    """What is left of three seeds for the headline comparison."""
    trained = lines.full(dataset, "scoter_h")
    trained_with = max(({draw[0] for draw in line.draws if draw} for line in trained), key=len, default=set())
    left = [seed for seed in SEEDS if seed not in trained_with]
    if not trained or not left:
        return ""
    commands: list[str] = []
    for seed in left:
        called = f"{dataset}-seed-{seed}"
        edits = [name(dataset), under("train", f"seed = {seed}"), under("evaluate", "refit = true")]
        commands += [recipe("beauty", called, *edits), measured(f"{called}.toml", dataset, called)]
    told = " and ".join(map(str, left))
    return missing(f"HSTU and SCoTER-H with seed{'s' if len(left) > 1 else ''} {told}", *commands, KEEP)


def _lifts(lines: Lines, dataset: str) -> list[str]:
    """Each model that reads H against its own backbone: the switches of a headline, and the others folded."""
    head = ["with reasoning", "switches", "metric", "with", "alone", "relative", "difference, 95 % over users", "p"]
    usual, others = (_lift_rows(lines, dataset, switches) for switches in (SWITCHES[:1], SWITCHES[1:]))
    if not usual:
        return []
    told = "With reasoning against the backbone alone:\n\n" + table([*head, "runs"], usual, text=3)
    return [told, folded("Under other switches", table([*head, "runs"], others, text=3) if others else "")]


def _lift_rows(lines: Lines, dataset: str, switches: list[tuple[str, str]]) -> list[list[str]]:
    rows: list[list[str]] = []
    for labels, history in switches:
        for line in lines.of(dataset, labels, history):
            if (
                BACKBONE.get(line.setting.model, line.setting.model) == line.setting.model
                or line.setting.what != "full"
            ):
                continue
            backbone = lines.backbone(line)
            if backbone is None:
                continue
            rows.extend(
                [lines.name(line), f"{labels}, {history}", metric, *against(line, backbone, metric)]
                for metric in (f"recall@{TOP}", f"ndcg@{TOP}")
            )
    return rows


def against(line: Line, other: Line, metric: str = f"recall@{TOP}") -> list[str]:
    """Cells: both means, relative difference, difference with its interval, p, and how many runs.

    All are over the draws that both have, but interval and p over those whose ranks were kept: where that is not every
    one, the cells say so.
    """
    cells = [*map(decimals, paired(line, other, metric)), f"{gain(line, other, metric):+.1%}"]
    both = common(line, other)
    runs = trainings(both or line.draws)
    found = compare(line, other, metric)
    if found is None:
        return [*cells, "no ranks kept" if both else "of different trainings", "–", str(runs)]
    told = len(ranked(line, other))
    only = f" ({told} of {len(both)} kept ranks)" if told < len(both) else ""
    interval = f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    return [*cells, interval + only, chance(found.p) + only, str(runs)]


# Heads of the cells of `drop`, with a place for what is compared with.
DROP = ["Recall@10 against {}, same draws", "95 % over users", "p", "NDCG@10", "95 % over users", "p"]


def drop(line: Line, whole: Line | None) -> list[str]:
    """Cells: what became of the whole's Recall@10, relative, the difference with its interval, p; NDCG@10 likewise."""
    if whole is None:
        return ["no whole of this way", *["–"] * (len(DROP) - 1)]
    cells: list[str] = []
    for metric in (f"recall@{TOP}", f"ndcg@{TOP}"):
        _, _, relative, difference, p, _ = against(line, whole, metric)
        cells += [relative, difference, p]
    return cells


def _commands(dataset: str, absent: list[str]) -> list[str]:
    """What trains them."""
    commands: list[str] = []
    ours = [model for model in absent if model in BACKBONE]
    refit = under("evaluate", "refit = true")
    if ours:
        models = ", ".join(f'"{model}"' for model in ours)
        called = f"{dataset}-" + "-".join(model.replace("_", "-") for model in ours)
        edits = [name(dataset), rf"1 i models = [{models}]", refit]
        commands += [recipe("beauty", called, *edits), measured(f"{called}.toml", dataset, called)]
    theirs = [model for model in absent if model not in BACKBONE]
    if theirs:
        called = f"{dataset}-baselines"
        chosen = ", ".join(f'"{model}"' for model in theirs)
        edits = [name(dataset), refit, last("baselines", f"models = [{chosen}]")]
        commands += [
            recipe("beauty", called, *edits),
            measured(f"{called}.toml", dataset, called, "baselines"),
        ]
    return [*commands, KEEP]
