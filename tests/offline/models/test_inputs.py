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


def test_an_item_is_the_sum_of_its_id_its_codes_and_what_those_were_made_of() -> None:
    made, features = with_features(), tiny.texts(ITEMS)
    made.place(features)
    codes = item_codes()
    centred = features - features.mean(0)
    unit = centred / np.sqrt((centred**2).sum(1).mean())
    assert made.read is not None
    for item in range(1, ITEMS + 1):
        parts = [table(codes[item, level]) for level, table in enumerate(made.codes)]
        expected = made.items.weight[item] + sum(parts) + made.read.weight @ torch.from_numpy(unit[item - 1])
        assert torch.allclose(made.embed(torch.tensor(item)), expected, atol=1e-6)
        assert torch.allclose(made.catalogue()[item - 1], expected, atol=1e-6)


def test_what_nothing_is_known_of_adds_nothing() -> None:
    made, plain, features = with_features(), with_features(), tiny.texts(ITEMS)
    features[3] = 0
    made.place(features)
    assert not made.features[4].any()
    assert torch.equal(made.catalogue()[3], plain.catalogue()[3])  # its features are zeros until they are placed
    assert not made.features[0].any()  # padding
    about = made.features[[1, 2, 3, *range(5, ITEMS + 1)]]
    assert torch.allclose(about.mean(0), torch.zeros(tiny.WIDTH), atol=1e-6)
    assert about.square().sum(1).mean().item() == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_features_weigh_as_much_however_long_they_are(scale: float) -> None:
    made, other = with_features(), with_features()
    made.place(tiny.texts(ITEMS))
    other.place(tiny.texts(ITEMS) * np.float32(scale) + np.float32(2))
    assert torch.allclose(made.catalogue(), other.catalogue(), atol=1e-4)


@pytest.mark.parametrize("variant", ["hstu", "scoter_h", "sasrec", "scoter_s"])
@pytest.mark.parametrize("features", [False, True])
def test_items_are_served_as_they_are_trained(variant: Variant, features: bool) -> None:
    made = tiny.model(ITEMS, variant=variant, features=features)
    history = tiny.histories(made, 8)
    trained, present = made.inputs(history)
    served, there = made.inputs.served()(history)
    assert torch.allclose(trained, served, atol=1e-6)
    assert torch.equal(present, there)


def test_features_are_no_weights_and_travel_with_them() -> None:
    made = tiny.model(ITEMS, variant="hstu", features=True)
    plain = tiny.model(ITEMS, variant="hstu")
    assert parameters(made) - parameters(plain) == tiny.WIDTH * made.dim
    other = tiny.model(ITEMS, variant="hstu", features=True)
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
