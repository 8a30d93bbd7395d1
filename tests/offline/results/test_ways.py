from __future__ import annotations

from typing import Any

from offline.recipe import Recipe
from offline.results.settings import Setting, setting
from offline.results.ways import HEAD, Ways


def made(model: str, /, *, reasoning: bool, **sections: Any) -> Setting:
    recipe = Recipe.model_validate({"name": "x", **sections}).model_dump(mode="json")
    return setting(recipe, {"model": model, "reasoning": reasoning})


STANDS: dict[str, Any] = {"train": {"start": "backbone"}, "reason": {"template": "two-step"}}
ALONE = made("hstu", reasoning=False)
JOINT = made("scoter_h", reasoning=True)
STANDING = made("scoter_h", reasoning=True, **STANDS)
WITHHELD = made("scoter_h", reasoning=False, **STANDS)
WIDE = made("hstu", reasoning=False, search={"widen": [2]})
OTHERS = made("SASRec", reasoning=False)


def test_models_have_letters_in_their_order_and_a_backbone_those_of_all_that_stand_on_it() -> None:
    ways = Ways([ALONE, JOINT, WIDE, STANDING, OTHERS])
    assert [ways.letters(one) for one in (JOINT, STANDING, ALONE, WIDE, OTHERS)] == ["A", "B", "A, B", "C", ""]
    assert [row[:2] for row in ways.rows()] == [
        ["**A**", "SCoTER-H on HSTU"],
        ["**B**", "SCoTER-H on HSTU"],
        ["**C**", "HSTU"],
    ]
    assert {len(row) for row in ways.rows()} == {len(HEAD)}


def test_a_name_says_template_and_what_is_taken_away() -> None:
    ways = Ways([STANDING, ALONE, WITHHELD])
    assert ways.name(STANDING) == "SCoTER-H [A], two-step"
    assert ways.name(WITHHELD) == "SCoTER-H [A], two-step, H withheld at test time"
    assert ways.name(ALONE) == "HSTU [A]"
    assert ways.name(OTHERS) == "SASRec (RecBole)"


def test_letters_go_on_after_z() -> None:
    wide = [made("hstu", reasoning=False, search={"rerank": place / 100}) for place in range(1, 28)]
    ways = Ways(wide)
    assert [ways.letters(wide[place]) for place in (25, 26)] == ["Z", "A2"]
