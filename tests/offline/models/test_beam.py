from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from offline.models.beam import Beam
from offline.models.recommender import Recommender
from offline.recipe import SearchRecipe, Variant
from offline.trie import packed_alive
from service.filters import Filters
from service.release.catalogue import Catalogue, Item
from tests.offline.models import tiny

ROWS = 9
PLAIN: tuple[Variant, ...] = ("hstu", "sasrec", "tiger")
SMALL: dict[Variant, dict[str, int]] = {
    "hstu": {"decoder_layers": 1},
    "sasrec": {"decoder_layers": 1},
    "tiger": {"layers": 1},
}


def search(made: Recommender, history: Tensor, exclude: Tensor, width: int) -> Beam:
    with torch.inference_mode():
        return made.recommend(history, exclude, width)


def reference(made: Recommender, history: Tensor) -> Tensor:
    with torch.inference_mode():
        sequence, present = made.encode(history)
        return tiny.all_scores(made, made.fuse(sequence, None, None), present)


def nothing(rows: int) -> Tensor:
    return torch.zeros(rows, 0, dtype=torch.int64)


@pytest.mark.parametrize("variant", PLAIN)
@pytest.mark.parametrize("levels,codebook", [(4, 6), (3, 9), (2, 20)])
def test_a_beam_as_wide_as_the_catalogue_is_exhaustive_scoring(levels: int, codebook: int, variant: Variant) -> None:
    made = tiny.model(60, levels, codebook, variant=variant)
    history = tiny.histories(made, ROWS)
    beam = search(made, history, nothing(ROWS), 60)
    scores, order = reference(made, history).sort(dim=1, descending=True)
    assert beam.valid.all()
    torch.testing.assert_close(beam.scores, scores, atol=1e-4, rtol=0)
    for row in range(ROWS):  # items whose scores tie may stand in either order
        expected = reference(made, history)[row][beam.items[row] - 1]
        torch.testing.assert_close(expected, scores[row], atol=1e-4, rtol=0)
        assert sorted(beam.items[row].tolist()) == sorted((order[row] + 1).tolist())


@pytest.mark.parametrize("variant", PLAIN)
def test_scores_are_a_distribution_over_the_catalogue(variant: Variant) -> None:
    made = tiny.model(60, variant=variant)
    history = tiny.histories(made, ROWS)
    beam = search(made, history, nothing(ROWS), 60)
    torch.testing.assert_close(beam.scores.exp().sum(1), torch.ones(ROWS), atol=1e-4, rtol=0)


@given(
    variant=st.sampled_from(PLAIN),
    seed=st.integers(0, 10_000),
    items=st.integers(1, 70),
    width=st.integers(1, 30),
    excluded=st.lists(st.integers(0, 70), max_size=40),
)
@settings(max_examples=60)
def test_what_comes_back_is_allowed_sorted_and_complete(
    variant: Variant, seed: int, items: int, width: int, excluded: list[int]
) -> None:
    made = tiny.model(items, 4, 6, seed=seed, variant=variant, **SMALL[variant])
    history = tiny.histories(made, 3, seed)
    banned = [e for e in excluded if e <= items]
    exclude = torch.tensor([banned, [0] * len(banned), banned[::-1]], dtype=torch.int64).reshape(3, len(banned))
    beam = search(made, history, exclude, width)
    assert beam.items.shape == beam.scores.shape == beam.valid.shape == (3, width)
    for row, forbidden in enumerate((set(banned), set(), set(banned))):
        left = items - len(forbidden - {0})
        valid = beam.valid[row]
        found = beam.items[row][valid].tolist()
        assert len(found) == min(width, left)  # never fewer than there are
        assert valid.tolist() == [True] * len(found) + [False] * (width - len(found))
        assert len(set(found)) == len(found)
        assert not forbidden & set(found)
        assert all(1 <= item <= items for item in found)
        assert (beam.items[row][~valid] == 0).all()
        scores = beam.scores[row][valid]
        assert torch.isfinite(scores).all()
        assert (scores.diff() <= 0).all()
        assert torch.isneginf(beam.scores[row][~valid]).all()


@given(
    variant=st.sampled_from(PLAIN),
    seed=st.integers(0, 10_000),
    items=st.integers(1, 70),
    width=st.integers(1, 30),
    widen=st.lists(st.integers(1, 4), max_size=5),
    colours=st.integers(1, 12),
    excluded=st.lists(st.integers(0, 70), max_size=40),
)
@settings(max_examples=60)
def test_a_filtered_beam_is_full_whenever_enough_is_left(
    variant: Variant, seed: int, items: int, width: int, widen: list[int], colours: int, excluded: list[int]
) -> None:
    """One batch: filtered, filtered with exclusions in the mask, the same with them in both places, unfiltered."""
    made = tiny.model(items, 4, 6, seed=seed, variant=variant, **SMALL[variant])
    banned = [e for e in excluded if e <= items]
    rows = [Item(str(n), "", {"colour": [str(n % colours)]}) for n in range(1, items + 1)]
    codes = made.item_codes[1:].numpy().astype(np.uint16)
    chosen = Filters(Catalogue(rows, codes, np.ones(items, np.float32))).resolve({"colour": ["0", "5"]}, {})
    masks = [chosen.mask([]), chosen.mask(banned), chosen.mask(banned), np.full_like(chosen.mask([]), 0xFF)]
    exclude = torch.zeros(4, len(banned), dtype=torch.int64)
    exclude[2:] = torch.tensor(banned, dtype=torch.int64)
    history = tiny.histories(made, 1, seed).expand(4, -1)
    with torch.inference_mode():
        beam = made.recommend(
            history, exclude, width, search=SearchRecipe(widen=widen), allowed=torch.from_numpy(np.stack(masks))
        )
    eligible, everything = set(np.flatnonzero(chosen.passes(np.arange(items + 1))).tolist()), set(range(1, items + 1))
    left = [eligible, eligible - set(banned), eligible - set(banned), everything - set(banned)]
    for row, allowed in enumerate(left):
        found = beam.items[row][beam.valid[row]].tolist()
        assert len(found) == min(width, len(allowed))
        assert len(set(found)) == len(found)
        assert set(found) <= allowed
    assert torch.equal(beam.items[1], beam.items[2])
    torch.testing.assert_close(beam.scores[1], beam.scores[2])


def test_a_filter_leaves_the_other_scores_as_they_were() -> None:
    """They stay probabilities in the whole catalogue: a filtered list is the unfiltered one with gaps closed."""
    made = tiny.model(60, variant="hstu")
    history = tiny.histories(made, ROWS)
    everything = search(made, history, nothing(ROWS), 60)
    eligible = np.random.default_rng(0).random(60) < 0.4
    allowed = torch.from_numpy(packed_alive(made.trie, eligible)).expand(ROWS, -1)
    with torch.inference_mode():
        found = made.recommend(history, nothing(ROWS), 60, allowed=allowed)
    for row in range(ROWS):
        kept = torch.from_numpy(eligible)[everything.items[row] - 1]
        assert torch.equal(found.items[row][found.valid[row]], everything.items[row][kept])
        torch.testing.assert_close(found.scores[row][found.valid[row]], everything.scores[row][kept])


def test_wider_first_levels_find_what_a_narrow_beam_prunes() -> None:
    better = 0
    for seed in range(10):
        made = tiny.model(60, seed=seed, variant="hstu")
        history = tiny.histories(made, ROWS, seed)
        narrow = search(made, history, nothing(ROWS), 3)
        with torch.inference_mode():
            wide = made.recommend(history, nothing(ROWS), 3, search=SearchRecipe(widen=[4, 3, 2]))
        assert (wide.scores.sum(1) >= narrow.scores.sum(1) - 1e-4).all()
        better += int((wide.scores.sum(1) > narrow.scores.sum(1) + 1e-4).sum())
    assert better > 5


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("variant", PLAIN)
def test_leaves_are_cut_and_ordered_by_item_vectors_too(variant: Variant, share: float) -> None:
    """Of all items, where first levels keep every prefix; also where less is left than the beam is wide."""
    made = tiny.model(60, variant=variant)
    history = tiny.histories(made, ROWS)
    exclude = torch.arange(1, 51).expand(ROWS, -1)
    every = torch.arange(1, 61)
    with torch.inference_mode():
        sequence, _ = made.encode(history)
        near = made.fuse(sequence, None, None)[:, -1] @ made.embed(every).T  # [ROWS, 60]
    expected = reference(made, history)  # [ROWS, 60]
    if variant != "tiger":  # which knows items by their codes alone
        expected = (1 - share) * expected + share * near
    for banned, left in ((nothing(ROWS), 60), (exclude, 10)):
        with torch.inference_mode():
            found = made.recommend(history, banned, 15, search=SearchRecipe(widen=[8, 8, 8], rerank=share))
        kept = min(left, 15)
        best = expected[:, 60 - left :].sort(dim=1, descending=True)
        torch.testing.assert_close(found.scores[:, :kept], best.values[:, :kept], atol=1e-4, rtol=1e-4)
        assert torch.equal(found.items[:, :kept], best.indices[:, :kept] + 61 - left)
        assert found.valid[:, :kept].all()
        assert torch.isneginf(found.scores[:, kept:]).all()
        assert not found.items[:, kept:].any()


def test_what_item_vectors_put_first_need_not_be_what_decodes_best() -> None:
    """The last level is not cut by log p before item vectors have their say."""
    made = tiny.model(60, variant="hstu")
    history = tiny.histories(made, ROWS)
    plain = search(made, history, nothing(ROWS), 5)
    with torch.inference_mode():
        found = made.recommend(history, nothing(ROWS), 5, search=SearchRecipe(widen=[12, 12, 12], rerank=0.9))
    assert any(set(found.items[row].tolist()) - set(plain.items[row].tolist()) for row in range(ROWS))
    assert (found.bound <= plain.bound).all()  # nothing but prefixes, of which none was pruned


def test_exclusion_leaves_the_other_scores_as_they_were() -> None:
    made = tiny.model(60, variant="hstu")
    history = tiny.histories(made, ROWS)
    everything = search(made, history, nothing(ROWS), 60)
    best = everything.items[:, :7]
    rest = search(made, history, best, 60)
    assert torch.equal(rest.items[:, :53], everything.items[:, 7:])
    torch.testing.assert_close(rest.scores[:, :53], everything.scores[:, 7:])
    assert not rest.valid[:, 53:].any()


def test_an_exhausted_prefix_does_not_take_a_place_in_the_beam() -> None:
    """All items under the best first code are excluded: a beam of one must still find the best of the others."""
    made = tiny.model(60, variant="hstu")
    history = tiny.histories(made, ROWS)
    scores = reference(made, history)
    first = made.item_codes[1:, 0]
    for row in range(ROWS):
        mass = torch.stack([scores[row][first == code].exp().sum() for code in range(6)])
        banned = (torch.nonzero(first == mass.argmax()) + 1).T
        beam = search(made, history[row : row + 1], banned, 1)
        assert beam.valid.all()
        assert first[beam.items[0, 0] - 1] != mass.argmax()


def test_the_bound_certifies_exactness() -> None:
    """Wherever a narrow beam says its result cannot be beaten, it is the exact one; and it does say so at times."""
    certified = 0
    for seed in range(20):
        made = tiny.model(60, seed=seed, variant="hstu")
        history = tiny.histories(made, ROWS, seed)
        exact = reference(made, history).sort(dim=1, descending=True).values
        for width in (3, 6, 12):
            beam = search(made, history, nothing(ROWS), width)
            sure = beam.scores[:, 2] >= beam.bound
            certified += int(sure.sum())
            torch.testing.assert_close(beam.scores[sure, :3], exact[sure, :3], atol=1e-4, rtol=0)
            for row in torch.nonzero(~sure).flatten().tolist():
                assert beam.bound[row] > beam.scores[row, 2]
    assert certified > 100


def by_hand(
    codes: NDArray[np.int64], scores: NDArray[np.float32], left: set[int], kept: list[int]
) -> tuple[list[int], float]:
    """A beam over prefixes of codes [N, L], by log p of all items [N]: the items found, and the best prefix cut.

    As many prefixes as `kept` says stay at each level, of those that lead to an item that is `left`. A prefix is as
    likely as all items beneath it together, whether or not they are left.
    """
    beam: list[tuple[int, ...]] = [()]
    best_cut = -np.inf
    for level, count in enumerate(kept):
        beneath = {
            prefix: (codes[:, : level + 1] == prefix).all(1)
            for prefix in {tuple(codes[item - 1, : level + 1].tolist()) for item in left}
            if prefix[:-1] in beam
        }
        likely = {prefix: float(np.logaddexp.reduce(scores[items])) for prefix, items in beneath.items()}
        ranked = sorted(likely, key=lambda prefix: -likely[prefix])
        beam = ranked[:count]
        best_cut = max([best_cut, *(likely[prefix] for prefix in ranked[count:])])
    return [int(np.flatnonzero((codes == prefix).all(1))[0]) + 1 for prefix in beam], best_cut


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_keeps_and_cuts_what_one_over_prefixes_does(seed: int) -> None:
    """At any width, with exclusions and filters; its bound is the likeliest prefix that it cut, and no other."""
    made = tiny.model(60, seed=seed, variant="hstu")
    history = tiny.histories(made, ROWS, seed)
    codes, scores = made.item_codes[1:].numpy(), reference(made, history).numpy()
    random = np.random.default_rng(seed)
    excluded = torch.from_numpy(random.integers(0, 61, (ROWS, 20)))
    excluded[0] = 0
    chosen = random.random((ROWS, 60)) < 0.5
    chosen[1] = True
    for row in range(ROWS):  # a mask leaves out what is excluded, too: the beam itself does not look ahead
        chosen[row, [item - 1 for item in excluded[row].tolist() if item]] = False
    masks = np.stack([packed_alive(made.trie, row) for row in chosen])
    ways: list[tuple[int, list[int], list[int]]] = [
        (1, [], [1, 1, 1, 1]),
        (3, [2], [6, 3, 3, 3]),
        (5, [1, 3], [5, 15, 5, 5]),
        (4, [2, 3, 2, 3, 3], [8, 12, 8, 4]),  # of the last level, whatever is said of it, as many as are asked for
    ]
    for width, widen, kept in ways:
        for exclude, allowed in ((nothing(ROWS), None), (excluded, None), (excluded, torch.from_numpy(masks))):
            with torch.inference_mode():
                found = made.recommend(history, exclude, width, search=SearchRecipe(widen=widen), allowed=allowed)
            for row in range(ROWS):
                gone = set(exclude[row].tolist())
                left = {n for n in range(1, 61) if n not in gone and (allowed is None or chosen[row, n - 1])}
                items, bound = by_hand(codes, scores[row], left, kept)
                assert found.items[row][found.valid[row]].tolist() == items
                np.testing.assert_allclose(found.scores[row, : len(items)], scores[row][np.array(items) - 1], atol=1e-4)
                assert float(found.bound[row]) == pytest.approx(bound, abs=1e-4)


@pytest.mark.parametrize("variant", PLAIN)
def test_rows_do_not_see_each_other(variant: Variant) -> None:
    made = tiny.model(60, variant=variant)
    history = tiny.histories(made, ROWS)
    exclude = history[:, -2:]
    together = search(made, history, exclude, 5)
    for row in range(ROWS):
        alone = search(made, history[row : row + 1], exclude[row : row + 1], 5)
        assert torch.equal(alone.items[0], together.items[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=1e-5)
