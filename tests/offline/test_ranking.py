from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from offline import ranking as module
from offline.errors import DataError
from offline.metrics import ranks
from offline.prepare import Dataset, ItemText
from offline.ranking import TOP, Asked, ByList, ByScores, Row, depth, load_ranks, measure, save_ranks

ITEMS = 30


def dataset(users: int = 12, seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    sequences = [
        random.permutation(np.arange(1, ITEMS + 1, dtype=np.int32))[: random.integers(4, 12)] for _ in range(users)
    ]
    items = [ItemText(f"i{i}", "", "", {}) for i in range(1, ITEMS + 1)]
    return Dataset([f"u{u}" for u in range(users)], items, sequences)


def scores(histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
    """Scores that differ by user, some of them alike."""
    rows = [np.random.default_rng(int(history.sum())).integers(0, 12, ITEMS + 1) for history in histories]
    return np.array(rows, np.float32)


def asked(made: Dataset, split: str = "test") -> Asked:
    return Asked.of(made, split, np.arange(len(made.users)))


@pytest.mark.parametrize("masked", [True, False])
def test_scores_are_ranked_over_the_whole_catalogue(masked: bool) -> None:
    made = dataset()
    question = asked(made)
    found = ByScores(scores, ITEMS).rank(question, masked=masked)
    for row, history in enumerate(question.histories):
        score = scores([history])[0]
        allowed = [i for i in range(1, ITEMS + 1) if not (masked and i in history)]
        assert found[row].tolist() == sorted(allowed, key=lambda item: (-score[item], item))[:TOP]


def test_the_larger_the_catalogue_the_fewer_users_are_scored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    question = asked(dataset())
    expected = ByScores(scores, ITEMS).rank(question, masked=True)
    together: list[int] = []

    def counted(histories: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        together.append(len(histories))
        return scores(histories)

    monkeypatch.setattr(module, "_CELLS", 5 * (ITEMS + 1))
    assert (ByScores(counted, ITEMS).rank(question, masked=True) == expected).all()
    assert together == [5, 5, 2]
    assert len(ByScores(counted, 10**9).rank(question.take(np.arange(2)), masked=False)) == 2
    assert together[3:] == [1, 1]


def test_what_is_masked_does_not_come_back_where_too_few_items_are_left() -> None:
    had = np.arange(1, ITEMS - 2, dtype=np.int32)  # all but three, the target among them: it was bought again
    question = Asked(np.array([0]), [had], np.array([1]))
    assert len(had) > TOP
    found = ByScores(scores, ITEMS).rank(question, masked=True)
    assert sorted(found[0].tolist()) == [0] * (TOP - 3) + [ITEMS - 2, ITEMS - 1, ITEMS]
    assert found[0, 3:].tolist() == [0] * (TOP - 3)
    assert measure(ByScores(scores, ITEMS), question, model="any", labels="train")[0].rank.tolist() == [0]
    lists = (np.argsort(-scores([had])[:, 1:], axis=1, kind="stable") + 1).astype(np.int32)
    assert (ByList.of(lists, dataset()).rank(question, masked=True) == found).all()


def test_an_asked_user_is_told_nothing_of_the_target() -> None:
    made = dataset()
    for split, back in (("test", 1), ("valid", 2)):
        question = asked(made, split)
        for sequence, history, target in zip(made.sequences, question.histories, question.targets, strict=True):
            assert history.tolist() == sequence[:-back].tolist()
            assert target == sequence[-back]


@given(st.integers(0, 100))
def test_a_list_of_sufficient_depth_ranks_as_the_scores_do(seed: int) -> None:
    """What comes from another program is measured as if it had been scored here, masked or not."""
    made = dataset(seed=seed)
    question = asked(made)
    all_scores = scores(question.histories)[:, 1:]
    lists = (np.argsort(-all_scores, axis=1, kind="stable") + 1)[:, : depth(made)].astype(np.int32)
    for masked in (True, False):
        there = ByList(lists).rank(question, masked=masked)
        assert (there == ByScores(scores, ITEMS).rank(question, masked=masked)).all()


def test_a_list_that_is_too_short_to_be_masked_is_refused() -> None:
    made = dataset()
    short = np.tile(np.arange(1, 13, dtype=np.int32), (12, 1))
    with pytest.raises(DataError, match="export longer lists"):
        ByList(short).rank(asked(made), masked=True)


def test_some_users_are_asked_about_by_their_rows() -> None:
    made = dataset()
    lists = np.tile(np.arange(1, ITEMS + 1, dtype=np.int32), (12, 1))
    lists[7] = lists[7][::-1]
    some = Asked.of(made, "test", np.array([7, 2]))
    found = ByList(lists).rank(some, masked=False)
    assert found[0, 0] == ITEMS
    assert found[1, 0] == 1


def test_a_model_is_measured_under_both_switches() -> None:
    made = dataset()
    rows = measure(ByScores(scores, ITEMS), asked(made), model="x", labels="train", seed=3)
    assert [(row.history, row.seed, row.reasoning, row.scoring) for row in rows] == [
        ("masked", 3, False, "full"),
        ("not masked", 3, False, "full"),
    ]
    expected = ranks(ByScores(scores, ITEMS).rank(asked(made), masked=True), asked(made).targets)
    assert (rows[0].rank == expected).all()


def test_ranks_are_read_as_they_were_written(tmp_path: Path) -> None:
    users = np.array([1, 5, 6])
    whole = [
        Row("hstu", "train", "masked", False, "beam 20", 2, np.array([0, 10, 1])),
        Row("knn", "train+validation", "not masked", False, "full", None, np.array([3, 0, 0])),
    ]
    part = Row("hstu", "train", "masked", False, "exact", 2, np.array([1]))
    save_ranks(tmp_path / "ranks.npz", [whole[0], part, whole[1]], users)
    found, rows = load_ranks(tmp_path / "ranks.npz")
    assert found.tolist() == users.tolist()
    assert [row.told() for row in rows] == [row.told() for row in whole]
    assert all((a.rank == b.rank).all() for a, b in zip(rows, whole, strict=True))
    assert all(type(row.reasoning) is bool for row in rows)


def test_a_file_that_holds_no_ranks_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "text.npz").write_text("no")
    for name in ("other.npz", "text.npz", "absent.npz"):
        with pytest.raises(DataError, match=f"{name} holds no ranks"):
            load_ranks(tmp_path / name)
