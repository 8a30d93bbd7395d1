from __future__ import annotations

import numpy as np
import pytest
import torch

from offline.models.inputs import CodeTokens, ItemVectors
from offline.models.recommender import parameters
from offline.recipe import Variant
from tests.offline.models import tiny

ITEMS, CODEBOOK, DIM = 30, 5, 8


def item_codes() -> torch.Tensor:
    codes = tiny.random_codes(ITEMS, 3, CODEBOOK, 0)
    return torch.from_numpy(np.concatenate([np.zeros((1, 3), np.int64), codes]))


def with_features() -> ItemVectors:
    torch.manual_seed(0)
    made = ItemVectors(item_codes(), CODEBOOK, DIM, tiny.WIDTH)
    made.initialise()
    return made


def test_an_item_is_the_sum_of_its_id_its_codes_and_a_map_of_its_features() -> None:
    made, features = with_features(), tiny.texts(ITEMS)
    plain = with_features().catalogue()  # features are zeros until they are placed
    made.place(features)
    codes = item_codes()
    assert made.read is not None
    for item in range(1, ITEMS + 1):
        parts = [table(codes[item, level]) for level, table in enumerate(made.codes)]
        assert torch.allclose(plain[item - 1], made.items.weight[item] + sum(parts), atol=1e-6)
        expected = plain[item - 1] + made.read.weight @ torch.from_numpy(features[item - 1])
        assert torch.allclose(made.embed(torch.tensor(item)), expected, atol=1e-6)
        assert torch.allclose(made.catalogue()[item - 1], expected, atol=1e-6)
    assert not made.features[0].any()  # padding


@pytest.mark.parametrize("variant", ["hstu", "scoter_h", "sasrec", "scoter_s"])
@pytest.mark.parametrize("features", [False, True])
def test_items_are_served_as_they_are_trained(variant: Variant, features: bool) -> None:
    made = tiny.model(ITEMS, variant=variant, features=["text"] if features else [])
    history = tiny.histories(made, 8)
    trained, present = made.inputs(history)
    served, there = made.inputs.served()(history)
    assert torch.allclose(trained, served, atol=1e-6)
    assert torch.equal(present, there)


def test_features_are_no_weights_and_travel_with_them() -> None:
    made = tiny.model(ITEMS, variant="hstu", features=["text"])
    plain = tiny.model(ITEMS, variant="hstu")
    assert parameters(made) - parameters(plain) == tiny.WIDTH * made.dim
    other = tiny.model(ITEMS, variant="hstu", features=["text"])
    with torch.no_grad():
        for held in (*other.parameters(), *other.buffers()):
            if held.is_floating_point():
                held.zero_()
    other.load_state_dict(made.state_dict())
    ours, theirs = made.catalogue(), other.catalogue()
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)


def test_tiger_knows_items_by_their_codes_alone() -> None:
    made = tiny.model(ITEMS, variant="tiger")
    assert isinstance(made.inputs, CodeTokens)
    assert made.catalogue() is None
