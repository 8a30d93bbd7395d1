"""Small data sets to reason about."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from offline.analyst.engine import Analyst, Case
from offline.analyst.ranking import Shopper
from offline.chains.template import MANUAL
from offline.prepare import Dataset, ItemText, load_dataset, prepare
from offline.recipe import PrepareRecipe
from offline.sample import write_sample

N = 12
BACK = {"serve": 0, "test": 1, "valid": 2, "train": 3}


def item(index: int, *, text: bool = True) -> ItemText:
    """Item `index` of the toy catalogue."""
    if not text:
        return ItemText(str(index), f"item {index}", "", {})
    kind = ["polish", "cream", "brush"][index % 3]
    title = f"{kind} shade number{index}"
    return ItemText(str(index), title, title, {"brand": [f"Brand{index % 4}"], "categories": ["Beauty", kind.title()]})


def dataset(sequences: list[list[int]], *, text: bool = True, items: int = N) -> Dataset:
    """Users who bought the toy catalogue's items in these orders."""
    users = [f"u{row}" for row in range(len(sequences))]
    texts = [item(index, text=text) for index in range(1, items + 1)]
    return Dataset(users, texts, [np.array(sequence, np.int32) for sequence in sequences])


def chains(analyst: Analyst, dataset: Dataset, users: Iterable[int], split: str) -> list[list[str]]:
    """The step texts of each user's chain under the manual five-step template."""
    path = MANUAL["five-step"].steps
    cases = [Case(Shopper(dataset.history(user, split), dataset.training(user)), path) for user in users]
    return [list(chain.steps) for chain in analyst.rationales(cases)]


def sample(folder: Path, *, users: int = 160, items: int = 80) -> Dataset:
    """Simulated shoppers; the same arguments give the same ones on every machine."""
    write_sample(folder / "data", users=users, items=items, seed=5)
    return load_dataset(prepare(folder / "work", folder / "data", PrepareRecipe()).folder)
