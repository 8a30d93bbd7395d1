"""All stages in order, as one recipe asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from offline.discover.stage import discover, load_template
from offline.evaluate import Trained, evaluate
from offline.export import Parts, export
from offline.prepare import prepare
from offline.reason import reason
from offline.recipe import Recipe
from offline.tokenize import tokenize
from offline.train import VARIANTS, best_epoch, train

Last = Literal["prepare", "tokenize", "discover", "reason", "train", "evaluate", "export"]
DISCOVERED = "discovered"  # `reason.template`: the one that `discover` finds


def run(work: Path, data: Path, recipe: Recipe, last: Last = "export", also: Sequence[Path] = ()) -> Path:
    """From RecBole files in `data` to the output of stage `last`; returns that folder, of `export` the release.

    Stages whose output is up to date are skipped, and so is `discover` unless it is the last one or the recipe wants
    chains under the template that it finds. `also` are templates for it to compare with.
    """
    prepared = prepare(work, data, recipe.prepare)
    if last == "prepare":
        return prepared.folder
    tokens = tokenize(work, prepared, recipe.tokenize)
    if last == "tokenize":
        return tokens.folder
    if last == "discover" or recipe.reason.template == DISCOVERED:
        found = discover(work, prepared, tokens, recipe, also)
        if last == "discover":
            return found.folder
        # Spelled out: H depends on the steps, and on nothing else that was measured on the way to them.
        spelled = recipe.reason.model_copy(update={"template": str(load_template(found))})
        recipe = recipe.model_copy(update={"reason": spelled})
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
