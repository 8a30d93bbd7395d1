import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.analyst.engine import Analyst
from offline.analyst.operations import mix
from offline.analyst.ranking import NAMED, Shopper
from offline.chains.template import MANUAL
from offline.prepare import SPLITS, Dataset
from tests.offline.analyst.shop import BACK, N, chains
from tests.offline.analyst.shop import dataset as _dataset
from tests.offline.analyst.shop import item as _item


def _chains(dataset: Dataset, split: str) -> list[list[str]]:
    return chains(Analyst(dataset), dataset, range(len(dataset.users)), split)


sequences = st.lists(st.lists(st.integers(1, N), min_size=4, max_size=9), min_size=2, max_size=6)


@settings(max_examples=60)
@given(sequences, st.booleans(), st.data())
def test_a_chain_does_not_see_its_users_later_items(data: list[list[int]], text: bool, draw: st.DataObject) -> None:
    """Whatever a user buys at or after a split's target, his chain of that split stays the same."""
    user = draw.draw(st.integers(0, len(data) - 1))
    back = draw.draw(st.integers(1, 3))
    changed = [list(sequence) for sequence in data]
    changed[user][-back] = draw.draw(st.integers(1, N))
    before, after = _dataset(data, text=text), _dataset(changed, text=text)
    for split in SPLITS:
        if back <= BACK[split]:  # the item is not in the split's history
            assert chains(Analyst(before), before, [user], split) == chains(Analyst(after), after, [user], split)


@settings(max_examples=60)
@given(sequences, st.data())
def test_no_chain_and_no_statistic_sees_validation_or_test_items_of_other_users(
    data: list[list[int]], draw: st.DataObject
) -> None:
    user = draw.draw(st.integers(0, len(data) - 1))
    changed = [list(sequence) for sequence in data]
    changed[user][-2:] = draw.draw(st.lists(st.integers(1, N), min_size=2, max_size=2))
    bought, instead = _dataset(data), _dataset(changed)
    before, after = Analyst(bought), Analyst(instead)
    np.testing.assert_array_equal(before.ranking.neighbours.counts.toarray(), after.ranking.neighbours.counts.toarray())
    np.testing.assert_array_equal(before.ranking.neighbours.frequency, after.ranking.neighbours.frequency)
    others = [row for row in range(len(data)) if row != user]
    for split in SPLITS:
        assert chains(before, bought, others, split) == chains(after, instead, others, split)


@pytest.mark.parametrize("text", [True, False])
def test_validation_and_test_items_reach_no_chain_before_them(text: bool) -> None:
    data = [[1, 2, 3, 4, 5], [2, 3, 4, 6], [1, 3, 7, 8], [9, 10, 11, 12]]
    before = {split: _chains(_dataset(data, text=text), split) for split in SPLITS}
    for user in range(len(data)):
        for back in (1, 2, 3):
            for item in range(1, N + 1):
                changed = [list(sequence) for sequence in data]
                changed[user][-back] = item
                after = _dataset(changed, text=text)
                for split in SPLITS:
                    if back <= BACK[split]:  # the item is not in the split's history
                        assert chains(Analyst(after), after, [user], split)[0] == before[split][user]


def test_the_history_does_reach_the_chain() -> None:
    data = [[1, 2, 3, 4, 5], [2, 3, 4, 6]]
    changed = [[1, 9, 3, 4, 5], [2, 3, 4, 6]]
    for split in SPLITS:
        before, after = _chains(_dataset(data), split)[0], _chains(_dataset(changed), split)[0]
        assert before != after


def test_chains_do_not_depend_on_who_is_in_the_batch() -> None:
    dataset = _dataset([[1, 2, 3, 4, 5], [2, 3, 4, 6], [5, 4, 3, 2, 1, 7]])
    analyst = Analyst(dataset)
    for split in SPLITS:
        together = chains(analyst, dataset, range(3), split)
        assert [chains(analyst, dataset, [user], split)[0] for user in range(3)] == together
        assert chains(analyst, dataset, range(3), split) == together == _chains(dataset, split)


def test_steps_name_what_they_are_about() -> None:
    others = [[3, 6, 9, 12, 1, 2] for _ in range(5)]
    dataset = _dataset([[3, 6, 9, 1, 2, 5], *others])
    behaviour, interests, trend, prediction, recommendation = chains(Analyst(dataset), dataset, [0], "valid")[0]
    assert behaviour == "Bought polish shade number6, then polish shade number9, most recently cream shade number1."
    assert "Polish (3 of 4)" in interests
    assert "shifts to" in trend or "adds" in trend
    assert "Cream" in trend
    assert prediction.startswith("Next item: ")
    assert "polish shade number12" in recommendation
    assert "number9" not in recommendation


def test_items_of_the_history_are_not_recommended_and_others_are_named() -> None:
    dataset = _dataset([[1, 2, 3, 4, 5], [4, 3, 2, 1, 6], [7, 8, 9, 10]])
    for split in SPLITS:
        for user in range(3):
            history = dataset.history(user, split)
            shopper = Shopper(history, dataset.training(user))
            best = Analyst(dataset).ranking.best([shopper], [mix(MANUAL["five-step"].steps)]).items[0]
            named = best[:NAMED]
            assert (named > 0).all()
            assert not set(best.tolist()) & set(history.tolist())
            assert len(set(named.tolist())) == NAMED


def test_a_catalogue_that_is_bought_empty_still_gets_five_steps() -> None:
    dataset = Dataset(["u"], [_item(i) for i in range(1, 5)], [np.array([1, 2, 3, 4, 1, 2], np.int32)])
    assert all(step.strip() for step in chains(Analyst(dataset), dataset, [0], "test")[0])


def test_items_without_text_are_described_by_how_they_sell() -> None:
    dataset = _dataset([[1, 2, 3, 4], *[[1, 5, 6, 7] for _ in range(9)]], text=False)
    steps = chains(Analyst(dataset), dataset, [0], "test")[0]
    assert steps[0] == "Bought item 1, then item 2, most recently item 3."
    assert "bestselling items" in steps[1]
    assert "rarely bought items" in steps[2]
    assert "item 5" in steps[4]
