from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from offline.discover import mining
from offline.discover.mining import Kept, Pool, Quality, pool, qualities
from offline.discover.patterns import Patterns, cluster, flat
from offline.discover.validate import Chain
from tests.offline.discover.scripted import WordEncoder


def _chain(path: str, rank: int) -> Chain:
    return Chain(0, 0, 0, tuple(path.split(" -> ")), 20, (), rank, rank, ())


CHAINS = [
    _chain("look back -> recommend now", 3),
    _chain("look back -> recommend now", 0),
    _chain("Look Back -> Recommend now", 0),
    _chain("count sales -> take the best", 0),
    _chain("look back -> recommend it now", 1),
    _chain("count sales -> take the very best", 0),
]


def _encode(texts: list[str]) -> NDArray[np.float32]:
    return WordEncoder().encode(texts)


def _pool(similarity: float = 0.85) -> Pool:
    return pool(CHAINS, _encode, similarity)


def test_near_duplicates_count_for_the_path_that_is_kept() -> None:
    found = _pool()
    assert [kept.steps for kept in found.kept] == [CHAINS[0].path, CHAINS[3].path]
    assert [(kept.answers, kept.hits, kept.rank) for kept in found.kept] == [(4, 2, 3), (2, 0, 0)]
    assert found.owner.tolist() == [0, 0, 0, 1, 0, 1]
    assert found.keeps.tolist() == [True, False, False, True, False, False]
    assert found.different == 4


def test_only_the_same_path_is_a_duplicate_at_the_highest_threshold() -> None:
    assert len(_pool(0.9999).kept) == 4


def _patterns(*labels: int) -> Patterns:
    return Patterns(np.array(labels), np.eye(max(labels) + 1, 48, dtype=np.float32), {})


def test_quality_is_recall_drawn_to_the_mean() -> None:
    found, mean = qualities(_pool(), _patterns(0, 1), 10)
    assert mean == pytest.approx(2 / 6)
    assert found[0].quality.value == pytest.approx((2 + 10 * mean) / 14)
    assert found[1].quality.value == pytest.approx((0 + 10 * mean) / 12)
    assert (found[0].literal, found[1].literal) == (1, 0)
    plain, _ = qualities(_pool(), _patterns(0, 1), 0)
    assert [one.quality.value for one in plain] == pytest.approx([0.5, 0])


def test_applied_answers_count() -> None:
    found, mean = qualities(_pool(), _patterns(0, 1), 10, [(1, 20, 16), (0, 20, 2)])
    assert mean == pytest.approx(20 / 46)
    assert (found[1].applied, found[1].applied_hits) == (20, 16)
    assert mining.best(found) == 1


def test_a_pattern_is_not_better_for_having_met_easier_users() -> None:
    two = _pool()
    # Both do alike on each panel; the first has most of its answers where users are easy to guess.
    kept = [Kept(two.kept[0].steps, 1000, 200, 1), Kept(two.kept[1].steps, 100, 20, 1)]
    paths = Pool(kept, two.vectors, np.zeros(0, np.int64), np.zeros(0, np.bool_), 2)
    found, _ = qualities(paths, _patterns(0, 1), 10, [(0, 200, 10), (1, 200, 10)])
    assert found[0].quality.value == pytest.approx(found[1].quality.value)


def test_a_lucky_chain_falls_behind_when_it_is_tried_on_others() -> None:
    two = _pool()
    kept = [Kept(two.kept[0].steps, 1, 1, 1), Kept(two.kept[1].steps, 500, 15, 1)]
    paths = Pool(kept, two.vectors, np.zeros(0, np.int64), np.zeros(0, np.bool_), 2)
    patterns = _patterns(0, 1)
    assert mining.best(qualities(paths, patterns, 0)[0]) == 0
    assert mining.candidates(paths, patterns, 50, 2)[0] == 0
    assert mining.best(qualities(paths, patterns, 50, [(0, 200, 2), (1, 200, 6)])[0]) == 1


def test_of_equal_patterns_the_one_with_more_answers_wins() -> None:
    none = qualities(_pool(), _patterns(0, 1), 50)[0][0].quality
    small, large = Quality(1, 3, 0, 0, 0, 0, none), Quality(1, 9, 0, 0, 0, 0, none)
    assert mining.best([small, large, large]) == 1


def test_every_pattern_gets_a_candidate_before_any_gets_a_second() -> None:
    paths = pool([_chain(f"word{n} thing{n} -> end{n}", 0) for n in range(6)], _encode, 0.99)
    patterns = _patterns(0, 0, 0, 0, 1, 2)
    chosen = mining.candidates(paths, patterns, 50, 3)
    assert sorted(patterns.labels[chosen].tolist()) == [0, 1, 2]
    assert len(mining.candidates(paths, patterns, 50, 100)) == 6


def test_single_chains_are_taken_by_the_rank_of_their_own_hit() -> None:
    ranks = [_pool(0.9999).kept[row].rank for row in mining.best_chains(_pool(0.9999), 4)]
    assert ranks == [1, 3, 0, 0]


def _blobs(sizes: list[int], spread: float = 0.1) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    centres = np.eye(len(sizes), 8)
    vectors = np.concatenate(
        [centre + spread * rng.standard_normal((n, 8)) for centre, n in zip(centres, sizes, strict=True)]
    )
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_the_number_of_patterns_is_that_of_the_highest_silhouette() -> None:
    found = cluster(_blobs([30, 20, 25, 15]), [6, 2, 3, 4, 5], seed=7)
    assert found.k == 4
    assert list(found.curve) == [2, 3, 4, 5, 6]
    assert max(found.curve, key=lambda k: found.curve[k]) == 4
    assert sorted(np.bincount(found.labels).tolist()) == [15, 20, 25, 30]
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, rtol=1e-5)
    assert (found.closeness(_blobs([30, 20, 25, 15])) > 0.8).all()


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_paths_are_one_pattern_without_a_silhouette(n: int) -> None:
    found = cluster(_blobs([n]), [2, 3, 4], seed=7)
    assert (found.k, found.curve) == (1, {})
    assert found.labels.tolist() == [0] * n


def test_more_clusters_than_paths_are_not_tried() -> None:
    assert list(cluster(_blobs([3, 2]), [2, 3, 4, 5, 12], seed=7).curve) == [2, 3, 4]


def test_exemplars_are_nearest_the_centroid_and_of_the_pattern() -> None:
    vectors = _blobs([6, 5])
    patterns = cluster(vectors, [2], seed=7)
    paths = Pool([], vectors, np.zeros(0, np.int64), np.zeros(0, np.bool_), 11)
    one = int(patterns.labels[0])
    rows = mining.exemplars(paths, patterns, one, 4)
    close = patterns.closeness(vectors)
    assert set(rows) <= set(range(6))
    assert [float(close[row]) for row in rows] == sorted((float(c) for c in close[:6]), reverse=True)[:4]


def test_the_map_holds_the_largest_differences_and_takes_a_single_path() -> None:
    places, share = flat(_blobs([10, 10, 10], spread=0.01))
    assert places.shape == (30, 2)
    assert share > 0.9
    alone, whole = flat(_blobs([1]))
    assert alone.tolist() == [[0, 0]]
    assert whole == 1
