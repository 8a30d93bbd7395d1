from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from growthbook.common_types import EvaluationContext, Feature, GlobalContext, Options, StackContext, UserContext
from growthbook.core import eval_feature
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from service.errors import ExperimentsInvalid, HeaderInvalid
from service.experiments.arm import Arm
from service.experiments.assignment import Assigned, Experiments
from service.experiments.hashing import Bucketer

ROOT = Path(__file__).parents[3]
HALVES = {"variations": [{}, {"model": "hstu"}], "meta": [{"key": "control"}, {"key": "hstu"}], "hashVersion": 2}
REASONING = {
    "variations": [{"reasoning": True}, {"reasoning": False}],
    "meta": [{"key": "on"}, {"key": "off"}],
    "hashVersion": 2,
}


def load(features: dict[str, Any], **more: Any) -> Experiments:
    return Experiments.read(json.dumps({"features": features, **more}).encode())


def feature(*rules: dict[str, Any], default: Any = None) -> dict[str, Any]:
    return {"defaultValue": {} if default is None else default, "rules": list(rules)}


def users(count: int) -> list[str]:
    return [f"user-{number}" for number in range(count)]


# ---- the same as GrowthBook's own SDK, on random experiments

shares = st.integers(0, 20).map(lambda twentieths: twentieths / 20)
seeds = st.sampled_from(["s", "salt", "x-1", "Ä😀"])
attribute_values = st.sampled_from(["", "DE", "FR", 0, 1, 7, 2.5, True, None]) | st.lists(st.sampled_from(["DE", 1]))


@st.composite
def ordered_pair(draw: st.DrawFn) -> list[float]:
    return sorted([draw(shares), draw(shares)])


@st.composite
def random_rule(draw: st.DrawFn) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    count = draw(st.integers(2, 4))
    if draw(st.integers(0, 3)) == 0:
        rule["force"] = {"name": "forced"}
        if draw(st.booleans()):
            rule["range"] = draw(ordered_pair())
        if draw(st.booleans()):
            rule["fallbackAttribute"] = "device"
    else:
        rule["variations"] = [{"name": f"v{number}"} for number in range(count)]
        if draw(st.booleans()):
            cuts = sorted([draw(shares) for _ in range(count - 1)])
            rule["weights"] = np.diff([0.0, *cuts, 1.0]).tolist()
        if draw(st.integers(0, 3)) == 0:
            edges = sorted([draw(shares) for _ in range(2 * count)])
            rule["ranges"] = [edges[2 * n : 2 * n + 2] for n in range(count)]
        if draw(st.booleans()):
            rule["meta"] = [{"key": f"k{number}", "passthrough": draw(st.booleans())} for number in range(count)]
    for name, values in (
        ("coverage", shares),
        ("seed", seeds),
        ("hashVersion", st.sampled_from([1, 2])),
        ("hashAttribute", st.sampled_from(["id", "device", "absent"])),
        ("namespace", ordered_pair().map(lambda pair: ["space", *pair])),
        ("condition", st.sampled_from([{}, {"country": {"$in": ["DE", 1]}}, {"$not": {"country": "DE"}}])),
        (
            "filters",
            st.lists(
                st.fixed_dictionaries(
                    {"seed": seeds, "ranges": st.lists(ordered_pair(), max_size=2)},
                    optional={
                        "attribute": st.sampled_from(["id", "device", "absent"]),
                        "hashVersion": st.sampled_from([1, 2]),
                    },
                ),
                max_size=2,
            ),
        ),
    ):
        if draw(st.integers(0, 2)) == 0:
            rule[name] = draw(values)
    return rule


@settings(max_examples=300)
@given(
    st.lists(random_rule(), min_size=1, max_size=3),
    st.text(min_size=1, max_size=12),
    st.fixed_dictionaries({}, optional={"country": attribute_values, "device": attribute_values}),
)
def test_values_and_variations_are_those_of_growthbook(
    rules: list[dict[str, Any]], user_id: str, attributes: dict[str, Any]
) -> None:
    named = [{**rule, "key": f"experiment-{number}"} for number, rule in enumerate(rules)]
    document = {"f": feature(*named, default={"name": "default"})}
    ours = load(document).assign(user_id, attributes)
    seen: list[tuple[str, str, float]] = []
    theirs = eval_feature(
        "f",
        EvaluationContext(
            user=UserContext(attributes={**attributes, "id": user_id, "user_id": user_id}),
            global_ctx=GlobalContext(
                options=Options(), features={key: Feature(**value) for key, value in document.items()}
            ),
            stack=StackContext(),
            tracking_cb=lambda experiment, result, _user: seen.append(
                (experiment.key, result.key, result.bucket or 0.0)
            ),
        ),
    )
    assert ours.arm == Arm(**(theirs.value or {}))
    assert [(one.experiment, one.variation, one.bucket) for one in ours.experiments] == seen


# ---- layers, holdout, shadow, forcing


def test_layers_change_only_what_they_set() -> None:
    experiments = load(
        {
            "model": feature(HALVES, default={"model": "scoter_h", "reasoning": True}),
            "reasoning": feature({**REASONING, "coverage": 0.5}),
        }
    )
    arms = {experiments.assign(user, {}).arm for user in users(400)}
    # Who is in neither group of `reasoning` keeps what the first layer said.
    assert arms == {
        Arm(model=model, reasoning=reasoning)
        for model, reasoning in [
            (None, True),
            (None, False),
            ("hstu", True),
            ("hstu", False),
            (None, None),
            ("hstu", None),
        ]
    }


def test_default_values_are_the_arm_of_who_is_in_no_experiment() -> None:
    experiments = load({"model": feature({**HALVES, "coverage": 0.0}, default={"model": "scoter_h"})})
    assert experiments.assign("u1", {}).arm == Arm(model="scoter_h")
    assert experiments.assign("u1", {}).experiments == ()
    assert experiments.assign("u1", {}).label == "default"


def test_namespaces_exclude_one_another() -> None:
    experiments = load(
        {
            "one": feature({**HALVES, "namespace": ["layer", 0, 0.5]}),
            "two": feature({**REASONING, "namespace": ["layer", 0.5, 1]}),
        }
    )
    counts = [len(experiments.assign(user, {}).experiments) for user in users(1000)]
    assert set(counts) == {1}


def test_filters_of_one_seed_exclude_one_another_to_the_bucket() -> None:
    def entering(low: float, high: float) -> dict[str, Any]:
        return {"filters": [{"seed": "layer", "hashVersion": 1, "ranges": [[low, high]]}]}

    experiments = load(
        {"one": feature({**HALVES, **entering(0, 0.5)}), "two": feature({**REASONING, **entering(0.5, 1)})}
    )
    buckets = Bucketer("layer", 1)
    assert 0.5 in {buckets.bucket(user) for user in users(2000)}
    counts = [len(experiments.assign(user, {}).experiments) for user in users(2000)]
    assert set(counts) == {1}


@pytest.mark.parametrize("attributes", [{}, {"device": ""}, {"device": None}])
def test_a_filter_lets_nobody_in_who_lacks_its_attribute(attributes: dict[str, Any]) -> None:
    everybody = {"filters": [{"seed": "layer", "attribute": "device", "ranges": [[0, 1]]}]}
    experiments = load({"model": feature({**HALVES, **everybody})})
    assert experiments.assign("u1", attributes).experiments == ()
    assert len(experiments.assign("u1", {"device": "d1"}).experiments) == 1


def test_the_holdout_gets_the_default_of_every_experiment_and_is_labelled() -> None:
    experiments = load(
        {
            "holdout": {
                "defaultValue": False,
                "rules": [{"force": True, "coverage": 0.1, "seed": "h", "hashVersion": 2}],
            },
            "model": feature(HALVES, default={"model": "scoter_h"}),
            "reasoning": feature(REASONING),
        }
    )
    held = [experiments.assign(user, {}) for user in users(5000)]
    kept = [one for one in held if one.holdout]
    assert 400 < len(kept) < 600
    assert {(one.arm, one.experiments, one.label) for one in kept} == {(Arm(model="scoter_h"), (), "holdout")}
    assert all(len(one.experiments) == 2 for one in held if not one.holdout)


def test_shadow_arms_are_sampled_and_change_nothing() -> None:
    shadow = {"defaultValue": [], "rules": [{"force": [{"model": "hstu"}, {"reasoning": False}], "coverage": 0.2}]}
    plain, shadowed = load({"model": feature(HALVES)}), load({"shadow": shadow, "model": feature(HALVES)})
    found = [(plain.assign(user, {}), shadowed.assign(user, {})) for user in users(2000)]
    assert all((a.arm, a.experiments, a.label) == (b.arm, b.experiments, b.label) for a, b in found)
    chosen = [b.shadow for _, b in found if b.shadow]
    assert 300 < len(chosen) < 500
    assert set(chosen) == {(Arm(model="hstu"), Arm(reasoning=False))}


def test_a_forced_variation_wins_over_targeting_share_namespace_and_holdout() -> None:
    experiments = load(
        {
            "holdout": {"defaultValue": True},
            "model": feature({**HALVES, "coverage": 0.0, "condition": {"country": "DE"}, "namespace": ["n", 0, 0]}),
            "reasoning": feature(REASONING, default={"reasoning": True}),
        }
    )
    forced = experiments.forced(" model = hstu ")
    assigned = experiments.assign("u1", {}, forced)
    assert assigned.arm == Arm(model="hstu", reasoning=True)
    assert assigned.experiments == (Assigned("model", "hstu", 0.0, None, forced=True),)
    assert (assigned.label, assigned.holdout) == ("forced", True)
    # Nothing that does not exist is forced, and nothing breaks.
    assert experiments.assign("u1", {}, {"model": "none", "other": "x"}).experiments == ()


@pytest.mark.parametrize(
    "header, reason",
    [
        ("modle=hstu", "no experiment 'modle'; there are: model"),
        ("model", "has no variation '', only control, hstu"),
        ("model=x", "has no variation 'x', only control, hstu"),
    ],
)
def test_forcing_what_is_not_there_names_what_is(header: str, reason: str) -> None:
    with pytest.raises(HeaderInvalid, match="x-scoter-arm: ") as refused:
        load({"model": feature(HALVES)}).forced(header)
    assert reason in str(refused.value)


def test_a_request_cannot_speak_for_another_user() -> None:
    experiments = load({"model": feature(HALVES)})
    for user in users(50):
        assert experiments.assign(user, {"id": "user-1", "user_id": "user-1"}) == experiments.assign(user, {})


@given(st.text(max_size=300), st.dictionaries(st.text(max_size=5) | st.just("a"), st.from_type(object), max_size=3))
def test_no_attribute_can_make_it_fail(user_id: str, attributes: dict[str, Any]) -> None:
    test = {"a": {"$not": {"$elemMatch": {"$vgt": "1"}}, "$ne": 1, "$nini": ["x"], "$notRegex": "x"}, "a.b.0": 1}
    load({"model": feature({**HALVES, "condition": test, "hashAttribute": "a"})}).assign(user_id, attributes)


def test_labels_stay_few_however_many_experiments_there_are() -> None:
    few = load({name: feature({**HALVES, "coverage": 0.7}) for name in "abc"})
    labels = {few.assign(user, {}).label for user in users(3000)}
    assert len(labels) == 27
    assert {"default", "a=hstu", "a=control+c=hstu", "a=hstu+b=hstu+c=hstu"} <= labels
    many = load({f"e{number}": feature({**HALVES, "coverage": 0.3}) for number in range(8)})
    labels = {many.assign(user, {}).label for user in users(3000)}
    assert len(labels) == 2 + 8 * 2
    assert "several" in labels


def test_weights_are_the_shares_within_the_experiment() -> None:
    experiments = load({"model": feature({**HALVES, "weights": [0.9, 0.1], "coverage": 0.5})})
    weights = {one.variation: one.weight for user in users(2000) for one in experiments.assign(user, {}).experiments}
    assert weights == {"control": 0.9, "hstu": 0.1}


def test_weights_that_add_up_to_a_little_more_are_what_users_get_all_the_same() -> None:
    experiments = load({"model": feature({**HALVES, "weights": [0.67, 0.339]})})
    parts = [one for user in users(30_000) for one in experiments.assign(user, {}).experiments]
    observed = Counter(one.variation for one in parts)
    logged = {one.variation: one.weight for one in parts}
    assert logged == {"control": 0.67, "hstu": 0.33}
    expected = [len(parts) * logged[variation] for variation in observed]
    assert chisquare([*observed.values()], expected).pvalue > 0.001


def test_a_model_that_the_release_lacks_is_named_with_its_place() -> None:
    experiments = load(
        {
            "a/b": feature(HALVES, {"force": {"model": "gone"}}, default={"model": "scoter_h"}),
            "shadow": {"defaultValue": [{}, {"model": "gone"}]},
        }
    )
    experiments.check(["scoter_h", "hstu", "gone"])
    with pytest.raises(ExperimentsInvalid) as refused:
        experiments.check(["scoter_h", "hstu"])
    assert [field.pointer for field in refused.value.fields] == [
        "/features/a~1b/rules/1/force/model",
        "/features/shadow/defaultValue/1/model",
    ]
    assert "the release holds no model 'gone', only hstu, scoter_h" in str(refused.value)


def test_it_is_the_same_in_another_process(tmp_path: Path) -> None:
    content = json.dumps({"features": {"model": feature({**HALVES, "coverage": 0.8}), "reasoning": feature(REASONING)}})
    path = tmp_path / "experiments.json"
    path.write_text(content, encoding="utf-8")
    program = (
        "import sys, pathlib\n"
        "from service.experiments.assignment import Experiments\n"
        "e = Experiments.read(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print([e.assign(f'user-{n}', {}).label for n in range(200)])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    here = Experiments.read(content.encode())
    assert ended.stdout.strip() == str([here.assign(user, {}).label for user in users(200)])


# ---- the draw itself


@pytest.mark.slow
def test_a_million_users_are_spread_evenly_and_independently() -> None:
    thirds = {"variations": [{}, {}, {}], "weights": [0.5, 0.3, 0.2], "hashVersion": 2}
    experiments = load({"model": feature(thirds), "reasoning": feature(REASONING)})
    labels = Counter(experiments.assign(f"u{number}", {}).label for number in range(1_000_000))
    counts = np.array([[labels[f"model={one}+reasoning={other}"] for other in ("on", "off")] for one in range(3)])
    assert counts.sum() == 1_000_000
    assert chisquare(counts.sum(axis=1), [500_000, 300_000, 200_000]).pvalue > 0.001
    assert chisquare(counts.sum(axis=0)).pvalue > 0.001
    assert chi2_contingency(counts).pvalue > 0.001


def test_an_assignment_takes_microseconds() -> None:
    rule = {**HALVES, "condition": {"country": {"$in": ["DE", "FR"]}}, "filters": [{"seed": "l", "ranges": [[0, 0.9]]}]}
    experiments = load({name: feature(rule) for name in "abc"})
    best = 1.0
    for _ in range(3):
        started = time.process_time()
        for number in range(2000):
            experiments.assign(f"user-{number}", {"country": "DE"})
        best = min(best, (time.process_time() - started) / 2000)
    assert best < 100e-6  # about 18 in CPU time; the bound leaves room for a slow machine
