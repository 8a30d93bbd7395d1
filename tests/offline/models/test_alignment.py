from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from offline.errors import TrainingError
from offline.models.alignment import Alignment
from offline.recipe import AlignmentRecipe, Variant
from tests.offline.models import tiny

FUSED: tuple[Variant, ...] = ("scoter_h", "scoter_t", "scoter_s")
ROWS = 7


def placed(dim: int = 4, **how: Any) -> Alignment:
    recipe = AlignmentRecipe(dim=dim, weight=3.0, **how)
    return Alignment(50, tiny.STEPS, tiny.WIDTH, recipe).place(tiny.texts(50))


def test_axes_are_the_principal_ones_and_repeat() -> None:
    made, again = placed(), placed()
    torch.testing.assert_close(made.axes.T @ made.axes, torch.eye(4), atol=1e-5, rtol=0)
    texts = tiny.texts(50).astype(np.float64)
    expected = np.linalg.svd(texts - texts.mean(0), full_matrices=False)[2][:4]
    found = np.abs(expected @ made.axes.double().numpy())
    np.testing.assert_allclose(found, np.eye(4), atol=1e-5)  # the same up to their signs
    assert torch.equal(made.axes, again.axes)


def test_a_step_that_is_an_items_text_points_at_that_item() -> None:
    made = placed(dim=tiny.WIDTH)
    points = made.points(torch.from_numpy(tiny.texts(50))[:, None])[:, 0]
    torch.testing.assert_close(points, 3.0 * made.texts)


def test_whitened_axes_all_count_alike() -> None:
    deviations = [placed(whiten=share).texts.std(0, correction=0) for share in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(deviations[1], deviations[0].sqrt())
    torch.testing.assert_close(deviations[2], torch.ones(4))


def test_what_all_texts_agree_on_says_nothing_however_it_is_stretched() -> None:
    flat = tiny.texts(50)
    flat[:, 2:] = flat[0, 2:]
    made = Alignment(50, tiny.STEPS, tiny.WIDTH, AlignmentRecipe(dim=5, whiten=1.0, cosine=True)).place(flat)
    assert not made.axes[:, 2:].any()
    elsewhere = torch.from_numpy(flat)[None].clone()
    elsewhere[..., 2:] += 3.0
    torch.testing.assert_close(made.points(elsewhere), made.points(torch.from_numpy(flat)[None]), atol=1e-3, rtol=0)


def test_of_directions_only_the_angle_counts() -> None:
    made = placed(cosine=True)
    torch.testing.assert_close(made.texts.norm(dim=1), torch.ones(50))
    far = made.mean + 7 * (tiny.reasoning(2) - made.mean)
    torch.testing.assert_close(made.points(far), made.points(tiny.reasoning(2)))


def test_without_reasoning_it_points_nowhere() -> None:
    made = placed()
    points = made.points(tiny.reasoning(2))
    found = made(points, torch.tensor([True, False]))
    assert found[0].abs().sum() > 0
    assert not found[1].any()


def test_more_axes_than_dimensions_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"alignment\.dim = 13: steps have 12 dimensions"):
        placed(dim=13)
    with pytest.raises(TrainingError, match="item texts 11"):
        Alignment(50, tiny.STEPS, tiny.WIDTH, AlignmentRecipe(dim=4)).place(tiny.texts(50)[:, :11])


@pytest.mark.parametrize("how", [{}, {"whiten": 0.5}, {"whiten": 1.0, "cosine": True}])
@pytest.mark.parametrize("variant", FUSED)
def test_the_beam_adds_what_the_definition_says(variant: Variant, how: dict[str, Any]) -> None:
    made = tiny.model(60, variant=variant, alignment={"dim": 4, "weight": 2.0, **how})
    history, reasoning = tiny.histories(made, ROWS), tiny.reasoning(ROWS)
    has = torch.tensor([True, False] * 3 + [True])
    with torch.inference_mode():
        steps = made.project(reasoning)
        beam = made.recommend(history, torch.zeros(ROWS, 0, dtype=torch.int64), 60, steps, has)
        sequence, present = made.encode(history)
        near = tiny.nearness(made, reasoning) * has[:, None]
        expected = tiny.all_scores(made, made.fuse(sequence, steps, has), present, near)
        plain = tiny.all_scores(made, made.fuse(sequence, steps, has), present)
    found = torch.empty_like(expected).scatter(1, beam.items - 1, beam.scores)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - plain).abs().max() > 0.1


def test_weights_of_a_model_keep_where_the_items_lie() -> None:
    made, other = tiny.model(60, alignment=4), tiny.model(60, seed=0, alignment=4)
    assert other.alignment is not None
    other.alignment.place(tiny.texts(60, seed=9))
    other.load_state_dict(made.state_dict())
    assert made.alignment is not None
    assert torch.equal(other.alignment.texts, made.alignment.texts)
