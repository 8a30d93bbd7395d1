import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.analyst.catalogue import Catalogue
from offline.analyst.operations import OPERATIONS, Mix, Op
from offline.analyst.ranking import Ranking, Shopper
from offline.prepare import Dataset
from tests.offline.analyst.shop import N, dataset

MIXES = [Mix.of({op, Op.RECOMMEND}) for op in OPERATIONS]
sequences = st.lists(st.lists(st.integers(1, N), min_size=4, max_size=9), min_size=2, max_size=6)


def _ranking(data: Dataset) -> Ranking:
    return Ranking(data, Catalogue(data.items))


def _shoppers(data: Dataset) -> list[Shopper]:
    return [Shopper(data.history(user, "valid"), data.training(user)) for user in range(len(data.users))]


@given(sequences, st.integers(1, N), st.data())
def test_popular_items_are_those_that_the_others_bought(data: list[list[int]], count: int, draw: st.DataObject) -> None:
    user = draw.draw(st.integers(0, len(data) - 1))
    made = dataset(data)
    ranking = _ranking(made)
    others = [row for row in range(len(data)) if row != user]
    sold = np.bincount(np.concatenate([made.training(row) for row in others]), minlength=N + 1)
    expected = sorted(range(1, N + 1), key=lambda item: (-sold[item], ranking._lot[item]))[:count]
    assert ranking._popular(made.training(user), count).tolist() == expected
    shopper = Shopper(made.history(user, "valid"), made.training(user))
    found = ranking._sold_to_others([shopper] * N, np.arange(N), np.arange(1, N + 1, dtype=np.int32))
    assert found.tolist() == sold[1:].tolist()


@settings(max_examples=12)
@given(sequences, st.booleans(), st.integers(3, N), st.integers(0, 6))
def test_company_changes_nobodys_ranking(data: list[list[int]], text: bool, fill: int, first: int) -> None:
    """All shoppers under all mixes at once, against some of them alone."""
    made = dataset(data, text=text)
    ranking = _ranking(made)
    pairs = [(shopper, mix) for shopper in _shoppers(made) for mix in MIXES]
    together = ranking.best([shopper for shopper, _ in pairs], [mix for _, mix in pairs], fill=fill)
    for row in range(first, len(pairs), 7):
        shopper, mix = pairs[row]
        alone = ranking.best([shopper], [mix], fill=fill)
        np.testing.assert_array_equal(alone.items[0], together.items[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-6)


@settings(max_examples=30)
@given(sequences, st.integers(1, N))
def test_what_is_ranked_is_new_different_and_best_first(data: list[list[int]], fill: int) -> None:
    made = dataset(data)
    ranking = _ranking(made)
    shoppers = _shoppers(made)
    for mix in MIXES:
        ranked = ranking.best(shoppers, [mix] * len(shoppers), count=N, fill=fill)
        for shopper, items, scores in zip(shoppers, ranked.items, ranked.scores, strict=True):
            found = items[items > 0].tolist()
            left = N - len(set(shopper.history.tolist()))
            assert min(fill, left) <= len(set(found)) == len(found) <= left
            assert not set(found) & set(shopper.history.tolist())
            assert (np.diff(scores) <= 0).all()


def test_brand_loyalty_brings_the_brand_forward() -> None:
    """Items 4, 8 and 12 are of the same brand, and were bought as often as the others."""
    others = [[1, 2, 3, 5, 6, 7], [4, 8, 9, 10, 11, 12], [4, 1, 12, 3, 9, 9], [2, 12, 5, 6, 7, 7]]
    made = dataset([[4, 8, 1, 2], *others])
    shopper = Shopper(np.array([4, 8], np.int32), made.training(0))
    ranking = _ranking(made)
    best = ranking.best([shopper], [Mix((("flow", 1), ("brand", 8)), 0)])
    assert best.items[0, 0] == 12


def test_a_catalogue_too_big_for_a_batch_is_ranked_in_parts() -> None:
    made = dataset([[1, 2, 3, 4], [2, 3, 4, 5]])
    ranking = _ranking(made)
    assert ranking.together == 512
    ranking._size = 100_000
    assert ranking.together == 160
