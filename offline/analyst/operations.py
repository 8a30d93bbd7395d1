"""The operations that paths of reasoning are made of: the words for each, and what each does to the ranking.

A path in anybody's words is read by looking for word stems in each step's name. A step may name two operations
(`Item Tag Prediction & Recommendation`); words that say nothing here are a neutral reading of the history. The last
step of a path always recommends.

Operations add weights to *channels* (see `offline.analyst.ranking`) in eighths. Those of the manual five-step template
add up to co-occurrence 1 and likeness in content 1/4 at the middle memory.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np

from offline.chains.template import STEP_WORDS, Template, split_path
from offline.errors import RecipeError

Channel = Literal[
    "flow",  # what other users bought around these items, mostly after
    "next",  # what they bought right after the latest items
    "around",  # what they bought within a few items of these, before or after
    "like",  # likeness in attributes and title words
    "use",  # likeness in title words alone
    "due",  # likeness to what was bought a while ago and not lately
    "shared",  # likeness to the best candidates so far
    "brand",
    "category",
    "popular",
    "tier",  # selling about as well as the history's items do
]

FEWEST, MOST = 2, 6  # steps of a path that is thought up here
MEMORY = 2  # memory runs from -MEMORY, the latest items only, to MEMORY, all of them


class Op(StrEnum):
    """What a step does."""

    SEQUENCE = "sequence"
    PROFILE = "profile"
    INTERESTS = "interests"
    BALANCE = "balance"
    TREND = "trend"
    RHYTHM = "rhythm"
    CATEGORY = "category"
    BRAND = "brand"
    TIER = "tier"
    NEEDS = "needs"
    ATTRIBUTES = "attributes"
    FOLLOWERS = "followers"
    COMPLEMENTS = "complements"
    POPULARITY = "popularity"
    PREDICT = "predict"
    RECOMMEND = "recommend"
    READING = "reading"


@dataclass(frozen=True, slots=True)
class Operation:
    """One of them. `wordings[0]` is its canonical name."""

    wordings: tuple[str, ...]
    stems: dict[str, int]  # beginnings of words (`a b`: of two words in a row), and how surely they name it
    adds: dict[Channel, int] = field(default_factory=dict)  # eighths
    memory: int = 0  # > 0: older items count for more
    prior: float = 0.0  # how readily it comes to mind


# In the order in which they usually follow one another.
OPERATIONS: dict[Op, Operation] = {
    Op.SEQUENCE: Operation(
        (
            "Analyze sequential purchase history",
            "Read the purchases in order",
            "Purchase pattern recognition",
            "Behavioral data analysis",
            "Trace the buying journey step by step",
        ),
        {"sequen": 3, "chronolog": 3, "behavio": 3, "histor": 2, "purchase pattern": 3, "purchas": 1, "buying": 1}
        | {"timeline": 3, "journey": 3, "order": 1, "bought": 1, "past": 1, "interaction": 2, "transaction": 2},
        {"flow": 4},
        prior=2.5,
    ),
    Op.PROFILE: Operation(
        (
            "Summarize the user profile",
            "Build a shopper persona",
            "Describe who is buying",
            "Sketch the customer's overall taste",
        ),
        {"profil": 4, "persona": 4, "summar": 3, "demograph": 3, "overall": 2, "who": 2, "sketch": 2},
        {"category": 2},
        memory=1,
        prior=0.6,
    ),
    Op.INTERESTS: Operation(
        (
            "Identify recurring interests",
            "User interest extraction",
            "Infer what the user cares about",
            "Find preferences that most purchases share",
        ),
        {"interest": 2, "prefer": 2, "tast": 2, "affinit": 2, "hobb": 2, "core": 1, "cares": 2, "motiv": 2, "theme": 2},
        {"like": 1},
        memory=1,
        prior=1.3,
    ),
    Op.BALANCE: Operation(
        (
            "Distinguish stable vs. recent interests",
            "Separate long-term from short-term preferences",
            "Weigh lasting tastes against new ones",
        ),
        {"long-term": 3, "short-term": 3, "long term": 3, "short term": 3, "lasting": 2, "enduring": 2, "stable": 3},
        {"next": 2, "like": 2},
        memory=1,
        prior=1.0,
    ),
    Op.TREND: Operation(
        (
            "Preference trend analysis",
            "Track the latest shift in interest",
            "Focus on the most recent purchases",
            "Detect where taste is moving",
        ),
        {"trend": 3, "shift": 3, "drift": 3, "evol": 3, "recen": 3, "latest": 3, "momentum": 3, "chang": 2, "moving": 3}
        | {"dynamic": 2, "emerg": 2, "current": 2, "new": 1},
        {"flow": 2},
        memory=-1,
        prior=1.0,
    ),
    Op.RHYTHM: Operation(
        (
            "Find the repeat-purchase rhythm",
            "Check which kinds are due again",
            "Estimate replenishment cycles",
        ),
        {"rhythm": 4, "repeat": 3, "replenish": 4, "refill": 4, "cycl": 3, "frequen": 3, "due": 3, "again": 2}
        | {"restock": 4, "season": 2, "interval": 3, "timing": 2},
        {"due": 2},
        prior=0.3,
    ),
    Op.CATEGORY: Operation(
        (
            "Narrow down the category focus",
            "Map purchases to product categories",
            "Product type identification",
            "Category expansion",
        ),
        {"categor": 4, "focus": 2, "type": 2, "kind": 2, "department": 3, "segment": 2, "taxonom": 3, "genre": 3}
        | {"domain": 2, "niche": 1, "instrument": 1, "cuisine": 1},
        {"category": 2, "like": 1},
        prior=0.9,
    ),
    Op.BRAND: Operation(
        (
            "Assess brand loyalty",
            "Stay with favourite brands",
            "Brand affinity of the shopper",
        ),
        {"brand": 4, "loyal": 4, "maker": 3, "manufactur": 3, "label": 2, "line": 1, "artist": 2, "author": 2},
        {"brand": 2, "like": 1},
        prior=0.7,
    ),
    Op.TIER: Operation(
        (
            "Match mainstream or niche tier",
            "Gauge quality and price tier",
        ),
        {"tier": 4, "price": 3, "premium": 3, "budget": 3, "mainstream": 3, "quality": 2, "afford": 3, "spend": 3}
        | {"niche": 2, "luxur": 3, "value": 1},
        {"tier": 2},
        prior=0.2,
    ),
    Op.NEEDS: Operation(
        (
            "Infer functional needs and usage",
            "Work out what problems products solve",
            "Identify use cases behind purchases",
        ),
        {
            "need": 3,
            "function": 3,
            "usage": 3,
            "uses": 3,
            "use case": 3,
            "problem": 3,
            "purpose": 3,
            "goal": 2,
            "benefit": 2,
        }
        | {"occasion": 2, "intent": 3, "scenario": 3, "context": 2, "project": 2, "task": 2},
        {"use": 3},
        prior=0.6,
    ),
    Op.ATTRIBUTES: Operation(
        (
            "Expand via shared item attributes",
            "Match similar content and characteristics",
            "Connect items with common attributes",
        ),
        {"attribut": 4, "shared": 3, "similar": 3, "content": 3, "match": 1, "common": 2, "expan": 2, "characterist": 2}
        | {"propert": 2, "ingredient": 3, "material": 2, "style": 2, "connect": 1, "relat": 2, "overlap": 2},
        {"like": 2, "shared": 2},
        prior=1.2,
    ),
    Op.FOLLOWERS: Operation(
        (
            "Find what customers bought next",
            "Follow co-purchase transitions",
            "Look up successors of the last items",
        ),
        {"next": 2, "successor": 4, "follow": 3, "transition": 4, "co-purchas": 4, "collaborat": 4, "other": 2}
        | {"customer": 2, "peer": 3, "crowd": 2, "communit": 3, "neighbo": 3, "co-occur": 4, "associat": 2},
        {"next": 4},
        prior=1.0,
    ),
    Op.COMPLEMENTS: Operation(
        (
            "Add complementary items",
            "Accessory and companion expansion",
            "Complete the set of products",
            "Think of goods used together",
        ),
        {"complement": 5, "accessor": 5, "gear": 3, "together": 4, "companion": 4, "bundl": 4, "routine": 3, "pair": 3}
        | {"complet": 3, "goes": 2, "missing": 3, "gap": 2, "outfit": 3, "cross-sell": 4, "kit": 2, "combin": 2},
        {"around": 4},
        prior=0.9,
    ),
    Op.POPULARITY: Operation(
        (
            "Check popularity and demand",
            "Prefer bestselling candidates",
            "Weigh items by popular demand",
        ),
        {"popular": 4, "bestsell": 4, "best-sell": 4, "demand": 3, "trending": 5, "viral": 3, "hype": 3, "rating": 2}
        | {"review": 1, "top-sell": 4, "mass": 1},
        {"popular": 2},
        prior=0.5,
    ),
    Op.PREDICT: Operation(
        (
            "Predict high-confidence features",
            "Predictive feature generation",
            "Anticipate the next item's features",
        ),
        {"predict": 3, "feature": 3, "tag": 2, "anticipat": 4, "forecast": 4, "confiden": 2, "expect": 2, "likely": 1}
        | {"hypothes": 3, "generat": 1, "infer": 1},
        {"like": 1},
        prior=1.1,
    ),
    Op.RECOMMEND: Operation(
        (
            "Item Recommendation",
            "Recommend items",
            "Targeted item recommendation",
            "Recommend the best candidates",
        ),
        {"recommend": 5, "suggest": 4, "rank": 3, "candidat": 2, "select": 2, "propos": 2, "shortlist": 3, "final": 2},
        {"flow": 2},
    ),
    Op.READING: Operation(("Go through the basket",), {}),
}

_CLAUSES = re.compile(r"\s*[&,;+]\s*|\s+(?:and|then|plus)\s+")
_STABLE = re.compile(r"\b(?:stable|long[- ]term|lasting|enduring|persistent|constant)")
_RECENT = re.compile(r"\b(?:recent|short[- ]term|new|latest|temporary|current|emerging)")
_WORDS = re.compile(r"[\w'-]+")
# What a step is written by whose own operations were spoken of before; as many as a template may need.
_SPARE = (Op.READING, Op.INTERESTS, Op.TREND, Op.BALANCE, Op.PREDICT, Op.PROFILE, Op.ATTRIBUTES)
_SURE = 3


@dataclass(frozen=True, slots=True)
class Mix:
    """How a path ranks: weights of channels in eighths, and which memory of the history they look with."""

    weights: tuple[tuple[Channel, int], ...]
    memory: int

    @classmethod
    def of(cls, operations: Collection[Op]) -> Mix:
        """What the operations add up to; each counts once."""
        weights: Counter[Channel] = Counter()
        for operation in set(operations):
            weights.update(OPERATIONS[operation].adds)
        memory = sum(OPERATIONS[operation].memory for operation in set(operations))
        return cls(tuple(sorted(weights.items())), max(-MEMORY, min(MEMORY, memory)))


@lru_cache(maxsize=4096)  # the same wordings come again for every user
def read(step: str) -> tuple[Op, ...]:
    """The operations that a step's name stands for, one or more, in the order of its words."""
    text = unicodedata.normalize("NFKC", step).casefold()
    if _STABLE.search(text) and _RECENT.search(text):
        return (Op.BALANCE,)
    found: dict[Op, None] = {}
    for clause in _CLAUSES.split(text):
        scores = _scores(clause)
        if not scores:
            continue
        best = max(scores, key=lambda op: (scores[op], -list(OPERATIONS).index(op)))
        if best is Op.RECOMMEND:  # of what kind?
            others = {op: score for op, score in scores.items() if op is not Op.RECOMMEND and score >= _SURE}
            if others:
                found[max(others, key=lambda op: others[op])] = None
        found[best] = None
    if Op.RECOMMEND in found:
        found[Op.RECOMMEND] = found.pop(Op.RECOMMEND)
    return tuple(found) or (Op.READING,)


def plan(path: Sequence[str]) -> tuple[tuple[Op, ...], ...]:
    """The operations that each step of a path is written by; the last step recommends, whatever it is called.

    No two steps say the same: one whose operations all stand elsewhere is written by another that none has.
    """
    steps = _read(path)
    taken = {op for step in steps for op in step}
    spare = (op for op in _SPARE if op not in taken)
    said = {Op.RECOMMEND}
    written: list[tuple[Op, ...]] = []
    for step in steps[:-1]:
        own = tuple(op for op in step if op not in said) or (next(spare, Op.READING),)
        said.update(own)
        written.append(own)
    return (*written, (*(op for op in steps[-1] if op not in said), Op.RECOMMEND))


def mix(path: Sequence[str]) -> Mix:
    """How a path ranks."""
    return Mix.of({op for step in _read(path) for op in step})


def think(
    generator: np.random.Generator, temperature: float, lean: dict[Op, float], left_out: Collection[Op]
) -> tuple[str, ...]:
    """Think up a path of FEWEST to MOST steps. `lean` adds to how readily operations come to mind.

    At temperature 0 it is always the readiest one; the higher the temperature, the more differ operations, their
    number, their order and their words.
    """
    choices = [op for op in OPERATIONS if op not in {Op.READING, Op.RECOMMEND, *left_out}]
    # All draws are made whatever comes of them, so that one choice does not shift the next.
    lengths, ready = generator.gumbel(size=MOST - FEWEST + 1), generator.gumbel(size=len(OPERATIONS))
    order, words = generator.normal(size=len(OPERATIONS)), generator.gumbel(size=(len(OPERATIONS), 8))
    place = {op: row for row, op in enumerate(OPERATIONS)}
    usual = -0.5 * np.abs(np.arange(FEWEST, MOST + 1) - 4.0)
    length = min(FEWEST + int(np.argmax(usual + temperature * lengths)), len(choices) + 1)
    ranked = sorted(
        choices, key=lambda op: -(OPERATIONS[op].prior + lean.get(op, 0.0) + temperature * float(ready[place[op]]))
    )
    chosen = sorted(ranked[: length - 1], key=lambda op: place[op] + temperature * float(order[place[op]]))
    return tuple(_worded(op, temperature * words[place[op]]) for op in (*chosen, Op.RECOMMEND))


@dataclass(frozen=True, slots=True)
class Common:
    """What several paths have in common."""

    path: tuple[str, ...]
    operations: tuple[Op, ...]  # of the path's steps
    shares: dict[Op, int]  # how many of the paths hold each operation, most first


def common(paths: Sequence[Sequence[str]]) -> Common:
    """The operations that most of the paths hold, in their usual order; the last step recommends.

    As many steps as the paths have in the middle, of operations that at least a quarter of the paths hold. Operations
    go by their canonical names, steps that name none by the name that most paths give them.
    Raises RecipeError if there is no path.
    """
    if not any(paths):
        raise RecipeError("there are no paths to find the common one of")
    places: dict[Op, list[float]] = {}
    unknown: Counter[str] = Counter()
    for path in filter(None, paths):
        seen: dict[Op, float] = {}
        for step, (name, operations) in enumerate(zip(path, _read(path), strict=True)):
            for op in operations:
                seen.setdefault(op, step / max(len(path) - 1, 1))
            if operations == (Op.READING,):
                unknown[_short(name)] += 1
        for op, at in seen.items():
            places.setdefault(op, []).append(at)
    rank = {op: row for row, op in enumerate(OPERATIONS)}
    shares = dict(sorted(((op, len(at)) for op, at in places.items()), key=lambda pair: (-pair[1], rank[pair[0]])))
    lengths = [len(path) for path in paths if path]
    room = min(MOST, round(float(np.median(lengths)))) - 1
    held = [op for op in shares if op is not Op.RECOMMEND] or [Op.SEQUENCE]
    often = [op for op in held if 4 * shares.get(op, 0) >= len(lengths)] or held
    chosen = sorted(often[: max(room, 1)], key=lambda op: (float(np.mean(places.get(op, [0.0]))), rank[op]))
    unheard = next((name for name, _ in unknown.most_common() if name), OPERATIONS[Op.READING].wordings[0])
    names = [unheard if op is Op.READING else OPERATIONS[op].wordings[0] for op in chosen]
    last = OPERATIONS[Op.RECOMMEND].wordings[0]
    path = tuple(dict.fromkeys([*(name for name in names if name.casefold() != last.casefold()), last]))
    return Common(Template(path).steps, (*chosen, Op.RECOMMEND), shares)


def _read(path: Sequence[str]) -> list[tuple[Op, ...]]:
    steps = [read(step) for step in path]
    if Op.RECOMMEND not in steps[-1]:
        steps[-1] = (*(op for op in steps[-1] if op is not Op.READING), Op.RECOMMEND)
    return steps


def _short(name: str) -> str:
    """A step's name, bare and no longer than a step may be; may be empty."""
    words = " ".join(split_path(name)).split()[:STEP_WORDS]
    return "".join(split_path(" ".join(words))[:1])


def _scores(clause: str) -> dict[Op, int]:
    """How surely the words of a clause name each operation; those that are not named at all are left out."""
    words = _WORDS.findall(clause)
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    scores: dict[Op, int] = {}
    for op, operation in OPERATIONS.items():
        score = sum(
            strength
            for stem, strength in operation.stems.items()
            if any(word.startswith(stem) for word in (pairs if " " in stem else words))
        )
        if score:
            scores[op] = score
    return scores


def _worded(op: Op, noise: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    wordings = OPERATIONS[op].wordings
    return wordings[int(np.argmax([noise[place] - 0.5 * place for place in range(len(wordings))]))]
