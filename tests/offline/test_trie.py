from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offline.trie import build_trie, packed_alive
from service.filters import Filters, Nodes
from service.release.catalogue import Catalogue, Item


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[NDArray[np.int64], int]:
    """Unique semantic IDs, and the size of their codebook."""
    codebook = draw(st.integers(1, 5))
    depth = draw(st.integers(1, 4))
    code = st.tuples(*[st.integers(0, codebook - 1)] * depth)
    rows = draw(st.lists(code, min_size=1, max_size=40, unique=True))
    return np.array(rows, np.int64), codebook


@given(catalogues())
@settings(max_examples=200)
def test_trie_holds_every_prefix_once_and_nothing_else(case: tuple[NDArray[np.int64], int]) -> None:
    codes, codebook = case
    trie = build_trie(codes, codebook)
    above: list[tuple[int, ...]] = [()]
    for depth, level in enumerate(trie.levels):
        prefixes: list[tuple[int, ...]] = [
            (*above[int(p)], int(c)) for p, c in zip(level.parent, level.code, strict=True)
        ]
        assert prefixes == sorted({tuple(map(int, row[: depth + 1])) for row in codes})
        for node, prefix in enumerate(above):
            children = prefixes[level.first[node] : level.first[node + 1]]
            assert children == [p for p in prefixes if p[:-1] == prefix]
        for node, prefix in enumerate(prefixes):
            beneath = range(level.start[node], level.start[node] + level.leaves[node])
            assert [int(trie.path[trie.item[leaf], depth]) for leaf in beneath] == [node] * level.leaves[node]
            assert level.leaves[node] == (codes[:, : depth + 1] == prefix).all(1).sum()
        assert level.fanout == np.diff(level.first).max()
        above = prefixes


@given(catalogues())
@settings(max_examples=100)
def test_path_leads_to_the_item(case: tuple[NDArray[np.int64], int]) -> None:
    codes, codebook = case
    trie = build_trie(codes, codebook)
    assert (trie.path[0] == -1).all()
    for item, code in enumerate(codes, start=1):
        assert [
            int(level.code[node]) for level, node in zip(trie.levels, trie.path[item], strict=True)
        ] == code.tolist()
        assert trie.item[trie.path[item, -1]] == item


@given(catalogues(), st.data())
@settings(max_examples=200)
def test_the_service_numbers_the_nodes_alike(case: tuple[NDArray[np.int64], int], data: st.DataObject) -> None:
    codes, codebook = case
    trie, nodes = build_trie(codes, codebook), Nodes.of(codes)
    above = np.cumsum([0, *(len(level) for level in trie.levels[:-1])])
    assert (nodes.path[nodes.leaf[1:]] == trie.path[1:] + above).all()
    assert nodes.start.tolist() == [int(leaf) for level in trie.levels for leaf in level.start]
    assert (nodes.end - nodes.start).tolist() == [int(count) for level in trie.levels for count in level.leaves]
    marks = ["yes" if data.draw(st.booleans()) else "no" for _ in codes]
    items = [Item(str(number), "", {"chosen": [mark]}) for number, mark in enumerate(marks)]
    catalogue = Catalogue(items, codes.astype(np.uint16), np.ones(len(codes), np.float32))
    chosen = Filters(catalogue).resolve({"chosen": ["yes"]}, {})
    eligible = np.array([mark == "yes" for mark in marks])
    assert chosen.mask([]).tolist() == packed_alive(trie, eligible).tolist()


def test_shared_semantic_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="3 items share 2 semantic IDs"):
        build_trie(np.array([[0, 1], [0, 1], [1, 0]]), 2)


def test_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.2, found 0\.\.3"):
        build_trie(np.array([[0, 3]]), 3)
    with pytest.raises(ValueError, match=r"0\.\.2, found -1\.\.1"):
        build_trie(np.array([[-1, 1]]), 3)


def test_an_empty_catalogue_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        build_trie(np.zeros((0, 4), np.int64), 2)
