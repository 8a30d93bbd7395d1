"""The protocol that everything which writes reasoning implements.

A `Prompt` says what is wanted twice: `messages` for a language model, and `task`, the same as data, for a backend that
is none (`analyst`). Both get the same facts: a task holds nothing that its messages do not show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn. `temperature = 0` is greedy; with `seed` a backend that can repeat itself does."""

    n: int = 1  # answers to one prompt
    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 1024  # of one answer
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Explore:
    """Generate (Fig. 9): think of a path, and recommend along it. `path` given: follow that one."""

    history: tuple[int, ...]  # item indices, oldest first
    own: tuple[int, ...]  # the user's training items: no statistic about others may count them
    path: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Abstract:
    """Mine (Fig. 10): one path from the exemplars of a cluster."""

    exemplars: tuple[tuple[str, ...], ...]
    rank: int
    clusters: int
    recall: float


@dataclass(frozen=True, slots=True)
class Rationale:
    """Teacher and student (Fig. 11): a step-by-step analysis under a template.

    `target` is set for a teacher with hindsight only: the item that was bought next, never a validation or test item.
    """

    history: tuple[int, ...]
    own: tuple[int, ...]
    template: tuple[str, ...]
    target: int | None = None


Task = Explore | Abstract | Rationale


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question. `pattern` is a regular expression that an answer has to match, for backends that can hold to it."""

    messages: tuple[Message, ...]
    sampling: Sampling
    task: Task
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for `prompts[index]`: `sampling.n` texts, or the reason why there are none.

    Neither holds half a surrogate pair, as a text that was cut may: no file could hold that.
    """

    index: int
    texts: tuple[str, ...] = ()
    error: str | None = None


@dataclass(slots=True)
class Usage:
    """What a backend has used since it was opened; what came from its cache is counted apart and costs nothing."""

    requests: int = 0  # sent, retries among them
    cached: int = 0  # answers, each of a prompt's n counted
    retries: int = 0
    failed: int = 0  # prompts
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0  # requests whose tokens the server did not count, and we guessed
    cost: float = 0.0  # in the currency of the prices given; a request that was cut off counts as the most it may cost
    seconds: float = 0.0
    model: str = field(default="")

    def __add__(self, later: Usage) -> Usage:
        """What both have used; the model is the one named last."""
        return self._with(later, 1, later.model or self.model)

    def __sub__(self, earlier: Usage) -> Usage:
        """What was used between two readings, of which this is the later one."""
        return self._with(earlier, -1, self.model or earlier.model)

    def _with(self, other: Usage, sign: int, model: str) -> Usage:
        counts: dict[str, Any] = {
            one.name: getattr(self, one.name) + sign * getattr(other, one.name)
            for one in fields(self)
            if one.name != "model"
        }
        return Usage(**counts, model=model)


class Backend(Protocol):
    """Writes reasoning. Use as a context manager: a backend may hold a model, a cache or connections."""

    @property
    def name(self) -> str:
        """What wrote it, for summaries and for the fingerprint of what is made of it; no secrets."""
        ...

    @property
    def usage(self) -> Usage:
        """Counted so far."""
        ...

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """One Answer for each prompt, each as soon as it is there, in any order.

        What fails for one prompt is its `error`. Raises LLMError when no further prompt can be answered (refused key,
        dead endpoint, spent budget); answers given before are the caller's to keep.
        """
        ...

    def close(self) -> None:
        """Give everything back."""
        ...
