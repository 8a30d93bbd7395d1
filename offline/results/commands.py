"""The commands that would produce what is missing."""

from __future__ import annotations

from offline.recipe import load_recipe
from offline.results.settings import BACKBONE, setting

KEEP = "scoter results write"
_EDITED = "beauty"  # the recipe that all of them start from


def base(model: str) -> str:
    """How that recipe makes a model (`Setting.base`): ablations by commands are compared with a whole of this."""
    row = {"model": model, "reasoning": BACKBONE[model] != model}
    return setting(load_recipe(_EDITED).model_dump(mode="json"), row).base


def recipe(base: str, name: str, *edits: str) -> str:
    """Write NAME.toml: the recipe that comes with the package, edited by `sed`."""
    changes = " ".join(f"-e '{edit}'" for edit in edits)
    return f"sed {changes} offline/recipes/{base}.toml > {name}.toml"


def name(called: str) -> str:
    """An edit: the recipe is called that."""
    return f's/^name = .*/name = "{called}"/'


def under(section: str, line: str) -> str:
    """An edit: a key at the start of a section that the recipe has."""
    return rf"s/^\[{section}\]/&\n{line}/"


def last(section: str, line: str) -> str:
    """An edit: a section that the recipe does not have, at its end."""
    return rf"$ a \\n[{section}]\n{line}"


def measured(recipe_name: str, dataset: str, called: str, stage: str = "evaluate") -> str:
    """Run a recipe up to its figures and keep them; what recipes of a data set have in common is done once."""
    return f"scoter {stage} {recipe_name} --data data/{dataset} --work out/{dataset} --keep {called}"
