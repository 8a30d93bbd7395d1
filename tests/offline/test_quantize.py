from dataclasses import replace
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offline import quantize as module
from offline.errors import StageError
from offline.quantize import Quantization, ResidualKMeans, assign, collisions, make_unique, numbered


def drawn(items: int, width: int = 8, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors [items, width]."""
    vectors = np.random.default_rng(seed).standard_normal((items, width)).astype(np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def quantizer(levels: int = 3, codebook: int = 8) -> ResidualKMeans:
    return ResidualKMeans(levels, codebook, iterations=20, seed=7)


def column(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)[:, None]


def by_hand(vectors: NDArray[np.float32], codes: list[tuple[int, ...]], *books: NDArray[np.float32]) -> Quantization:
    return Quantization(np.array(codes, np.int64), list(books), vectors, lambda latents: latents)


def test_codes_point_into_their_codebooks() -> None:
    found = quantizer(levels=3, codebook=8).fit(drawn(200))
    assert found.codes.shape == (200, 3)
    assert found.codes.dtype == np.int64
    assert [book.shape for book in found.codebooks] == [(8, 8)] * 3
    assert [book.dtype for book in found.codebooks] == [np.float32] * 3
    assert found.codes.min() == 0
    assert [int(codes.max()) for codes in found.codes.T] == [7, 7, 7]


def test_the_same_vectors_get_the_same_codes_every_time() -> None:
    vectors = drawn(150)
    before = vectors.copy()
    first, second = quantizer().fit(vectors), quantizer().fit(vectors)
    np.testing.assert_array_equal(first.codes, second.codes)
    for one, other in zip(first.codebooks, second.codebooks, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(make_unique(first, 8), make_unique(second, 8))
    np.testing.assert_array_equal(vectors, before)


def test_each_level_quantises_what_the_levels_before_left_over() -> None:
    vectors = drawn(300, seed=1)
    found = quantizer(levels=4, codebook=16).fit(vectors)
    residual = vectors.copy()
    errors = [float(np.mean(residual**2))]
    for level, book in enumerate(found.codebooks):
        distance = np.linalg.norm(residual[:, None] - book, axis=2)  # [N, codes]
        chosen = np.take_along_axis(distance, found.codes[:, [level]], axis=1)[:, 0]
        np.testing.assert_allclose(chosen, distance.min(axis=1), atol=1e-5)
        residual -= book[found.codes[:, level]]
        errors.append(float(np.mean(residual**2)))
    assert all(after < 0.95 * before for before, after in pairwise(errors))


def test_more_codes_than_items() -> None:
    vectors = drawn(5)
    found = quantizer(levels=3, codebook=64).fit(vectors)
    assert len(found.codebooks[0]) == 5
    np.testing.assert_allclose(found.rebuilt(found.codes), vectors, atol=1e-5)
    assert collisions(make_unique(found, 64)) == 0


def test_small_residuals_get_as_many_codes_as_large_ones() -> None:
    """Of deep levels, where all vectors lie near zero."""
    found = quantizer(levels=2, codebook=8).fit(1e-3 * drawn(200))
    assert [len(book) for book in found.codebooks] == [8, 8]


def test_codes_are_the_same_however_many_items_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, books = drawn(100, seed=1), [drawn(8, seed=2), drawn(8, seed=3)]
    whole = assign(vectors, books)
    monkeypatch.setattr(module, "BLOCK", 7)
    np.testing.assert_array_equal(assign(vectors, books), whole)


def test_a_single_item() -> None:
    found = quantizer(levels=2, codebook=4).fit(drawn(1))
    np.testing.assert_array_equal(make_unique(found, 4), [[0, 0]])


def test_collisions_are_items_whose_codes_an_earlier_one_has() -> None:
    assert collisions(np.array([[0, 1], [1, 0], [2, 2]])) == 0
    assert collisions(np.array([[0, 1], [1, 0], [0, 1], [0, 1], [1, 0]])) == 3


@settings(max_examples=25)
@given(
    items=st.integers(1, 60),
    kinds=st.integers(1, 60),
    levels=st.integers(2, 4),
    codebook=st.integers(8, 16),
    seed=st.integers(0, 5),
)
def test_no_two_items_are_alike_however_many_vectors_are(
    items: int, kinds: int, levels: int, codebook: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = drawn(kinds, seed=seed)[rng.integers(0, kinds, items)]
    found = quantizer(levels, codebook).fit(vectors)
    codes = make_unique(found, codebook)
    assert codes.shape == (items, levels)
    assert codes.dtype == np.int64
    assert len(np.unique(codes, axis=0)) == items
    assert codes.min() >= 0
    assert codes.max() < codebook
    # Only the last two levels move: what items share above them is kept.
    np.testing.assert_array_equal(codes[:, :-2], found.codes[:, :-2])


def test_items_without_a_double_keep_their_codes() -> None:
    vectors = drawn(400, seed=2)
    found = quantizer(levels=4, codebook=16).fit(vectors)
    assert collisions(found.codes) == 0
    np.testing.assert_array_equal(make_unique(found, 16), found.codes)


def test_the_nearest_keeps_its_code_and_the_others_take_the_nearest_free_one() -> None:
    vectors = column(10.2, 10.0, 9.9)
    codes = make_unique(by_hand(vectors, [(0, 1)] * 3, column(10.0, 20.0), column(-1.0, 0.0, 1.5)), 3)
    # 10.0 is exact; 9.9 comes next and -1 is nearer to its -0.1 than 1.5; 10.2 is left with 1.5.
    np.testing.assert_array_equal(codes, [[0, 2], [0, 1], [0, 0]])


def test_of_identical_items_the_first_keeps_its_code() -> None:
    found = by_hand(column(10.0, 10.0, 10.0), [(0, 0)] * 3, column(10.0), column(0.0, 1.0, 2.0))
    np.testing.assert_array_equal(make_unique(found, 3), [[0, 0], [0, 1], [0, 2]])


def test_a_full_prefix_moves_to_the_next_nearest_code_one_level_up() -> None:
    found = by_hand(column(10.0, 10.0, 10.0, 10.0), [(0, 0)] * 4, column(10.0, 30.0, 20.0), column(0.0, 1.0))
    np.testing.assert_array_equal(make_unique(found, 2), [[0, 0], [0, 1], [2, 0], [2, 1]])


def test_many_items_of_one_text_are_told_apart_without_trying_every_code_that_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For ten thousand of them that took minutes, and for as many as there are codes an hour."""
    found = by_hand(column(*[10.0] * 256), [(0, 0)] * 256, column(*range(16)), column(*range(16)))
    real, sorted_ = np.argsort, []

    def counted(*given: Any, **named: Any) -> Any:
        sorted_.append(given)
        return real(*given, **named)

    monkeypatch.setattr(np, "argsort", counted)
    assert collisions(make_unique(found, 16)) == 0
    assert len(sorted_) == 2 * 255  # what is near at each of the two levels, once for each item that moves


def test_codes_that_no_residual_was_given_to_are_there_to_take() -> None:
    found = by_hand(column(10.0, 10.0, 10.0), [(0, 0)] * 3, column(10.0), column(0.0))
    np.testing.assert_array_equal(make_unique(found, 2), [[0, 0], [0, 1], [1, 0]])


def test_levels_above_the_last_two_stay() -> None:
    books = [column(100.0, 200.0), column(10.0, 20.0), column(0.0, 1.0)]
    found = by_hand(column(*[210.0] * 4), [(1, 0, 0)] * 4, *books)
    np.testing.assert_array_equal(make_unique(found, 2), [[1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize("levels, shared", [(2, ""), (3, r" share the codes \[0\]")])
def test_too_many_items_for_the_codebooks(levels: int, shared: str) -> None:
    vectors = np.ones((5, 3), np.float32)
    found = quantizer(levels=levels, codebook=2).fit(vectors)
    with pytest.raises(StageError, match=rf"more than 4 items{shared}: raise tokenize\.codebook or tok"):
        make_unique(found, 2)
    codes = make_unique(replace(found, codes=found.codes[:4], latents=vectors[:4]), 2)
    assert collisions(codes) == 0


@pytest.mark.parametrize("apart", [1e-7, 3e-7, 1e-6, 1e-5])
def test_vectors_that_hardly_differ_are_no_trouble(apart: float) -> None:
    rng = np.random.default_rng(0)
    vectors = drawn(3)[rng.integers(0, 3, 60)] + (rng.standard_normal((60, 8)) * apart).astype(np.float32)
    found = quantizer(codebook=16).fit(vectors)
    assert collisions(make_unique(found, 16)) == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_one_more_code_counts_items_with_the_same_codes(rows: list[tuple[int, int]]) -> None:
    codes = numbered(np.array(rows, np.int64), 30)
    assert codes.dtype == np.int64
    assert [tuple(row) for row in codes[:, :2].tolist()] == rows
    assert codes[:, 2].tolist() == [rows[:place].count(row) for place, row in enumerate(rows)]


def test_more_items_with_the_same_codes_than_one_code_counts() -> None:
    with pytest.raises(
        StageError, match=r"5 items have the same codes, and one more code tells 4 apart: raise tokenize"
    ):
        numbered(np.zeros((5, 2), np.int64), 4)


def faiss_codes(vectors: NDArray[np.float32], books: list[NDArray[np.float32]]) -> NDArray[np.int64]:
    """Codes [N, L] by faiss's residual quantiser, one beam wide, with these codebooks of 2^bits codes each."""
    bits = len(books[0]).bit_length() - 1
    theirs = faiss.ResidualQuantizer(vectors.shape[1], len(books), bits)
    theirs.max_beam_size = 1
    faiss.copy_array_to_vector(np.concatenate(books).ravel(), theirs.codebooks)
    theirs.is_trained = True
    packed = theirs.compute_codes(np.ascontiguousarray(vectors))
    codes: NDArray[np.int64] = faiss.unpack_bitstrings(packed, len(books), bits).astype(np.int64)
    return codes


@pytest.mark.parametrize("codebook", [16, 64])
def test_codes_are_those_of_faiss_given_the_same_codebooks(codebook: int) -> None:
    vectors = drawn(2000, width=24, seed=3)
    found = quantizer(levels=4, codebook=codebook).fit(vectors)
    np.testing.assert_array_equal(found.codes, faiss_codes(vectors, found.codebooks))
    others = drawn(500, width=24, seed=4)
    np.testing.assert_array_equal(assign(others, found.codebooks), faiss_codes(others, found.codebooks))


def test_codebooks_are_as_good_as_those_that_faiss_learns() -> None:
    vectors = drawn(3000, width=16, seed=5)
    found = quantizer(levels=4, codebook=16).fit(vectors)
    theirs = faiss.ResidualQuantizer(16, 4, 4)
    theirs.max_beam_size = 1
    theirs.train(vectors)
    rebuilt = theirs.decode(theirs.compute_codes(vectors))
    assert np.mean((vectors - found.rebuilt(found.codes)) ** 2) < 1.03 * np.mean((vectors - rebuilt) ** 2)
