"""All stages in order, as one recipe asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offline.ablate import ablate
from offline.chains.template import Template, template
from offline.distill.compare import compare
from offline.distill.run import distill
from offline.evaluate import evaluate
from offline.export import Parts, export
from offline.measure import Trained
from offline.prepare import prepare
from offline.reason import reason
from offline.reason.engines import Engine
from offline.recipe import Recipe, reads_reasoning
from offline.stage import Stage
from offline.tokenize import tokenize
from offline.train import best_epoch, train

Last = Literal["prepare", "tokenize", "discover", "distill", "reason", "train", "evaluate", "export"]
DISCOVERED = "discovered"  # `reason.template`: the one that `discover` finds


def run(
    work: Path,
    data: Path,
    recipe: Recipe,
    last: Last = "export",
    *,
    also: Sequence[Path] = (),
    engine: Engine | None = None,
    processes: int = 1,
) -> Path:
    """From RecBole files in `data` to the output of stage `last`; returns that folder, of `export` the release.

    Stages whose output is up to date are skipped. `discover` runs if the recipe wants chains under the template that it
    finds (`also` are templates for it to compare with), `distill` if students are to write and none are named; each
    also if it is `last`. Backbones alone are trained and evaluated without any reasoning being written; a release has
    it. `engine` does the work of `reason`: this process, if none is given.
    Models are trained by that many `processes`.
    """
    prepared = prepare(work, data, recipe.prepare)
    if last == "prepare":
        return prepared.folder
    if recipe.reason.template != DISCOVERED:
        template(recipe.reason.template)  # a slip is told now, not after an hour
    tokens = tokenize(work, prepared, recipe.tokenize)
    if last == "tokenize":
        return tokens.folder
    if last == "discover":
        return _discovered(work, prepared, tokens, recipe, also).folder
    reasoned: Stage | None = None
    if last in {"distill", "reason", "export"} or _reads_reasoning(recipe):
        reasoned = _reasoned(work, prepared, tokens, recipe, last, also, engine)
        if last in {"distill", "reason"}:
            return reasoned.folder
    stages = (prepared, tokens, reasoned)
    served = {variant: train(work, variant, *stages, recipe, processes=processes) for variant in recipe.models}
    trained = [Trained(variant, "train", stage) for variant, stage in served.items()]
    if recipe.evaluate.refit:
        for variant, stage in served.items():
            epochs = best_epoch(stage.folder)
            again = train(work, variant, *stages, recipe, refit_epochs=epochs, processes=processes)
            trained.append(Trained(variant, "train+validation", again))
    if last == "train":
        return trained[-1].stage.folder
    evaluated = evaluate(work, prepared, tokens, reasoned, trained, recipe)
    if last == "evaluate":
        return evaluated.folder
    assert reasoned is not None
    return export(work, Parts(prepared, tokens, reasoned, served, evaluated), recipe)


def _reads_reasoning(recipe: Recipe) -> bool:
    """Whether anything that is trained depends on H; a matched backbone's size does."""
    return recipe.ablation.matched or any(reads_reasoning(variant) for variant in recipe.models)


def _reasoned(
    work: Path,
    prepared: Stage,
    tokens: Stage,
    recipe: Recipe,
    last: Last,
    also: Sequence[Path],
    engine: Engine | None,
) -> Stage:
    """The chains that models are trained on, or the stage on the way to them that is `last`."""
    chosen = _chosen(work, prepared, tokens, recipe, also)
    students = None
    if last == "distill" or (recipe.reason.writer == "student" and not recipe.reason.students):
        students = distill(work, prepared, chosen.template, recipe, chosen.upstream)
        if last == "distill":
            return students
    reasoned = reason(work, prepared, recipe, chosen.template, distilled=students, engine=engine)
    return reasoned if last == "reason" else ablate(work, prepared, tokens, reasoned, recipe)


def run_compare(work: Path, data: Path, recipe: Recipe) -> Path:
    """Teacher and students as recommenders (Table 11), after whatever that needs; returns the comparison's folder."""
    prepared = prepare(work, data, recipe.prepare)
    tokens = tokenize(work, prepared, recipe.tokenize)
    chosen = _chosen(work, prepared, tokens, recipe, ())
    return compare(work, prepared, distill(work, prepared, chosen.template, recipe, chosen.upstream), recipe).folder


@dataclass(frozen=True, slots=True)
class _Chosen:
    template: Template
    upstream: list[Stage]  # the stage that found it, if one did


def _chosen(work: Path, prepared: Stage, tokens: Stage, recipe: Recipe, also: Sequence[Path]) -> _Chosen:
    """The template that the recipe asks for."""
    if recipe.reason.template != DISCOVERED:
        return _Chosen(template(recipe.reason.template), [])
    found = _discovered(work, prepared, tokens, recipe, also)
    return _Chosen(Template.load(found.folder / "template.json"), [found])


def _discovered(work: Path, prepared: Stage, tokens: Stage, recipe: Recipe, also: Sequence[Path]) -> Stage:
    from offline.discover.stage import discover  # noqa: PLC0415 - with faiss and scikit-learn, which few recipes need

    return discover(work, prepared, tokens, recipe, also)
