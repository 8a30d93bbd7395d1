from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from service.release.blob import HEADER_BYTES, BlobFormat, BlobMiss, Layout, Reasoning, decode, encode

users = st.text(st.characters(codec=None), min_size=1, max_size=40)


def formats_of(*dtypes: str) -> st.SearchStrategy[BlobFormat]:
    return st.builds(
        BlobFormat,
        release_id=st.text(min_size=1, max_size=16),
        layout=st.sampled_from(Layout),
        dtype=st.sampled_from(dtypes),
        steps=st.integers(1, 6),
        width=st.integers(1, 24),
    )


formats = formats_of("float16", "float32", "int8")


@st.composite
def stored(draw: st.DrawFn) -> tuple[BlobFormat, str, NDArray[np.float32], bytes]:
    """A format, a user, a matrix that floats of the format hold exactly, and the blob."""
    fmt, user = draw(formats), draw(users)
    values = st.floats(-100, 100, width=16)
    matrix = draw(arrays(np.float32, (fmt.steps, fmt.width), elements=values))
    return fmt, user, matrix, encode(matrix, fmt, user, history_length=7, written=1_700_000_000)


@given(stored())
def test_round_trip(case: tuple[BlobFormat, str, NDArray[np.float32], bytes]) -> None:
    fmt, user, matrix, blob = case
    reasoning = decode(blob, fmt, user)
    assert isinstance(reasoning, Reasoning)
    assert reasoning.matrix.dtype == np.float32
    if fmt.dtype == "int8":
        step = np.abs(matrix).max(axis=1, keepdims=True) / 127
        assert (np.abs(reasoning.matrix - matrix) <= step * 0.501 + 1e-44).all()
    else:
        np.testing.assert_array_equal(reasoning.matrix, matrix)
    assert (reasoning.history_length, reasoning.written) == (7, 1_700_000_000)


@given(st.data())
def test_int8_changes_nothing_the_second_time(data: st.DataObject) -> None:
    fmt = data.draw(formats_of("int8"))
    values = st.floats(-(2.0**99), 2.0**99, width=32)
    matrix = data.draw(arrays(np.float32, (fmt.steps, fmt.width), elements=values))
    once = decode(encode(matrix, fmt, "u", history_length=1, written=1), fmt, "u")
    assert isinstance(once, Reasoning)
    assert np.isfinite(once.matrix).all()
    twice = decode(encode(once.matrix, fmt, "u", history_length=1, written=1), fmt, "u")
    assert isinstance(twice, Reasoning)
    # Numbers that are hardly any, below the smallest normal one, have no digits left to keep.
    np.testing.assert_allclose(twice.matrix, once.matrix, rtol=1e-6, atol=1e-37)


def test_int8_stands_as_documented() -> None:
    fmt = BlobFormat("r", Layout.projected, "int8", 2, 3)
    blob = encode(np.array([[127, -63.6, 0], [0, 0, 0]], np.float32), fmt, "u", history_length=1, written=1)
    assert blob[6] == 3
    assert blob[HEADER_BYTES:] == np.array([1, 0], "<f4").tobytes() + np.array([127, -64, 0, 0, 0, 0], "i1").tobytes()


@given(stored(), st.data())
def test_one_altered_byte_is_a_miss(
    case: tuple[BlobFormat, str, NDArray[np.float32], bytes], data: st.DataObject
) -> None:
    fmt, user, _, blob = case
    position = data.draw(st.integers(0, len(blob) - 1))
    altered = bytearray(blob)
    altered[position] ^= data.draw(st.integers(1, 255))
    assert isinstance(decode(bytes(altered), fmt, user), BlobMiss)


@given(stored(), st.data())
def test_any_other_length_is_a_miss(
    case: tuple[BlobFormat, str, NDArray[np.float32], bytes], data: st.DataObject
) -> None:
    fmt, user, _, blob = case
    cut = data.draw(st.integers(0, len(blob) - 1))
    assert isinstance(decode(blob[:cut], fmt, user), BlobMiss)
    assert isinstance(decode(blob + data.draw(st.binary(min_size=1)), fmt, user), BlobMiss)


@given(st.binary(max_size=200), formats, users)
def test_no_bytes_make_it_raise(blob: bytes, fmt: BlobFormat, user: str) -> None:
    assert isinstance(decode(blob, fmt, user), BlobMiss)


@given(stored(), users)
def test_another_users_blob_is_a_miss(case: tuple[BlobFormat, str, NDArray[np.float32], bytes], other: str) -> None:
    fmt, user, _, blob = case
    assert other == user or decode(blob, fmt, other) is BlobMiss.user


def test_every_mismatch_has_its_own_name() -> None:
    fmt = BlobFormat("r1", Layout.projected, "float16", 2, 3)
    blob = encode(np.ones((2, 3), np.float32), fmt, "u", history_length=1, written=1)
    assert decode(None, fmt, "u") is BlobMiss.absent
    assert decode(blob[:10], fmt, "u") is BlobMiss.truncated
    assert decode(blob[:-1], fmt, "u") is BlobMiss.truncated
    assert decode(b"XXXX" + blob[4:], fmt, "u") is BlobMiss.foreign
    assert decode(blob[:4] + b"\x02" + blob[5:], fmt, "u") is BlobMiss.foreign
    assert decode(blob[:-1] + b"\xff", fmt, "u") is BlobMiss.checksum
    assert decode(blob, replace(fmt, release_id="r2"), "u") is BlobMiss.release
    assert decode(blob, fmt, "v") is BlobMiss.user
    assert decode(blob, replace(fmt, layout=Layout.raw), "u") is BlobMiss.shape
    assert decode(blob, replace(fmt, width=2, steps=3), "u") is BlobMiss.shape
    assert decode(blob, replace(fmt, dtype="int8"), "u") is BlobMiss.shape


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 70_000.0])
def test_what_the_dtype_cannot_hold_is_not_written(value: float) -> None:
    fmt = BlobFormat("r", Layout.projected, "float16", 1, 2)
    with pytest.raises(ValueError, match="not finite"):
        encode(np.array([[0, value]], np.float32), fmt, "u", history_length=1, written=1)


def test_a_matrix_of_another_shape_is_not_written() -> None:
    fmt = BlobFormat("r", Layout.projected, "float16", 2, 2)
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        encode(np.ones((2, 3), np.float32), fmt, "u", history_length=1, written=1)


def test_a_long_history_is_capped_not_refused() -> None:
    fmt = BlobFormat("r", Layout.projected, "float32", 1, 1)
    blob = encode(np.ones((1, 1), np.float32), fmt, "u", history_length=1_000_000, written=1)
    reasoning = decode(blob, fmt, "u")
    assert isinstance(reasoning, Reasoning)
    assert reasoning.history_length == 0xFFFF
    assert len(blob) == HEADER_BYTES + 4
