from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.keys import user_tag
from service.store.records import (
    History,
    Load,
    RecordMiss,
    Shelf,
    decode_history,
    decode_load,
    decode_shelf,
    decode_steps,
    decode_tags,
    encode_history,
    encode_load,
    encode_shelf,
    encode_steps,
    encode_tags,
    event_mark,
)

number = st.integers(0, 2**50)


@st.composite
def histories(draw: st.DrawFn) -> History:
    items, times = draw(st.lists(st.text())), draw(st.lists(number, max_size=8))
    marks = draw(st.lists(st.text(max_size=11), min_size=len(times), max_size=len(times)))
    items += ["item"] * len(times)
    forgotten, gone = draw(st.lists(st.text(max_size=11))), draw(st.lists(st.text(max_size=11)))
    return History(items, draw(number), draw(number), times, marks, draw(number), forgotten, gone)


@given(histories())
def test_history_round_trip(history: History) -> None:
    assert decode_history(encode_history(history)) == history


def test_what_earlier_versions_wrote_is_a_history() -> None:
    assert decode_history(b'{"items":["a","b"],"updated":7}') == History(["a", "b"], 7)
    assert encode_history(History(["a", "b"], 7)) == b'{"items":["a","b"],"updated":7}'


def test_a_history_knows_how_long_it_has_been() -> None:
    assert History(["a", "b"], 7, dropped=3).length == 5


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_marks_are_short_and_differ(one: str, other: str) -> None:
    assert (event_mark(one) == event_mark(other)) == (one == other)
    assert len(event_mark(one)) == 11


names = st.lists(st.text(max_size=16), max_size=4).map(tuple)


@given(st.builds(Shelf, names, names))
def test_shelf_round_trip(shelf: Shelf) -> None:
    assert decode_shelf(encode_shelf(shelf)) == shelf


@given(st.builds(Load, st.just(90), st.integers(1, 50), names, st.integers(0, 90), st.booleans()))
def test_load_round_trip(load: Load) -> None:
    assert decode_load(encode_load(load)) == load


@given(st.lists(st.text().map(user_tag)))
def test_tags_round_trip(tags: list[str]) -> None:
    assert decode_tags(encode_tags(tags)) == tags
    assert decode_tags(encode_tags(tags) + b"x") is RecordMiss.corrupt


@given(st.binary(max_size=60))
def test_what_is_no_record_is_corrupt_and_raises_nothing(record: bytes) -> None:
    assert decode_shelf(record) is RecordMiss.corrupt
    assert decode_load(record) is RecordMiss.corrupt
    assert {decode_shelf(None), decode_load(None), decode_tags(None), decode_history(None)} == {RecordMiss.absent}


@pytest.mark.parametrize(
    "change",
    [{"part": 0}, {"done": 91}, {"done": -1}, {"users": "90"}, {"leaving": 1}, {"names": [1]}, {"names": None}],
)
def test_a_load_that_cannot_be_is_corrupt(change: dict[str, object]) -> None:
    body = {"users": 90, "part": 10, "names": ["raw"], "done": 20, "leaving": False}
    assert isinstance(decode_load(json.dumps(body).encode()), Load)
    assert decode_load(json.dumps(body | change).encode()) is RecordMiss.corrupt


@given(st.lists(st.text()))
def test_steps_round_trip(steps: list[str]) -> None:
    assert decode_steps(encode_steps(steps)) == steps


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"3",
        b'{"items": "a", "updated": 1}',
        b'{"items": [1], "updated": 1}',
        b'{"items": ["a"], "updated": "1"}',
        b'{"items": ["a"], "updated": 1, "times": [1]}',
        b'{"items": ["a"], "updated": 1, "times": [1, 2], "marks": ["x", "y"]}',
        b'{"items": ["a"], "updated": 1, "times": [1.5], "marks": ["x"]}',
        b'{"items": ["a"], "updated": 1, "forgotten": [2]}',
    ],
)
def test_a_history_that_cannot_be_read_is_corrupt(record: bytes) -> None:
    assert decode_history(record) is RecordMiss.corrupt


@pytest.mark.parametrize("record", [None, b"", b"{}", b"\xff", b"[1]", b'"text"'])
def test_steps_that_cannot_be_read_are_none(record: bytes | None) -> None:
    assert decode_steps(record) is None


@given(st.binary(max_size=60))
def test_no_bytes_make_a_decoder_raise(record: bytes) -> None:
    assert decode_history(record) is RecordMiss.corrupt
    assert decode_steps(record) is None or isinstance(decode_steps(record), list)
