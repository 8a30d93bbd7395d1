"""`docs/results.md` and its plots, from what runs left in `docs/results/`: the same input gives the same bytes."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from offline.results.ablations import ablations, controls, weights
from offline.results.lines import Lines
from offline.results.markdown import section, table
from offline.results.overall import overall
from offline.results.patterns import discovery, recommenders, templates
from offline.results.runs import Run, Tried, load_runs
from offline.results.sparsity import efficiency, groups
from offline.results.targets import targets

_INTRODUCTION = """# Results

Written by `scoter results write` from the runs kept in [results/](results/); edit those, not this page. How to add a
run is [below](#runs).

How to read it:

- **Everything is measured by one evaluator**: the last item of each user is the target, the whole catalogue is ranked,
  each figure says what was trained on (`train`, or the validation items too) and whether the user's own history was
  masked. Generative models are ranked as they serve, by a beam of 20. A figure without switches has the history masked
  and labels of the training split alone.
- **The untrained co-occurrence kNN stands in every table.** A model that does not beat it has learnt nothing from
  sequences that counting would not give.
- **`analyst` is no language model.** Chains said to be by `analyst` are statistics put into words. Nothing measured on
  them says what an LLM's reasoning is worth.
- ± is the standard deviation over runs: other seeds, or the same seed with other semantic IDs. Intervals and p are
  about users, with the same seeds paired: 2,000 bootstrap resamples, and 2,000 random signs. They do not say what
  another seed would do.
- *Figures in italics are quoted from the paper*, which says of neither switch which one it took.
"""


def write_results(docs: Path) -> Path:
    """Write `docs`.md and the plots in `docs`; returns the page. Raises DataError on runs that cannot be read."""
    runs, tried = load_runs(docs)
    from offline.results.plots import plots, save  # noqa: PLC0415 - matplotlib takes a second to import

    lines = Lines(runs)
    found = plots(lines)
    page = docs.with_suffix(".md")
    page.write_text(told(runs, tried, lines, set(found)), encoding="utf-8")
    save(found, docs)
    return page


def told(runs: Sequence[Run], tried: Sequence[Tried], lines: Lines, plotted: set[str]) -> str:
    """The page, with links to those plots."""
    paper: dict[str, Any] = tomllib.loads((files("offline.results") / "paper.toml").read_text(encoding="utf-8"))
    parts = [
        _INTRODUCTION.rstrip(),
        _targets(lines, tried),
        section("Overall", *overall(lines, paper)),
        controls(lines),
        section("Ablations", *ablations(lines, paper)),
        templates(lines, paper, plotted),
        discovery(runs, lines, paper),
        section("Sparse and dense users and items", *groups(lines, paper, plotted)),
        weights(lines, plotted),
        efficiency(runs, paper),
        recommenders(runs, paper),
        _runs(runs),
    ]
    return "\n\n".join(parts) + "\n"


def _targets(lines: Lines, tried: Sequence[Tried]) -> str:
    rows = [[one.what, one.wanted, one.ours or "–", one.verdict] for one in targets(lines)]
    head = ["History masked, labels of the training split", "target", "ours", "verdict"]
    words = "\n".join(f"- {one.date}: {one.what}" for one in tried)
    return section("Targets", table(head, rows), f"What was tried:\n\n{words}" if words else "")


def _runs(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        void = [
            f"void: {', '.join(one.models) or 'all'}{f' ({one.labels})' if one.labels else ''}: {one.why}"
            for one in run.void
        ]
        seed = run.recipe.get("train", {}).get("seed", "–")
        kept = "yes" if run.ranks else "no"
        recipe = str(run.recipe.get("name", "–"))
        rows.append([run.name, run.stage, run.dataset, recipe, str(seed), kept, " ".join([run.note, *void]).strip()])
    words = (
        "A finished evaluation, `baselines`, `discover` or `compare` is kept with its figures, curves and recipe, and "
        "without weights:\n\n```sh\nscoter results add out/evaluate-1234567890ab --name beauty-seed-2\n"
        "scoter results write\n```\n\n"
        "[runs.toml](results/runs.toml) lists them, with notes and with what of them is void."
    )
    head = ["run", "stage", "data set", "recipe", "seed", "ranks kept", "notes"]
    return section("Runs", words, table(head, rows) if rows else "None yet.")
