from __future__ import annotations

import json
from typing import Any

import pytest

from service.errors import ExperimentsInvalid
from service.experiments.assignment import Experiments
from service.experiments.format import parse

RULE: dict[str, Any] = {"variations": [{}, {"model": "hstu"}]}


def refused(document: Any, prefix: str = "") -> list[tuple[str, str]]:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(ExperimentsInvalid) as error:
        Experiments.read(content, prefix)
    return [(field.pointer, field.detail) for field in error.value.fields]


@pytest.mark.parametrize(
    "rule, pointer, reason",
    [
        ({}, "", "needs `force` or `variations`"),
        ({"variations": [{}]}, "/variations", "at least 2 items"),
        ({"variations": [{}, {"modle": "hstu"}]}, "/variations/1/modle", "Extra inputs are not permitted"),
        ({"variations": [{}, {"reasoning": "no"}]}, "/variations/1/reasoning", "valid boolean"),
        ({**RULE, "coverge": 0.5}, "/coverge", "Extra inputs are not permitted"),
        ({**RULE, "coverage": 1.5}, "/coverage", "less than or equal to 1"),
        ({**RULE, "weights": [0.5, 0.4]}, "", "the weights add up to 0.9, not to 1"),
        ({**RULE, "weights": [1.0]}, "", "2 variations, but 1 weights"),
        ({**RULE, "ranges": [[0, 0.6], [0.5, 1]]}, "", "the ranges overlap"),
        ({**RULE, "ranges": [[0, 0.2], [0.9, 0.3]]}, "", "the range [0.9, 0.3] is upside down"),
        ({**RULE, "meta": [{"key": "a"}, {"key": "a"}]}, "", "two variations are called 'a'"),
        ({**RULE, "hashVersion": 3}, "/hashVersion", "Input should be 1 or 2"),
        ({**RULE, "namespace": ["n", 0.6, 0.4]}, "", "the range [0.6, 0.4] is upside down"),
        ({**RULE, "filters": [{"ranges": [[0.6, 0.4]]}]}, "/filters/0", "the range [0.6, 0.4] is upside down"),
        ({**RULE, "namespace": ["n", 0]}, "/namespace/2", "Field required"),
        ({**RULE, "condition": {"a": {"$gtt": 1}}}, "/condition/a/$gtt", "no operator that is known here"),
        ({**RULE, "parentConditions": [{"id": "x"}]}, "/parentConditions", "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_rule_is_refused_with_place_and_reason(rule: dict[str, Any], pointer: str, reason: str) -> None:
    ((place, detail),) = refused(
        {"features": {"a/b": {"defaultValue": {}, "rules": [RULE, {**rule, "key": "second"}]}}}
    )
    assert place == f"/features/a~1b/rules/1{pointer}"
    assert reason in detail


@pytest.mark.parametrize(
    "document, pointer, reason",
    [
        (b"{", "", "line 1 column 2"),
        (b'{"features": {}, "x": NaN}', "", "NaN is no JSON"),
        (b'{"features": {}, "features": {}}', "", "the key 'features' stands twice"),
        (b"\xff\xfe", "", "not JSON in UTF-8"),
        (b"[" * 100_000, "", "not JSON in UTF-8"),
        ([], "", "should be an object"),
        ({"feature": {}}, "/features", "Field required"),
        ({"encryptedFeatures": "abc"}, "/encryptedFeatures", "turn encryption off"),
        ({"features": {"holdout": {"defaultValue": "yes"}}}, "/features/holdout/defaultValue", "valid boolean"),
        ({"features": {"shadow": {"defaultValue": [{}] * 5}}}, "/features/shadow/defaultValue", "at most 4 items"),
        ({"features": {}, "savedGroups": {"g": "x"}}, "/savedGroups/g/", ""),
    ],
)
def test_a_wrong_document_is_refused_with_place_and_reason(document: Any, pointer: str, reason: str) -> None:
    place, detail = refused(document)[0]
    assert place.startswith(pointer)
    assert reason in detail


def test_every_wrong_place_is_named_at_once() -> None:
    wrong = refused({"features": {"a": {"defaultValue": {"x": 1}}, "b": {"rules": [{"force": {"model": ""}, "y": 2}]}}})
    assert [place for place, _ in wrong] == [
        "/features/a/defaultValue/x",
        "/features/b/rules/0/force/model",
        "/features/b/rules/0/y",
    ]


def test_one_experiment_may_span_features_if_it_divides_users_alike() -> None:
    rule = {**RULE, "key": "shared"}
    experiments = Experiments.read(json.dumps({"features": {"a": {"rules": [rule]}, "b": {"rules": [rule]}}}).encode())
    assert len(experiments.assign("u1", {}).experiments) == 1
    ((place, detail),) = refused({"features": {"a": {"rules": [rule]}, "b": {"rules": [{**rule, "coverage": 0.5}]}}})
    assert place == "/features/b/rules/0"
    assert detail == "experiment 'shared' divides users otherwise than at /features/a/rules/0: give it another key"


def test_the_default_of_the_hash_version_is_the_same_said_or_unsaid() -> None:
    said = {**RULE, "key": "shared", "hashVersion": 1}
    unsaid = {key: value for key, value in said.items() if key != "hashVersion"}
    read = Experiments.read(json.dumps({"features": {"a": {"rules": [said]}, "b": {"rules": [unsaid]}}}).encode())
    assert len(read.assign("u1", {}).experiments) == 1


def test_what_growthbook_sends_beside_the_features_is_no_error() -> None:
    rule = {
        "id": "fr_1",
        "key": "model",
        "name": "Model",
        "phase": "0",
        "variations": [{}, {"model": "hstu"}],
        "meta": [{"key": "0", "name": "Control"}, {"key": "1", "name": "HSTU"}],
        "filters": [{"seed": "space", "ranges": [[0, 0.5]], "attribute": "id", "hashVersion": 2}],
        "condition": {"id": {"$inGroup": "staff"}},
        "bucketVersion": 1,
        "minBucketVersion": 0,
        "metadata": {"projects": ["p"]},
    }
    document = {
        "status": 200,
        "features": {"model": {"defaultValue": {}, "rules": [rule], "metadata": {}}},
        "experiments": [{"whatever": 1}],
        "savedGroups": {"staff": ["u1"], "typed": {"type": "list", "values": [1], "attributeKey": "id"}},
        "dateUpdated": "2026-11-23T03:08:06Z",
    }
    experiments = Experiments.read(json.dumps(document).encode())
    assert experiments.variations == {"model": ("0", "1")}


def test_only_features_under_the_prefix_are_ours() -> None:
    document = {
        "features": {
            "other-program": {"defaultValue": "red"},
            "scoter-holdout": {"defaultValue": True},
            "scoter-model": {"defaultValue": {"model": "hstu"}, "rules": [RULE]},
        }
    }
    experiments = Experiments.read(json.dumps(document).encode(), "scoter-")
    assert list(experiments.variations) == ["scoter-model"]
    assert experiments.assign("u1", {}).holdout
    assert [place for place, _ in refused(document)] == [
        "/features/other-program/defaultValue",
        "/features/scoter-holdout/defaultValue",
    ]


def test_models_are_found_wherever_arms_stand() -> None:
    payload = parse(json.dumps({"features": {"a": {"rules": [RULE], "defaultValue": {"model": "x"}}}}).encode())
    assert payload.models() == [
        ("/features/a/defaultValue/model", "x"),
        ("/features/a/rules/0/variations/1/model", "hstu"),
    ]
