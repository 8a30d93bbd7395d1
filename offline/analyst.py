"""The `analyst` backend: reasoning chains written from statistics. It is no language model and calls none.

Five steps, one for each entry of the template:

1. what was bought, in order;
2. what the purchases have in common, and how often;
3. what the last ones add to that or keep up;
4. what the next item is probably like, from what other users bought after these items;
5. the items that fit best.

What a chain knows: the history before its split's target (`serve` has none and reads all of it); the catalogue; and
co-occurrence and popularity counted over the *training part of the other users*. A user's own training items are taken
out of every count that his chains use, for all splits alike. His training target therefore cannot reach his training
chain, and the chains of all splits are made of the same stuff. No count holds a validation or test item.

The same data set and seed give the same texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from offline.cooccurrence import Neighbours, Weights, flatten, table
from offline.prepare import Dataset, ItemText

BACKEND = "analyst (statistics, no language model)"
SHOWN = 3  # latest items that the first step names
NAMED = 3  # items that the last step names
TITLE_WORDS = 6
VALUE_WORDS = 4
SUCCESSORS = 20  # best-scored items that the predicted features are taken from
TELLING = 400  # features of more items than this are no help in looking items up
CONTENT = 0.25  # weight of likeness in content against co-occurrence

_WORD = re.compile(r"[^\W\d_]{3,}")
_STOP = frozenset(
    ["and", "the", "for", "with", "from", "your", "pack", "set", "ounce", "ounces", "inch", "count", "size"]
)
# How an item sells: upper bounds in units of the mean number of interactions per item.
_TIERS = ((0.4, "rarely bought items"), (1.0, "less common items"), (3.0, "popular items"))
_TOP_TIER = "bestselling items"


@dataclass(frozen=True, slots=True)
class Features:
    """A property of items: which item has which of its values."""

    names: list[str]
    has: sparse.csr_array  # float32 [N+1, F], 0 or 1
    weight: NDArray[np.float32]  # [F], from 1 for a value that only one item has towards 0 for what all have

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]]) -> Features:
        """From the names of each item's values, item 1 first."""
        index: dict[str, int] = {}
        pairs = [(item, index.setdefault(name, len(index))) for item, row in enumerate(rows, 1) for name in row]
        items, columns = np.array(pairs, np.int64).reshape(-1, 2).T
        has = table(np.ones(len(pairs), np.float32), items, columns, (len(rows) + 1, len(index)))
        spread = np.bincount(columns, minlength=len(index))
        weight = np.log1p(len(rows) / np.maximum(spread, 1)) / np.log1p(len(rows))
        return cls(list(index), has, weight.astype(np.float32))


class Analyst:
    """Writes chains for the users of one data set."""

    def __init__(self, dataset: Dataset, *, weights: Weights | None = None, seed: int = 7) -> None:
        training = [dataset.training(user) for user in range(len(dataset.users))]
        values = [_values(item) for item in dataset.items]
        words = [_words(item) for item in dataset.items]
        self._dataset = dataset
        self._size = dataset.num_items + 1
        self._interactions = sum(map(len, training))
        self._neighbours = Neighbours.fit(training, dataset.num_items, weights)
        self._sold: list[int] = self._neighbours.frequency.tolist()
        self._titles = ["", *map(short_title, dataset.items)]
        self._values, self._words = Features.of(values), Features.of(words)
        self._content = _content([self._values, self._words])
        self._weight = {
            name: float(weight)
            for features in (self._words, self._values)
            for name, weight in zip(features.names, features.weight, strict=True)
        }
        self._known = [[], *(self._specific_first(v or w) for v, w in zip(values, words, strict=True))]
        # Equal scores are told apart by lot: item indices follow the order of purchase, and must decide nothing.
        self._lot = np.random.default_rng(seed).random(self._size, dtype=np.float32)

    def chains(self, users: Sequence[int], split: str) -> list[list[str]]:
        """The five step texts of each user."""
        histories = [self._dataset.history(user, split) for user in users]
        training = [self._dataset.training(user) for user in users]
        best, scores = self._best(histories, training)
        values, words = (_top_names(features, best, scores) for features in (self._values, self._words))
        chains: list[list[str]] = []
        for row, history in enumerate(histories):
            items, own = history.tolist(), training[row].tolist()
            known = [self._known[item] or [self._tier(item, own)] for item in items]
            named = [item for item in best[row, :NAMED].tolist() if item]
            chains.append(
                [
                    _behaviour([self._titles[item] for item in items]),
                    self._interests(known),
                    self._trend(known, self._titles[items[-1]]),
                    _prediction(values[row], words[row], self._tier(named[0], own) if named else _TOP_TIER),
                    _recommendation([self._titles[item] for item in named], values[row]),
                ]
            )
        return chains

    def candidates(
        self, histories: Sequence[NDArray[np.int32]], training: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.int32]:
        """The best items for each history, int32 [len(histories), SUCCESSORS], best first; 0 where there are fewer."""
        return self._best(histories, training)[0]

    def _best(
        self, histories: Sequence[NDArray[np.int32]], training: Sequence[NDArray[np.int32]]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Best items and their scores, [len(histories), SUCCESSORS], best first; item 0 and score 0 fill up."""
        bought = _scaled(self._neighbours.score_sparse(histories, training))
        combined = (bought + CONTENT * self._alike(histories)).tocsr()
        best = np.zeros((len(histories), SUCCESSORS), np.int32)
        scores = np.zeros(best.shape, np.float32)
        for row, history in enumerate(histories):
            span = slice(combined.indptr[row], combined.indptr[row + 1])
            items, value = combined.indices[span], combined.data[span] * (1 + 1e-5 * self._lot[combined.indices[span]])
            value[np.isin(items, history)] = 0
            if len(items) > SUCCESSORS + len(history):
                kept = np.argpartition(-value, SUCCESSORS)[:SUCCESSORS]
                items, value = items[kept], value[kept]
            order = np.argsort(-value, kind="stable")
            order = order[value[order] > 0][:SUCCESSORS]
            best[row, : len(order)], scores[row, : len(order)] = items[order], value[order]
            if len(order) < NAMED:
                known = np.concatenate([history, best[row, : len(order)]])
                popular = self._popular(known, training[row])[: NAMED - len(order)]
                best[row, len(order) : len(order) + len(popular)] = popular
        return best, scores

    def _alike(self, histories: Sequence[NDArray[np.int32]]) -> sparse.csr_array:
        """Cosine of item contents with a history's recency-weighted content, float32 [len(histories), N+1]."""
        flat, row = flatten(histories)
        lengths = np.bincount(row, minlength=len(histories))
        age = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(flat))
        recency = (self._neighbours.weights.recency**age).astype(np.float32)
        profile = table(recency, row, flat, (len(histories), self._size)) @ self._content
        alike: sparse.csr_array = profile @ self._content.T
        return alike

    def _popular(self, excluded: NDArray[np.int32], own: NDArray[np.int32]) -> NDArray[np.int32]:
        """Items by how often the other users bought them, most first, without the excluded ones."""
        frequency = self._neighbours.frequency - np.bincount(own, minlength=self._size)
        ranked = np.lexsort((self._lot, -frequency)).astype(np.int32)
        left: NDArray[np.int32] = ranked[(ranked != 0) & ~np.isin(ranked, excluded)]
        return left

    def _tier(self, item: int, own: list[int]) -> str:
        """How an item sells among the other users, in words."""
        mean = (self._interactions - len(own)) / (self._size - 1)
        count = self._sold[item] - own.count(item)
        return next((name for bound, name in _TIERS if count <= bound * mean), _TOP_TIER)

    def _specific_first(self, names: list[str]) -> list[str]:
        return sorted(names, key=lambda name: -self._weight[name])

    def _interests(self, known: list[list[str]]) -> str:
        """Step 2: what most purchases share, against the rest."""
        if len(known) == 1:
            return f"Interest so far: {_listed(known[0][:4])}."
        counts = Counter(name for names in known for name in names)
        ranked = sorted(counts, key=lambda name: -counts[name] * self._weight.get(name, 1.0))
        stable = [f"{name} ({counts[name]} of {len(known)})" for name in ranked[:3] if counts[name] > 1]
        if not stable:
            return f"Varied interests: {_listed(ranked[:4])}."
        rest = [name for name in ranked if counts[name] == 1][:2]
        return f"Stable interest in {_listed(stable)}" + (f"; also {_listed(rest)}." if rest else ".")

    def _trend(self, known: list[list[str]], latest: str) -> str:
        """Step 3: what the last purchase (of long histories: the last two) adds or keeps up."""
        recent = 2 if len(known) > 4 else 1
        before = {name for names in known[:-recent] for name in names}
        last = list(dict.fromkeys(name for names in reversed(known[-recent:]) for name in names))
        added, kept = [name for name in last if name not in before][:3], [name for name in last if name in before][:2]
        if not before:
            return f"Starts with {_listed(added)}: {latest}."
        if not added:
            return f"Recently keeps to {_listed(kept)}: {latest}."
        if not kept:
            return f"Recently shifts to {_listed(added)}: {latest}."
        return f"Recently adds {_listed(added)} to {_listed(kept)}: {latest}."


def short_title(item: ItemText) -> str:
    """At most TITLE_WORDS words of a title, up to its first clause; `item <id>` where there is none."""
    title = _clean(item.title)
    head = re.split(r"\s[-|–—]\s|[(\[,;:]", title, maxsplit=1)[0]
    words = (head if len(head.split()) >= 3 else title).split()
    return " ".join(words[:TITLE_WORDS]).strip(" ,;:-") or f"item {_clean(item.id)}"


def _values(item: ItemText) -> list[str]:
    """Attribute values, shortened and each once."""
    values = (" ".join(_clean(v).split()[:VALUE_WORDS]) for field in item.attributes.values() for v in field)
    return list(dict.fromkeys(value for value in values if value))


def _words(item: ItemText) -> list[str]:
    """Words of a title; none for an item without text, whose title is made of its id."""
    if not item.text.strip():
        return []
    return [word for word in dict.fromkeys(_WORD.findall(_clean(item.title).lower())) if word not in _STOP]


def _clean(text: str) -> str:
    """Text without control characters, lone surrogates and runs of white space."""
    return " ".join("".join(" " if unicodedata.category(c).startswith("C") else c for c in text).split())


def _content(properties: list[Features]) -> sparse.csr_array:
    """Items by their telling features, rows of length 1 or 0, float32 [N+1, F]."""
    parts = []
    for features in properties:
        spread = np.bincount(features.has.indices, minlength=len(features.names))
        telling = (spread > 1) & (spread <= TELLING)
        parts.append(features.has.multiply(features.weight * telling))
    stacked = sparse.hstack(parts).tocsr().astype(np.float32)
    stacked.eliminate_zeros()
    norm = np.sqrt(stacked.multiply(stacked).sum(axis=1))
    scale = 1 / np.where(norm > 0, norm, 1)
    stacked.data *= np.repeat(scale, np.diff(stacked.indptr)).astype(np.float32)
    content: sparse.csr_array = stacked
    return content


def _scaled(scores: sparse.csr_array) -> sparse.csr_array:
    """Rows scaled so that each one's highest score is 1."""
    highest = scores.max(axis=1).toarray().ravel()
    factor = 1 / np.where(highest > 0, highest, 1)
    scores.data *= np.repeat(factor, np.diff(scores.indptr)).astype(np.float32)
    return scores


def _top_names(
    features: Features, items: NDArray[np.int32], scores: NDArray[np.float32], count: int = 4
) -> list[list[str]]:
    """The values that the scored items have most, against how common they are; up to `count` names per row."""
    rows = np.repeat(np.arange(len(items)), items.shape[1])
    mass = table(scores.ravel(), rows, items.ravel(), (len(items), features.has.shape[0])) @ features.has
    names: list[list[str]] = []
    for row in range(len(items)):
        span = slice(mass.indptr[row], mass.indptr[row + 1])
        columns = mass.indices[span]
        value = mass.data[span] * features.weight[columns]
        order = np.lexsort((columns, -value))
        names.append([features.names[column] for column in columns[order][:count].tolist()])
    return names


def _behaviour(titles: list[str]) -> str:
    """Step 1: the latest purchases, in order."""
    *earlier, last = titles[-SHOWN:]
    return f"Bought {', then '.join(earlier)}, most recently {last}." if earlier else f"Bought {last}."


def _prediction(values: list[str], words: list[str], tier: str) -> str:
    """Step 4: what the next item is like."""
    parts = [_listed(values), ", ".join(words[:4])]
    return "Next item: " + "; ".join(part for part in parts if part) + "." if any(parts) else f"Next: {tier}."


def _recommendation(titles: list[str], values: list[str]) -> str:
    """Step 5: the items themselves, and what they are: an item's own text ends in its attributes, too."""
    if not titles:
        return "Recommend nothing: every item was bought already."
    return f"Recommend {', '.join(titles)}" + (f": {', '.join(values[:3])}." if values else ".")


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
