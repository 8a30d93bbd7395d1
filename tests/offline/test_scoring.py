from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from offline.errors import TrainingError
from offline.prepare import Dataset
from offline.ranking import Asked
from offline.recipe import Variant
from offline.scoring import History, score_beam, score_exact
from tests.offline.models import tiny

USERS, ITEMS = 23, 60


def history(*, with_reasoning: bool) -> History:
    made = tiny.model(ITEMS)
    items = tiny.histories(made, USERS).numpy()
    seen = [np.unique([*row[row > 0], 7]) for row in items]
    reasoning = tiny.reasoning(USERS).numpy().astype(np.float16) if with_reasoning else None
    return History(items, seen, np.arange(1, USERS + 1), reasoning)


@pytest.mark.parametrize("use_reasoning", [True, False])
def test_exact_scoring_is_exhaustive_scoring(use_reasoning: bool) -> None:
    made, known = tiny.model(ITEMS), history(with_reasoning=True)
    assert known.reasoning is not None
    assert made.adapter is not None
    found = score_exact(made, known, 5, use_reasoning=use_reasoning, batch=7)
    with torch.inference_mode():
        sequence, present = made.encode(torch.from_numpy(known.items))
        steps = made.project(torch.from_numpy(known.reasoning.astype(np.float32)))
        context = made.fuse(sequence, steps, torch.full((USERS,), use_reasoning))
        scores = tiny.all_scores(made, context, present).numpy()
    for user in range(USERS):
        scores[user, known.seen[user] - 1] = -np.inf
    best = np.sort(scores, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(np.take_along_axis(scores, found - 1, 1), best, atol=1e-4)


def test_beam_scoring_does_not_depend_on_the_batch() -> None:
    made, known = tiny.model(ITEMS, variant="hstu"), history(with_reasoning=False)
    one = score_beam(made, known, 5, mask_history=True, batch=1)
    many = score_beam(made, known, 5, mask_history=True, batch=100)
    assert (one.items == many.items).all()
    np.testing.assert_allclose(one.scores, many.scores, atol=1e-5)
    assert not any(set(row) & set(seen) for row, seen in zip(one.items, known.seen, strict=True))


def test_the_catalogue_is_gone_through_once_and_not_with_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100,000 items that was a quarter to a half of the time."""
    made, known = tiny.model(ITEMS), history(with_reasoning=True)
    taken: list[list[torch.Tensor] | None] = []
    node_vectors = made.node_vectors

    def counted() -> list[torch.Tensor] | None:
        taken.append(node_vectors())
        return taken[-1]

    monkeypatch.setattr(made, "node_vectors", counted)
    score_beam(made, known, 5, mask_history=True, batch=2)
    assert len(taken) == 1


@pytest.mark.parametrize("variant", ["scoter_h", "scoter_s", "scoter_t"])
@pytest.mark.parametrize("items", [1, 9, ITEMS])
def test_a_users_list_does_not_depend_on_who_else_is_asked(variant: Variant, items: int) -> None:
    """Nor on their order; of catalogues smaller than the beam too, and of users who have had all of it."""
    made = tiny.model(items, variant=variant, alignment=4)
    rows = tiny.histories(made, USERS).numpy()
    seen = [np.unique(row[row > 0]) for row in rows]
    seen[3] = np.arange(1, items + 1)
    reasoning = tiny.reasoning(USERS).numpy().astype(np.float16)
    reasoning[5] = 0
    known = History(rows, seen, np.ones(USERS, np.int64), reasoning)
    beam = score_beam(made, known, 20, mask_history=True)
    exact = score_exact(made, known, 10)
    assert beam.items.shape == (USERS, 20)
    assert not beam.items[3].any()
    for asked in (np.random.default_rng(1).permutation(USERS), np.array([5, 3]), np.array([4])):
        other = score_beam(made, known.take(asked), 20, mask_history=True, batch=4)
        assert (other.items == beam.items[asked]).all()
        np.testing.assert_allclose(other.scores, beam.scores[asked], atol=1e-4)
        assert (score_exact(made, known.take(asked), 10, batch=3) == exact[asked]).all()


def test_a_user_without_a_chain_is_ranked_as_if_reasoning_was_masked() -> None:
    made, known = tiny.model(ITEMS), history(with_reasoning=True)
    assert known.reasoning is not None
    absent = np.arange(USERS) % 3 == 0
    known.reasoning[absent] = 0
    found = score_beam(made, known, 5, mask_history=False)
    masked = score_beam(made, known, 5, mask_history=False, use_reasoning=False)
    np.testing.assert_allclose(found.scores[absent], masked.scores[absent], atol=1e-5)
    assert (np.abs(found.scores[~absent] - masked.scores[~absent]).max(axis=1) > 1e-3).all()


def test_taking_users_takes_all_that_is_known_of_them() -> None:
    known = history(with_reasoning=True)
    rows = np.array([4, 1])
    part = known.take(rows)
    assert known.reasoning is not None
    assert part.reasoning is not None
    assert (part.items == known.items[rows]).all()
    assert [seen.tolist() for seen in part.seen] == [known.seen[row].tolist() for row in rows]
    assert part.targets.tolist() == [5, 2]
    assert (part.reasoning == known.reasoning[rows]).all()


def test_scores_that_are_no_numbers_are_an_error_and_no_search_without_end() -> None:
    made = tiny.model(ITEMS)
    with torch.no_grad():
        for weights in made.parameters():
            weights.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the scores of \d+ users are not numbers"):
        score_exact(made, history(with_reasoning=True), 5)


def test_one_long_history_costs_the_others_nothing() -> None:
    lengths = [8] * 2000 + [20_000]
    sequences = [np.arange(1, length + 1, dtype=np.int32) for length in lengths]
    dataset = SimpleNamespace(history=lambda user, _: sequences[user][:-1], target=lambda user, _: sequences[user][-1])
    tracemalloc.start()
    known = History.of(Asked.of(cast("Dataset", dataset), "valid", np.arange(len(lengths))), 20, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert known.excluded(slice(0, 4)).tolist() == [list(range(1, 8))] * 4
    assert known.excluded(slice(1999, 2001)).shape == (2, 19_999)
