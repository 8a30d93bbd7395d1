from __future__ import annotations

import math

from growthbook.core import _js_number_to_string, gbhash
from hypothesis import given
from hypothesis import strategies as st

from service.experiments.hashing import Bucketer, fnv1a, hashable_text, number_text

any_text = st.text(st.characters(codec=None), max_size=60)  # lone surrogates included


def test_fnv1a_of_known_texts() -> None:
    # The published test vectors of FNV-1a, 32 bits.
    assert [fnv1a(text) for text in ("", "a", "foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]


@given(seed=any_text, value=any_text.filter(bool), version=st.sampled_from([1, 2]))
def test_buckets_are_those_of_growthbook(seed: str, value: str, version: int) -> None:
    bucketer = Bucketer(seed, version)
    assert bucketer.bucket(value) == gbhash(seed, value, version)
    assert bucketer.bucket(value) == gbhash(seed, value, version)  # from memory


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_numbers_are_written_as_growthbook_writes_them(number: float) -> None:
    assert number_text(number) == _js_number_to_string(number)


def test_what_cannot_tell_users_apart_is_not_hashed() -> None:
    nothing: list[object] = [True, False, 0, 0.0, None, [1], {}, math.inf, math.nan, 10**400]
    assert {hashable_text(value) for value in nothing} == {""}
    assert [hashable_text(value) for value in ("u1", 7, 7.0, 1.5)] == ["u1", "7", "7", "1.5"]
