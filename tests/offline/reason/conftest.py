from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from offline.prepare import prepare
from offline.recipe import PrepareRecipe
from offline.stage import Stage

Sequences = dict[str, list[int]]
USERS = 30


def sequences() -> Sequences:
    """Items bought by each user."""
    rng = np.random.default_rng(3)
    return {f"user-{user}": rng.permutation(20)[: rng.integers(5, 9)].tolist() for user in range(USERS)}


@pytest.fixture
def stage_of(tmp_path: Path) -> Callable[..., Stage]:
    """Prepares what users bought; `titles` replaces some items' titles."""

    def made(bought: Sequences, titles: dict[int, str] | None = None) -> Stage:
        data = tmp_path / f"data-{len(list(tmp_path.glob('data-*')))}"
        data.mkdir()
        rows = ["user_id:token\titem_id:token\ttimestamp:float"]
        rows += [f"{user}\t{item}\t{time}" for user, items in bought.items() for time, item in enumerate(items)]
        (data / "toy.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
        named = {item: f"ödd “title” no {item}" for item in range(20)} | (titles or {})
        lines = ["item_id:token\ttitle:token_seq\tcategories:token_seq"]
        lines += [f"{item}\t{title}\tKind {item % 3}" for item, title in named.items()]
        (data / "toy.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return prepare(tmp_path / "prepared", data, PrepareRecipe(min_interactions=1))

    return made


@pytest.fixture
def prepared(stage_of: Callable[..., Stage]) -> Stage:
    return stage_of(sequences())
