"""A purchase history as a model reads it. Titles are somebody's data: nothing in them may pass for an instruction."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from offline.prepare import ItemText

TITLE_CHARS = 120
TEXT_CHARS = 200  # of what an item's text adds to its title, where nothing else is said
_TAGS = re.compile(r"[<>{}\[\]|#`]+")


def clean(text: str, chars: int) -> str:
    """One line without control characters, tags and mark-up, cut at a word if one ends in its second half."""
    printable = "".join(" " if unicodedata.category(c).startswith("C") else c for c in text)
    line = " ".join(_TAGS.sub(" ", printable).split())
    if len(line) <= chars:
        return line
    # Not every script has spaces: the only one may stand behind the brand.
    end = line.rfind(" ", chars // 2, chars)
    return line[: end if end >= 0 else chars] + "…"


def lines(items: Sequence[ItemText], *, text_chars: int) -> str:
    """`Item 1: title. text`, a line each, oldest first."""
    return "\n".join(f"Item {place}: {line(item, text_chars=text_chars)}" for place, item in enumerate(items, 1))


def line(item: ItemText, *, text_chars: int) -> str:
    """An item's title, and what its text adds to it."""
    title = clean(item.title, TITLE_CHARS)
    rest = clean(item.text.removeprefix(item.title).lstrip(". "), text_chars) if text_chars else ""
    return f"{title}. {rest}" if rest else title
