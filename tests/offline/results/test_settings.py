from __future__ import annotations

from typing import Any

from offline.recipe import Recipe
from offline.results.settings import setting


def told(model: str, /, *, reasoning: bool, **sections: Any) -> tuple[str, str]:
    """What a table calls the model, and which rows it is pooled with."""
    recipe = Recipe.model_validate({"name": "x", **sections}).model_dump(mode="json")
    found = setting(recipe, {"model": model, "reasoning": reasoning})
    return found.name, found.key


def test_another_search_is_another_line_of_both_models() -> None:
    for model, reasoning in (("hstu", False), ("scoter_h", True)):
        plain, mixed, wide = (
            told(model, reasoning=reasoning, search=search) for search in ({}, {"rerank": 0.4}, {"widen": [2, 3]})
        )
        assert len({plain[1], mixed[1], wide[1]}) == 3
        assert mixed[0] == plain[0].removesuffix(")") + (", rerank 0.4)" if reasoning else " (rerank 0.4)")
        assert "first levels x2 x3" in wide[0]


def test_where_a_model_starts_is_no_matter_to_its_backbone() -> None:
    scratch, standing = ({"train": {"start": start}} for start in ("scratch", "backbone"))
    assert told("hstu", reasoning=False, **scratch) == told("hstu", reasoning=False, **standing)
    one, other = (told("scoter_h", reasoning=True, **sections) for sections in (scratch, standing))
    assert one[1] != other[1]
    assert other[0].startswith("SCoTER-H on its trained HSTU (chains by analyst")


def test_what_item_vectors_read_is_said_of_whoever_has_item_vectors() -> None:
    plain, featured = ({"model": {"features": features}} for features in ([], ["text"]))
    for model, reasoning in (("hstu", False), ("scoter_h", True)):
        one, other = (told(model, reasoning=reasoning, **sections) for sections in (plain, featured))
        assert one[1] != other[1]
        assert other[0] == one[0].replace("HSTU", "HSTU + text features").replace("-H", "-H + text features")
    both = told("hstu", reasoning=False, model={"features": ["text", "collaborative"]})
    assert both[0] == "HSTU + text and collaborative features"
    assert told("tiger", reasoning=False, **plain) == told("tiger", reasoning=False, **featured)


def test_a_recipe_from_before_there_was_a_choice_is_pooled_with_the_default() -> None:
    whole = Recipe(name="x").model_dump(mode="json")
    older = {key: value for key, value in whole.items() if key != "search"}
    older["train"] = {key: value for key, value in whole["train"].items() if key != "start"}
    older["model"] = {key: value for key, value in whole["model"].items() if key != "features"}
    for model in ("hstu", "scoter_h"):
        row = {"model": model, "reasoning": model == "scoter_h"}
        assert setting(older, row) == setting(whole, row)
