from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from offline.metrics import ndcg, ranks, recall, summary


@given(st.lists(st.tuples(st.permutations(range(1, 13)), st.integers(1, 20)), min_size=1, max_size=30))
def test_metrics_against_their_definitions(rows: list[tuple[list[int], int]]) -> None:
    items = np.array([order for order, _ in rows])
    targets = np.array([target for _, target in rows])
    rank = ranks(items, targets)
    for k in (5, 10):
        hits = [target in order[:k] for order, target in rows]
        gains = [1 / math.log2(2 + order.index(target)) if target in order[:k] else 0.0 for order, target in rows]
        assert math.isclose(recall(rank, k), sum(hits) / len(rows))
        assert math.isclose(ndcg(rank, k), sum(gains) / len(rows), abs_tol=1e-12)


def test_summary_names_what_it_measures() -> None:
    rank = ranks(np.array([[3, 1, 2], [1, 2, 3]]), np.array([1, 9]))
    assert rank.tolist() == [2, 0]
    assert summary(rank) == {
        "recall@5": 0.5,
        "ndcg@5": round(0.5 / math.log2(3), 5),
        "recall@10": 0.5,
        "ndcg@10": round(0.5 / math.log2(3), 5),
    }
