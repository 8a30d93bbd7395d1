from __future__ import annotations

import pytest
import torch

from offline import objective as module
from offline.models.recommender import Recommender
from offline.objective import Objective
from offline.recipe import TrainRecipe, Variant
from tests.offline.models import tiny


def plain_recipe(**changes: float | str) -> TrainRecipe:
    return TrainRecipe.model_validate({"contrastive_weight": 0.0} | changes)


def rows(made: Recommender) -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows of 1, 3, 5 and 6 positions."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randint(1, 61, (4, 6), generator=random)
    targets = torch.randint(1, 61, (4, 6), generator=random)
    for row, size in enumerate((1, 3, 5, 6)):
        inputs[row, : 6 - size] = 0
        targets[row, : 6 - size] = 0
    return inputs, targets


def reference(
    made: Recommender,
    context: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    at: int,
    nearness: torch.Tensor | None = None,
) -> float:
    """-log p summed over the rows that have position `at`, from exhaustive scoring of the sequence up to there."""
    present = inputs > 0
    scores = tiny.all_scores(made, context[:, : at + 1], present[:, : at + 1], nearness)
    here = present[:, at]
    return float(-scores[here, targets[here, at] - 1].sum())


def test_loss_is_the_mean_likelihood_of_the_next_item() -> None:
    made = tiny.model(variant="hstu")
    inputs, targets = rows(made)
    with torch.no_grad():
        loss = float(Objective(made, plain_recipe())(inputs, targets, None, None))
        sequence, _ = made.encode(inputs)
        context = made.fuse(sequence, None, None)
        expected = sum(reference(made, context, inputs, targets, at) for at in range(6)) / 15
    assert loss == pytest.approx(expected, rel=1e-4)


def test_a_model_that_sees_the_whole_history_is_trained_on_the_last_position() -> None:
    made = tiny.model(variant="tiger")
    inputs, targets = rows(made)
    with torch.no_grad():
        loss = float(Objective(made, plain_recipe())(inputs, targets, None, None))
        sequence, present = made.encode(inputs)
        scores = tiny.all_scores(made, made.fuse(sequence, None, None), present)
    assert loss == pytest.approx(float(-scores[torch.arange(4), targets[:, -1] - 1].mean()), rel=1e-4)


@pytest.mark.parametrize("alignment", [0, 4])
def test_its_rows_see_the_reasoning_if_they_may(alignment: int) -> None:
    made = tiny.model(variant="scoter_t", alignment=alignment)
    assert made.adapter is not None
    inputs, targets = rows(made)
    reasoning, keep = tiny.reasoning(4), torch.tensor([True, False, True, True])
    with torch.no_grad():
        loss = float(Objective(made, plain_recipe())(inputs, targets, reasoning, keep))
        sequence, present = made.encode(inputs)
        near = tiny.nearness(made, reasoning) * keep[:, None] if alignment else None
        scores = tiny.all_scores(made, made.fuse(sequence, made.project(reasoning), keep), present, near)
    assert loss == pytest.approx(float(-scores[torch.arange(4), targets[:, -1] - 1].mean()), rel=1e-4)


@pytest.mark.parametrize("alignment", [0, 4])
def test_only_the_last_position_sees_the_reasoning(alignment: int) -> None:
    """Its likelihood is that of the fused sequence; every earlier one that of the sequence without H."""
    made = tiny.model(alignment=alignment)
    assert made.adapter is not None
    inputs, targets = rows(made)
    reasoning, keep = tiny.reasoning(4), torch.tensor([True, False, True, True])
    with torch.no_grad():
        loss = float(Objective(made, plain_recipe())(inputs, targets, reasoning, keep))
        sequence, _ = made.encode(inputs)
        steps = made.project(reasoning)
        without = made.fuse(sequence, steps, torch.zeros_like(keep))
        fused = made.fuse(sequence, steps, keep)
        expected = sum(reference(made, without, inputs, targets, at) for at in range(5))
        near = tiny.nearness(made, reasoning) * keep[:, None] if alignment else None
        expected += reference(made, fused, inputs, targets, 5, near)
    assert loss == pytest.approx(expected / 15, rel=1e-4)


@pytest.mark.parametrize("alignment", [0, 4])
def test_on_a_backbone_that_stays_the_last_position_alone_is_trained(alignment: int) -> None:
    """The others do not see H, so that nothing that is trained is in their likelihood."""
    made = tiny.model(alignment=alignment)
    inputs, targets = rows(made)
    reasoning, keep = tiny.reasoning(4), torch.tensor([True, False, True, True])
    with torch.no_grad():
        loss = float(Objective(made, plain_recipe(start="backbone"))(inputs, targets, reasoning, keep))
        sequence, _ = made.encode(inputs)
        fused = made.fuse(sequence, made.project(reasoning), keep)
        near = tiny.nearness(made, reasoning) * keep[:, None] if alignment else None
        expected = reference(made, fused, inputs, targets, 5, near) / 4
    assert loss == pytest.approx(expected, rel=1e-4)


def test_smoothing_gives_every_child_on_the_way_an_equal_part() -> None:
    """From the probabilities of whole items: that of a child is the sum over the items beneath it."""
    made, smoothing = tiny.model(variant="tiger"), 0.3
    inputs, targets = rows(made)
    with torch.no_grad():
        loss = float(Objective(made, plain_recipe(label_smoothing=smoothing))(inputs, targets, None, None))
        sequence, present = made.encode(inputs)
        scores = tiny.all_scores(made, made.fuse(sequence, None, None), present)
    codes, expected = made.item_codes[1:], 0.0
    for score, target in zip(scores, targets[:, -1], strict=True):
        code = made.item_codes[target]
        for level in range(codes.shape[1]):
            beneath = (codes[:, :level] == code[:level]).all(1)
            children = {
                int(child): torch.logsumexp(score[beneath & (codes[:, level] == child)], 0)
                - torch.logsumexp(score[beneath], 0)
                for child in codes[beneath][:, level].unique()
            }
            expected -= float((1 - smoothing) * children[int(code[level])])
            expected -= float(smoothing * sum(children.values()) / len(children))
    assert loss == pytest.approx(expected / 4, rel=1e-4)


@pytest.mark.parametrize("variant", ["scoter_h", "scoter_t", "scoter_s"])
def test_what_is_dropped_of_the_step_embeddings_is_dropped_by_chance(variant: Variant) -> None:
    made = tiny.model(variant=variant)
    inputs, targets = rows(made)
    everyone, reasoning = torch.ones(4, dtype=torch.bool), tiny.reasoning(4)

    def losses(share: float) -> set[float]:
        objective = Objective(made, plain_recipe(reasoning_dropout=share))
        with torch.no_grad():
            return {float(objective(inputs, targets, reasoning, everyone)) for _ in range(3)}

    assert len(losses(0.0)) == 1
    assert len(losses(0.5)) == 3


@pytest.mark.parametrize("variant", ["scoter_h", "scoter_t", "scoter_s"])
def test_rows_whose_reasoning_is_dropped_do_not_depend_on_it(variant: Variant) -> None:
    made = tiny.model(variant=variant)
    inputs, targets = rows(made)
    objective, nobody = Objective(made, plain_recipe()), torch.zeros(4, dtype=torch.bool)
    with torch.no_grad():
        one = objective(inputs, targets, tiny.reasoning(4, seed=1), nobody)
        other = objective(inputs, targets, tiny.reasoning(4, seed=2), nobody)
    torch.testing.assert_close(one, other)
    assert torch.isfinite(one)


@pytest.mark.parametrize("variant", ["scoter_h", "scoter_t", "scoter_s"])
@pytest.mark.parametrize("alignment", [0, 4])
def test_contrastive_term_is_equation_6_of_the_rows_that_see_h_weighted_by_lambda(
    variant: Variant, alignment: int
) -> None:
    made = tiny.model(variant=variant, alignment=alignment)
    assert made.adapter is not None
    inputs, targets = rows(made)
    reasoning, keep = tiny.reasoning(4), torch.tensor([True, False, True, True])
    with torch.no_grad():
        losses = [
            float(
                Objective(made, plain_recipe(contrastive_weight=weight, temperature=0.2))(
                    inputs, targets, reasoning, keep
                )
            )
            for weight in (0.0, 0.3)
        ]
        last = made.adapter(reasoning)[keep, -1]
        items = made.embed(targets[keep, -1])
    assert len(targets[keep, -1].unique()) == 3
    alike = torch.nn.functional.cosine_similarity(last[:, None], items[None], dim=-1) / 0.2
    expected = -alike.log_softmax(1).diagonal().mean()
    assert losses[1] - losses[0] == pytest.approx(0.3 * float(expected), rel=1e-3)


def test_catalogue_term_scores_items_by_their_input_vectors() -> None:
    made = tiny.model(variant="hstu")
    inputs, targets = rows(made)
    with torch.no_grad():
        without = Objective(made, plain_recipe())(inputs, targets, None, None)
        with_it = Objective(made, plain_recipe(catalogue_weight=0.5))(inputs, targets, None, None)
        sequence, present = made.encode(inputs)
        logits = made.fuse(sequence, None, None)[present] @ made.embed(torch.arange(1, 61)).T
        expected = torch.nn.functional.cross_entropy(logits, targets[present] - 1)
        smooth = [
            Objective(made, plain_recipe(catalogue_weight=weight, label_smoothing=0.3))(inputs, targets, None, None)
            for weight in (0.5, 0.0)
        ]
    torch.testing.assert_close(with_it - without, 0.5 * expected, rtol=1e-4, atol=1e-4)
    even = -logits.log_softmax(1).mean()
    torch.testing.assert_close(smooth[0] - smooth[1], 0.5 * (0.7 * expected + 0.3 * even), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_catalogue_term_of_a_large_catalogue_is_made_of_parts(
    monkeypatch: pytest.MonkeyPatch, smoothing: float
) -> None:
    made = tiny.model(variant="hstu")
    inputs, targets = rows(made)
    recipe = plain_recipe(catalogue_weight=0.5, label_smoothing=smoothing)
    found: list[tuple[torch.Tensor, list[torch.Tensor | None]]] = []
    for cells in (10**9, 4 * 60):  # of 15 positions and 60 items
        monkeypatch.setattr(module, "_CELLS", cells)
        made.zero_grad()
        loss = Objective(made, recipe)(inputs, targets, None, None)
        loss.backward()
        gradients = [None if one.grad is None else one.grad.clone() for one in made.parameters()]
        found.append((loss.detach(), gradients))
    torch.testing.assert_close(found[0], found[1])


def test_catalogue_term_of_the_last_position_knows_where_the_reasoning_points() -> None:
    made = tiny.model(alignment=4)
    inputs, targets = rows(made)
    reasoning, keep = tiny.reasoning(4), torch.tensor([True, False, True, True])
    with torch.no_grad():
        without = Objective(made, plain_recipe())(inputs, targets, reasoning, keep)
        with_it = Objective(made, plain_recipe(catalogue_weight=0.5))(inputs, targets, reasoning, keep)
        sequence, present = made.encode(inputs)
        steps = made.project(reasoning)
        context = made.fuse(sequence, steps, torch.zeros_like(keep))
        context[:, -1] = made.fuse(sequence, steps, keep)[:, -1]
        logits = context @ made.embed(torch.arange(1, 61)).T  # [B, T, N]
        logits[:, -1] += tiny.nearness(made, reasoning) * keep[:, None]
        expected = torch.nn.functional.cross_entropy(logits[present], targets[present] - 1)
    torch.testing.assert_close(with_it - without, 0.5 * expected, rtol=1e-4, atol=1e-4)
