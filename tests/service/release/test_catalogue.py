from __future__ import annotations

import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ReleaseCorrupt
from service.release.catalogue import Catalogue, Item

texts = st.text(st.characters(codec="utf-8"), max_size=20)
items = st.lists(
    st.builds(Item, texts, texts, st.dictionaries(texts, st.lists(texts, max_size=3), max_size=3)),
    max_size=12,
    unique_by=lambda item: item.id,
)


def catalogue(rows: list[Item], popularity: list[float] | None = None) -> Catalogue:
    shares = popularity or [0.1] * len(rows)
    return Catalogue(rows, np.zeros((len(rows), 2), np.uint16), np.array(shares, np.float32))


def three() -> Catalogue:
    return catalogue([Item(name, name.upper(), {}) for name in "abc"], [0.2, 0.5, 0.3])


@given(items)
def test_what_is_written_is_read(rows: list[Item]) -> None:
    with TemporaryDirectory() as folder:
        catalogue(rows).write(Path(folder) / "catalogue")
        read = Catalogue.read(Path(folder) / "catalogue")
    assert read.items == rows
    assert [read.index_of(item.id) for item in rows] == list(range(1, len(rows) + 1))
    assert [read.item(index) for index in range(1, len(rows) + 1)] == rows


def test_indices_outside_are_errors() -> None:
    for index in (-1, 0, 4):
        with pytest.raises(IndexError):
            three().item(index)
    assert three().index_of("unknown") is None


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20),
    st.sets(st.integers(1, 20)),
    st.integers(0, 25),
    st.none() | st.sets(st.integers(1, 20)),
)
def test_popular_items_are_the_best_of_what_is_left(
    shares: list[float], exclude: set[int], k: int, passes: set[int] | None
) -> None:
    eligible = None if passes is None else np.array([index in passes for index in range(len(shares) + 1)])
    ranked = catalogue([Item(str(i), "", {}) for i in range(len(shares))], shares).popular(
        k, exclude, None if eligible is None else eligible.__getitem__
    )
    indices = range(1, len(shares) + 1)
    left = [index for index in indices if index not in exclude and (passes is None or index in passes)]
    assert ranked == sorted(left, key=lambda index: (-np.float32(shares[index - 1]), index))[:k]


def test_a_filter_of_a_large_catalogue_makes_no_list_of_it() -> None:
    """One such list of a million items keeps every caller waiting for 50 ms."""
    size = 50_000
    large = catalogue([Item(str(i), "", {}) for i in range(size)])
    eligible = np.ones(size + 1, np.bool_)
    tracemalloc.start()
    try:
        assert large.popular(3, {2}, eligible.__getitem__) == [1, 3, 4]
        assert tracemalloc.get_traced_memory()[1] < 20 * size  # bytes; a list of numbers takes 40 an item
    finally:
        tracemalloc.stop()


def test_attributes_that_repeat_are_kept_once(tmp_path: Path) -> None:
    """Of a million items the copies would be a gigabyte, twice over during a swap."""
    catalogue([Item(str(n), "", {"brand": ["Acme", "Inc."], "colour": ["red"]}) for n in range(2)]).write(
        tmp_path / "c"
    )
    first, second = Catalogue.read(tmp_path / "c").items
    assert first.attributes == second.attributes == {"brand": ["Acme", "Inc."], "colour": ["red"]}
    for (column, values), (other, others) in zip(first.attributes.items(), second.attributes.items(), strict=True):
        assert column is other
        assert values is others


def test_an_id_must_be_unique() -> None:
    with pytest.raises(ReleaseCorrupt, match="twice"):
        catalogue([Item("a", "", {}), Item("a", "", {})])


def test_parts_must_be_of_one_length() -> None:
    with pytest.raises(ReleaseCorrupt, match=r"popularities of shape \[2\]"):
        Catalogue([Item("a", "", {})], np.zeros((1, 2), np.uint16), np.zeros(2, np.float32))
    with pytest.raises(ReleaseCorrupt, match="semantic IDs"):
        Catalogue([Item("a", "", {})], np.zeros(1, np.uint16), np.zeros(1, np.float32))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "3",
        '{"id": "b"}',
        '{"id": 3, "title": "x", "attributes": {}}',
        '{"id": "b", "title": "x", "attributes": []}',
        '{"id": "b", "title": "x", "attributes": {"brand": "y"}}',
        '{"id": "b", "title": "x", "attributes": {"brand": ["y", 3]}}',
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    three().write(tmp_path / "catalogue")
    path = tmp_path / "catalogue" / "items.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ReleaseCorrupt, match=r"items\.jsonl, line 4"):
        Catalogue.read(tmp_path / "catalogue")


@pytest.mark.parametrize("content", [b"", b"junk", None])
@pytest.mark.parametrize("name", ["codes.npy", "popularity.npy"])
def test_arrays_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None) -> None:
    three().write(tmp_path / "catalogue")
    path = tmp_path / "catalogue" / name
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(ReleaseCorrupt, match="catalogue"):
        Catalogue.read(tmp_path / "catalogue")
