"""What a step says: one sentence or two of facts about a history and what was found for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offline.analyst.catalogue import Catalogue
from offline.analyst.operations import Op
from offline.analyst.ranking import NAMED, TOP_TIER, Ranking, Shopper

SHOWN = 3  # latest items that the first step names


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when a chain is written."""

    items: list[int]  # the history, oldest first
    own: list[int]  # the user's training items
    titles: list[str]  # of the history
    known: list[list[str]]  # what is known of each item of the history: values, or words, or how it sells
    tiers: list[str]  # how each item of the history sells
    best: list[int]  # items that fit, best first
    names: list[str]  # titles of the first of them
    values: list[str]  # attribute values that the best items share
    words: list[str]  # title words that they share
    tier: str  # how the first of them sells
    after: list[str]  # titles of what other users bought right after
    around: list[str]  # titles of what they bought around it
    weight: dict[str, float]  # how telling a value is
    brands: list[str]  # of the items of the history that have one
    kinds: list[list[str]]  # categories of each item of the history
    wanted: list[str]  # titles of those of the best that the other users buy most


def facts(
    catalogue: Catalogue,
    ranking: Ranking,
    shopper: Shopper,
    best: list[int],
    names: tuple[list[str], list[str]],
    *,
    after: Sequence[int] = (),
    around: Sequence[int] = (),
    operations: frozenset[Op],
) -> Facts:
    """Gather them; what only some operations speak of is looked up for those."""
    items, own = shopper.history.tolist(), shopper.own.tolist()
    title = catalogue.titles
    known = [catalogue.known[item] or [ranking.tier(item, own)] for item in items]
    wanted = sorted(best, key=lambda item: -ranking.sold(item, own))[:2] if Op.POPULARITY in operations else []
    tiers = [ranking.tier(item, own) for item in items] if operations & {Op.TIER, Op.POPULARITY, Op.PROFILE} else []
    divided = bool(operations & {Op.PROFILE, Op.CATEGORY, Op.BRAND, Op.RHYTHM})
    return Facts(
        items=items,
        own=own,
        titles=[title[item] for item in items],
        known=known,
        tiers=tiers,
        best=best,
        names=[title[item] for item in best[:NAMED]],
        values=names[0],
        words=names[1],
        tier=ranking.tier(best[0], own) if best else TOP_TIER,
        after=[title[item] for item in after if item],
        around=[title[item] for item in around if item],
        weight=catalogue.weight,
        brands=[catalogue.brand[item] for item in items if catalogue.brand[item]] if divided else [],
        kinds=[catalogue.kinds[item] for item in items] if divided else [],
        wanted=[title[item] for item in wanted],
    )


def step(operations: Sequence[Op], about: Facts) -> str:
    """The text of a step."""
    return " ".join(_WRITERS[operation](about) for operation in operations)


def overall(about: Facts) -> str:
    """The first paragraph of a rationale."""
    if len(about.titles) == 1:
        return f"One purchase so far, {about.titles[0]}: {listed(about.known[0][:3])}."
    ranked, counts = _ranked(about)
    stable = [name for name in ranked if counts[name] > 1][:2]
    centre = f"centre on {listed(stable)}" if stable else "have little in common"
    return f"The {len(about.titles)} purchases {centre}; the latest is {about.titles[-1]}."


def summary(about: Facts) -> str:
    """The last paragraph of a rationale."""
    likely = listed(about.values[:3]) or ", ".join(about.words[:3]) or about.tier
    named = f", such as {about.names[0]}" if about.names else ""
    return f"After {about.titles[-1]}, the next purchase is probably of {likely}{named}."


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _ranked(about: Facts) -> tuple[list[str], Counter[str]]:
    """What is known of the history, what is frequent and telling first; and how many purchases have it."""
    counts = Counter(name for names in about.known for name in names)
    return sorted(counts, key=lambda name: -counts[name] * about.weight.get(name, 1.0)), counts


def _counted(counts: Counter[str], total: int, most: int) -> list[str]:
    return [f"{name} ({count} of {total})" for name, count in counts.most_common(most)]


def _lately(about: Facts) -> tuple[list[str], list[str], bool]:
    """What the last purchase (of long histories: the last two) adds and keeps up, and whether anything was before."""
    recent = 2 if len(about.known) > 4 else 1
    before = {name for names in about.known[:-recent] for name in names}
    last = list(dict.fromkeys(name for names in reversed(about.known[-recent:]) for name in names))
    added, kept = [name for name in last if name not in before][:3], [name for name in last if name in before][:2]
    return added, kept, bool(before)


def _sequence(about: Facts) -> str:
    """The latest purchases, in order."""
    *earlier, last = about.titles[-SHOWN:]
    return f"Bought {', then '.join(earlier)}, most recently {last}." if earlier else f"Bought {last}."


def _interests(about: Facts) -> str:
    """What most purchases share, against the rest."""
    if len(about.known) == 1:
        return f"Interest so far: {listed(about.known[0][:4])}."
    ranked, counts = _ranked(about)
    stable = [f"{name} ({counts[name]} of {len(about.known)})" for name in ranked[:3] if counts[name] > 1]
    if not stable:
        return f"Varied interests: {listed(ranked[:4])}."
    rest = [name for name in ranked if counts[name] == 1][:2]
    return f"Stable interest in {listed(stable)}" + (f"; also {listed(rest)}." if rest else ".")


def _trend(about: Facts) -> str:
    """What the last purchases add or keep up."""
    latest = about.titles[-1]
    added, kept, before = _lately(about)
    if not before:
        return f"Starts with {listed(added)}: {latest}."
    if not added:
        return f"Recently keeps to {listed(kept)}: {latest}."
    if not kept:
        return f"Recently shifts to {listed(added)}: {latest}."
    return f"Recently adds {listed(added)} to {listed(kept)}: {latest}."


def _balance(about: Facts) -> str:
    """What lasts, and what is new."""
    ranked, counts = _ranked(about)
    total = len(about.known)
    stable = [f"{name} ({counts[name]} of {total})" for name in ranked[:4] if counts[name] > 1][:3]
    added, kept, before = _lately(about)
    lasting = listed(stable) or (f"nothing yet, of {listed(ranked[:2])}" if before else "nothing yet")
    return f"Stable: {lasting}. Recent: {listed(added or kept)}, with {about.titles[-1]}."


def _profile(about: Facts) -> str:
    """Who is buying, in short."""
    kinds = Counter(name for names in about.kinds for name in names)
    brands = Counter(about.brands)
    total = len(about.items)
    parts = [f"A shopper of {total} purchases" if total > 1 else "A shopper of one purchase"]
    if kinds:
        parts.append(f"mostly {listed([name for name, _ in kinds.most_common(3)])}")
    if brands:
        parts.append(f"of {listed([name for name, _ in brands.most_common(2)])}")
    parts.append(f"buying {Counter(about.tiers).most_common(1)[0][0]}")
    return ", ".join(parts) + "."


def _category(about: Facts) -> str:
    """Categories, how often, and where the latest purchase is."""
    counts = Counter(name for names in about.kinds for name in names)
    if not counts:
        return f"No category is known; the purchases share {listed(about.known[-1][:2])}."
    latest = f"; the latest is {about.kinds[-1][-1]}" if about.kinds[-1] else ""
    return f"Category focus: {listed(_counted(counts, len(about.items), 3))}{latest}."


def _brand(about: Facts) -> str:
    """Brands, and how loyal."""
    counts = Counter(about.brands)
    if not counts:
        return "No brand is known of these purchases."
    loyal = counts.most_common(1)[0][1] > 1
    named = listed(_counted(counts, len(about.items), 2))
    return f"Keeps to the brand {named}." if loyal else f"Not bound to one brand: {named}."


def _tier(about: Facts) -> str:
    """How the purchases sell."""
    return f"Usually buys {listed(_counted(Counter(about.tiers), len(about.items), 2))}; the next fits in there."


def _rhythm(about: Facts) -> str:
    """What comes back, and how long ago it last did."""
    places: dict[str, list[int]] = {}
    for place, names in enumerate(about.kinds if any(about.kinds) else about.known):
        for name in names:
            places.setdefault(name, []).append(place)
    total = len(about.items)
    repeated = {name: at for name, at in places.items() if len(at) > 1 and at[-1] < total - 1}
    if not repeated:
        return "No kind of item has come back after a pause yet."
    name = max(repeated, key=lambda name: (len(repeated[name]) * about.weight.get(name, 1.0), name))
    at = repeated[name]
    every = (at[-1] - at[0]) / (len(at) - 1)
    ago = total - 1 - at[-1]
    back = "one purchase" if ago == 1 else f"{ago} purchases"
    return f"{name} comes back every {every:.1f} purchases or so, and last came {back} before the latest."


def _needs(about: Facts) -> str:
    """What the purchases and the candidates are for, by the words of their titles."""
    wanted = about.words[:4] or about.values[:3] or [about.tier]
    return f"The purchases serve needs around {', '.join(wanted)}; the latest is {about.titles[-1]}."


def _attributes(about: Facts) -> str:
    """Attributes that the history shares with what fits, and what they lead to."""
    held = {name for names in about.known for name in names} | {
        word for title in about.titles for word in title.lower().split()
    }
    likely = about.values or about.words
    shared = [name for name in likely if name in held][:3]
    others = [name for name in [*about.values, *about.words] if name not in held][:3]
    if not shared:
        return f"Attributes reach beyond the purchases, to {listed(others) or about.tier}."
    return f"Shared attributes: {listed(shared)}" + (f"; they lead on to {listed(others)}." if others else ".")


def _followers(about: Facts) -> str:
    """What other users bought right after."""
    if not about.after:
        return f"No other customer went on from {about.titles[-1]} yet."
    return f"From such purchases, other customers went on to {listed(about.after)}."


def _complements(about: Facts) -> str:
    """What other users bought around these items."""
    if not about.around:
        return f"Nothing is known to go with {about.titles[-1]} yet."
    return f"What goes with these purchases, by other customers' baskets: {listed(about.around)}."


def _popularity(about: Facts) -> str:
    """How the history sells, and the best sellers among what fits."""
    tier = Counter(about.tiers).most_common(1)[0][0]
    return f"Buys {tier}" + (f"; most in demand among what fits: {listed(about.wanted)}." if about.wanted else ".")


def _prediction(about: Facts) -> str:
    """What the next item is like."""
    parts = [listed(about.values), ", ".join(about.words[:4])]
    return "Next item: " + "; ".join(part for part in parts if part) + "." if any(parts) else f"Next: {about.tier}."


def _recommendation(about: Facts) -> str:
    """The items themselves, and what they are: an item's own text ends in its attributes, too."""
    if not about.names:
        return "Recommend nothing: every item was bought already."
    return f"Recommend {', '.join(about.names)}" + (f": {', '.join(about.values[:3])}." if about.values else ".")


def _reading(about: Facts) -> str:
    """For a step whose words say nothing here."""
    if len(about.titles) == 1:
        return f"One purchase: {about.titles[0]}."
    return f"{len(about.titles)} purchases, from {about.titles[0]} to {about.titles[-1]}."


_WRITERS: dict[Op, Callable[[Facts], str]] = {
    Op.SEQUENCE: _sequence,
    Op.PROFILE: _profile,
    Op.INTERESTS: _interests,
    Op.BALANCE: _balance,
    Op.TREND: _trend,
    Op.RHYTHM: _rhythm,
    Op.CATEGORY: _category,
    Op.BRAND: _brand,
    Op.TIER: _tier,
    Op.NEEDS: _needs,
    Op.ATTRIBUTES: _attributes,
    Op.FOLLOWERS: _followers,
    Op.COMPLEMENTS: _complements,
    Op.POPULARITY: _popularity,
    Op.PREDICT: _prediction,
    Op.RECOMMEND: _recommendation,
    Op.READING: _reading,
}
