from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offline.baselines.exchange import PLAIN, SEQUENTIAL, read_lists, write_benchmark
from offline.baselines.run import combinations
from offline.errors import DataError
from offline.prepare import Dataset, ItemText
from offline.ranking import depth

SEQUENCES = [[1, 2, 3, 4, 5], [5, 1, 6, 2]]


def dataset() -> Dataset:
    items = [ItemText(f"i{i}", "", "", {}) for i in range(1, 7)]
    return Dataset(["a", "b"], items, [np.array(one, np.int32) for one in SEQUENCES])


def lines(folder: Path, part: str) -> list[str]:
    return (folder / "data" / f"data.{part}.inter").read_text(encoding="ascii").splitlines()


def test_a_sequential_model_is_asked_for_every_training_item(tmp_path: Path) -> None:
    write_benchmark(tmp_path, dataset(), SEQUENTIAL, 2, refit=False)
    head = "user_id:token\titem_id_list:token_seq\titem_id:token"
    assert lines(tmp_path, "train") == [head, "0\t1\t2", "0\t1 2\t3", "1\t5\t1"]
    assert lines(tmp_path, "valid") == [head, "0\t2 3\t4", "1\t5 1\t6"]
    assert lines(tmp_path, "test") == [head, "0\t3 4\t5", "1\t1 6\t2"]


def test_other_models_read_interactions(tmp_path: Path) -> None:
    write_benchmark(tmp_path, dataset(), PLAIN, 2, refit=False)
    head = "user_id:token\titem_id:token"
    assert lines(tmp_path, "train") == [head, "0\t1", "0\t2", "0\t3", "1\t5", "1\t1"]
    assert lines(tmp_path, "test") == [head, "0\t5", "1\t2"]


@pytest.mark.parametrize("columns", [SEQUENTIAL, PLAIN])
@pytest.mark.parametrize("refit", [False, True])
def test_no_item_that_is_held_out_is_trained_on(tmp_path: Path, columns: tuple[str, ...], refit: bool) -> None:
    """Each user's items are all different, so a name in the training file says where it comes from."""
    sequences = [np.array([10 * user + place for place in range(1, 8)], np.int32) for user in range(5)]
    items = [ItemText(f"i{i}", "", "", {}) for i in range(1, 60)]
    write_benchmark(tmp_path, Dataset([*"abcde"], items, sequences), columns, 20, refit=refit)
    trained = {int(name) for line in lines(tmp_path, "train")[1:] for name in line.replace("\t", " ").split()[1:]}
    for sequence in sequences:
        assert int(sequence[-1]) not in trained
        assert (int(sequence[-2]) in trained) is refit


def test_lists_are_read_as_they_are(tmp_path: Path) -> None:
    made = dataset()
    lists = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], np.int32)
    np.save(tmp_path / "test.npy", lists)
    assert depth(made) == 6
    assert (read_lists(tmp_path / "test.npy", made, 6) == lists).all()


@pytest.mark.parametrize(
    "lists, message",
    [
        (np.ones((2, 5), np.int32), r"int32 \[2, 5\], expected int32 \[2, 6\]"),
        (np.ones((2, 6), np.int64), "int64"),
        (np.array([[1, 2, 3, 4, 5, 5], [1, 2, 3, 4, 5, 6]], np.int32), "names an item twice"),
        (np.array([[0, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]], np.int32), "no item"),
        (np.array([[1, 2, 3, 4, 5, 7], [1, 2, 3, 4, 5, 6]], np.int32), "no item"),
    ],
)
def test_lists_that_cannot_be_are_refused(tmp_path: Path, lists: np.ndarray, message: str) -> None:
    np.save(tmp_path / "test.npy", lists)
    with pytest.raises(DataError, match=message):
        read_lists(tmp_path / "test.npy", dataset(), 6)
    with pytest.raises(DataError, match="holds no lists"):
        read_lists(tmp_path / "absent.npy", dataset(), 6)


def test_a_grid_is_every_combination() -> None:
    assert combinations({"a": [1, 2], "b": ["x"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    assert combinations({}) == [{}]
