from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.analyst.operations import FEWEST, MOST, OPERATIONS, Mix, Op, common, mix, plan, read, think
from offline.chains.template import MANUAL, MAX_STEPS, MIN_STEPS, STEP_WORDS, Template, split_path
from offline.errors import RecipeError

MINED = {
    "beauty": "Analyze sequential purchase history -> Distinguish stable vs. recent interests -> Expand via shared "
    "item attributes -> Predict high-confidence features -> Item Recommendation",
    "instruments": "Analyze the purchase pattern -> Music interest inference -> Instrument focus identification -> "
    "Accessory expansion -> Feature prediction",
    "sports": "Purchase pattern recognition -> Outdoor/Athletic interest mapping -> Complementary gear expansion -> "
    "Item Recommendation",
    "yelp": "Purchase analysis -> Cuisine/Location interest mapping -> Category expansion -> Feature prediction",
}


@pytest.mark.parametrize(
    "path, operations",
    [
        (str(MANUAL["two-step"]), "interests | predict recommend"),
        (str(MANUAL["three-step"]), "profile | interests | recommend"),
        (str(MANUAL["five-step"]), "sequence | interests | trend | predict | recommend"),
        (MINED["beauty"], "sequence | balance | attributes | predict | recommend"),
        (MINED["instruments"], "sequence | interests | category | complements | predict recommend"),
        (MINED["sports"], "sequence | interests | complements | recommend"),
        (MINED["yelp"], "sequence | interests | category | predict recommend"),
        ("Review brand loyalty and price range -> Recommend popular items", "brand tier | popularity recommend"),
        ("Separate long-term from short-term taste -> RANK CANDIDATES", "balance | recommend"),
        ("What other customers bought next -> suggest", "followers | recommend"),
        ("Lorem ipsum -> 购买历史分析 -> 推荐", "reading | interests | recommend"),
        ("?! -> ->-> user users", "reading | recommend"),
        ("Suggest -> Rank -> Brand -> Brand and price -> Recommend", "reading | interests | brand | tier | recommend"),
    ],
)
def test_steps_are_read_by_their_words(path: str, operations: str) -> None:
    assert " | ".join(" ".join(step) for step in plan(split_path(path))) == operations


def test_every_wording_is_short_names_its_own_operation_and_no_two_are_alike() -> None:
    wordings = [(op, wording) for op, operation in OPERATIONS.items() for wording in operation.wordings]
    for op, wording in wordings:
        assert len(wording.split()) <= STEP_WORDS
        if op is not Op.READING:
            assert read(wording) == (op,), wording
        assert split_path(wording) == [wording]
    assert len({wording.casefold() for _, wording in wordings}) == len(wordings)


@given(st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_any_words_are_read_and_the_last_step_recommends(path: list[str]) -> None:
    steps = plan(path)
    assert len(steps) == len(path)
    assert all(steps)
    assert steps[-1][-1] is Op.RECOMMEND
    assert mix(path).weights


@pytest.mark.parametrize("name", ["?", "Recommend", "Read the sequence", "Brand and price", "Stable vs. recent"])
def test_no_two_steps_are_written_alike(name: str) -> None:
    steps = plan([f"{name} {'abcdefgh'[place]}" for place in range(MAX_STEPS)])
    assert len(set(steps)) == len(steps) == MAX_STEPS


def test_steps_that_say_nothing_change_no_ranking() -> None:
    assert mix(["Lorem", "ipsum", "dolor", "recommend"]) == mix(["recommend"])


def test_the_five_step_template_ranks_by_co_occurrence_and_a_quarter_of_content() -> None:
    assert mix(MANUAL["five-step"].steps) == Mix((("flow", 8), ("like", 2)), 0)


def test_every_operation_changes_how_items_are_ranked() -> None:
    alone = Mix.of({Op.RECOMMEND})
    mixes = {op: Mix.of({op, Op.RECOMMEND}) for op in OPERATIONS if op not in {Op.RECOMMEND, Op.READING}}
    assert all(changed != alone for changed in mixes.values())
    assert len(set(mixes.values())) == len(mixes)


def _thought(temperature: float, count: int = 300) -> list[tuple[str, ...]]:
    return [think(np.random.default_rng(row), temperature, {}, ()) for row in range(count)]


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.7, 1.5])
def test_paths_that_are_thought_up_are_templates_of_short_steps(temperature: float) -> None:
    for path in _thought(temperature):
        assert FEWEST <= len(Template(path).steps) <= MOST
        assert all(1 <= len(step.split()) <= STEP_WORDS for step in path)
        assert read(path[-1]) == (Op.RECOMMEND,)
        assert sum(Op.RECOMMEND in read(step) for step in path) == 1


def test_paths_differ_the_more_the_higher_the_temperature() -> None:
    different = [len(set(_thought(temperature))) for temperature in (0.0, 0.05, 0.2, 0.7)]
    assert different[0] == 1
    assert all(fewer < more for fewer, more in pairwise(different))
    assert {len(path) for path in _thought(0.7)} == set(range(FEWEST, MOST + 1))


def test_what_there_is_nothing_to_say_about_is_left_out() -> None:
    left_out = set(OPERATIONS) - {Op.SEQUENCE, Op.RECOMMEND}
    for row in range(50):
        path = think(np.random.default_rng(row), 1.0, {}, left_out)
        assert [read(step) for step in path] == [(Op.SEQUENCE,), (Op.RECOMMEND,)]


def test_the_common_path_holds_what_most_paths_hold_in_their_order() -> None:
    paths = [
        ("Trace the buying journey step by step", "Assess brand loyalty", "Recommend items"),
        ("Read the purchases in order", "Stay with favourite brands", "Item Recommendation"),
        ("Assess brand loyalty", "Check popularity and demand", "Suggest products"),
    ]
    found = common(paths)
    assert found.path == ("Analyze sequential purchase history", "Assess brand loyalty", "Item Recommendation")
    assert found.shares[Op.BRAND] == 3
    assert found.shares[Op.POPULARITY] == 1


def test_the_common_path_keeps_words_that_it_does_not_know() -> None:
    paths = [("Consult the oracle about everything that there is to know", "Item Recommendation")] * 3
    assert common(paths).path == ("Consult the oracle about everything that there is", "Item Recommendation")


@given(st.lists(st.lists(st.text(max_size=40), max_size=8), max_size=6))
def test_any_paths_have_a_common_one(paths: list[list[str]]) -> None:
    if not any(paths):
        with pytest.raises(RecipeError, match="no paths"):
            common(paths)
        return
    found = common(paths)
    assert MIN_STEPS <= len(found.path) <= MOST
    assert found.path[-1] == "Item Recommendation"
    assert all(len(step.split()) <= STEP_WORDS for step in found.path)
    assert tuple(split_path(str(Template(found.path)))) == found.path
