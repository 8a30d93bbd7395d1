"""Items for a history, under the weights of a path.

Some channels *find* items: those that co-occur with the history's, or are like them. The others *weigh* what was found:
by brand, by category, by how it sells. All counts come from the training parts of the other users: a user's own
training items are taken out of every count that his items are ranked with. No count holds a validation or test item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from offline.analyst.catalogue import Catalogue, Features
from offline.analyst.operations import MEMORY, Channel, Mix
from offline.cooccurrence import Neighbours, Weights, ages, flatten, own_frequency, positions, table
from offline.prepare import Dataset

SUCCESSORS = 20  # best-scored items that predicted features are taken from, and that a list of recommendations has
NAMED = 3  # items that a recommending step names
FILLED = 100  # popular items that a path by popularity chooses from beside what it finds
CELLS = 16_000_000  # scores at a time, at most: the catalogue bounds how many histories are ranked together

# How much an item counts against the one bought after it, for each memory; the middle one is the statistics' own.
_RECENCY = {-2: 0.3, -1: 0.4, 0: None, 1: 0.7, 2: 0.85}
_LATEST = 0.3  # for what follows on the latest items, whatever the memory
_AGO = 0.85  # for what may be due again: fades slowly, and what was bought lately is taken off

# How an item sells: upper bounds in units of the mean number of interactions per item.
_TIERS = ((0.4, "rarely bought items"), (1.0, "less common items"), (3.0, "popular items"))
TOP_TIER = "bestselling items"


@dataclass(frozen=True, slots=True, eq=False)
class Shopper:
    """Whom items are ranked for."""

    history: NDArray[np.int32]  # item indices, oldest first, one or more
    own: NDArray[np.int32]  # the training items that he put into the counts


@dataclass(frozen=True, slots=True)
class Ranked:
    """Best items and their scores, [shoppers, count], best first; item 0 and score 0 fill up."""

    items: NDArray[np.int32]
    scores: NDArray[np.float32]


class Ranking:
    """Ranks the items of a data set. Safe to share between calls, but not between threads."""

    def __init__(self, dataset: Dataset, catalogue: Catalogue, *, seed: int = 7) -> None:
        self._dataset = dataset
        self._catalogue = catalogue
        self._size = catalogue.size
        self.neighbours = self._fitted()
        self._interactions = int(self.neighbours.frequency.sum())
        self._sold: list[int] = self.neighbours.frequency.tolist()
        # Equal scores are told apart by lot: item indices follow the order of purchase, and must decide nothing.
        self._lot = np.random.default_rng(seed).random(self._size, dtype=np.float32)

    @property
    def together(self) -> int:
        """How many shoppers are best ranked together."""
        return max(1, min(512, CELLS // self._size))

    def best(
        self, shoppers: Sequence[Shopper], mixes: Sequence[Mix], *, count: int = SUCCESSORS, fill: int = NAMED
    ) -> Ranked:
        """The `count` best items for each shopper under his mix, none of his history.

        Where fewer than `fill` are found, the items that others buy most follow, with score 0.
        """
        return self._top(self._found(shoppers, mixes), shoppers, count, fill)

    def channel(self, channel: Channel, shoppers: Sequence[Shopper], count: int) -> NDArray[np.int32]:
        """The first `count` items of a channel that finds, int32 [shoppers, count]; 0 fills up."""
        return self._top(self._finds(channel, 0, shoppers), shoppers, count, 0).items

    def sold(self, item: int, own: Sequence[int]) -> int:
        """How often the other users bought an item."""
        return self._sold[item] - sum(1 for bought in own if bought == item)

    def tier(self, item: int, own: Sequence[int]) -> str:
        """How an item sells among the other users, in words."""
        mean = (self._interactions - len(own)) / (self._size - 1)
        count = self.sold(item, own)
        return next((name for bound, name in _TIERS if count <= bound * mean), TOP_TIER)

    @cached_property
    def _after(self) -> Neighbours:
        """What comes right after."""
        weights = Weights(window=2, backward=0.0, source_power=0.25, target_power=0.05, recency=_LATEST)
        return self._fitted(weights)

    @cached_property
    def _around(self) -> Neighbours:
        """What comes within a few items, before or after, against how common it is."""
        weights = Weights(window=4, backward=1.0, source_power=0.25, target_power=0.3)
        return self._fitted(weights)

    def _fitted(self, weights: Weights | None = None) -> Neighbours:
        return Neighbours.fit(self._dataset.trainings(), self._dataset.num_items, weights)

    @cached_property
    def _order(self) -> NDArray[np.int32]:
        """All items, most bought first."""
        ranked = np.lexsort((self._lot, -self.neighbours.frequency)).astype(np.int32)
        order: NDArray[np.int32] = ranked[ranked != 0]
        return order

    def _found(self, shoppers: Sequence[Shopper], mixes: Sequence[Mix]) -> sparse.csr_array:
        """Scores float32 [shoppers, N+1] under each one's mix; an item that is not stored scores 0."""
        shape = (len(shoppers), self._size)
        scores: sparse.csr_array | None = None
        asked = [
            (channel, mix.memory if channel in _REMEMBERING else 0, row, weight)
            for row, mix in enumerate(mixes)
            for channel, weight in mix.weights
            if channel in _FINDING
        ]
        asked.sort(key=lambda entry: (_FINDING.index(entry[0]), entry[1]))
        for (channel, memory), group in groupby(asked, key=lambda entry: entry[:2]):
            _, _, rows, weights = zip(*group, strict=True)
            different = {shopper: place for place, shopper in enumerate(dict.fromkeys(shoppers[row] for row in rows))}
            part = self._finds(channel, memory, list(different))
            if len(different) < len(rows):  # several paths for one shopper
                part = part[[different[shoppers[row]] for row in rows]]
            scores = _add(scores, _spread(part, rows, weights, len(shoppers)))
        if scores is None:
            scores = table(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64), shape)
        scores = self._shared(scores, shoppers, mixes)
        return self._weighed(scores, shoppers, mixes)

    def _finds(self, channel: Channel, memory: int, shoppers: Sequence[Shopper]) -> sparse.csr_array:
        """Scores float32 [shoppers, N+1] by one channel; of co-occurrence, scaled to a highest score of 1."""
        histories, own = [s.history for s in shoppers], [s.own for s in shoppers]
        recency = _RECENCY[memory] or self.neighbours.weights.recency
        if channel == "next":
            return _scaled(self._after.score_sparse(histories, own))
        if channel in {"flow", "around"}:
            counts = self.neighbours if channel == "flow" else self._around
            if recency != counts.weights.recency:
                counts = replace(counts, weights=replace(counts.weights, recency=recency))
            return _scaled(counts.score_sparse(histories, own))
        content = self._catalogue.use if channel == "use" else self._catalogue.content
        if channel == "due":
            return _alike(histories, content, lambda age: _AGO**age * (1 - recency**age))
        return _alike(histories, content, lambda age: recency**age)

    def _shared(self, scores: sparse.csr_array, shoppers: Sequence[Shopper], mixes: Sequence[Mix]) -> sparse.csr_array:
        """With likeness to the best candidates so far added, where the mix has that."""
        rows, weights = _asking("shared", mixes)
        if not rows:
            return scores
        best = self._top(scores[list(rows)], [shoppers[row] for row in rows], SUCCESSORS, 0)
        places = np.repeat(np.arange(len(rows)), SUCCESSORS)
        content = self._catalogue.content
        profile = table(best.scores.ravel(), places, best.items.ravel(), (len(rows), self._size)) @ content
        part: sparse.csr_array = profile @ content.T
        return _add(scores, _spread(_scaled(part.tocsr()), rows, weights, len(shoppers)))

    def _weighed(self, scores: sparse.csr_array, shoppers: Sequence[Shopper], mixes: Sequence[Mix]) -> sparse.csr_array:
        """With the channels that weigh added to the scores of what was found, and of popular items where they count."""
        asked = {channel: _asking(channel, mixes) for channel in _WEIGHING}
        if not any(rows for rows, _ in asked.values()):
            return scores
        rows, _ = asked["popular"]
        if rows:
            popular = np.concatenate([self._popular(shoppers[row].own, FILLED) for row in rows])
            owner = np.repeat(rows, [min(FILLED, self._size - 1)] * len(rows))
            nothing = table(np.zeros(len(popular), np.float32), owner, popular, scores.shape)
            scores = _union(scores, nothing)
        scores.sort_indices()
        owner = np.repeat(np.arange(len(shoppers)), np.diff(scores.indptr))
        items = scores.indices
        added = np.zeros(len(items), np.float32)
        for channel, (rows, weights) in asked.items():
            factor = np.zeros(len(shoppers), np.float32)
            factor[list(rows)] = np.asarray(weights, np.float32) / 8
            at = np.flatnonzero(factor[owner])
            if len(at):
                added[at] += factor[owner[at]] * self._weighs(channel, shoppers, mixes, owner[at], items[at])
        weighed: sparse.csr_array = sparse.csr_array((scores.data + added, items, scores.indptr), shape=scores.shape)
        return weighed

    def _weighs(
        self,
        channel: Channel,
        shoppers: Sequence[Shopper],
        mixes: Sequence[Mix],
        owner: NDArray[np.int64],
        items: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """How well each (shopper, item) does by a channel that weighs, from 0 to about 1."""
        if channel == "brand":
            return self._matching(self._catalogue.brands, shoppers, mixes, owner, items)
        if channel == "category":
            return self._matching(self._catalogue.categories, shoppers, mixes, owner, items)
        sold = self._sold_to_others(shoppers, owner, items)
        if channel == "popular":
            popular: NDArray[np.float32] = (np.log1p(sold) / np.log1p(len(self._dataset.users))).astype(np.float32)
            return popular
        flat, row = flatten([s.history for s in shoppers])
        level = np.log1p(self._sold_to_others(shoppers, row, flat))
        usual = np.bincount(row, level, minlength=len(shoppers)) / np.bincount(row, minlength=len(shoppers))
        near: NDArray[np.float32] = np.exp(-np.abs(np.log1p(sold) - usual[owner])).astype(np.float32)
        return near

    def _matching(
        self,
        features: Features,
        shoppers: Sequence[Shopper],
        mixes: Sequence[Mix],
        owner: NDArray[np.int64],
        items: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """The share of a history, by recency and by how telling they are, that has an item's values."""
        if not features.names:
            return np.zeros(len(items), np.float32)
        flat, row = flatten([s.history for s in shoppers])
        memory = np.array([_RECENCY[mix.memory] or self.neighbours.weights.recency for mix in mixes])
        seen = table((memory[row] ** ages(row)).astype(np.float32), row, flat, (len(shoppers), self._size))
        profile = (seen @ features.has).multiply(features.weight).toarray()  # [shoppers, F]
        profile /= np.maximum(profile.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        has = features.has
        counts = np.diff(has.indptr)[items]
        entry = np.repeat(np.arange(len(items)), counts)
        place = np.repeat(has.indptr[items] - np.cumsum(counts) + counts, counts) + np.arange(len(entry))
        matched = profile[owner[entry], has.indices[place]]
        return np.bincount(entry, matched, minlength=len(items)).astype(np.float32)

    def _sold_to_others(
        self, shoppers: Sequence[Shopper], owner: NDArray[np.int64], items: NDArray[np.int32]
    ) -> NDArray[np.int64]:
        """How often the other users bought each (shopper, item); never less than 0, whatever `own` claims."""
        own = own_frequency([s.own for s in shoppers], self._size)
        sold = self.neighbours.frequency[items]
        at, stored = positions(own, owner, items)
        sold[stored] -= own.data[at]
        return np.maximum(sold, 0)

    def _popular(self, own: NDArray[np.int32], count: int) -> NDArray[np.int32]:
        """The `count` items that the other users bought most, most first."""
        mine = np.bincount(own, minlength=1)
        # Without his own purchases only items of his can fall behind: whatever comes first was among so many before.
        first = self._order[: count + np.count_nonzero(mine)]
        sold = self.neighbours.frequency[first].copy()
        inside = first < len(mine)
        sold[inside] -= mine[first[inside]]
        ranked: NDArray[np.int32] = first[np.lexsort((self._lot[first], -sold))][:count]
        return ranked

    def _top(self, scores: sparse.csr_array, shoppers: Sequence[Shopper], count: int, fill: int) -> Ranked:
        best = np.zeros((len(shoppers), count), np.int32)
        kept = np.zeros(best.shape, np.float32)
        for row, shopper in enumerate(shoppers):
            history = shopper.history
            span = slice(scores.indptr[row], scores.indptr[row + 1])
            items, value = scores.indices[span], scores.data[span] * (1 + 1e-5 * self._lot[scores.indices[span]])
            value[np.isin(items, history)] = 0
            if len(items) > count + len(history):
                part = np.argpartition(-value, count)[:count]
                items, value = items[part], value[part]
            order = np.argsort(-value, kind="stable")
            order = order[value[order] > 0][:count]
            best[row, : len(order)], kept[row, : len(order)] = items[order], value[order]
            if len(order) < fill:
                known = np.concatenate([history, best[row, : len(order)]])
                popular = self._popular(shopper.own, fill + len(known))
                popular = popular[~np.isin(popular, known)][: fill - len(order)]
                best[row, len(order) : len(order) + len(popular)] = popular
        return Ranked(best, kept)


_FINDING: tuple[Channel, ...] = ("flow", "next", "around", "like", "use", "due")
_REMEMBERING = frozenset({"flow", "around", "like", "use", "due"})
_WEIGHING: tuple[Channel, ...] = ("brand", "category", "popular", "tier")
assert set(_RECENCY) == set(range(-MEMORY, MEMORY + 1))


def _asking(channel: Channel, mixes: Sequence[Mix]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows whose mix has a channel, and its weights there."""
    pairs = [(row, weight) for row, mix in enumerate(mixes) for name, weight in mix.weights if name == channel]
    return tuple(row for row, _ in pairs), tuple(weight for _, weight in pairs)


def _spread(part: sparse.csr_array, rows: Sequence[int], weights: Sequence[int], height: int) -> sparse.csr_array:
    """The part's rows times their weights in eighths, each in its place of `height` rows."""
    factor = np.asarray(weights, np.float32) / 8
    data = part.data * np.repeat(factor, np.diff(part.indptr))
    counts = np.zeros(height, np.int64)
    counts[list(rows)] = np.diff(part.indptr)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    spread: sparse.csr_array = sparse.csr_array((data, part.indices, indptr), shape=(height, part.shape[1]))
    return spread


def _add(scores: sparse.csr_array | None, part: sparse.csr_array) -> sparse.csr_array:
    return part if scores is None else (scores + part).tocsr()


def _union(scores: sparse.csr_array, others: sparse.csr_array) -> sparse.csr_array:
    """The scores, with a stored 0 wherever only the others have a value: sparse sums would drop it."""
    both = sparse.vstack([scores.tocoo(), others.tocoo()]).tocoo()
    rows = both.row % scores.shape[0]
    return table(both.data, rows, both.col, scores.shape)


def _alike(
    histories: Sequence[NDArray[np.int32]],
    content: sparse.csr_array,
    weight: Callable[[NDArray[np.int64]], NDArray[np.floating]],
) -> sparse.csr_array:
    """Cosine of items with a history's content, weighted by its items' ages, float32 [len(histories), N+1]."""
    flat, row = flatten(histories)
    profile = table(weight(ages(row)).astype(np.float32), row, flat, (len(histories), content.shape[0])) @ content
    alike: sparse.csr_array = (profile @ content.T).tocsr()
    return alike


def _scaled(scores: sparse.csr_array) -> sparse.csr_array:
    """Rows scaled so that each one's highest score is 1."""
    highest = scores.max(axis=1).toarray().ravel()
    factor = 1 / np.where(highest > 0, highest, 1)
    scores.data *= np.repeat(factor, np.diff(scores.indptr)).astype(np.float32)
    return scores
