from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.errors import ReleaseCorrupt, RequestInvalid
from service.filters import FILTER_BYTES, VALUE_BYTES, Filter, Filters
from service.release.catalogue import Catalogue, Item

COLOURS, SIZES = ["red", "green", "blue"], ["S", "M", "L"]


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    """Distinct semantic IDs of any depth; items with several values, one, none, or without the column."""
    depth = draw(st.integers(1, 4))
    code = st.tuples(*[st.integers(0, draw(st.integers(0, 4)))] * depth)
    codes = draw(st.lists(code, min_size=1, max_size=40, unique=True))
    attributes = st.fixed_dictionaries(
        {},
        optional={"colour": st.lists(st.sampled_from(COLOURS), max_size=3), "size": st.sampled_from(SIZES).map(list)},
    )
    items = [Item(str(number), "", draw(attributes)) for number in range(len(codes))]
    return Catalogue(items, np.array(codes, np.uint16), np.array([n % 3 / 10 for n in range(len(codes))], np.float32))


def asked(columns: list[str]) -> st.SearchStrategy[dict[str, list[str]]]:
    values = st.lists(st.sampled_from([*COLOURS, *SIZES, "unheard of"]), min_size=1, max_size=4)
    return st.dictionaries(st.sampled_from(columns), values) if columns else st.just({})


def eligible(item: Item, allow: dict[str, list[str]], block: dict[str, list[str]]) -> bool:
    return all(set(values) & set(item.attributes.get(column, [])) for column, values in allow.items()) and not any(
        set(values) & set(item.attributes.get(column, [])) for column, values in block.items()
    )


def alive(catalogue: Catalogue, items: set[int]) -> list[bool]:
    """Which nodes lead to one of the items, from sets of prefixes: level after level, each in lexicographic order."""
    rows = [tuple(map(int, row)) for row in catalogue.codes]
    left = [rows[index - 1] for index in items]
    found: list[bool] = []
    for depth in range(1, catalogue.codes.shape[1] + 1):
        reached = {row[:depth] for row in left}
        found += [prefix in reached for prefix in sorted({row[:depth] for row in rows})]
    return found


def passing(chosen: Filter, items: int) -> list[int]:
    return [int(index) for index in np.flatnonzero(chosen.passes(np.arange(items + 1)))]


def unpacked(mask: NDArray[np.uint8], nodes: int) -> list[bool]:
    assert mask.dtype == np.uint8
    assert len(mask) == -(-nodes // 8)
    bits = np.unpackbits(mask, bitorder="little")
    assert not bits[nodes:].any()
    return [bool(bit) for bit in bits[:nodes]]


@given(catalogues(), st.data())
@settings(max_examples=150)
def test_a_node_is_alive_if_an_eligible_item_that_is_not_excluded_is_beneath(
    catalogue: Catalogue, data: st.DataObject
) -> None:
    filters = Filters(catalogue)
    allow, block = data.draw(asked(filters.columns)), data.draw(asked(filters.columns))
    excluded = data.draw(st.lists(st.integers(0, len(catalogue)), max_size=60))
    chosen = filters.resolve(allow, block)
    expected = {index for index, item in enumerate(catalogue.items, start=1) if eligible(item, allow, block)}
    assert set(passing(chosen, len(catalogue))) == expected
    assert chosen.eligible == len(expected)
    nodes = alive(catalogue, expected)
    assert unpacked(chosen.mask([]), len(nodes)) == nodes
    assert unpacked(chosen.mask(excluded), len(nodes)) == alive(catalogue, expected - set(excluded))
    assert unpacked(chosen.mask(np.array(excluded, np.int64)), len(nodes)) == alive(catalogue, expected - set(excluded))
    assert unpacked(chosen.mask([]), len(nodes)) == nodes  # no request changes the next one's


@given(catalogues(), st.data())
@settings(max_examples=50)
def test_the_popular_items_of_a_filter_are_eligible_and_complete(catalogue: Catalogue, data: st.DataObject) -> None:
    filters = Filters(catalogue)
    chosen = filters.resolve(data.draw(asked(filters.columns)), {})
    exclude = data.draw(st.sets(st.integers(1, len(catalogue))))
    k = data.draw(st.integers(1, 12))
    found = catalogue.popular(k, exclude, chosen.passes, chosen.few)
    left = set(passing(chosen, len(catalogue))) - exclude
    assert found == catalogue.popular(k, exclude, chosen.passes)
    assert found == [index for index in catalogue.popular(len(catalogue), exclude) if index in left][:k]
    assert len(found) == min(k, len(left))


def shop(items: int = 6) -> Catalogue:
    """Items 1, 2, 3, ... are red, green, blue, red, ...; every other one is of size S."""
    rows = [
        Item(f"i{n}", "", {"colour": [COLOURS[n % 3]], "a/b~c": ["x"]} | ({"size": ["S"]} if n % 2 == 0 else {}))
        for n in range(items)
    ]
    codes = np.array([[n % 7, n // 7] for n in range(items)], np.uint16)
    return Catalogue(rows, codes, np.linspace(0.1, 0.2, items, dtype=np.float32))


def chosen(found: Filter) -> list[int]:
    return passing(found, len(shop()))


def test_any_value_of_a_column_and_every_column() -> None:
    filters = Filters(shop())
    assert filters.columns == ["a/b~c", "colour", "size"]
    assert chosen(filters.resolve({}, {})) == [1, 2, 3, 4, 5, 6]
    assert chosen(filters.resolve({"colour": ["red", "blue"]}, {})) == [1, 3, 4, 6]
    assert chosen(filters.resolve({"colour": ["red", "blue"], "size": ["S"]}, {})) == [1, 3]
    assert chosen(filters.resolve({"colour": ["red", "blue"]}, {"size": ["S"]})) == [4, 6]
    assert chosen(filters.resolve({}, {"size": ["S"], "colour": ["blue"]})) == [2, 4]


def test_a_value_that_no_item_has_matches_nothing_and_is_named() -> None:
    filters = Filters(shop())
    found = filters.resolve({"colour": ["pink", "red"]}, {"size": ["XXL"]})
    assert chosen(found) == [1, 4]
    assert found.unknown == (("colour", "pink"), ("size", "XXL"))
    nothing = filters.resolve({"colour": ["Red"]}, {})  # capitals count
    assert (nothing.eligible, chosen(nothing)) == (0, [])
    assert not nothing.mask([1]).any()


def test_a_column_that_there_is_not_is_refused_by_name() -> None:
    filters = Filters(shop())
    with pytest.raises(RequestInvalid) as caught:
        filters.resolve({"brand": ["x"], "a/b~c": []}, {"brand": ["y"]})
    assert [(field.pointer, field.detail) for field in caught.value.fields] == [
        ("/filters/allow/brand", "is no attribute of this catalogue, which has: a/b~c, colour, size"),
        ("/filters/allow/a~1b~0c", "must hold at least one value"),
        ("/filters/block/brand", "is no attribute of this catalogue, which has: a/b~c, colour, size"),
    ]
    bare = Filters(Catalogue([Item("a", "", {})], np.zeros((1, 2), np.uint16), np.ones(1, np.float32)))
    with pytest.raises(RequestInvalid, match="which has: none"):
        bare.resolve({"colour": ["red"]}, {})


def test_the_same_filter_in_other_words_is_resolved_once() -> None:
    filters = Filters(shop())
    first = filters.resolve({"colour": ["red", "blue"], "size": ["S"]}, {})
    assert filters.resolve({"size": ["S", "S"], "colour": ["blue", "red"]}, {}) is first
    assert filters.resolve({}, {"colour": ["red", "blue"], "size": ["S"]}) is not first


def test_the_cache_forgets_what_was_asked_for_longest_ago_and_stays_within_its_bytes() -> None:
    one = Filters(shop()).resolve({"colour": ["red"]}, {}).nbytes + FILTER_BYTES + VALUE_BYTES
    filters = Filters(shop(), cache_bytes=2 * one + 4 * len("redgreen"))
    red, green = (filters.resolve({"colour": [colour]}, {}) for colour in ("red", "green"))
    assert filters.resolve({"colour": ["red"]}, {}) is red
    filters.resolve({"colour": ["blue"]}, {})
    assert filters.resolve({"colour": ["red"]}, {}) is red
    assert filters.resolve({"colour": ["green"]}, {}) is not green
    room = 3 * one + 4 * len("redgreen")
    long = Filters(shop(), cache_bytes=room)
    red = long.resolve({"colour": ["red"]}, {})
    long.resolve({"colour": ["green"]}, {})
    assert long.resolve({"colour": ["red"]}, {}) is red
    long.resolve({"colour": ["x" * (room // 4)]}, {})  # what a caller makes long counts by its length
    assert long.resolve({"colour": ["red"]}, {}) is not red
    tiny = Filters(shop(), cache_bytes=0)
    assert chosen(tiny.resolve({"colour": ["red"]}, {})) == [1, 4]  # too large to keep, and still answered
    assert tiny.resolve({"colour": ["x" * 10_000]}, {}).eligible == 0


@pytest.mark.parametrize("values", [1, 20])
def test_the_cache_holds_no_more_memory_than_it_says(values: int) -> None:
    """Values of their own in each request, such as sellers' ids, filled that of a small catalogue with a gigabyte."""
    room = 2 * 1024 * 1024
    filters = Filters(shop(), cache_bytes=room)
    tracemalloc.start()
    try:
        for turn in range(4_000):
            filters.resolve({"colour": [f"{number} of {turn}" for number in range(values)]}, {})
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert room / 2 < held < 1.2 * room


def test_a_filter_is_kept_as_bits_of_nodes_and_not_as_numbers_of_items() -> None:
    """At a million items the filters of dozens of campaigns must fit into the cache, or each request makes its own."""
    catalogue = shop(12_000)
    found = Filters(catalogue).resolve({"colour": ["red", "blue"]}, {})
    assert found.few is None
    assert found.nbytes < 1.6 * len(found.mask([]))


def test_shared_semantic_ids_are_refused() -> None:
    twice = Catalogue([Item("a", "", {}), Item("b", "", {})], np.zeros((2, 3), np.uint16), np.ones(2, np.float32))
    with pytest.raises(ReleaseCorrupt, match="share a semantic ID"):
        Filters(twice)


def test_a_mask_costs_a_request_microseconds() -> None:
    """Two dozen on an idle core, for a catalogue of 12,000 and twenty exclusions; the bound is for a busy one."""
    catalogue = shop(12_000)
    found = Filters(catalogue).resolve({"colour": ["red", "blue"]}, {})
    excluded = np.random.default_rng(0).integers(1, 12_001, 20)
    times = []
    for _ in range(300):
        start = time.perf_counter()
        found.mask(excluded)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 500e-6
