"""All stages in order, as one recipe asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from offline.ablate import ablate
from offline.evaluate import Trained, evaluate
from offline.export import Parts, export
from offline.prepare import prepare
from offline.reason import reason
from offline.recipe import Recipe
from offline.tokenize import tokenize
from offline.train import best_epoch, train

Last = Literal["prepare", "tokenize", "reason", "train", "evaluate", "export"]


def run(work: Path, data: Path, recipe: Recipe, last: Last = "export", *, processes: int = 1) -> Path:
    """From RecBole files in `data` to the output of stage `last`; returns that folder, of `export` the release.

    Stages whose output is up to date are skipped. Models are trained by that many `processes`.
    """
    prepared = prepare(work, data, recipe.prepare)
    if last == "prepare":
        return prepared.folder
    tokens = tokenize(work, prepared, recipe.tokenize)
    if last == "tokenize":
        return tokens.folder
    reasoned = reason(work, prepared, recipe.reason)
    if last == "reason":
        return reasoned.folder
    reasoned = ablate(work, prepared, tokens, reasoned, recipe)
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
    return export(work, Parts(prepared, tokens, reasoned, served, evaluated), recipe)
