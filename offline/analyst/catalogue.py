"""What is known of the items of a catalogue, and how an item is put in words.

Attributes come in fields of several values. A field called `brand` holds brands. Published files often have none, and
put the brand in front of the categories (`OPI, Makeup, Nails`): where some rows begin with a value that also stands
later in others, that is with a category, values that only ever stand first are brands.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from offline.cooccurrence import table
from offline.prepare import ItemText

TITLE_WORDS = 6
VALUE_WORDS = 4
TELLING = 400  # features of more items than this are no help in looking items up
CHARACTERISTICS = 12  # words of a title that a description keeps
FUNCTION_WORDS = 14  # words of what an item's text says beyond its title and attributes
BRAND_SHARE = 0.1  # a first value of more items than this share is no brand

_WORD = re.compile(r"[^\W\d_]{3,}")
_STOP = frozenset(
    ["and", "the", "for", "with", "from", "your", "pack", "set", "ounce", "ounces", "inch", "count", "size"]
)
_FILLERS = frozenset(["and", "the", "for", "with", "from", "your", "of", "a", "in", "on", "to"])
_BRAND_FIELDS = re.compile(r"brand|maker|manufacturer|label|author|artist|store", re.IGNORECASE)
_CONTROL = re.compile(r"[<>\x00-\x1f\x7f-\x9f]|[^\x00-\x7f]")


@dataclass(frozen=True, slots=True)
class Features:
    """A property of items: which item has which of its values."""

    names: list[str]
    has: sparse.csr_array  # float32 [N+1, F], 0 or 1
    weight: NDArray[np.float32]  # [F], from 1 for a value that only one item has towards 0 for what all have

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]]) -> Self:
        """From the names of each item's values, item 1 first."""
        index: dict[str, int] = {}
        pairs = [(item, index.setdefault(name, len(index))) for item, row in enumerate(rows, 1) for name in row]
        items, columns = np.array(pairs, np.int64).reshape(-1, 2).T
        has = table(np.ones(len(pairs), np.float32), items, columns, (len(rows) + 1, len(index)))
        spread = np.bincount(columns, minlength=len(index))
        weight = np.log1p(len(rows) / np.maximum(spread, 1)) / np.log1p(len(rows))
        return cls(list(index), has, weight.astype(np.float32))


class Catalogue:
    """The items of a data set, by index; index 0 is padding and has nothing."""

    def __init__(self, items: Sequence[ItemText]) -> None:
        self._items = items
        rows = [_values(item) for item in items]
        words = [_words(item) for item in items]
        self.size = len(items) + 1
        self.titles = ["", *map(short_title, items)]
        self.values, self.words = Features.of(rows), Features.of(words)
        self.content = content(self.values, self.words)  # float32 [N+1, F], rows of length 1 or 0
        self.weight = {
            name: float(weight)
            for features in (self.words, self.values)
            for name, weight in zip(features.names, features.weight, strict=True)
        }
        # Most specific first.
        self.known = [[], *(self._specific_first(v or w) for v, w in zip(rows, words, strict=True))]

    @cached_property
    def use(self) -> sparse.csr_array:
        """Items by the words of their titles alone, float32 [N+1, F], rows of length 1 or 0."""
        return content(self.words)

    @cached_property
    def brand(self) -> list[str]:
        """Each item's brand, `""` where none is known."""
        return ["", *(next(iter(brands), "") for brands, _ in self._divided)]

    @cached_property
    def kinds(self) -> list[list[str]]:
        """Each item's categories, most general first as the data have them."""
        return [[], *(kinds for _, kinds in self._divided)]

    @cached_property
    def brands(self) -> Features:
        """Brands as features."""
        return Features.of([[name] if name else [] for name in self.brand[1:]])

    @cached_property
    def categories(self) -> Features:
        """Categories as features."""
        return Features.of(self.kinds[1:])

    @cached_property
    def descriptions(self) -> list[str]:
        """Each item in words, without tags: category, brand, characteristics, function; `""` at index 0.

        Items that read the same in so many words have all of theirs.
        """
        short = [self._describe(index, cut=True) for index in range(1, self.size)]
        count = Counter(short)
        return ["", *(self._describe(i, cut=False) if count[text] > 1 else text for i, text in enumerate(short, 1))]

    @cached_property
    def _divided(self) -> list[tuple[list[str], list[str]]]:
        """Brands and categories of each item, item 1 first."""
        first, later, rows = dict[tuple[str, str], int](), set[tuple[str, str]](), 0
        for item in self._items:
            for field, values in item.attributes.items():
                if values:
                    first[field, values[0]] = first.get((field, values[0]), 0) + 1
                    later.update((field, value) for value in values[1:])
                    rows += 1
        mixed = {field for field, value in first if (field, value) in later}
        leading = {
            key
            for key, count in first.items()
            if key[0] in mixed and key not in later and count <= max(1, BRAND_SHARE * rows)
        }
        divided = []
        for item in self._items:
            brands, kinds = list[str](), list[str]()
            for field, values in item.attributes.items():
                for place, value in enumerate(values):
                    is_brand = _BRAND_FIELDS.search(field) or (place == 0 and (field, value) in leading)
                    (brands if is_brand else kinds).append(" ".join(clean(value).split()[:VALUE_WORDS]))
            divided.append((list(dict.fromkeys(filter(None, brands))), list(dict.fromkeys(filter(None, kinds)))))
        return divided

    def _describe(self, index: int, *, cut: bool) -> str:
        item = self._items[index - 1]
        kinds, brand = self.kinds[index], self.brand[index]
        title = clean(item.title)
        if not item.text.strip() and not kinds and not brand:
            return f"known by its number only: {title}"
        head = f"{kinds[-1]} from {', '.join(kinds[:-1])}" if len(kinds) > 1 else "".join(kinds)
        words = [word for word in title.split() if word.casefold() not in _FILLERS][: CHARACTERISTICS if cut else None]
        rest = clean(item.text.removeprefix(item.title)).lstrip(". ")
        fields = [joined for values in item.attributes.values() if (joined := clean(", ".join(values)))]
        while any(rest.startswith(joined) for joined in fields):  # what the head says already
            for joined in fields:
                rest = rest.removeprefix(joined).lstrip(". ")
        function = rest.rstrip(". ").split()[: FUNCTION_WORDS if cut else None]
        made = f"by {brand}" if brand else ""
        parts = [f"{head} {made}", " ".join(words), " ".join(word for word in function if any(map(str.isalnum, word)))]
        return "; ".join(stripped for part in parts if (stripped := part.strip(" ,;:.")))

    def _specific_first(self, names: list[str]) -> list[str]:
        return sorted(names, key=lambda name: -self.weight[name])


def short_title(item: ItemText) -> str:
    """At most TITLE_WORDS words of a title, up to its first clause; `item <id>` where there is none."""
    title = clean(item.title)
    head = re.split(r"\s[-|–—]\s|[(\[,;:]", title, maxsplit=1)[0]
    words = (head if len(head.split()) >= 3 else title).split()
    return " ".join(words[:TITLE_WORDS]).strip(" ,;:-") or f"item {clean(item.id)}"


def clean(text: str) -> str:
    """Text without control characters, lone surrogates, angle brackets and runs of white space.

    Angle brackets are what tags and the special tokens of language models are made of: a title is data.
    """
    return " ".join(_CONTROL.sub(_printable, text).split())


def content(*properties: Features) -> sparse.csr_array:
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
    rows: sparse.csr_array = stacked
    return rows


def _printable(match: re.Match[str]) -> str:
    character = match[0]
    return " " if character in "<>" or unicodedata.category(character).startswith("C") else character


def _values(item: ItemText) -> list[str]:
    """Attribute values, shortened and each once."""
    values = (" ".join(clean(v).split()[:VALUE_WORDS]) for field in item.attributes.values() for v in field)
    return list(dict.fromkeys(value for value in values if value))


def _words(item: ItemText) -> list[str]:
    """Words of a title; none for an item without text, whose title is made of its id."""
    if not item.text.strip():
        return []
    return [word for word in dict.fromkeys(_WORD.findall(clean(item.title).lower())) if word not in _STOP]
