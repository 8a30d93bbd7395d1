from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from offline.chains.template import MANUAL, Template
from offline.distill import teach as module
from offline.prepare import load_dataset, prepare
from offline.recipe import PrepareRecipe, Recipe
from offline.stage import Stage
from tests.offline.distill.scripted import Reply, Scripted
from tests.offline.distill.tiny import write_model

USERS, ITEMS = 60, 24


def write_data(folder: Path, *, last: int = 0) -> Path:
    """Made-up shoppers; another `last` changes nothing but the last two items of some of them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    # Indices follow first purchases: by the time that ends differ, everything has been bought.
    for user in range(USERS):
        items = [user % ITEMS, *(int(item) for item in rng.permutation(ITEMS) if item != user % ITEMS)][
            : rng.integers(5, 10)
        ]
        if last and user >= USERS // 2:
            items[-2:] = [(item + last) % ITEMS for item in items[-2:]]
        rows += [f"user-{user}\t{item}\t{time}" for time, item in enumerate(items)]
    (folder / "toy.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    titles = ["item_id:token\ttitle:token_seq\tcategories:token_seq"]
    titles += [f"{item}\tthing number {item}\tkind {item % 3}" for item in range(ITEMS)]
    (folder / "toy.item").write_text("\n".join(titles) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Stage:
    return prepare(tmp_path / "prepared", write_data(tmp_path / "data"), PrepareRecipe(min_interactions=1))


@pytest.fixture
def changed(tmp_path: Path, prepared: Stage) -> Stage:
    """The same shoppers, half of whom end in other purchases; in a folder of the same name."""
    other = prepare(tmp_path / "changed", write_data(tmp_path / "other", last=7), PrepareRecipe(min_interactions=1))
    before, after = load_dataset(prepared.folder), load_dataset(other.folder)
    assert [item.id for item in before.items] == [item.id for item in after.items]
    ends = [(before.sequences[u][-2:].tolist(), after.sequences[u][-2:].tolist()) for u in range(USERS)]
    assert sum(a != b for a, b in ends) > USERS // 3
    assert all(before.training(u).tolist() == after.training(u).tolist() for u in range(USERS))
    return Stage(prepared.name, prepared.fingerprint, other.folder)


@pytest.fixture
def template() -> Template:
    return MANUAL["three-step"]


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reply], Scripted]:
    """Puts a scripted teacher in the place of the recipe's."""

    def put(reply: Reply) -> Scripted:
        backend = Scripted(reply)
        monkeypatch.setattr(module, "open_backend", backend.opened)
        return backend

    return put


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has read nothing but the alphabet."""
    corpus = [" ".join(f"number {item} thing kind user profile summary interest step" for item in range(ITEMS))]
    return write_model(tmp_path_factory.mktemp("student"), corpus)


@pytest.fixture
def recipe(student: Path) -> Recipe:
    """Small enough for seconds."""
    return Recipe.model_validate(
        {
            "name": "toy",
            "reason": {"template": "three-step", "max_tokens": 24, "batch": 8},
            "distill": {
                "student": str(student),
                "users": 40,
                "items": 3,
                "text_chars": 0,
                "epochs": 1,
                "batch": 4,
                "accumulate": 1,
                "generated": 4,
                "learning_rate": 1e-2,
                "compared": 12,
            },
        }
    )
