"""No validation or test item may reach anything that training, or the item's own split, reads.

The checks change such items and compare what the stage makes, byte by byte. That they would notice a leak is shown on
writers that do what must not be done.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offline.chains import rationale
from offline.chains.rationale import View
from offline.chains.template import MANUAL
from offline.cooccurrence import Neighbours
from offline.distill.students import learns_from
from offline.llm.analyst import AnalystBackend
from offline.llm.base import Answer, Backend, Prompt, Rationale, Usage
from offline.prepare import SPLITS, Dataset, ItemText
from offline.reason import load_reasoning, load_steps
from offline.reason.chains import Asking, Scribe
from offline.reason.engines import Job, Local
from offline.reason.stage import build
from offline.reason.writers import Writer
from tests.offline.reason.scripted import Characters

N = 12
TEMPLATE = MANUAL["five-step"].steps
ASKING = Asking(TEMPLATE, 320)
BACK = {"serve": 0, "test": 1, "valid": 2, "train": 3}  # places from the end that a split's history ends before
FOLDS = 2

Chains = dict[tuple[int, str], tuple[str, ...]]  # by user and split


def planted(item: int) -> str:
    """A word that stands in one item's title and nowhere else."""
    return "zq" + "abcdefghijkl"[item - 1] * 3


def item_of(index: int) -> ItemText:
    title = f"{planted(index)} {['polish', 'cream', 'brush'][index % 3]} number"
    return ItemText(str(index), title, f"{title}. Brand{index % 4}", {"brand": [f"Brand{index % 4}"]})


def dataset_of(sequences: Sequence[Sequence[int]]) -> Dataset:
    users = [f"u{row}" for row in range(len(sequences))]
    items = [item_of(index) for index in range(1, N + 1)]
    return Dataset(users, items, [np.array(sequence, np.int32) for sequence in sequences])


def store(dataset: Dataset, folder: Path) -> None:
    """As `prepare` leaves it."""
    folder.mkdir()
    offsets = np.cumsum([0, *map(len, dataset.sequences)])
    np.savez(folder / "sequences.npz", items=np.concatenate(dataset.sequences), offsets=offsets)
    (folder / "users.json").write_text(json.dumps(dataset.users))
    rows = [{"id": i.id, "title": i.title, "text": i.text, "attributes": i.attributes} for i in dataset.items]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Echo:
    """A language model that can keep nothing to itself: every message that it was shown decides every word."""

    def __init__(self, fold: int, dataset: Dataset) -> None:
        self.name, self.usage = f"echo {fold}", Usage()

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        for index, prompt in enumerate(prompts):
            yield Answer(index, (chain_about(f"{self.name} {prompt.messages} {self.aside(prompt)}"),))

    def aside(self, prompt: Prompt) -> str:
        """What a backend that gossips adds."""
        return ""

    def close(self) -> None:
        pass


def chain_about(words: str) -> str:
    mark = hashlib.sha256(words.encode()).hexdigest()
    steps = tuple(f"In step {k} I think {mark}." for k in range(len(TEMPLATE)))
    return rationale.write(rationale.Chain("Let me think about it.", steps, "So it will be."), TEMPLATE)


def echo(fold: int, dataset: Dataset) -> AbstractContextManager[Backend]:
    return closing(Echo(fold, dataset))


class Gossip(Echo):
    """Looks the history up in the data, and what came next."""

    def __init__(self, fold: int, dataset: Dataset) -> None:
        super().__init__(fold, dataset)
        self._dataset = dataset

    def aside(self, prompt: Prompt) -> str:
        assert isinstance(prompt.task, Rationale)
        known = prompt.task.history
        after = [s[len(known)] for s in self._dataset.sequences if len(s) > len(known) and (*s[: len(known)],) == known]
        return str(after)


class Everything(Dataset):
    """A data set that takes validation and test items for training items."""

    def training(self, user: int) -> NDArray[np.int32]:
        return self.sequences[user]

    def trainings(self, *, include_validation: bool = False) -> list[NDArray[np.int32]]:
        return list(self.sequences)


def gossip(fold: int, dataset: Dataset) -> AbstractContextManager[Backend]:
    return closing(Gossip(fold, dataset))


def statistics_of_everything(_: int, dataset: Dataset) -> AbstractContextManager[Backend]:
    return AnalystBackend(Everything(dataset.users, dataset.items, dataset.sequences))


def statistics_of_training(_: int, dataset: Dataset) -> AbstractContextManager[Backend]:
    return AnalystBackend(dataset)


LANGUAGE_MODEL = Writer("echo", "echo", View(), 8, echo, FOLDS)
ANALYST = Writer("analyst", "analyst", None, 8, statistics_of_training)
HONEST = [LANGUAGE_MODEL, ANALYST]
GOSSIP = Writer("gossip", "gossip", View(), 8, gossip, FOLDS)
CARELESS = Writer("careless analyst", "careless", None, 8, statistics_of_everything)


def chains(writer: Writer, dataset: Dataset) -> Chains:
    """Everybody's chains, written as the stage writes them."""
    found: Chains = {}
    with Scribe(dataset, writer, ASKING) as scribe:
        for fold in range(writer.folds):
            users = [user for user, name in enumerate(dataset.users) if writer.fold(name) == fold]
            tasks = [(user, split) for split in SPLITS for user in users]
            found |= {tasks[place]: chain.steps for place, chain in scribe.write(fold, tasks)}
    return found


def leaks(writer: Writer, before: Dataset, after: Dataset, user: int, changed: int) -> list[tuple[int, str]]:
    """Chains that differ and must not: one item of `user` differs, `changed` places from the end (1 is the last)."""
    first, second = chains(writer, before), chains(writer, after)
    if changed == BACK["train"]:  # a training item: other users' statistics may count it
        return [] if first[user, "train"] == second[user, "train"] else [(user, "train")]
    own = {(user, split) for split in SPLITS if changed > BACK[split]}  # it is in these histories
    return [place for place in first if place not in own and first[place] != second[place]]


def replaced(sequences: Sequence[Sequence[int]], user: int, back: int, item: int) -> Dataset:
    new = [list(sequence) for sequence in sequences]
    new[user][-back] = item
    return dataset_of(new)


bought = st.lists(st.lists(st.integers(1, N), min_size=4, max_size=9), min_size=2, max_size=6)


@pytest.mark.parametrize("writer", HONEST, ids=lambda writer: writer.name)
@settings(max_examples=25)
@given(sequences=bought, draw=st.data())
def test_no_chain_depends_on_an_item_that_its_split_must_not_know(
    writer: Writer, sequences: list[list[int]], draw: st.DataObject
) -> None:
    user = draw.draw(st.integers(0, len(sequences) - 1))
    back = draw.draw(st.integers(1, 3))
    after = replaced(sequences, user, back, draw.draw(st.integers(1, N)))
    assert leaks(writer, dataset_of(sequences), after, user, back) == []


KNOWN = [[1, 2, 3, 4, 5], [2, 3, 4, 6], [1, 3, 7, 8], [9, 10, 11, 12, 1, 2], [5, 6, 2, 3]]
OTHERS = (1, 5, 8, 12)


def _found(writer: Writer) -> set[int]:
    """Which places, from the end, leak."""
    return {
        back
        for user in range(len(KNOWN))
        for back in (1, 2, 3)
        for item in OTHERS
        if leaks(writer, dataset_of(KNOWN), replaced(KNOWN, user, back, item), user, back)
    }


def test_the_check_notices_a_writer_that_looks_the_target_up() -> None:
    assert _found(GOSSIP) == {1, 2, 3}


def test_the_check_notices_statistics_of_validation_and_test_items() -> None:
    assert {1, 2} <= _found(CARELESS)


def test_the_check_finds_nothing_in_honest_writers() -> None:
    assert [_found(writer) for writer in HONEST] == [set(), set()]


@settings(max_examples=40)
@given(bought, st.data())
def test_no_cooccurrence_table_counts_a_validation_or_test_item(
    sequences: list[list[int]], draw: st.DataObject
) -> None:
    user = draw.draw(st.integers(0, len(sequences) - 1))
    after = replaced(sequences, user, draw.draw(st.integers(1, 2)), draw.draw(st.integers(1, N)))
    tables = []
    for dataset in (dataset_of(sequences), after):
        fitted = Neighbours.fit([dataset.training(u) for u in range(len(dataset.users))], N, None)
        tables.append((fitted.counts.toarray().tobytes(), fitted.frequency.tobytes()))
    assert tables[0] == tables[1]


def _reasoned(dataset: Dataset, writer: Writer, place: Path) -> dict[str, tuple[bytes, list[list[str]]]]:
    """The stage's own output: by split, the bytes of H, and the texts."""
    store(dataset, place / "prepared")
    (place / "out").mkdir()
    job = Job(place / "prepared", place / "chunks", writer, ASKING, Characters(place / "texts"))
    build(place / "out", place / "kept", job, Local())
    return {
        split: (load_reasoning(place / "out", split).tobytes(), load_steps(place / "out", split)) for split in SPLITS
    }


def _changed(writer: Writer, before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> set[str]:
    """Splits whose texts or H are others for other purchases."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        one = _reasoned(dataset_of(before), writer, Path(first))
        two = _reasoned(dataset_of(after), writer, Path(second))
    return {split for split in SPLITS if one[split] != two[split]}


def _ending(sequences: Sequence[Sequence[int]], count: int, by: int) -> list[list[int]]:
    """Everybody's last `count` items are others: moved on by `by`, which is less than N."""
    return [[*s[:-count], *((item - 1 + by) % N + 1 for item in s[-count:])] for s in sequences]


@pytest.mark.parametrize("writer", HONEST, ids=lambda writer: writer.name)
@settings(max_examples=3)
@given(sequences=bought, by=st.integers(1, N - 1))
def test_h_of_a_split_is_the_same_byte_for_byte_whatever_is_bought_from_its_target_on(
    writer: Writer, sequences: list[list[int]], by: int
) -> None:
    """All users' test items at once, then their validation items, too."""
    assert _changed(writer, sequences, _ending(sequences, 1, by)) <= {"serve"}
    assert _changed(writer, sequences, _ending(sequences, 2, by)) <= {"serve", "test"}


def test_the_check_of_h_notices_a_leak() -> None:
    for writer in (GOSSIP, CARELESS):
        assert {"test"} <= _changed(writer, KNOWN, _ending(KNOWN, 1, 5))
        assert {"test", "valid"} <= _changed(writer, KNOWN, _ending(KNOWN, 2, 5))
    assert "train" in _changed(CARELESS, KNOWN, _ending(KNOWN, 2, 5))


class Overheard(Echo):
    """Writes down the questions."""

    def __init__(self, heard: Path, fold: int, dataset: Dataset) -> None:
        super().__init__(fold, dataset)
        self._heard = heard

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        with self._heard.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps([m.content for m in prompt.messages]) + "\n" for prompt in prompts)
        yield from super().answer(prompts)


def overhear(heard: Path, fold: int, dataset: Dataset) -> AbstractContextManager[Backend]:
    return closing(Overheard(heard, fold, dataset))


def test_no_question_of_a_split_holds_the_title_of_its_target(tmp_path: Path) -> None:
    dataset = dataset_of(KNOWN)
    for user in range(len(KNOWN)):
        for split in ("train", "valid", "test"):
            heard = tmp_path / f"{user}-{split}"
            writer = replace(LANGUAGE_MODEL, open=partial(overhear, heard))
            with Scribe(dataset, writer, ASKING) as scribe:
                list(scribe.write(writer.fold(dataset.users[user]), [(user, split)]))
            said = heard.read_text(encoding="utf-8")
            assert planted(int(dataset.history(user, split)[-1])) in said
            assert planted(dataset.target(user, split)) not in said


def test_a_chain_that_names_its_target_would_name_it_without_it() -> None:
    """The analyst recommends what others bought or what is alike, and hits now and then."""
    named = 0
    for user in range(len(KNOWN)):
        for split in ("train", "valid", "test"):
            dataset = dataset_of(KNOWN)
            target = planted(dataset.target(user, split))
            said = " ".join(chains(ANALYST, dataset)[user, split])
            if target in said:
                named += 1
                without = replaced(KNOWN, user, BACK[split], KNOWN[user][0])
                assert target in " ".join(chains(ANALYST, without)[user, split])
    assert named  # the words that were planted can be found at all


def _taught(writer: Writer, users: list[str], folds: int) -> list[str]:
    """Users for whom somebody writes who has learnt from them."""
    return [user for user in users if learns_from(writer.fold(user), user, folds)]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True), st.integers(2, 7))
def test_nobody_is_written_for_by_a_student_that_learnt_from_him(users: list[str], folds: int) -> None:
    assert _taught(replace(LANGUAGE_MODEL, folds=folds), users, folds) == []


def test_the_check_notices_a_single_student_for_everybody() -> None:
    assert _taught(replace(LANGUAGE_MODEL, folds=1), [f"u{row}" for row in range(20)], 2)
