import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.errors import DataError
from offline.interactions import Interaction, read_interactions
from offline.prepare import (
    MIN_LENGTH,
    SPLITS,
    Dataset,
    ItemText,
    core,
    dataset_name,
    load_dataset,
    prepare,
)
from offline.recipe import PrepareRecipe
from offline.sample import write_sample

ALL = PrepareRecipe(min_interactions=1)
TITLES = "item_id:token\ttitle:token_seq\tbrand:token\tcategories:token_seq\tdescription:token_seq"


def write(folder: Path, rows: list[str], items: list[str] | None = None) -> Path:
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *rows]
    (folder / "toy.inter").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    if items is not None:
        text = "".join(f"{line}\n" for line in [TITLES, *items])
        (folder / "toy.item").write_text(text, encoding="utf-8", newline="")
    return folder


def rows(user: str, items: str) -> list[str]:
    return [f"{user}\t{item}\t{time}" for time, item in enumerate(items)]


def prepared(tmp_path: Path, interactions: list[str], items: list[str] | None = None) -> Dataset:
    data = write(tmp_path / "data", interactions, items)
    return load_dataset(prepare(tmp_path / "work", data, ALL).folder)


def ids(dataset: Dataset, user: int) -> str:
    return "".join(dataset.items[i - 1].id for i in dataset.sequences[user])


def summary(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return body


def brute_core(found: list[Interaction], minimum: int) -> list[Interaction]:
    """Drop one row that cannot stay at a time, in whichever order: the k-core is unique."""
    kept = list(found)
    while True:
        for row in reversed(kept):
            of_user = sum(other.user == row.user for other in kept)
            of_item = sum(other.item == row.item for other in kept)
            if min(of_user, of_item) < minimum:
                kept.remove(row)
                break
        else:
            return kept


pairs = st.lists(st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abcd")), max_size=30)


@given(pairs=pairs, minimum=st.integers(1, 5))
def test_the_core_is_what_dropping_one_row_at_a_time_leaves(pairs: list[tuple[str, str]], minimum: int) -> None:
    found = [Interaction(user, item, float(time)) for time, (user, item) in enumerate(pairs)]
    assert core(found, minimum) == brute_core(found, minimum)


def test_dropping_an_item_may_drop_a_user_and_so_on() -> None:
    found = [Interaction(pair[0], pair[1], 0.0) for pair in ("ua", "ub", "va", "vb", "wb", "wc", "xc")]
    assert core(found, 2) == found[:4]


def test_sequences_are_ordered_by_time_and_equal_times_keep_file_order(tmp_path: Path) -> None:
    dataset = prepared(
        tmp_path,
        ["v\tz\t3", "u\tc\t9", "u\ta\t-1", "u\tx\t5.5", "v\ty\t3", "u\ty\t5.5", "u\tb\t1e1", "v\tx\t3", "v\ta\t2"],
    )
    assert dataset.users == ["v", "u"]
    assert ids(dataset, 0) == "azyx"
    assert ids(dataset, 1) == "axycb"
    assert dataset.num_items == 6


def test_indices_run_from_one_and_repeated_items_share_theirs(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, rows("u", "abab"))
    np.testing.assert_array_equal(dataset.sequences[0], np.array([1, 2, 1, 2], np.int32))
    assert dataset.sequences[0].dtype == np.int32


def test_each_split_sees_what_lies_before_its_target(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, rows("u", "abcdef") + rows("v", "fedc"))
    seen = {split: "".join(dataset.items[i - 1].id for i in dataset.history(0, split)) for split in SPLITS}
    assert seen == {"train": "abc", "valid": "abcd", "test": "abcde", "serve": "abcdef"}
    targets = {split: dataset.items[dataset.target(0, split) - 1].id for split in ("train", "valid", "test")}
    assert targets == {"train": "d", "valid": "e", "test": "f"}
    assert "".join(dataset.items[i - 1].id for i in dataset.training(0)) == "abcd"
    assert [len(dataset.history(1, split)) for split in SPLITS] == [1, 2, 3, 4]
    assert len(dataset.training(1)) == 2
    assert [len(training) for training in dataset.trainings()] == [4, 2]
    assert dataset.trainings()[1].tolist() == dataset.training(1).tolist()


def test_users_too_short_to_split_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert MIN_LENGTH == 4
    dataset = prepared(tmp_path, rows("t", "a") + rows("u", "abc") + rows("v", "abcd"))
    assert dataset.users == ["v"]
    assert "2 users with fewer than 4 interactions are left out" in capsys.readouterr().out


@pytest.mark.parametrize("char", list("\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e\r"))
def test_no_character_of_a_text_divides_a_row(tmp_path: Path, char: str) -> None:
    title = f"left{char}right"
    dataset = prepared(tmp_path, rows(f"u{char}ser", "abcd"), [f"{i}\t{title}\tBrand\t\tText {i}" for i in "abcd"])
    assert [item.title for item in dataset.items] == [title] * 4
    assert [item.id for item in dataset.items] == list("abcd")
    assert dataset.users == [f"u{char}ser"]


def test_the_text_of_an_item_is_its_columns_in_the_recipe_s_order(tmp_path: Path) -> None:
    dataset = prepared(
        tmp_path,
        rows("u", "abcde"),
        [
            "a\t Soap \tAcme\tBath, Soap bars ,, \tSmells.",
            "b\t\tAcme\t\t",
            "c\t\t\t\t ",
            "never\tbought\tby\tany\tone",
            "d\tTitle\t\tOne\t",
        ],
    )
    assert dataset.items == [
        ItemText(
            "a",
            "Soap",
            "Soap. Acme. Bath, Soap bars ,,. Smells.",
            {"brand": ["Acme"], "categories": ["Bath", "Soap bars"]},
        ),
        ItemText("b", "item b", "Acme", {"brand": ["Acme"]}),
        ItemText("c", "item c", "", {}),
        ItemText("d", "Title", "Title. One", {"categories": ["One"]}),
        ItemText("e", "item e", "", {}),  # not in the .item file
    ]


def test_an_item_whose_row_is_empty_is_without_text_too(tmp_path: Path) -> None:
    data = write(tmp_path / "data", rows("u", "abcd"), ["a\tA\t\t\t", "b\t \t\t\t", "c\t\tAcme\t\t"])
    assert summary(prepare(tmp_path / "work", data, ALL).folder)["items_without_text"] == 2


def test_what_was_had_before_is_counted_and_said_of_test_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", rows("u", "abcab") + rows("v", "aabcd") + rows("w", "abcd"))
    found = summary(prepare(tmp_path / "work", data, ALL).folder)
    assert (found["had_before"], found["test_items_had_before"]) == (3, 1)
    assert "1 of 3 users had their test item before" in capsys.readouterr().out
    write(tmp_path / "other", rows("u", "aabcd"))
    prepare(tmp_path / "work", tmp_path / "other", ALL)
    assert "test item before" not in capsys.readouterr().out


def test_a_file_without_any_column_that_is_read_is_no_file_of_texts(tmp_path: Path) -> None:
    data = write(tmp_path / "data", rows("u", "abcd"), ["a\tA\tAcme\t\t"])
    slip = PrepareRecipe(min_interactions=1, text=["titel", "name"])
    with pytest.raises(DataError, match=r"toy\.item has none of the columns titel, name, which prepare\.text takes"):
        prepare(tmp_path / "work", data, slip)
    assert list((tmp_path / "work").iterdir()) == []
    dataset = load_dataset(prepare(tmp_path / "work", data, PrepareRecipe(min_interactions=1, text=[])).folder)
    assert [item.text for item in dataset.items] == ["", "", "", ""]


def test_a_file_of_other_items_is_no_file_of_texts(tmp_path: Path) -> None:
    data = write(tmp_path / "data", [f"u\t{item}.0\t{item}" for item in range(4)], ["0\tA\t\t\t", "1\tB\t\t\t"])
    with pytest.raises(DataError, match=r"none of the 4 items that .*toy\.inter leaves .* \('0\.0' here, '0' there\)"):
        prepare(tmp_path / "work", data, ALL)
    assert list((tmp_path / "work").iterdir()) == []
    with (data / "toy.item").open("a", encoding="utf-8") as file:
        file.write("2.0\tC\t\t\t\n")
    assert summary(prepare(tmp_path / "work", data, ALL).folder)["items_without_text"] == 3


def test_columns_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data", rows("u", "abcd"), ["a\tA\tAcme\t\t"])
    prepare(tmp_path / "work", data, ALL)
    assert "has no column" not in capsys.readouterr().out
    (data / "toy.item").write_text("item_id:token\tname:token_seq\tbrand:token\na\tA\tAcme\n", encoding="utf-8")
    prepare(tmp_path / "work", data, PrepareRecipe(min_interactions=1, text=["name", "subject"]))
    said = capsys.readouterr().out
    assert "toy.item has no column subject, which prepare.text takes; beside item_id it has brand, name\n" in said
    assert "toy.item has no column categories, which prepare.attributes takes" in said
    assert "toy.item has no column title: items are called by their ids" in said


def test_without_an_item_file_ids_are_all_there_is(tmp_path: Path) -> None:
    data = write(tmp_path / "data", rows("u", "abcd"))
    stage = prepare(tmp_path / "work", data, ALL)
    assert [(i.title, i.text, i.attributes) for i in load_dataset(stage.folder).items] == [
        (f"item {name}", "", {}) for name in "abcd"
    ]
    assert summary(stage.folder)["items_without_text"] == 4
    assert dataset_name(stage.folder) == "toy"


def test_the_sample_is_read_whole_since_it_is_five_core(tmp_path: Path) -> None:
    written = write_sample(tmp_path / "data", users=200, items=60)
    stage = prepare(tmp_path / "work", tmp_path / "data", PrepareRecipe())
    dataset = load_dataset(stage.folder)
    assert (len(dataset.users), dataset.num_items) == (written.users, written.items)
    assert sum(map(len, dataset.sequences)) == written.interactions
    found = read_interactions(tmp_path / "data" / "sample.inter")
    for user, sequence in zip(dataset.users, dataset.sequences, strict=True):
        mine = sorted((r for r in found if r.user == user), key=lambda r: r.timestamp)
        assert [dataset.items[i - 1].id for i in sequence] == [r.item for r in mine]
    bought = Counter(chain.from_iterable(s.tolist() for s in dataset.sequences))
    assert min(bought) == 1
    assert max(bought) == dataset.num_items
    assert min(bought.values()) >= 5
    assert all(item.text and item.attributes for item in dataset.items)
    assert summary(stage.folder) == {
        "name": "sample",
        "read": written.interactions,
        "kept": written.interactions,
        "users": written.users,
        "items": written.items,
        "mean_length": round(written.interactions / written.users, 2),
        "items_without_text": 0,
        "had_before": 0,
        "test_items_had_before": 0,
    }


def test_users_who_all_bought_one_item_are_no_data(tmp_path: Path) -> None:
    data = write(tmp_path / "data", rows("u", "a") + rows("v", "a") + rows("w", "b"))
    reason = r"no user is left after 1-core filtering of 3 interactions; 3 users have fewer than the 4 that a split"
    with pytest.raises(DataError, match=reason):
        prepare(tmp_path / "work", data, PrepareRecipe(min_interactions=1))
    assert list((tmp_path / "work").iterdir()) == []


def test_too_little_data_says_so(tmp_path: Path) -> None:
    data = write(tmp_path / "data", rows("u", "abcd"))
    with pytest.raises(DataError, match=r"no user is left after 5-core filtering of 4 interactions: lower prepare\."):
        prepare(tmp_path / "work", data, PrepareRecipe())
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    "broken, reason",
    [
        ("toy.inter", r"toy\.inter, line 6: 1 fields"),
        ("toy.item", r"toy\.item, line 3: 1 fields"),
    ],
)
def test_malformed_data_leaves_nothing_in_the_work_folder(tmp_path: Path, broken: str, reason: str) -> None:
    data = write(tmp_path / "data", rows("u", "abcd"), ["a\tA\t\t\t"])
    with (data / broken).open("a", encoding="utf-8") as file:
        file.write("oops\n")
    with pytest.raises(DataError, match=reason):
        prepare(tmp_path / "work", data, ALL)
    assert list((tmp_path / "work").iterdir()) == []


def test_a_data_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "data" / "toy.inter").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot read .*toy\.inter: Is a directory"):
        prepare(tmp_path / "work", tmp_path / "data", ALL)


def test_other_data_or_another_recipe_is_another_folder(tmp_path: Path) -> None:
    data = write(tmp_path / "data", rows("u", "abcd"), ["a\tA\t\t\t"])
    work = tmp_path / "work"
    first = prepare(work, data, ALL)
    assert prepare(work, data, ALL) == first
    other_recipe = prepare(work, data, PrepareRecipe(min_interactions=1, text=["title"]))
    with (data / "toy.inter").open("a", encoding="utf-8") as file:
        file.write("u\te\t9\n")
    other_rows = prepare(work, data, ALL)
    (data / "toy.item").unlink()
    other_texts = prepare(work, data, ALL)
    folders = {first.folder, other_recipe.folder, other_rows.folder, other_texts.folder}
    assert len(folders) == 4
    assert {path for path in work.iterdir() if not path.name.startswith(".")} == folders
    assert ids(load_dataset(first.folder), 0) == "abcd"
    assert ids(load_dataset(other_rows.folder), 0) == "abcde"
