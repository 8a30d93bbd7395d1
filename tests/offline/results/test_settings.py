from __future__ import annotations

from typing import Any

import pytest

from offline.recipe import Recipe
from offline.results.settings import Setting, Way, setting


def made(model: str, /, *, reasoning: bool, **sections: Any) -> Setting:
    """How the model of a recipe with these sections was made."""
    recipe = Recipe.model_validate({"name": "x", **sections}).model_dump(mode="json")
    return setting(recipe, {"model": model, "reasoning": reasoning})


def way(model: str, /, *, reasoning: bool, **sections: Any) -> Way:
    found = made(model, reasoning=reasoning, **sections).way
    assert found is not None
    return found


def test_another_search_is_another_line_of_both_models() -> None:
    searches: tuple[dict[str, Any], ...] = ({}, {"rerank": 0.4}, {"widen": [2, 3]})
    for model, reasoning in (("hstu", False), ("scoter_h", True)):
        found = [made(model, reasoning=reasoning, search=search) for search in searches]
        assert len({one.key for one in found}) == 3
        ways = [way(model, reasoning=reasoning, search=search) for search in searches]
        assert [one.search for one in ways] == ["", "rerank 0.4", "first levels x2 x3"]


def test_where_a_model_starts_is_no_matter_to_its_backbone() -> None:
    scratch, standing = ({"train": {"start": start}} for start in ("scratch", "backbone"))
    assert made("hstu", reasoning=False, **scratch) == made("hstu", reasoning=False, **standing)
    one, other = (made("scoter_h", reasoning=True, **sections) for sections in (scratch, standing))
    assert one.key != other.key
    assert [one.way and one.way.stands, other.way and other.way.stands] == [False, True]


def test_what_item_vectors_read_is_said_of_whoever_has_item_vectors() -> None:
    plain, featured = ({"model": {"features": features}} for features in ([], ["text", "collaborative"]))
    for model, reasoning in (("hstu", False), ("scoter_h", True)):
        assert made(model, reasoning=reasoning, **plain).key != made(model, reasoning=reasoning, **featured).key
        assert way(model, reasoning=reasoning, **featured).features == ("text", "collaborative")
    assert made("tiger", reasoning=False, **plain) == made("tiger", reasoning=False, **featured)


def test_a_model_and_its_backbone_are_made_in_one_way() -> None:
    fused = way("scoter_h", reasoning=True, alignment={"dim": 64}, search={"rerank": 0.4})
    alone = way("hstu", reasoning=False, alignment={"dim": 64}, search={"rerank": 0.4})
    assert fused == Way("hstu", alone.made, (), "rerank 0.4", "analyst", aligned="places on 64 axes")
    assert fused.alone == alone
    assert alone != way("hstu", reasoning=False, model={"dim": 32}, search={"rerank": 0.4})


def test_how_steps_are_compared_with_item_texts_is_a_way_of_its_own() -> None:
    how = {"dim": 8, "whiten": 0.5, "cosine": True}
    plain, turned = (way("scoter_h", reasoning=True, alignment=one) for one in ({"dim": 8}, how))
    assert (plain.aligned, turned.aligned) == ("places on 8 axes", "directions on 8 axes, whitened 0.5")
    assert plain.alone == turned.alone


def test_a_template_from_a_file_is_called_by_the_file() -> None:
    found = [
        made("scoter_h", reasoning=True, reason={"template": one}).template
        for one in ("three-step", "some/where/top-k.json", "Look -> Think -> Say")
    ]
    assert found == ["three-step", "top-k.json", "3 steps: Look ... Say"]


def test_what_others_made_has_no_way_of_ours() -> None:
    assert made("SASRec", reasoning=False).way is None


def test_a_recipe_from_before_there_was_a_choice_is_pooled_with_the_default() -> None:
    whole = Recipe(name="x").model_dump(mode="json")
    older = {key: value for key, value in whole.items() if key != "search"}
    older["train"] = {key: value for key, value in whole["train"].items() if key != "start"}
    older["model"] = {key: value for key, value in whole["model"].items() if key != "features"}
    for model in ("hstu", "scoter_h"):
        row = {"model": model, "reasoning": model == "scoter_h"}
        assert setting(older, row) == setting(whole, row)


def test_what_a_model_does_not_read_is_no_other_line() -> None:
    """Who distils, where a teacher writes; how templates are discovered, where one is named; axes that are not used."""
    same: tuple[dict[str, Any], ...] = (
        {"reason": {"writer": "teacher"}},
        {"reason": {"writer": "teacher"}, "distill": {"student": "another"}},
        {"reason": {"writer": "teacher"}, "discover": {"similarity": 0.5}},
        {"reason": {"writer": "teacher"}, "alignment": {"weight": 9.0}},
    )
    assert len({made("scoter_h", reasoning=True, **sections).key for sections in same}) == 1
    student = {"reason": {"writer": "student"}}
    keys = {made("scoter_h", reasoning=True, **student, distill={"student": name}).key for name in ("one", "another")}
    assert len(keys) == 2
    found = {"reason": {"template": "discovered"}}
    assert (
        len({made("scoter_h", reasoning=True, **found, discover={"similarity": gamma}).key for gamma in (0.5, 0.6)})
        == 2
    )


@pytest.mark.parametrize(
    "one, other",
    [
        ({"teacher": {"backend": "endpoint", "concurrency": 1}}, {"teacher": {"backend": "endpoint", "timeout": 9.0}}),
        ({"reason": {"writer": "student"}}, {"reason": {"writer": "student"}, "distill": {"compared": 9}}),
        ({}, {"tokenize": {"rqvae": {"epochs": 9}}}),
    ],
)
def test_patience_money_and_codebooks_that_nobody_learns_make_no_other_line(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Seeds of one model would stand in two rows of the same name, and none of them in enough runs for a headline."""
    assert made("scoter_h", reasoning=True, **one) == made("scoter_h", reasoning=True, **other)
    by_vae = {"quantizer": "rqvae"}
    keys = {made("hstu", reasoning=False, tokenize=by_vae | {"rqvae": {"epochs": epochs}}).key for epochs in (8, 9)}
    assert len(keys) == 2


def test_sizes_of_hstu_make_no_other_tiger() -> None:
    for model, reasoning in (("tiger", False), ("scoter_t", True)):
        one, other = (made(model, reasoning=reasoning, model=sizes) for sizes in ({}, {"dim": 64, "dropout": 0.5}))
        assert one == other
        assert one != made(model, reasoning=reasoning, model={"beam": 9})


def test_tiger_is_not_ordered_by_item_vectors_whatever_its_recipe_says() -> None:
    for model, reasoning in (("tiger", False), ("scoter_t", True)):
        one, other = (made(model, reasoning=reasoning, search={"rerank": rerank}) for rerank in (0.0, 0.4))
        assert one == other


def test_seeds_make_no_other_line_whichever_they_are() -> None:
    seeds: tuple[dict[str, Any], ...] = (
        {},
        {"train": {"seed": 5}, "tokenize": {"seed": 5}, "tiger": {"train": {"seed": 5}}},
    )
    for model, reasoning in (("hstu", False), ("scoter_h", True), ("tiger", False), ("scoter_t", True)):
        assert len({made(model, reasoning=reasoning, **sections).key for sections in seeds}) == 1


def test_h_that_is_withheld_is_taken_away_beside_whatever_else_is() -> None:
    assert made("scoter_h", reasoning=False).what == "withheld"
    both = made("scoter_h", reasoning=False, ablation={"steps": "mean"})
    assert both.what == "w/o step-wise: mean, H withheld at test time"
