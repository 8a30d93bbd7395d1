"""Validate: answers are read, their recommendations mapped to the catalogue, and looked through for the target.

As in Algorithm 1, the prediction of a chain is the set of the items nearest to its 20 descriptions, over the whole
catalogue: an item that the user has already counts like any other and takes its place. Beside that, `masked` is the
rank of the target when such items are stepped past, as a service would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from offline.chains import explore
from offline.discover.catalogue import Catalogue, predicted
from offline.discover.journal import Journal, Question
from offline.discover.panels import Shopper
from offline.errors import AnswerError
from offline.llm.base import Explore

AT_A_TIME = 256  # answers whose descriptions are looked up together
QUOTED = 500  # characters of a rejected answer that are kept


@dataclass(frozen=True, slots=True)
class Chain:
    """An answer that can be read, and what became of it."""

    question: int  # its place among those asked
    user: int
    answer: int  # its place among the answers to that question
    path: tuple[str, ...]
    recommendations: int
    predicted: tuple[int, ...]  # different items, in order
    rank: int  # of the target among them, from 1; 0 where it is not
    masked: int  # the same, past the items that the user has
    repairs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An answer that cannot be read, or a question without one (`answer` is None)."""

    question: int
    user: int | None
    answer: int | None
    reason: str
    text: str  # its beginning


@dataclass(slots=True)
class Reading:
    """All answers to some questions, in the order of these."""

    chains: list[Chain] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def ranks(self, questions: int, *, masked: bool = False) -> NDArray[np.int64]:
        """Rank by question [questions] of one answer each: 0 for a miss or what cannot be read, -1 for no answer."""
        rank = np.zeros(questions, np.int64)
        for chain in self.chains:
            rank[chain.question] = chain.masked if masked else chain.rank
        for row in self.rejected:
            if row.answer is None:
                rank[row.question] = -1
        return rank


def read(
    questions: Sequence[Question],
    journal: Journal,
    catalogue: Catalogue,
    shoppers: Callable[[int], Shopper],
    after: Callable[[int], None],
) -> Reading:
    """Read what the journal holds; `after` is told how many questions are done."""
    reading = Reading()
    pending: list[tuple[int, int, int, explore.Explored]] = []
    done = 0
    for place, (question, reply) in enumerate(journal.replies(questions)):
        user, task = question.user, question.prompt.task
        if user is None or not isinstance(task, Explore):
            raise AssertionError("a question about a user's next purchase")
        if not reply.texts:
            reading.rejected.append(Rejected(place, user, None, reply.error or "never asked", ""))
        for answer, text in enumerate(reply.texts):
            try:
                pending.append((place, user, answer, explore.parse(text, task.path)))
            except AnswerError as error:
                reading.rejected.append(Rejected(place, user, answer, str(error), text[:QUOTED]))
        if len(pending) >= AT_A_TIME:
            reading.chains += _matched(pending, catalogue, shoppers)
            pending.clear()
            after(place + 1 - done)
            done = place + 1
    reading.chains += _matched(pending, catalogue, shoppers)
    after(len(questions) - done)
    return reading


def _matched(
    answers: list[tuple[int, int, int, explore.Explored]], catalogue: Catalogue, shoppers: Callable[[int], Shopper]
) -> list[Chain]:
    texts = [text for *_, explored in answers for text in explored.recommendations]
    nearest = catalogue.nearest(texts)
    chains: list[Chain] = []
    first = 0
    for place, user, answer, explored in answers:
        last = first + len(explored.recommendations)
        shopper = shoppers(user)
        found = predicted(nearest[first:last])
        unseen = predicted(nearest[first:last], shopper.seen)
        chains.append(
            Chain(
                question=place,
                user=user,
                answer=answer,
                path=explored.path,
                recommendations=last - first,
                predicted=tuple(found),
                rank=_rank(found, shopper.target),
                masked=_rank(unseen, shopper.target),
                repairs=explored.repairs,
            )
        )
        first = last
    return chains


def _rank(items: list[int], target: int) -> int:
    return items.index(target) + 1 if target in items else 0
