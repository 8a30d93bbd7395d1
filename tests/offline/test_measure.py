from __future__ import annotations

import numpy as np

from offline.measure import ByBeam
from offline.ranking import TOP, Asked
from offline.recipe import Recipe
from tests.offline.models import tiny
from tests.offline.test_scoring import ITEMS, USERS, history


def test_a_beam_that_is_narrower_than_a_list_leaves_its_end_empty() -> None:
    made, known = tiny.model(ITEMS, variant="hstu"), history(with_reasoning=False)
    recipe = Recipe(name="narrow", model=tiny.recipe(beam=3))
    asked = Asked(np.arange(USERS), [np.array([], np.int32)] * USERS, known.targets)
    found = ByBeam(made, known, recipe, use_reasoning=False, name="hstu").rank(asked, masked=True)
    assert found.shape == (USERS, TOP)
    assert (found[:, :3] > 0).all()
    assert not found[:, 3:].any()
