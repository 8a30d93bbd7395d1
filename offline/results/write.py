"""`docs/results.md` and its plots, from what runs left in `docs/results/`: the same input gives the same bytes."""

from __future__ import annotations

import tomllib
from collections.abc import Container, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from offline.errors import DataError
from offline.results.ablations import ablations, controls
from offline.results.efficiency import efficiency
from offline.results.lines import Lines
from offline.results.markdown import folded, section, table
from offline.results.overall import overall
from offline.results.patterns import discovery, recommenders
from offline.results.runs import Kept, Run, Tried, load_runs
from offline.results.sparsity import groups
from offline.results.targets import LIFTS, targets
from offline.results.templates import templates
from offline.results.ways import HEAD
from offline.results.weights import weights

_INTRODUCTION = """# Results

Written by `scoter results write` from the runs kept in [results/](results/); edit those, not this page. How to add a
run is [below](#runs).

How to read it:

- **All models are measured by one evaluator**: the last item of each user is the target, the whole catalogue is ranked,
  each figure says what was trained on (`train`, or the validation items too) and whether the user's own history was
  masked. Generative models are ranked as they serve, by a beam of 20. A figure without switches has the history masked
  and labels of the training split alone. What is asked of chains without a model, in Table 11 and by `discover`, is
  another question: the target is the last item of the training split, the cutoff is 20, and users are few.
- **The untrained co-occurrence kNN stands in Table 1**, and beside chains that recommend without a model. A model that
  does not beat it has learnt nothing from sequences that counting would not give. Tables of controls and ablations
  compare a model with its own backbone, or with itself.
- **`analyst` is no language model.** Chains said to be by `analyst` are statistics put into words. Nothing measured on
  them says what an LLM's reasoning is worth.
- **A letter in brackets is a way to make a model**, [spelt out below](#ways). A run is a training of its own: another
  seed, or the same one on another kind of machine, where item texts are embedded a little differently (in bfloat16) and
  get other semantic IDs. IDs move a model as much as a seed does, or more: a row whose runs stand on several sets of
  them says so, and rows on different ones differ by more than their switches.
- ± is the standard deviation over runs. Intervals and p are about users, models on the same backbone paired: the
  percentile bootstrap's, and that of random signs (for Recall of one run the exact McNemar test), both computed as ever
  more draws would give them; "≤ 0.0001" is a bound. They do not say what another seed would do, and
  p are not corrected for the number of rows.
- *Figures in italics are quoted from the paper*, which says of neither switch which one it took. Its SCoTER-H and
  SCoTER-T are those under its discovered template, with a language model's chains, whichever row of ours they stand in;
  Figure 3 has what it reports of the others.
"""


def write_results(docs: Path) -> Path:
    """Write `docs`.md and the plots in `docs`; returns the page. Raises DataError on runs that cannot be read."""
    if not docs.is_dir():
        raise DataError(f"{docs} is not a folder: run this in the root of a checkout, or name it with --docs")
    kept = load_runs(docs)
    from offline.results.plots import plots, save  # noqa: PLC0415 - matplotlib takes a second to import

    lines = Lines(kept.runs)
    paper: dict[str, Any] = tomllib.loads((files("offline.results") / "paper.toml").read_text(encoding="utf-8"))
    found = plots(lines, paper)
    page = docs.with_suffix(".md")
    page.write_text(told(kept, lines, paper, set(found)), encoding="utf-8")
    save(found, docs)
    return page


def told(kept: Kept, lines: Lines, paper: dict[str, Any], plotted: set[str]) -> str:
    """The page, with links to those plots."""
    parts = [
        _INTRODUCTION.rstrip(),
        _targets(lines, plotted),
        _ways(lines),
        section("Overall", *overall(lines, paper)),
        controls(lines, kept.unmeasurable),
        section("Ablations", *ablations(lines, paper, kept.unmeasurable)),
        templates(lines, paper, plotted),
        discovery(kept.runs, lines, paper),
        section("Sparse and dense users and items", *groups(lines, paper, plotted)),
        weights(lines, plotted),
        efficiency(kept.runs, lines, paper),
        recommenders(kept.runs, paper),
        _tried(kept.tried),
        _runs(kept.runs, lines.sampled),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _targets(lines: Lines, plotted: set[str]) -> str:
    rows = [[one.what, one.wanted, one.ours or "–", one.verdict] for one in targets(lines)]
    head = ["History masked, labels of the training split", "target", "ours", "verdict"]
    parts = [table(head, rows)]
    if LIFTS in plotted:
        words = (
            "What reasoning adds to each backbone that it was put on, with an interval over users; filled: the model "
            "as it is; hollow: with another user's H, in the runs that have it; a cross: what the paper reports."
        )
        parts += [words, f"![What reasoning adds to each backbone](results/{LIFTS}.svg)"]
    words = (
        "Of several ways to make a model, the best by this very figure on test users stands here, which flatters it; "
        "ways with fewer than three runs are left out where others have three. What was tried to reach the targets is "
        "[listed below](#what-was-tried)."
    )
    return section("Targets", *parts, words)


def _ways(lines: Lines) -> str:
    words = (
        "A backbone alone has the letters of all models that were built on it. Where the fusion starts from a trained "
        "backbone, which then stays as it is, withholding H gives the backbone's own ranking; such rows are left out. "
        "What each switch does is in [models.md](models.md). Sets of semantic IDs are told apart by how many items "
        "shared one at first and, in brackets, by how far the codes are from the items' embeddings. Other IDs are "
        "another backbone: what a switch does can be told only from ways that stand on the same."
    )
    rows = [[*row, lines.ids(way) or "–"] for row, way in zip(lines.ways.rows(), lines.ways, strict=True)]
    head = [*HEAD, "semantic IDs"]
    return section("Ways", table(head, rows, text=len(head)), words) if rows else ""


def _tried(tried: Sequence[Tried]) -> str:
    words = "\n".join(f"- {one.date}: {one.what}" for one in sorted(tried, key=lambda one: one.date))
    return section("What was tried", words) if words else ""


def _runs(runs: Sequence[Run], sampled: Container[str]) -> str:
    rows = []
    for run in runs:
        void = [
            f"void: {', '.join(one.models) or 'all'}{f' ({one.labels})' if one.labels else ''}: {one.why}"
            for one in run.void
        ]
        seed = run.recipe.get("train", {}).get("seed", "–")
        kept = "yes" if run.ranks else "no"
        recipe = str(run.recipe.get("name", "–"))
        left_out = ["measured on some of the users, others on more: in no table"] if run.name in sampled else []
        notes = " ".join([run.note, *void, *left_out]).strip()
        rows.append([run.name, run.stage, run.dataset, recipe, str(seed), run.ids or "–", kept, notes])
    words = (
        "A finished evaluation, `baselines`, `discover` or `compare` is kept with its figures, curves and recipe, and "
        "without weights:\n\n```sh\nscoter results add out/evaluate-1234567890ab --name beauty-seed-2\n"
        "scoter results write\n```\n\n"
        "[runs.toml](results/runs.toml) lists them, with notes and with what of them is void."
    )
    head = ["run", "stage", "data set", "recipe", "seed", "semantic IDs", "ranks kept", "notes"]
    return section(
        "Runs", words, folded(f"All {len(rows)}", table(head, rows, text=len(head))) if rows else "None yet."
    )
