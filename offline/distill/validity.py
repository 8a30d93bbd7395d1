"""Whether what a model writes are chains under the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from offline.distill.answers import Said
from offline.errors import AnswerError


def validity(said: Sequence[Said], template: Sequence[str]) -> dict[str, Any]:
    """How many answers are chains under the template, why the others are not, and how long they are, in words."""
    reasons: Counter[str] = Counter()
    lengths: list[int] = []
    steps: list[int] = []
    for one in said:
        lengths.append(len(one.text.split()))
        try:
            chain = one.chain(template)
        except AnswerError as error:
            reasons[str(error)] += 1
        else:
            steps.extend(len(step.split()) for step in chain.steps)
    return {
        "chains": len(said),
        "valid": round(1 - reasons.total() / max(len(said), 1), 4),
        "words": round(sum(lengths) / max(len(lengths), 1), 1),
        "words_of_a_step": round(sum(steps) / max(len(steps), 1), 1),
        "invalid": dict(reasons.most_common()),
    }
