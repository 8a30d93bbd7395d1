"""Embeddings of texts, kept by encoder and text in a work folder: whoever needs one again does not encode it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from offline.errors import StageError
from offline.reason.kept import Kept, digest


class Vectors:
    """Vectors float16 [D] by text, of one encoder; several processes may use them at a time.

    Raises StageError if the file cannot be used.
    """

    def __init__(self, kept: Kept, encoder: str) -> None:
        self._kept, self._encoder = kept, encoder

    @classmethod
    @contextmanager
    def open(cls, folder: Path, encoder: str) -> Iterator[Self]:
        """Those in `folder`, which is `<work>/reasoning`, of the encoder of that identity."""
        with Kept(folder / "vectors.sqlite") as kept:
            yield cls(kept, encoder)

    def key(self, text: str) -> bytes:
        """What a text's vector is kept under."""
        return digest(self._encoder, text)

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The texts that are not kept."""
        held = self._kept.get([self.key(text) for text in texts])
        return [text for text, body in zip(texts, held, strict=True) if body is None]

    def put(self, texts: Sequence[str], vectors: NDArray[np.float16]) -> None:
        """Keep the rows of [len(texts), D]: all of them or none."""
        self._kept.put((self.key(text), row.tobytes()) for text, row in zip(texts, vectors, strict=True))

    def of(self, texts: Sequence[str]) -> NDArray[np.float16] | None:
        """Of each text, float16 [len(texts), D]; None if one of them is not kept."""
        found = self._kept.get([self.key(text) for text in texts])
        bodies = [body for body in found if body is not None]
        if len(bodies) < len(found):
            return None
        if len({len(body) for body in bodies}) > 1:
            raise StageError(
                f"vectors of {self._encoder} are of different lengths: the encoder was changed under its name; give "
                "it another name, or remove the folder `reasoning` in the work folder"
            )
        return np.frombuffer(b"".join(bodies), np.float16).reshape(len(bodies), -1)
