import hashlib
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from offline.errors import DataError
from offline.interactions import read_interactions, read_items
from offline.sample import LARGEST, MIN_INTERACTIONS, SampleSummary, write_sample

SMALL = {"users": 200, "items": 60, "seed": 3}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleSummary]:
    out = tmp_path_factory.mktemp("data") / "sample"
    return out, write_sample(out)


@pytest.fixture(scope="module")
def sequences(sample: tuple[Path, SampleSummary]) -> dict[str, list[str]]:
    by_user: dict[str, list[str]] = defaultdict(list)
    for row in sorted(read_interactions(sample[0] / "sample.inter"), key=lambda r: r.timestamp):
        by_user[row.user].append(row.item)
    return dict(by_user)


def test_the_size_is_about_what_was_asked_for(
    sample: tuple[Path, SampleSummary], sequences: dict[str, list[str]]
) -> None:
    summary = sample[1]
    assert 1400 <= summary.users <= 1500
    assert 540 <= summary.items <= 600
    assert 8 <= summary.interactions / summary.users <= 10
    assert summary.users == len(sequences)
    assert summary.items == len({item for items in sequences.values() for item in items})
    assert summary.interactions == sum(map(len, sequences.values()))


def test_it_is_5_core_and_nobody_buys_twice(sequences: dict[str, list[str]]) -> None:
    sold = Counter(item for items in sequences.values() for item in items)
    assert min(sold.values()) >= MIN_INTERACTIONS
    assert min(map(len, sequences.values())) >= MIN_INTERACTIONS
    assert all(len(set(items)) == len(items) for items in sequences.values())


def test_popularity_is_heavy_tailed(sequences: dict[str, list[str]]) -> None:
    sold = sorted(Counter(item for items in sequences.values() for item in items).values(), reverse=True)
    assert sum(sold[: len(sold) // 10]) > 0.25 * sum(sold)


def test_every_item_has_a_distinct_title_and_full_text(sample: tuple[Path, SampleSummary]) -> None:
    items = read_items(sample[0] / "sample.item")
    assert len(items) == sample[1].items
    assert len({row["title"] for row in items.values()}) == len(items)
    for row in items.values():
        assert set(row) == {"title", "brand", "categories", "description"}
        assert all(row.values())
        assert row["title"].startswith(row["brand"])
        assert row["categories"].count(",") == 2


def test_files_are_plain_utf8_with_one_row_a_line(sample: tuple[Path, SampleSummary]) -> None:
    for name, tabs in (("sample.inter", 2), ("sample.item", 4)):
        text = (sample[0] / name).read_bytes().decode("utf-8")
        assert text.endswith("\n")
        assert "\r" not in text
        assert {line.count("\t") for line in text.removesuffix("\n").split("\n")} == {tabs}


def test_the_folder_says_that_it_is_simulated(sample: tuple[Path, SampleSummary]) -> None:
    assert "Simulated" in (sample[0] / "README.txt").read_text(encoding="utf-8")


def test_the_next_item_follows_from_the_history(sequences: dict[str, list[str]]) -> None:
    """What was bought next to an item, counted, finds the last purchase far more often than popularity does."""
    sold = Counter(item for items in sequences.values() for item in items[:-1])
    best_sellers = [item for item, _ in sold.most_common()]
    beside: dict[str, Counter[str]] = defaultdict(Counter)
    for items in sequences.values():
        for before, after in pairwise(items[:-1]):
            beside[before][after] += 1
            beside[after][before] += 1

    popular = neighbours = 0
    for *history, target in sequences.values():
        popular += target in [item for item in best_sellers if item not in history][:10]
        score: Counter[str] = Counter()
        for age, item in enumerate(reversed(history)):
            for other, count in beside[item].items():
                score[other] += int(1000 * count / (age + 1) / sold[other] ** 0.5)
        neighbours += target in [item for item, _ in score.most_common() if item not in history][:10]
    assert popular < 0.12 * len(sequences)
    assert neighbours > 0.25 * len(sequences)


def test_the_last_purchase_shifts_what_comes_next(sequences: dict[str, list[str]]) -> None:
    """Order carries information: an item's successors differ from its predecessors."""
    pairs = Counter(pair for items in sequences.values() for pair in pairwise(items))
    frequent = [(pair, count) for pair, count in pairs.items() if count >= 10]
    forward = sum(count for _, count in frequent)
    backward = sum(pairs[after, before] for (before, after), _ in frequent)
    assert forward > 1.5 * backward


def test_a_seed_gives_the_same_bytes_everywhere(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    write_sample(a, **SMALL)
    write_sample(b, **SMALL)
    write_sample(c, **{**SMALL, "seed": 4})
    for name in ("sample.inter", "sample.item", "README.txt"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    written = (a / "sample.inter").read_bytes() + (a / "sample.item").read_bytes()
    assert hashlib.sha256(written).hexdigest() == ("812e42324703589abf8b1ca0f86638950313b60e99dcd52db121e31b0bbde262")
    assert (a / "sample.inter").read_bytes() != (c / "sample.inter").read_bytes()


def test_an_earlier_sample_is_replaced_whole(tmp_path: Path) -> None:
    write_sample(tmp_path / "s", **SMALL)
    before = (tmp_path / "s" / "sample.inter").read_bytes()
    write_sample(tmp_path / "s", **{**SMALL, "seed": 4})
    assert (tmp_path / "s" / "sample.inter").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_failed_write_leaves_the_earlier_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(tmp_path / "s", **SMALL)
    before = (tmp_path / "s" / "sample.inter").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("offline.sample._write", full)
    with pytest.raises(OSError, match="no space"):
        write_sample(tmp_path / "s", **{**SMALL, "seed": 4})
    assert (tmp_path / "s" / "sample.inter").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="give a new folder"):
        write_sample(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("items", [0, LARGEST + 1])
def test_a_number_of_items_that_cannot_be_told_apart_is_refused(tmp_path: Path, items: int) -> None:
    with pytest.raises(DataError, match="items"):
        write_sample(tmp_path / "s", items=items)


def test_too_few_shoppers_for_a_5_core_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5-core"):
        write_sample(tmp_path / "s", users=3)
    assert not (tmp_path / "s").exists()
