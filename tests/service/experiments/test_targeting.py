from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from growthbook.core import evalCondition, paddedVersionString
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ExperimentsInvalid
from service.experiments.targeting import DEPTH_CEILING, compile_condition, padded_version

# Few values, so that equal ones meet; each pair here has confused some implementation or other.
SCALARS = [
    None,
    True,
    False,
    0,
    1,
    1.0,
    -1,
    2.5,
    10,
    "",
    "1",
    "true",
    "DE",
    "de",
    "Ä",
    "😀",
    "\uffff",
    "1.2.3",
    "v1.10.0",
    "1.2.3-rc.1",
]
scalars = st.sampled_from(SCALARS)
lists = st.lists(scalars, max_size=3)
values = scalars | lists
names = st.sampled_from(["a", "b", "c"])
GROUPS: dict[str, list[Any]] = {"vip": ["DE", 1, "1"], "none": []}


def operators(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object of one or two operators on a value."""
    simple = ["$eq", "$ne", "$lt", "$lte", "$gt", "$gte", "$veq", "$vne", "$vlt", "$vlte", "$vgt", "$vgte"]
    pairs = [st.tuples(st.just(name), scalars) for name in simple]
    pairs += [st.tuples(st.just(name), lists) for name in ("$in", "$nin", "$ini", "$nini", "$all", "$alli")]
    pairs += [
        st.tuples(st.just(name), st.sampled_from(["^d", "D", "1", "."]))
        for name in ("$regex", "$regexi", "$notRegex", "$notRegexi")
    ]
    pairs += [
        st.tuples(st.just("$exists"), st.sampled_from([True, False])),
        st.tuples(st.just("$type"), st.sampled_from(["null", "boolean", "number", "string", "array", "object"])),
        st.tuples(st.sampled_from(["$inGroup", "$notInGroup"]), st.sampled_from(sorted(GROUPS))),
        st.tuples(st.just("$not"), inner),
        st.tuples(st.just("$size"), st.integers(0, 3) | inner),
        st.tuples(st.just("$elemMatch"), inner.map(lambda one: one if isinstance(one, dict) else {"$eq": one})),
    ]
    return st.lists(st.one_of(pairs), min_size=1, max_size=2).map(dict)


conditions_on_values = st.recursive(values, operators, max_leaves=4)
conditions = st.recursive(
    st.dictionaries(names | st.sampled_from(["a.length", "a.0", "b.x"]), conditions_on_values, max_size=2),
    lambda inner: (
        st.dictionaries(st.sampled_from(["$or", "$and", "$nor"]), st.lists(inner, max_size=2), min_size=1, max_size=2)
        | st.fixed_dictionaries({"$not": inner})
    ),
    max_leaves=5,
)


@settings(max_examples=500)
@given(conditions, st.dictionaries(names, values, max_size=3))
def test_conditions_hold_when_growthbook_says_so(condition: dict[str, Any], attributes: dict[str, Any]) -> None:
    ours = compile_condition(condition, GROUPS, "")(attributes)
    assert ours is evalCondition(attributes, condition, GROUPS)


LISTS: list[Any] = [
    [],
    [1],
    ["DE"],
    ["DE", 1],
    ["de", "1"],
    [None],
    [True],
    ["Ä", "DE", 10],
    [["DE"]],
    [{"x": 1}],
    [1.0, 2.5, "1.2.3"],
]
VALUES: list[Any] = [*SCALARS, *LISTS, {}, {"x": 1}, {"$eq": 1}]
COMPARISONS = ["$eq", "$ne", "$lt", "$lte", "$gt", "$gte", "$veq", "$vne", "$vlt", "$vlte", "$vgt", "$vgte"]
OPERANDS: dict[str, list[Any]] = {
    **{name: [*SCALARS, [], ["DE"], {"x": 1}] for name in COMPARISONS},
    **dict.fromkeys(("$in", "$nin", "$ini", "$nini", "$all", "$alli"), LISTS),
    **{name: ["^d", "D", "1", ".", ""] for name in ("$regex", "$regexi", "$notRegex", "$notRegexi")},
    **{name: [*GROUPS] for name in ("$inGroup", "$notInGroup")},
    "$exists": [True, False, 0, 1, None],
    "$type": ["null", "boolean", "number", "string", "array", "object", "x", 1],
    "$not": [{"$gt": 1}, "DE", 1, {"$in": ["DE"]}, None, ["DE"]],
    "$size": [0, 1, 2, {"$gt": 1}, {"$in": [1]}, "1", True, None],
    "$elemMatch": [{"$eq": 1}, {"$gt": 1}, {"$regex": "D"}, {"x": 1}, {}, {"$in": [1, "DE"]}, {"$not": {"$eq": 1}}],
}


@pytest.mark.parametrize("name", OPERANDS)
def test_every_operator_says_of_every_value_what_growthbook_says(name: str) -> None:
    """Random conditions seldom meet a value that they hold for; here each operand meets each value."""
    for operand in OPERANDS[name]:
        condition = {"a": {name: operand}}
        ours = compile_condition(condition, GROUPS, "")
        for attributes in ({}, *({"a": value} for value in VALUES)):
            assert ours(attributes) is evalCondition(attributes, condition, GROUPS), (condition, attributes)


def test_every_literal_equals_what_growthbook_says() -> None:
    """Objects as well, by their keys' order and their values' types."""
    objects = [{"x": 1}, {"x": True}, {"x": None}, {"x": [1]}, {"x": [True]}, {"x": 1, "y": 2}, {"y": 2, "x": 1}]
    found: list[Any] = [*SCALARS, *LISTS, *objects]
    for literal in found:
        condition = {"a": literal}
        ours = compile_condition(condition, GROUPS, "")
        for attributes in ({}, *({"a": value} for value in found)):
            assert ours(attributes) is evalCondition(attributes, condition, GROUPS), (condition, attributes)


@pytest.mark.parametrize("path", ["a.b", "a.b.c", "a.0", "a.1", "a.01", "a.-1", "a.length", "a.0.b", "a.²", "a."])
def test_every_path_leads_where_growthbook_says(path: str) -> None:
    found: list[Any] = [
        {"b": 1},
        {"b": {"c": 1}},
        {"0": 1, "01": 1, "length": 1, "": 1},
        [1],
        [0, 1],
        [{"b": 1}],
        "1",
        1,
    ]
    for condition in ({path: 1}, {path: {"$exists": True}}, {path: {"$gt": 0}}):
        ours = compile_condition(condition, GROUPS, "")
        for attributes in ({}, *({"a": value} for value in found)):
            assert ours(attributes) is evalCondition(attributes, condition, GROUPS), (condition, attributes)


@given(st.text("v0123456789.-+abc", max_size=12) | st.integers(0, 10**6) | st.floats(0, 100))
def test_versions_are_padded_as_by_growthbook(version: str | float) -> None:
    assert padded_version(version) == paddedVersionString(version)


@pytest.mark.parametrize(
    "condition, pointer, reason",
    [
        ([], "/condition", "a condition is an object"),
        ({"a": {"$gtt": 1}}, "/condition/a/$gtt", "no operator that is known"),
        ({"$xor": []}, "/condition/$xor", "no operator that joins"),
        ({"$or": {}}, "/condition/$or", "takes a list of conditions"),
        ({"$or": [{}, {"a": {"$in": "DE"}}]}, "/condition/$or/1/a/$in", "takes a list"),
        ({"a": {"$regex": "("}}, "/condition/a/$regex", "regular expression: missing"),
        ({"a": {"$regex": 1}}, "/condition/a/$regex", "takes a regular expression"),
        ({"a": {"$all": 1}}, "/condition/a/$all", "takes a list"),
        ({"a/b": {"$inGroup": "x"}}, "/condition/a~1b/$inGroup", "savedGroups holds no list 'x'"),
        ({"$not": 1}, "/condition/$not", "a condition is an object"),
    ],
)
def test_what_is_no_condition_is_named_with_its_place(condition: object, pointer: str, reason: str) -> None:
    with pytest.raises(ExperimentsInvalid) as refused:
        compile_condition(condition, {}, "/condition")
    (field,) = refused.value.fields
    assert field.pointer == pointer
    assert reason in field.detail


@pytest.mark.parametrize(
    "nest",
    [
        lambda inner: {"$not": inner},
        lambda inner: {"$or": [inner]},
        lambda inner: {"$and": [{}, inner]},
        lambda inner: {"$nor": [inner]},
    ],
)
def test_conditions_cannot_nest_without_end(nest: Callable[[Any], Any]) -> None:
    deep: dict[str, Any] = {}
    for _ in range(DEPTH_CEILING):
        deep = nest(deep)
    compile_condition(deep, {}, "")
    with pytest.raises(ExperimentsInvalid, match="deep"):
        compile_condition(nest(deep), {}, "")


@pytest.mark.parametrize(
    "nest, levels",
    [
        (lambda inner: {"$not": inner}, 1),
        (lambda inner: {"$size": inner}, 1),
        (lambda inner: {"$all": [inner]}, 1),
        (lambda inner: {"$alli": [inner]}, 1),
        (lambda inner: {"$elemMatch": inner}, 1),
        (lambda inner: {"$elemMatch": {"b": inner}}, 2),
    ],
)
def test_what_a_value_must_be_cannot_nest_without_end(nest: Callable[[Any], Any], levels: int) -> None:
    value: dict[str, Any] = {"$eq": 1}
    for _ in range((DEPTH_CEILING - 1) // levels):
        value = nest(value)
    compile_condition({"a": value}, {}, "")
    for _ in range(levels):
        value = nest(value)
    with pytest.raises(ExperimentsInvalid, match="deep"):
        compile_condition({"a": value}, {}, "")


def test_numbers_that_are_none_are_in_no_order() -> None:
    for name in ("$lt", "$lte", "$gt", "$gte", "$eq"):
        assert compile_condition({"a": {name: 1}}, {}, "")({"a": math.nan}) is False
