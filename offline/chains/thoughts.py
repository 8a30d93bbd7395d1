"""Models that think first put it into the answer."""

from __future__ import annotations

import re

from offline.errors import AnswerError

_THOUGHTS = re.compile(r"\A.*</\s*think(?:ing)?\s*>", re.DOTALL | re.IGNORECASE)
_BEGUN = re.compile(r"\A\s*<\s*think(?:ing)?\s*>", re.IGNORECASE)


def without_thoughts(text: str) -> str:
    """What follows them. Raises AnswerError if they were cut off: what stands there is no answer yet."""
    bare = _THOUGHTS.sub("", text)
    if _BEGUN.match(bare):
        raise AnswerError("thinking that never ended")
    return bare
