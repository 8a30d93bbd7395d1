from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.records import History, decode_history, decode_steps, encode_history, encode_steps


@given(st.lists(st.text()), st.integers(0, 2**40))
def test_history_round_trip(items: list[str], updated: int) -> None:
    assert decode_history(encode_history(History(items, updated))) == History(items, updated)


@given(st.lists(st.text()))
def test_steps_round_trip(steps: list[str]) -> None:
    assert decode_steps(encode_steps(steps)) == steps


@pytest.mark.parametrize(
    "record", [None, b"", b"{", b"\xff", b"[]", b"3", b'{"items": "a", "updated": 1}', b'{"items": [1], "updated": 1}']
)
def test_a_history_that_cannot_be_read_is_none(record: bytes | None) -> None:
    assert decode_history(record) is None


@pytest.mark.parametrize("record", [None, b"", b"{}", b"\xff", b"[1]", b'"text"'])
def test_steps_that_cannot_be_read_are_none(record: bytes | None) -> None:
    assert decode_steps(record) is None


@given(st.binary(max_size=60))
def test_no_bytes_make_a_decoder_raise(record: bytes) -> None:
    decode_history(record)
    assert decode_steps(record) is None or isinstance(decode_steps(record), list)
