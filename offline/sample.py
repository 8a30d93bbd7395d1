"""The bundled sample data: simulated shoppers, not real ones.

A seeded simulator writes RecBole atomic files, so that the whole path runs with no data at hand. What it models:

- **Items.** A department sells *types* (beard oil, beard balm, ...) in *lines* (a brand with one attribute, such as
  a scent). A line holds the types of its department; title and description say what an item is and goes with.
- **Complements and refills.** Each type leads to others: a moka pot to coffee beans, beans to filters, and
  filters to beans again. Half of all purchases follow from one of the last two, mostly within its line.
- **Taste.** The other half come from the shopper's taste: two departments, a favourite brand and attribute in
  each department, a price tier.
- **Drift.** Now and then the second department becomes the first and a new one takes its place, or a favourite changes.
- **Popularity** is heavy-tailed: among items that suit equally, weight falls as 1 / (rank + 18).

Nobody buys an item twice. Shoppers and items with fewer than five purchases are left out, so what is written is
5-core. The same arguments give the same bytes on every machine: draws come from `Generator(PCG64(seed)).random()`
alone, and weights are only added, multiplied and divided, one after the other.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline.errors import DataError

MIN_INTERACTIONS = 5
LONGEST = 60
_EPOCH = 1_672_531_200  # 2023-01-01, in seconds
_DAY = 86_400
_FILES = ("README.txt", "sample.inter", "sample.item")

FOLLOWS = 0.5  # share of purchases that follow from one of the last two
GOES_ON = 0.8  # chance of one more purchase after the fifth
DRIFTS = 0.08  # chance, at each purchase, that departments shift; the same for a favourite


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """What was written."""

    users: int
    items: int
    interactions: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """A product type: what it is for, and the types it leads to, likeliest first."""

    name: str
    aisle: str
    sizes: tuple[str, ...]
    use: str
    leads_to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Department:
    name: str
    brands: tuple[str, ...]  # by turns budget, everyday and premium
    attributes: tuple[str, ...]
    kinds: tuple[_Kind, ...]


_TIERS = ("budget", "everyday", "premium")


def _department(name: str, brands: str, attributes: str, kinds: str) -> _Department:
    rows = [[cell.strip() for cell in line.split("|")] for line in kinds.strip().splitlines()]
    return _Department(
        name,
        tuple(brands.split(", ")),
        tuple(attributes.split(", ")),
        tuple(_Kind(n, aisle, tuple(s.split(", ")), use, tuple(to.split(", "))) for n, aisle, s, use, to in rows),
    )


# A row: type | aisle | three sizes | what it does | the types it leads to
_DEPARTMENTS = (
    _department(
        "Grooming",
        "Brinkwell, Halden, Maison Orle, Tuckit, Ferrow, Aldous Vane",
        "cedar, citrus, sandalwood, unscented, mint",
        """
        beard oil     | Beard care | 30 ml, 60 ml, 100 ml      | softens a beard        | beard balm, beard comb
        beard balm    | Beard care | 50 g, 75 g, 120 g         | holds a beard in shape | beard oil, beard comb
        beard comb    | Beard care | small, medium, wide       | untangles a beard      | beard oil, safety razor
        safety razor  | Shaving    | short, classic, long      | shaves close           | razor blades, shaving cream
        razor blades  | Shaving    | 10 pack, 20 pack, 50 pack | fit any safety razor   | aftershave, shaving cream
        shaving cream | Shaving    | 75 ml, 150 ml, 200 ml     | gives a thick lather   | razor blades, aftershave
        aftershave    | Shaving    | 50 ml, 100 ml, 150 ml     | calms the skin         | shaving cream, beard oil
        """,
    ),
    _department(
        "Coffee",
        "Poddle, Kestrel Mill, Casa Verano, Dayjar, Northcup, Ilario Fonte",
        "morning, barista, travel, office, classic",
        """
        moka pot      | Machines | 1 cup, 2 cup, 4 cup         | brews it strong    | coffee beans, milk frother
        coffee beans  | Coffee   | 250 g, 500 g, 1 kg          | are roasted weekly | paper filters, burr grinder
        burr grinder  | Machines | hand, compact, table        | grinds evenly      | coffee beans, dripper
        dripper       | Brewing  | size 1, size 2, size 4      | brews a clear cup  | paper filters, coffee beans
        paper filters | Brewing  | 40 pack, 100 pack, 200 pack | leave no taste     | coffee beans, descaler
        milk frother  | Machines | whisk, jug, steel           | makes fine foam    | coffee syrup, descaler
        coffee syrup  | Coffee   | 250 ml, 500 ml, 750 ml      | sweetens a latte   | coffee beans, milk frother
        descaler      | Care     | 2 doses, 4 doses, 8 doses   | clears lime scale  | paper filters, moka pot
        """,
    ),
    _department(
        "Garden",
        "Plotwise, Greenmoor, Verdanne, Sprig, Oakhollow, Tilde and Thorn",
        "balcony, kitchen garden, cottage, indoor, allotment",
        """
        seed mix       | Growing | 1 sachet, 3 sachets, 6 sachets | sprouts in two weeks | seed tray, potting soil
        seed tray      | Growing | 6 cells, 12 cells, 24 cells    | starts plants early  | potting soil, plant labels
        potting soil   | Soil    | 5 l, 20 l, 40 l                | drains well          | clay pot, plant food
        clay pot       | Pots    | 10 cm, 18 cm, 30 cm            | lets roots breathe   | pot saucer, potting soil
        pot saucer     | Pots    | 12 cm, 20 cm, 32 cm            | catches water        | watering can, clay pot
        plant food     | Care    | 250 ml, 500 ml, 1 l            | feeds for six weeks  | watering can, pruning shears
        watering can   | Care    | 1 l, 5 l, 10 l                 | pours gently         | plant food, plant labels
        pruning shears | Tools   | small, bypass, long            | cut cleanly          | plant food, seed mix
        plant labels   | Tools   | 20 pack, 50 pack, 100 pack     | keep rows apart      | seed mix, seed tray
        """,
    ),
    _department(
        "Running",
        "Paceline, Fellrunner, Aero Lupo, Joggly, Striden, Monte Corso",
        "trail, road, track, winter, night",
        """
        shoes        | Shoes     | neutral, stable, light        | cushion long runs  | socks, insoles
        socks        | Clothing  | 1 pair, 3 pairs, 6 pairs      | prevent blisters   | shorts, shoes
        insoles      | Shoes     | low arch, mid arch, high arch | support the foot   | socks, shoes
        shorts       | Clothing  | 3 inch, 5 inch, 7 inch        | dry fast           | shirt, running belt
        shirt        | Clothing  | sleeveless, short, long       | breathes well      | shorts, socks
        running belt | Gear      | slim, two pocket, bottle      | carries keys       | energy gels, soft flask
        energy gels  | Nutrition | 6 pack, 12 pack, 24 pack      | give carbohydrates | soft flask, electrolytes
        soft flask   | Gear      | 250 ml, 500 ml, 750 ml        | folds when empty   | electrolytes, energy gels
        electrolytes | Nutrition | 10 tabs, 20 tabs, 60 tabs     | replace salt       | energy gels, running belt
        """,
    ),
    _department(
        "Stationery",
        "Scribbl, Papermark, Atelier Quill, Jotter Co, Inkfield, Linnet Press",
        "black, navy, forest green, burgundy, sepia",
        """
        fountain pen   | Writing | fine, medium, broad             | writes smoothly     | bottled ink, ink converter
        bottled ink    | Ink     | 15 ml, 30 ml, 80 ml             | dries fast          | notebook, blotting paper
        ink converter  | Ink     | slim, standard, large           | fills from a bottle | bottled ink, pen case
        notebook       | Paper   | A6, A5, A4                      | lies flat when open | page tabs, notebook cover
        notebook cover | Paper   | A6 fit, A5 fit, A4 fit          | protects a notebook | notebook, pen case
        page tabs      | Paper   | 100 pack, 200 pack, 500 pack    | mark a page         | notebook, fountain pen
        blotting paper | Paper   | 10 sheets, 20 sheets, 50 sheets | takes up wet ink    | bottled ink, notebook
        pen case       | Writing | 1 pen, 3 pens, 6 pens           | keeps nibs safe     | fountain pen, notebook cover
        """,
    ),
    _department(
        "Pets",
        "Wagtail, Hearthpaw, Bon Minou, Nibble, Fernfur, Sable and Oats",
        "puppy, kitten, senior, outdoor, sensitive",
        """
        dry food      | Food    | 1 kg, 3 kg, 10 kg        | is a full meal      | wet food, treats
        wet food      | Food    | 6 cans, 12 cans, 24 cans | is rich in moisture | food bowl, dry food
        treats        | Food    | 80 g, 150 g, 400 g       | reward training     | chew toy, dental sticks
        dental sticks | Care    | 7 pack, 28 pack, 56 pack | clean teeth         | treats, dry food
        chew toy      | Play    | small, medium, large     | lasts for months    | dental sticks, treats
        food bowl     | Feeding | 200 ml, 500 ml, 1 l      | does not slip       | feeding mat, wet food
        feeding mat   | Feeding | 30 cm, 45 cm, 60 cm      | keeps the floor dry | dry food, food bowl
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class _Shelf:
    """All items, as columns of one index each."""

    department: NDArray[np.int64]  # [N]
    kind: NDArray[np.int64]  # [N], numbered across departments
    brand: NDArray[np.int64]  # [N], numbered across departments
    attribute: NDArray[np.int64]  # [N], numbered across departments
    size: NDArray[np.int64]  # [N], 0..2
    popularity: NDArray[np.float64]  # [N], weight

    def __len__(self) -> int:
        return len(self.kind)


_KINDS = tuple((d, kind) for d, department in enumerate(_DEPARTMENTS) for kind in department.kinds)
_KIND_INDEX = {(d, kind.name): i for i, (d, kind) in enumerate(_KINDS)}
_LEADS_TO = tuple(tuple(_KIND_INDEX[d, name] for name in kind.leads_to) for d, kind in _KINDS)
_BRANDS = len(_DEPARTMENTS[0].brands)
_ATTRIBUTES = len(_DEPARTMENTS[0].attributes)
_SIZES = 3
LARGEST = len(_KINDS) * _BRANDS * _ATTRIBUTES * _SIZES  # items that can be told apart


class _Dice:
    """Draws from one stream of uniform numbers."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(seed))

    def chance(self, probability: float) -> bool:
        return float(self._rng.random()) < probability

    def below(self, n: int) -> int:
        """A whole number in 0..n-1, each as likely."""
        return min(int(float(self._rng.random()) * n), n - 1)

    def index(self, weights: Sequence[float] | NDArray[np.float64]) -> int:
        """An index, as likely as its weight."""
        edges = np.cumsum(weights)  # in order, so that every machine rounds alike
        place = np.searchsorted(edges, float(self._rng.random()) * edges[-1], side="right")
        return min(int(place), len(edges) - 1)

    def shuffled(self, n: int) -> list[int]:
        """0..n-1 in random order."""
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


def write_sample(out: Path, *, users: int = 1500, items: int = 600, seed: int = 7) -> SampleSummary:
    """Write `sample.inter` and `sample.item` into the folder `out`, which appears whole or not at all.

    An earlier sample in `out` is replaced. Raises DataError if `out` holds anything else, if `items` is more than
    the simulator can tell apart, or if too few `users` shop for a 5-core to be left.
    """
    if not 1 <= items <= LARGEST:
        raise DataError(f"the sample can have 1 to {LARGEST} items, not {items}")
    if out.exists() and (not out.is_dir() or any(p.name not in _FILES for p in out.iterdir())):
        raise DataError(f"{out} exists and is no sample: give a new folder")
    dice = _Dice(seed)
    shelf = _stock(items, dice)
    carts = _core([_shop(shelf, dice) for _ in range(users)])
    if not carts:
        raise DataError(f"{users} shoppers among {items} items leave no 5-core: ask for more users or fewer items")
    bought = sorted({item for _, cart in carts for item, _ in cart})
    summary = SampleSummary(len(carts), len(bought), sum(len(cart) for _, cart in carts))

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        fresh, stale = Path(scratch) / "fresh", Path(scratch) / "stale"
        fresh.mkdir()
        rows = [f"u{user + 1:05}\t{_id(item)}\t{time}" for user, cart in carts for item, time in cart]
        _write(fresh / "sample.inter", ["user_id:token\titem_id:token\ttimestamp:float", *rows])
        columns = "item_id:token\ttitle:token_seq\tbrand:token\tcategories:token_seq\tdescription:token_seq"
        _write(fresh / "sample.item", [columns, *("\t".join(_describe(shelf, item)) for item in bought)])
        _write(
            fresh / "README.txt",
            [
                "Simulated shoppers and items: no real person, brand or purchase is in here.",
                f"Seed {seed}: {summary.users} shoppers, {summary.items} items, {summary.interactions} purchases.",
            ],
        )
        try:
            if out.exists():
                out.rename(stale)
            fresh.rename(out)
        except BaseException:
            if stale.exists() and not out.exists():
                stale.rename(out)
            raise
    return summary


def _stock(items: int, dice: _Dice) -> _Shelf:
    """Stock whole lines (brand x attribute), first in one size each, until there are `items` of them."""
    lines = [(d, line) for line in range(_BRANDS * _ATTRIBUTES) for d in range(len(_DEPARTMENTS))]
    order = [dice.shuffled(_BRANDS * _ATTRIBUTES) for _ in _DEPARTMENTS]
    rows: list[tuple[int, int, int, int, int]] = []
    for size in range(_SIZES):
        for d, place in lines:
            brand, attribute = divmod(order[d][place], _ATTRIBUTES)
            rows += [
                (d, kind, d * _BRANDS + brand, d * _ATTRIBUTES + attribute, (size + kind + place) % _SIZES)
                for kind, (home, _) in enumerate(_KINDS)
                if home == d
            ]
    department, kind_column, brand_column, attribute_column, sizes = np.array(rows[:items], dtype=np.int64).T
    rank = np.array(dice.shuffled(items), dtype=np.float64)
    return _Shelf(department, kind_column, brand_column, attribute_column, sizes, 1.0 / (rank + 18.0))


@dataclass(slots=True)
class _Shopper:
    first: int  # departments
    second: int
    brand: list[int]  # favourite by department
    attribute: list[int]
    tier: int


def _shop(shelf: _Shelf, dice: _Dice) -> list[tuple[int, int]]:
    """One shopper's purchases as (item, time), oldest first."""
    first = dice.below(len(_DEPARTMENTS))
    shopper = _Shopper(
        first,
        (first + 1 + dice.below(len(_DEPARTMENTS) - 1)) % len(_DEPARTMENTS),
        [d * _BRANDS + dice.below(_BRANDS) for d in range(len(_DEPARTMENTS))],
        [d * _ATTRIBUTES + dice.below(_ATTRIBUTES) for d in range(len(_DEPARTMENTS))],
        dice.below(len(_TIERS)),
    )
    length = MIN_INTERACTIONS
    while length < min(LONGEST, len(shelf)) and dice.chance(GOES_ON):
        length += 1
    time = _EPOCH + dice.below(365) * _DAY
    free = np.ones(len(shelf))  # 0 once bought
    cart: list[tuple[int, int]] = []
    for _ in range(min(length, len(shelf))):
        weights = free * shelf.popularity
        if cart and dice.chance(FOLLOWS):
            before = cart[-1 - (len(cart) > 1 and dice.chance(0.25))][0]
            weights = weights * _follows(shelf, before)
        else:
            weights = weights * _suits(shelf, shopper)
        if not weights.any():  # all that would follow is bought
            weights = free * shelf.popularity
        item = dice.index(weights)
        free[item] = 0.0
        cart.append((item, time))
        time += _DAY * (1 + dice.below(30)) + dice.below(_DAY)
        _drift(shopper, dice)
    return cart


def _follows(shelf: _Shelf, before: int) -> NDArray[np.float64]:
    """Weight of each item [N] after `before`: the types it leads to, its brand and attribute above others."""
    weights = np.zeros(len(shelf))
    for place, kind in enumerate(_LEADS_TO[shelf.kind[before]]):
        weights[shelf.kind == kind] = 2.0 / (place + 1)
    weights[shelf.brand == shelf.brand[before]] *= 8.0
    weights[shelf.attribute == shelf.attribute[before]] *= 8.0
    return weights


def _suits(shelf: _Shelf, shopper: _Shopper) -> NDArray[np.float64]:
    """Weight of each item [N] by taste alone."""
    weights = np.full(len(shelf), 0.05)
    weights[shelf.department == shopper.first] = 6.0
    weights[shelf.department == shopper.second] = 2.0
    for favourite in shopper.brand:
        weights[shelf.brand == favourite] *= 5.0
    for favourite in shopper.attribute:
        weights[shelf.attribute == favourite] *= 4.0
    weights[shelf.brand % len(_TIERS) == shopper.tier] *= 2.0
    return weights


def _drift(shopper: _Shopper, dice: _Dice) -> None:
    if dice.chance(DRIFTS):
        other = (shopper.second + 1 + dice.below(len(_DEPARTMENTS) - 1)) % len(_DEPARTMENTS)
        shopper.first, shopper.second = shopper.second, other
    if dice.chance(DRIFTS):
        d = shopper.first
        if dice.chance(0.5):
            shopper.brand[d] = d * _BRANDS + dice.below(_BRANDS)
        else:
            shopper.attribute[d] = d * _ATTRIBUTES + dice.below(_ATTRIBUTES)


def _core(carts: list[list[tuple[int, int]]]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Shoppers by number with their purchases, less rare items and brief shoppers, until neither is left."""
    kept = list(enumerate(carts))
    while True:
        sold = Counter(item for _, cart in kept for item, _ in cart)
        slim = [(user, [row for row in cart if sold[row[0]] >= MIN_INTERACTIONS]) for user, cart in kept]
        slim = [(user, cart) for user, cart in slim if len(cart) >= MIN_INTERACTIONS]
        if slim == kept:
            return kept
        kept = slim


def _id(item: int) -> str:
    return f"i{item + 1:05}"


def _describe(shelf: _Shelf, item: int) -> tuple[str, str, str, str, str]:
    """The item's row: id, title, brand, categories, description."""
    d, kind = _KINDS[shelf.kind[item]]
    department = _DEPARTMENTS[d]
    brand = department.brands[shelf.brand[item] % _BRANDS]
    attribute = department.attributes[shelf.attribute[item] % _ATTRIBUTES]
    size = kind.sizes[shelf.size[item]]
    tier = _TIERS[shelf.brand[item] % len(_TIERS)]
    description = (
        f"{kind.name.capitalize()} from the {attribute} line of {brand}: {kind.use}. "
        f"{size}, {tier} price. Goes with {' and '.join(kind.leads_to)}."
    )
    return (
        _id(item),
        f"{brand} {attribute} {kind.name} {size}",
        brand,
        f"{department.name}, {kind.aisle}, {kind.name.capitalize()}",
        description,
    )


def _write(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
