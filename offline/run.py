"""All stages in order, as one recipe asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from offline.chains.template import template
from offline.distill.compare import compare
from offline.distill.run import distill
from offline.evaluate import Trained, evaluate
from offline.export import Parts, export
from offline.prepare import prepare
from offline.reason import reason
from offline.recipe import Recipe
from offline.stage import Stage
from offline.tokenize import tokenize
from offline.train import VARIANTS, best_epoch, train

Last = Literal["prepare", "tokenize", "distill", "reason", "train", "evaluate", "export"]


def run(work: Path, data: Path, recipe: Recipe, last: Last = "export") -> Path:
    """From RecBole files in `data` to the output of stage `last`; returns that folder, of `export` the release.

    Stages whose output is up to date are skipped.
    """
    prepared = prepare(work, data, recipe.prepare)
    if last == "prepare":
        return prepared.folder
    if last == "distill":
        return _students(work, prepared, recipe).folder
    tokens = tokenize(work, prepared, recipe.tokenize)
    if last == "tokenize":
        return tokens.folder
    if recipe.reason.writer == "student":
        _students(work, prepared, recipe)
    reasoned = reason(work, prepared, recipe.reason)
    if last == "reason":
        return reasoned.folder
    served = {variant: train(work, variant, prepared, tokens, reasoned, recipe) for variant in VARIANTS}
    trained = [Trained(variant, "train", stage) for variant, stage in served.items()]
    if recipe.evaluate.refit:
        for variant, stage in served.items():
            again = train(work, variant, prepared, tokens, reasoned, recipe, refit_epochs=best_epoch(stage.folder))
            trained.append(Trained(variant, "train+validation", again))
    if last == "train":
        return trained[-1].stage.folder
    evaluated = evaluate(work, prepared, tokens, reasoned, trained, recipe)
    if last == "evaluate":
        return evaluated.folder
    return export(work, Parts(prepared, tokens, reasoned, served, evaluated), recipe)


def run_compare(work: Path, data: Path, recipe: Recipe) -> Path:
    """Teacher and students as recommenders (Table 11), after whatever that needs; returns the comparison's folder."""
    prepared = prepare(work, data, recipe.prepare)
    return compare(work, prepared, _students(work, prepared, recipe), recipe).folder


def _students(work: Path, prepared: Stage, recipe: Recipe) -> Stage:
    return distill(work, prepared, template(recipe.reason.template), recipe, [])
