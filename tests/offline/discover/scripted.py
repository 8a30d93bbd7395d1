"""A backend that answers from a script, an encoder made of words, and a small data set for both."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from offline.chains.explore import Explored, write
from offline.errors import LLMError
from offline.llm.base import Abstract, Answer, Explore, Prompt, Usage
from offline.prepare import Dataset, load_dataset, prepare
from offline.recipe import PrepareRecipe
from offline.stage import Stage

USERS, ITEMS, D = 60, 300, 48
GOOD = ("Look at the latest purchase", "Find what goes with it", "Item recommendation")
BAD = ("Collect shop wide sales numbers", "Rank bestsellers over everything")


class WordEncoder:
    """Unit vectors that are sums of one vector a word: texts are as alike as the words they share."""

    texts: list[str] = []  # noqa: RUF012 - all that were encoded in a test

    def __init__(self, name: str = "minilm", precision: str = "float32") -> None:
        self.name = name

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        self.texts.extend(texts)
        found = np.stack([sum(map(_word, text.lower().split()), np.zeros(D)) for text in texts])
        unit: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
        return unit.astype(np.float32)


def _word(word: str) -> NDArray[np.float64]:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(D)


def make_data(folder: Path, users: int = USERS) -> tuple[Stage, Stage]:
    """The output of `prepare`, and the part of `tokenize`'s that discover reads."""
    data = folder / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(3)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        items = rng.permutation(ITEMS)[: rng.integers(5, 12)]
        rows += [f"user-{user}\t{item}\t{time}" for time, item in enumerate(items)]
    (data / "toy.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    titles = ["item_id:token\ttitle:token_seq"]
    titles += [f"{item}\tProduct p{item} <b>bold</b> & shade s{item % 7}" for item in range(ITEMS)]
    (data / "toy.item").write_text("\n".join(titles) + "\n", encoding="utf-8")
    prepared = prepare(folder / "prepared", data, PrepareRecipe(min_interactions=1))
    tokens = folder / "tokens"
    tokens.mkdir()
    np.save(
        tokens / "embeddings.npy", WordEncoder().encode([item.text for item in load_dataset(prepared.folder).items])
    )
    return prepared, Stage("tokenize", "t0", tokens)


class Scripted:
    """Answers from what it is told to write; what it was asked, it keeps.

    It follows GOOD as somebody who guesses the next purchase of three users in five, and any other path as one who
    guesses that of one in ten.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.asked: list[Prompt] = []
        self.usage = Usage(model="scripted")
        self.dies_after: int | None = None
        self.closed = False
        self.explore: Callable[[Prompt, Explore, int], str] = self.explored
        self.abstract: Callable[[Abstract], str] = lambda task: f"- Best Path: {' -> '.join(task.exemplars[0])}"
        self._next = {
            tuple(dataset.history(user, "train").tolist()): dataset.target(user, "train")
            for user in range(len(dataset.users))
        }

    @property
    def name(self) -> str:
        return "scripted <backend>"

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        # Backwards: a backend may answer in any order.
        for index in reversed(range(len(prompts))):
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise LLMError("the endpoint is gone")
            prompt = prompts[index]
            self.asked.append(prompt)
            self.usage.requests += 1
            if isinstance(prompt.task, Abstract):
                yield Answer(index, (self.abstract(prompt.task),) * prompt.sampling.n)
            elif isinstance(prompt.task, Explore):
                task = prompt.task
                yield Answer(index, tuple(self.explore(prompt, task, draw) for draw in range(prompt.sampling.n)))

    def explored(self, prompt: Prompt, task: Explore, draw: int) -> str:
        rng = np.random.default_rng([*task.history, draw, zlib.crc32(repr(task.path).encode())])
        path = task.path
        if path is None:
            family = GOOD if rng.random() < 0.5 else BAD
            path = (*family[:-1], f"{family[-1]} {' '.join(f'w{n}' for n in rng.integers(9, size=3))}")
        guesses = rng.random() < (0.6 if path[0] == GOOD[0] else 0.1)
        items = (rng.permutation(self.dataset.num_items) + 1)[:20].tolist()
        target = self._next[task.history]
        items = [item for item in items if item != target]
        if guesses:
            items.insert(int(rng.integers(len(items))), target)
        return write(Explored(path, "because", tuple(self.dataset.items[item - 1].text for item in items[:20])))

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
