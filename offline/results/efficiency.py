"""Table 9: what training and measuring a model take."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from offline.results.commands import KEEP, measured
from offline.results.lines import Lines
from offline.results.markdown import missing, section, table
from offline.results.runs import Run
from offline.results.settings import BACKBONE, NAMES, setting

_WORDS = (
    "Ours on two CPU cores, shared with other work: medians over trainings, with the fastest and the slowest; the "
    "paper's on one NVIDIA H20. An evaluation is all that the report has of a model: both histories, with and without "
    "H, and exact scoring of a sample. The best epoch is validation's choice; 0 is the fusion as it starts, on a "
    "trained backbone; earlier runs did not keep it. What one request costs is in [load.md](load.md)."
)


def efficiency(runs: Sequence[Run], lines: Lines, paper: dict[str, Any]) -> str:
    """A row for each model and way on each data set."""
    curves: dict[tuple[str, str, str], list[list[dict[str, Any]]]] = {}
    evaluations: dict[tuple[str, str, str], list[float]] = {}
    best: dict[tuple[str, str, str], list[float]] = {}
    for run in runs:
        for stage, epochs in run.curves.items():
            model = stage.removeprefix("train-")
            if run.stage != "evaluate" or model not in NAMES:  # a refit takes as long
                continue
            how = setting(run.recipe, {"model": model, "reasoning": BACKBONE[model] != model})
            if how.what == "matched":  # of another size
                continue
            key = (run.dataset, model, lines.ways.letters(how))
            if epochs not in curves.setdefault(key, []):  # a later evaluation of a training has the same curve
                curves[key].append(epochs)
                spent = run.body.get("seconds", {}).get(f"evaluate {stage}")
                evaluations.setdefault(key, []).extend([] if spent is None else [spent])
                which = run.summaries.get(stage, {}).get("best_epoch")
                best.setdefault(key, []).extend([] if which is None else [which])
    if not curves:
        return section("Table 9: time", missing("a trained model", measured("beauty", "beauty", "beauty"), KEEP))
    rows = []
    for key, found in sorted(curves.items(), key=lambda one: (one[0][0], list(NAMES).index(one[0][1]))):
        dataset, model, letters = key
        told = paper["efficiency"].get(dataset, {}).get(model)
        rows.append(
            [
                dataset,
                f"{NAMES[model]} [{letters}]" if letters else NAMES[model],
                str(len(found)),
                _spread([sum(epoch["seconds"] for epoch in epochs) / len(epochs) for epochs in found]),
                _spread([len(epochs) for epochs in found]),
                _spread(best[key]),
                _spread(evaluations[key]),
                "–" if told is None else f"*{told[0]:.2f}, {told[1]:.2f}*",
            ]
        )
    head = [
        "data set",
        "model",
        "trainings",
        "seconds an epoch",
        "epochs",
        "best one",
        "evaluation, s",
        "*paper: epoch, inference*",
    ]
    return section("Table 9: time", _WORDS, table(head, rows, text=2))


def _spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    if not values:
        return "–"
    middle, low, high = (f"{value:.0f}" for value in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
