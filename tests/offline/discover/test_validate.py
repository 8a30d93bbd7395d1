from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from offline.chains import explore
from offline.chains.explore import Explored
from offline.discover.journal import Journal, Question
from offline.discover.panels import shopper
from offline.discover.validate import read
from offline.llm.base import Answer, Explore, Prompt, Sampling
from offline.prepare import load_dataset
from tests.offline.discover.scripted import GOOD, make_data


@dataclass
class _Nearest:
    """A catalogue of which every description is nearest to the same items."""

    items: list[int]

    def nearest(self, texts: Sequence[str]) -> NDArray[np.int32]:
        return np.array([self.items] * len(texts), np.int32)


class _Backend:
    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        for place in range(len(prompts)):
            yield Answer(place, (explore.write(Explored(GOOD, "Because.", ("what it is like",))),))


def test_unseen_items_are_those_of_the_whole_history_however_little_a_prompt_shows(tmp_path: Path) -> None:
    dataset = load_dataset(make_data(tmp_path)[0].folder)
    user = max(range(len(dataset.users)), key=lambda user: len(dataset.sequences[user]))
    who = shopper(dataset, user, 2)
    task = Explore(who.history, who.own)
    question = Question(user, explore.prompt(task, [dataset.items[item - 1] for item in who.history], Sampling()))
    journal = Journal(tmp_path / "journal.jsonl")
    journal.ask([question], cast("Any", _Backend()), lambda *_: None)
    oldest = int(dataset.history(user, "train")[0])
    assert oldest not in who.history
    for nearest, rank in (([oldest, who.target], 0), ([who.target, oldest], 1)):
        reading = read([question], journal, cast("Any", _Nearest(nearest)), lambda _: who, lambda _: None)
        assert [(chain.rank, chain.masked) for chain in reading.chains] == [(rank, 1)]
