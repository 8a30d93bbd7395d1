"""Our split as RecBole's benchmark files, and what comes back.

Every model is trained on the same questions: a training item, and what came before it. A sequential model's file has a
row for each (`user_id`, `item_id_list`, `item_id`), others one for each interaction (`user_id`, `item_id`). Users are
named by their row and items by their index, so nothing has to be looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline.errors import DataError
from offline.prepare import Dataset

NAME = "data"  # of the data set, to RecBole
SEQUENTIAL = ("user_id", "item_id_list", "item_id")
PLAIN = ("user_id", "item_id")
_TYPES = {"user_id": "token", "item_id_list": "token_seq", "item_id": "token"}

_Question = tuple[int, NDArray[np.int32], int]


def write_benchmark(folder: Path, dataset: Dataset, columns: tuple[str, ...], length: int, *, refit: bool) -> None:
    """Write `NAME`.train.inter, `NAME`.valid.inter and `NAME`.test.inter into `folder`/`NAME`.

    The training file holds the training items, and the validation items too when `refit`; no test item is in it. The
    other two hold one row a user. Histories are cut to the latest `length` items.
    """
    target = folder / NAME
    target.mkdir(parents=True, exist_ok=True)
    users = range(len(dataset.users))
    parts: dict[str, Iterator[_Question]] = {
        "train": _training(dataset, refit=refit, first=columns == PLAIN),
        "valid": ((user, dataset.history(user, "valid"), dataset.target(user, "valid")) for user in users),
        "test": ((user, dataset.history(user, "test"), dataset.target(user, "test")) for user in users),
    }
    for part, questions in parts.items():
        with (target / f"{NAME}.{part}.inter").open("w", encoding="ascii") as out:
            out.write("\t".join(f"{column}:{_TYPES[column]}" for column in columns) + "\n")
            for user, history, item in questions:
                fields = {"user_id": user, "item_id_list": " ".join(map(str, history[-length:])), "item_id": item}
                out.write("\t".join(str(fields[column]) for column in columns) + "\n")


def read_lists(path: Path, dataset: Dataset, depth: int) -> NDArray[np.int32]:
    """Items best first for each user, int32 [U, depth].

    Raises DataError if the file has another shape, or if a list names what is no item or one item twice.
    """
    try:
        lists = np.load(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no lists: {error}") from error
    expected = (len(dataset.users), depth)
    if lists.shape != expected or lists.dtype != np.int32:
        raise DataError(f"{path} holds {lists.dtype} {list(lists.shape)}, expected int32 {list(expected)}")
    ordered = np.sort(lists, axis=1)
    if ordered[:, 0].min() < 1 or ordered[:, -1].max() > dataset.num_items or (np.diff(ordered, axis=1) == 0).any():
        raise DataError(f"{path}: a list names an item twice, or a number that is no item (1 to {dataset.num_items})")
    found: NDArray[np.int32] = lists
    return found


def _training(dataset: Dataset, *, refit: bool, first: bool) -> Iterator[_Question]:
    """Every training item with what came before it; the first of a sequence has nothing before it."""
    for user, known in enumerate(dataset.trainings(include_validation=refit)):
        for place in range(0 if first else 1, len(known)):
            yield user, known[:place], int(known[place])
