"""From a user's history to a chain: what is asked, under which key, and what of the answer is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from offline.chains import rationale
from offline.errors import AnswerError
from offline.llm.base import Answer, Backend, Prompt, Rationale, Sampling, Usage
from offline.prepare import Dataset, ItemText
from offline.reason.kept import digest
from offline.reason.writers import Writer

FAULT_CHARS = 200
_MADE_UP = ItemText("1", "Title", "Title. Text", {})
_AGAIN = Sampling(temperature=0.7, top_p=0.9, seed=1)  # for the second try: greedy would say the same once more


@dataclass(frozen=True, slots=True)
class Chain:
    """The K step texts, or the fault for which there are none; `again` if another run may have better luck."""

    steps: tuple[str, ...] = ()
    fault: str | None = None
    again: bool = False

    def encode(self) -> bytes:
        """As it is kept."""
        body = {"steps": self.steps} if self.fault is None else {"fault": self.fault, "again": self.again}
        return json.dumps(body, ensure_ascii=False).encode()

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """What `encode` wrote."""
        found = json.loads(body)
        return cls(tuple(found.get("steps", ())), found.get("fault"), found.get("again", False))


@dataclass(frozen=True, slots=True)
class Asking:
    """What of the recipe decides what is asked."""

    template: tuple[str, ...]
    max_tokens: int

    @property
    def sampling(self) -> Sampling:
        """One chain, the likeliest: it is made once and served for long."""
        return Sampling(n=1, temperature=0.0, top_p=1.0, max_tokens=self.max_tokens)


class Keys:
    """The key of each chain: a digest of whoever writes it and of all that is shown to him.

    A language model sees the texts of the items of the history, in the form that the prompt has; a writer that is none
    also reads the training items of everybody.
    """

    def __init__(self, dataset: Dataset, writer: Writer, asking: Asking) -> None:
        self._dataset, self._writer = dataset, writer
        shown = [_shown(item, writer) for item in dataset.items]
        self._latest = 0 if writer.view is None else -writer.view.items
        self._items = np.frombuffer(b"".join([bytes(16), *shown]), np.uint8).reshape(-1, 16)
        # A change in how questions are put changes the question about a made-up item.
        form = rationale.prompt(Rationale((1,), (1,), asking.template), [_MADE_UP], asking.sampling)
        pattern = rationale.pattern(asking.template) if writer.held else None
        drawn, again = _drawn(form.sampling), _drawn(_AGAIN)
        said = f"({form.messages!r}, {drawn}, {pattern!r}, {again}, {writer.view!r})"
        everybody = _everybody(dataset, shown) if writer.view is None else b""
        self._common = digest(writer.identity, said, everybody)

    def of(self, user: int, split: str) -> bytes:
        """The key of a user's chain of a split."""
        fold = self._writer.fold(self._dataset.users[user])
        own = self._dataset.training(user).tobytes() if self._writer.view is None else b""
        seen = self._items[self._dataset.history(user, split)[self._latest :]]
        return digest(self._common, str(fold), seen.tobytes(), own)


def _drawn(sampling: Sampling) -> str:
    """With the stop words that there once were: without them, every chain that is kept would be written again."""
    return f"{repr(sampling)[:-1]}, stop=())"


class Scribe:
    """Writes chains; holds the model that it used last. Use as a context manager."""

    def __init__(self, dataset: Dataset, writer: Writer, asking: Asking) -> None:
        self._dataset, self._writer, self._asking = dataset, writer, asking
        self._open: tuple[int, Backend] | None = None
        self._stack = ExitStack()  # closes it
        self._closed = Usage()

    @property
    def usage(self) -> Usage:
        """Of all models used."""
        return self._closed if self._open is None else self._closed + self._open[1].usage

    def write(self, fold: int, tasks: Sequence[tuple[int, str]]) -> Iterator[tuple[int, Chain]]:
        """For each (user, split), its place and its chain, as they come. One that does not parse is tried once more.

        Raises LLMError if the model can be asked no more.
        """
        backend = self._backend(fold)
        prompts = [self._prompt(user, split) for user, split in tasks]
        failed: list[int] = []
        for answer in backend.answer(prompts):
            chain = self._read(answer)
            if chain.fault is None:
                yield answer.index, chain
            else:
                failed.append(answer.index)
        failed.sort()
        drawn = replace(_AGAIN, max_tokens=self._asking.max_tokens)
        again = [replace(prompts[place], sampling=drawn) for place in failed]
        for answer in backend.answer(again) if again else ():
            yield failed[answer.index], self._read(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the model back."""
        if self._open is not None:
            self._closed = self.usage
            self._open = None
            self._stack.close()

    def _backend(self, fold: int) -> Backend:
        if self._open is None or self._open[0] != fold:
            self.close()
            self._open = fold, self._stack.enter_context(self._writer.open(fold, self._dataset))
        return self._open[1]

    def _prompt(self, user: int, split: str) -> Prompt:
        template, sampling, view = self._asking.template, self._asking.sampling, self._writer.view
        if view is not None:
            return rationale.ask(self._dataset, user, split, template, sampling, view, hold=self._writer.held)
        # Statistics read the task alone, and to word the question would take longer than to answer it.
        known, own = self._dataset.history(user, split), self._dataset.training(user)
        return Prompt((), sampling, Rationale(tuple(known.tolist()), tuple(own.tolist()), template))

    def _read(self, answer: Answer) -> Chain:
        if answer.error is not None:
            return Chain(fault=f"no answer: {answer.error}"[:FAULT_CHARS], again=True)
        try:
            return Chain(rationale.parse(answer.texts[0], self._asking.template).steps)
        except AnswerError as error:
            return Chain(fault=str(error)[:FAULT_CHARS])


def _shown(item: ItemText, writer: Writer) -> bytes:
    """Digest of what a writer may see of an item: a language model its title and text, another one everything."""
    if writer.view is not None:
        return digest(item.title, item.text)
    return digest(item.id, item.title, item.text, json.dumps(item.attributes))


def _everybody(dataset: Dataset, shown: Sequence[bytes]) -> bytes:
    """Digest of what statistics are made of: the training part of every sequence, and the catalogue."""
    trainings = dataset.trainings()
    lengths = np.array([len(training) for training in trainings], np.int64)
    return digest(lengths.tobytes(), b"".join(training.tobytes() for training in trainings), *shown)
