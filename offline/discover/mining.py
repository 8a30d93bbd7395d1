"""Mine: which paths are kept, which pattern is the best, and the paths that stand for it (section 3.2).

**Score of a path.** The answers that came with the same or nearly the same path are that path applied to several users,
so the kept path's Score is the mean over all of them and not the luck of one. **Quality of a pattern** is that of all
answers in its cluster, pruned duplicates and applications of its candidates included:

    Quality(P) = mean + effect(P)
    effect(P)  = sum of (hits - answers * level) over both panels / (answers + m)
    level      = what a panel's users are worth, by least squares: hits = answers * (level + effect), with m = 0

`mean` is that of all answers and `m` is `discover.shrinkage`. With one panel this is (hits + m * mean) / (answers + m):
a cluster of few answers stays near the mean until it has shown more. With two, a pattern does not look better for
having had more of its answers among the users who are easier to guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offline.chains.template import ARROW
from offline.discover.estimate import Estimate, posterior
from offline.discover.patterns import Patterns
from offline.discover.prune import prune
from offline.discover.validate import Chain

ROUNDS = 200  # of the two equations of a quality in turn


@dataclass(frozen=True, slots=True)
class Kept:
    """A path that is kept."""

    steps: tuple[str, ...]
    answers: int  # that came with it or a near-duplicate
    hits: int  # of these
    rank: int  # of the target in the first of these answers; 0 for a miss


@dataclass(frozen=True, slots=True)
class Pool:
    """All paths."""

    kept: list[Kept]
    vectors: NDArray[np.float32]  # [kept, D], unit vectors
    owner: NDArray[np.int64]  # [chains], the kept path that each chain's path is or is like
    keeps: NDArray[np.bool_]  # [chains], whether it is the first with that path
    different: int  # different paths before pruning


@dataclass(frozen=True, slots=True)
class Quality:
    """A pattern's quality, and what it is made of."""

    paths: int
    answers: int
    hits: int
    applied: int  # answers of other users to the pattern's candidates
    applied_hits: int
    literal: float  # Algorithm 1 to the letter: mean over kept chains of their own hit
    quality: Estimate


def pool(chains: Sequence[Chain], encode: Callable[[list[str]], NDArray[np.float32]], similarity: float) -> Pool:
    """Prune near-duplicates, in the order of the chains. Paths that differ in case alone are the same."""
    rows: dict[str, int] = {}
    first: list[int] = []
    text = np.empty(len(chains), np.int64)
    for place, chain in enumerate(chains):
        name = ARROW.join(chain.path).casefold()
        if name not in rows:
            rows[name] = len(rows)
            first.append(place)
        text[place] = rows[name]
    vectors = encode([ARROW.join(chains[place].path) for place in first])
    keeper = prune(vectors, similarity)
    survivors = np.flatnonzero(keeper == np.arange(len(keeper)))
    owner = np.searchsorted(survivors, keeper)[text]
    hit = np.array([chain.rank > 0 for chain in chains])
    answers = np.bincount(owner, minlength=len(survivors))
    hits = np.bincount(owner, weights=hit, minlength=len(survivors)).astype(int)
    firsts = [first[row] for row in survivors.tolist()]
    keeps = np.zeros(len(chains), np.bool_)
    keeps[firsts] = True
    kept = [
        Kept(chains[place].path, int(answers[row]), int(hits[row]), chains[place].rank)
        for row, place in enumerate(firsts)
    ]
    return Pool(kept, vectors[survivors], owner, keeps, len(rows))


def qualities(
    paths: Pool, patterns: Patterns, weight: float, applied: Sequence[tuple[int, int, int]] = ()
) -> tuple[list[Quality], float]:
    """By cluster, and the mean of all answers. `applied` has the kept path, answers and hits of each candidate."""
    n, hits = np.zeros((2, patterns.k)), np.zeros((2, patterns.k))  # by panel and cluster
    owned = [(kept.answers, kept.hits) for kept in paths.kept]
    for label, (answers, right) in zip(patterns.labels.tolist(), owned, strict=True):
        n[0, label] += answers
        hits[0, label] += right
    for row, answers, right in applied:
        n[1, patterns.labels[row]] += answers
        hits[1, patterns.labels[row]] += right
    mean = float(hits.sum() / max(n.sum(), 1))
    values = np.clip(mean + _effects(hits, n, weight), 0, 1)
    found: list[Quality] = []
    for one in range(patterns.k):
        members = [kept for kept, label in zip(paths.kept, patterns.labels, strict=True) if label == one]
        found.append(
            Quality(
                paths=len(members),
                answers=int(n[0, one]),
                hits=int(hits[0, one]),
                applied=int(n[1, one]),
                applied_hits=int(hits[1, one]),
                literal=sum(kept.rank > 0 for kept in members) / len(members),
                quality=posterior(float(values[one]), float(n[:, one].sum()) + weight),
            )
        )
    return found, mean


def _effects(hits: NDArray[np.float64], n: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """How much better than the mean of its panels each cluster does, [k], from counts [panels, k]."""
    excess = effect = np.zeros(hits.shape[1])
    for _ in range(ROUNDS):
        level = (hits - n * effect).sum(1, keepdims=True) / np.maximum(n.sum(1, keepdims=True), 1)
        excess = (hits - n * level).sum(0)
        effect = excess / np.maximum(n.sum(0), 1)
    drawn: NDArray[np.float64] = excess / np.maximum(n.sum(0) + weight, 1)
    return drawn


def best(found: Sequence[Quality]) -> int:
    """P*: the cluster of the highest quality; of equal ones the one with more answers, then the first."""
    return max(range(len(found)), key=lambda one: (found[one].quality.value, found[one].answers, -one))


def candidates(paths: Pool, patterns: Patterns, weight: float, count: int) -> list[int]:
    """The `count` most promising kept paths.

    Clusters take turns, the better one first, so that none is judged without having been tried; each gives its path of
    the highest shrunk Score, and of equal ones the one nearest its centroid.
    """
    found, mean = qualities(paths, patterns, weight)
    close = patterns.closeness(paths.vectors)
    queues: list[list[int]] = []
    for one in sorted(range(patterns.k), key=lambda one: (-found[one].quality.value, -found[one].answers, one)):
        members: list[int] = np.flatnonzero(patterns.labels == one).tolist()
        score = {row: shrunk_value(paths.kept[row], mean, weight) for row in members}
        queues.append(sorted(members, key=lambda row: (-score[row], -float(close[row]), row)))
    chosen: list[int] = []
    turn = 0
    while len(chosen) < min(count, len(paths.kept)):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
        turn += 1
    return chosen[:count]


def shrunk_value(kept: Kept, mean: float, weight: float) -> float:
    """A path's Score, drawn to the mean of all like a cluster's quality."""
    return (kept.hits + weight * mean) / (kept.answers + weight)


def exemplars(paths: Pool, patterns: Patterns, one: int, count: int) -> list[int]:
    """The `count` paths of a cluster that are nearest its centroid."""
    close = patterns.closeness(paths.vectors)
    members: list[int] = np.flatnonzero(patterns.labels == one).tolist()
    return sorted(members, key=lambda row: (-float(close[row]), row))[:count]


def best_chains(paths: Pool, count: int) -> list[int]:
    """Top-K selection without clustering (Table 2): the single chains that hit, the highest rank first."""
    return sorted(range(len(paths.kept)), key=lambda row: (paths.kept[row].rank or np.inf, row))[:count]
