"""The engine of the `analyst` backend: chains and lists written from statistics. It is and calls no language model.

What it knows: the history that it is asked about; the catalogue; and co-occurrence and popularity counted over the
*training part of the other users*. A user's own training items are taken out of every count that his texts use, for
all splits alike. His training target therefore cannot reach his training chain, and the chains of all splits are made
of the same stuff. No count holds a validation or test item.

The same data set and seed give the same texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from offline.analyst import wording
from offline.analyst.catalogue import Catalogue, Features
from offline.analyst.operations import Channel, Op, mix, plan, think
from offline.analyst.ranking import NAMED, SUCCESSORS, Ranked, Ranking, Shopper
from offline.chains.explore import RECOMMENDATIONS, Explored
from offline.chains.rationale import Chain
from offline.cooccurrence import table
from offline.prepare import Dataset

BACKEND = "analyst (statistics, no language model)"
VALUES = 4  # values that the best items share, of attributes and of words each
SPARE = 10  # items more than are recommended, in case that some read the same


@dataclass(frozen=True, slots=True)
class Case:
    """A history to be reasoned about along a path."""

    shopper: Shopper
    path: tuple[str, ...]
    target: int | None = None  # hindsight: what the reasoning leads to


class Analyst:
    """Reasons about the users of one data set."""

    def __init__(self, dataset: Dataset, *, seed: int = 7) -> None:
        self._seed = seed
        self.catalogue = Catalogue(dataset.items)
        self.ranking = Ranking(dataset, self.catalogue, seed=seed)

    def rationales(self, cases: Sequence[Case]) -> list[Chain]:
        """A chain for each case, with one text for each step of its path."""
        chains: list[Chain] = []
        for case, plans, facts, _ in self._reasoned(cases, SUCCESSORS, NAMED):
            texts = [wording.step(operations, facts) for operations in plans]
            if len(texts) != len(case.path):
                raise AssertionError(f"{len(texts)} texts for {len(case.path)} steps")
            chains.append(Chain(wording.overall(facts), tuple(texts), wording.summary(facts)))
        return chains

    def explorations(self, cases: Sequence[Case]) -> list[Explored]:
        """The path with its reasoning, and up to 20 different items in words, for each case."""
        explored: list[Explored] = []
        most = RECOMMENDATIONS + SPARE
        for case, plans, facts, best in self._reasoned(cases, most, most):
            paragraphs = (
                f"{step}: {wording.step(operations, facts)}" for step, operations in zip(case.path, plans, strict=True)
            )
            texts = dict.fromkeys(self.catalogue.descriptions[item] for item in best)
            explored.append(Explored(case.path, "\n\n".join(paragraphs), tuple(texts)[:RECOMMENDATIONS]))
        return explored

    def path(self, shopper: Shopper, *, temperature: float, seed: int, draw: int) -> tuple[str, ...]:
        """A path thought up for a history; the same arguments give the same one."""
        key = np.array([self._seed, seed, draw, *shopper.history.tolist()], np.int64).tobytes()
        digest = hashlib.blake2b(key, digest_size=16).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
        lean, left_out = self._inclination(shopper)
        return think(generator, temperature, lean, left_out)

    def _inclination(self, shopper: Shopper) -> tuple[dict[Op, float], set[Op]]:
        """What a history makes one think of, and what there is nothing to say about."""
        items = shopper.history.tolist()
        catalogue = self.catalogue
        left_out = {op for op, known in self._known.items() if not known}
        if len(items) < 3:
            left_out |= {Op.TREND, Op.BALANCE, Op.RHYTHM}
        lean: dict[Op, float] = {}
        brands = [catalogue.brand[item] for item in items if catalogue.brand[item]]
        if brands:
            lean[Op.BRAND] = 0.8 * (len(brands) - len(set(brands))) / len(brands)
        leaves = [catalogue.kinds[item][-1] for item in items if catalogue.kinds[item]]
        if leaves:
            lean[Op.CATEGORY] = 0.8 * (len(leaves) - len(set(leaves))) / len(leaves)
            lean[Op.COMPLEMENTS] = 0.8 * (len(set(leaves)) - 1) / len(leaves)
        return lean, left_out

    @cached_property
    def _known(self) -> dict[Op, bool]:
        """Whether the catalogue has what an operation speaks of."""
        catalogue = self.catalogue
        return {
            Op.BRAND: bool(catalogue.brands.names),
            Op.CATEGORY: bool(catalogue.categories.names),
            Op.ATTRIBUTES: bool(catalogue.values.names or catalogue.words.names),
            Op.NEEDS: bool(catalogue.words.names),
        }

    def _reasoned(
        self, cases: Sequence[Case], count: int, fill: int
    ) -> Iterator[tuple[Case, tuple[tuple[Op, ...], ...], wording.Facts, list[int]]]:
        """Each case with its path's operations, the facts that they are worded with, and the best items."""
        plans = {path: plan(path) for path in dict.fromkeys(case.path for case in cases)}
        operations = {path: frozenset(op for step in steps for op in step) for path, steps in plans.items()}
        mixes = {path: mix(path) for path in plans}
        together = self.ranking.together
        for first in range(0, len(cases), together):
            block = cases[first : first + together]
            shoppers = [case.shopper for case in block]
            ranked = self.ranking.best(shoppers, [mixes[case.path] for case in block], count=count, fill=fill)
            ranked = _led(ranked, [case.target for case in block])
            first_best = Ranked(ranked.items[:, :SUCCESSORS], ranked.scores[:, :SUCCESSORS])
            values, words = (top_names(f, first_best) for f in (self.catalogue.values, self.catalogue.words))
            after = self._others("next", block, lambda case: Op.FOLLOWERS in operations[case.path])
            around = self._others("around", block, lambda case: Op.COMPLEMENTS in operations[case.path])
            for row, case in enumerate(block):
                best = [item for item in ranked.items[row].tolist() if item]
                facts = wording.facts(
                    self.catalogue,
                    self.ranking,
                    case.shopper,
                    best,
                    (values[row], words[row]),
                    after=after.get(row, []),
                    around=around.get(row, []),
                    operations=operations[case.path],
                )
                yield case, plans[case.path], facts, best

    def _others(self, channel: Channel, block: Sequence[Case], asked: Callable[[Case], bool]) -> dict[int, list[int]]:
        """By row, for those asked about: the first items of a channel."""
        rows = [row for row, case in enumerate(block) if asked(case)]
        if not rows:
            return {}
        items = self.ranking.channel(channel, [block[row].shopper for row in rows], NAMED)
        return {row: items[place].tolist() for place, row in enumerate(rows)}


def top_names(features: Features, ranked: Ranked) -> list[list[str]]:
    """The values that the scored items have most, against how common they are; up to VALUES per row."""
    items, scores = ranked.items, ranked.scores
    rows = np.repeat(np.arange(len(items)), items.shape[1])
    mass = table(scores.ravel(), rows, items.ravel(), (len(items), features.has.shape[0])) @ features.has
    names: list[list[str]] = []
    for row in range(len(items)):
        span = slice(mass.indptr[row], mass.indptr[row + 1])
        columns = mass.indices[span]
        value = mass.data[span] * features.weight[columns]
        order = np.lexsort((columns, -value))
        names.append([features.names[column] for column in columns[order][:VALUES].tolist()])
    return names


def _led(ranked: Ranked, targets: Sequence[int | None]) -> Ranked:
    """With each target in front, outweighing all that follows."""
    known = [(row, target) for row, target in enumerate(targets) if target is not None]
    if not known:
        return ranked
    items, scores = ranked.items.copy(), ranked.scores.copy()
    for row, target in known:
        others = items[row] != target
        after, kept = items[row][others][: items.shape[1] - 1], scores[row][others][: items.shape[1] - 1]
        items[row], scores[row] = 0, 0
        items[row, 0], scores[row, 0] = target, max(1.0, 1.5 * float(kept.sum()))
        items[row, 1 : 1 + len(after)], scores[row, 1 : 1 + len(after)] = after, kept
    return Ranked(items, scores)
