"""Where chunks of work are done: here, one after another, or on Ray (`offline.reason.cluster`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from offline.encoder import SentenceEncoder
from offline.llm.base import Usage
from offline.prepare import Dataset
from offline.reason.chains import Asking, Chain, Scribe
from offline.reason.chunks import Chunks
from offline.reason.writers import Writer

Pair = tuple[bytes, bytes]


class Encoder(Protocol):
    """Texts to unit vectors."""

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Float32 [len(texts), D]."""
        ...


@dataclass(frozen=True, slots=True)
class Sentences:
    """Says how to come by an encoder; it is sent to other processes, the encoder is not."""

    name: str
    precision: Literal["float32", "bfloat16"]

    @property
    def identity(self) -> str:
        """Of two encoders that may encode differently, this differs."""
        return f"{self.name} {self.precision}"

    def open(self) -> Encoder:
        """Load it, which takes seconds."""
        return SentenceEncoder(self.name, self.precision)


class Encodes(Protocol):
    """What `Sentences` is."""

    @property
    def identity(self) -> str:
        """Of two encoders that may encode differently, this differs."""
        ...

    def open(self) -> Encoder:
        """Load it."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """All that whoever does a chunk has to know; small, and free of models."""

    prepared: Path
    chunks: Path
    writer: Writer
    asking: Asking
    encoder: Encodes


@dataclass(frozen=True, slots=True)
class Ask:
    """A chunk of chains: rows [user, split, key in hex]; with `left`, only these of them."""

    name: str
    left: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """Chains by key, and what they have cost."""

    chains: list[tuple[bytes, Chain]]
    usage: Usage


class Engine(Protocol):
    """Does the two things that take long. What it gives back may come in any order."""

    def write(self, job: Job, dataset: Dataset, asks: Iterable[Ask]) -> Iterator[Written]:
        """Chains, some at a time. Raises LLMError if the writer can be asked no more."""
        ...

    def encode(self, job: Job, names: Iterable[str]) -> Iterator[tuple[str, NDArray[np.float16]]]:
        """For each chunk of texts its name and vectors, float16 [texts, D]."""
        ...


class Local:
    """In this process."""

    def write(self, job: Job, dataset: Dataset, asks: Iterable[Ask]) -> Iterator[Written]:
        """See Engine. A language model's chains are handed over one by one: none is lost when this is cut off."""
        chunks = Chunks(job.chunks)
        with Scribe(dataset, job.writer, job.asking) as scribe:
            for ask in asks:
                if job.writer.view is None:
                    yield written(scribe, chunks, ask)
                    continue
                before = scribe.usage
                for pair in _each(scribe, chunks, ask):
                    now = scribe.usage
                    yield Written([pair], now - before)
                    before = now

    def encode(self, job: Job, names: Iterable[str]) -> Iterator[tuple[str, NDArray[np.float16]]]:
        """See Engine."""
        chunks, encoder = Chunks(job.chunks), None
        for name in names:
            encoder = encoder or job.encoder.open()
            yield name, encoder.encode(chunks.read(name).rows).astype(np.float16)


def written(scribe: Scribe, chunks: Chunks, ask: Ask) -> Written:
    """A whole chunk's chains."""
    before = scribe.usage
    chains = dict(_each(scribe, chunks, ask))
    return Written(list(chains.items()), scribe.usage - before)


def _each(scribe: Scribe, chunks: Chunks, ask: Ask) -> Iterator[tuple[bytes, Chain]]:
    chunk = chunks.read(ask.name)
    rows = chunk.rows if ask.left is None else [chunk.rows[place] for place in ask.left]
    for place, chain in scribe.write(chunk.label, [(user, split) for user, split, _ in rows]):
        yield bytes.fromhex(rows[place][2]), chain
