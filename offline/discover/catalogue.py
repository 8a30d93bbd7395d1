"""From a description of a product to the items of the catalogue that it fits best (section 3.2, Validate)."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

DEPTH = 20  # items that are kept of each description: enough to step past those of a history
CHUNK = 1024  # texts between two savings
_DIGEST = 16

Encode = Callable[[list[str]], NDArray[np.float32]]


class Catalogue:
    """Exact nearest items by cosine. Each different text is encoded once; what was found is kept in `memory`.

    The file is appended to chunk by chunk and read again on opening, so that neither a run that was cut off nor the
    next one encodes anything twice. It belongs to one encoder and one catalogue; several processes may append to it.
    """

    def __init__(self, vectors: NDArray[np.float32], encode: Encode, memory: Path) -> None:
        """`vectors` are the items' unit vectors [N, D], item 1 first; `encode` gives unit vectors of texts."""
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors, np.float32))
        self._depth = min(DEPTH, len(vectors))
        self._encode = encode
        self._memory = memory
        self._row = np.dtype([("digest", f"V{_DIGEST}"), ("items", "<i4", (self._depth,))])
        self._rows: dict[bytes, int] = {}
        self._count = 0  # rows of `_items`; another process may have written one a second time
        self._items = np.zeros((0, self._depth), np.int32)
        if memory.exists():
            self._remember(np.fromfile(memory, self._row))  # whole rows: a torn last one is left out

    @property
    def different(self) -> int:
        """Different texts looked up so far."""
        return len(self._rows)

    def nearest(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Item indices [len(texts), min(DEPTH, N)], best first."""
        keys = [_digest(text) for text in texts]
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        pending = list(fresh.items())
        for start in range(0, len(pending), CHUNK):
            part = pending[start : start + CHUNK]
            _, found = self._index.search(self._encode([text for _, text in part]), self._depth)
            rows = np.empty(len(part), self._row)
            rows["digest"] = np.array([key for key, _ in part], self._row["digest"])
            rows["items"] = found + 1
            self._append(rows)
            self._remember(rows)
        at = np.fromiter((self._rows[key] for key in keys), np.int64, len(keys))
        return self._items[at]

    def _append(self, rows: NDArray[np.void]) -> None:
        with self._memory.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = self._memory.stat().st_size
            file.truncate(size - size % self._row.itemsize)  # what was being written when a run was cut off
            file.write(rows.tobytes())

    def _remember(self, rows: NDArray[np.void]) -> None:
        first, count = self._count, len(rows)
        if first + count > len(self._items):
            self._items = np.resize(self._items, (max(2 * len(self._items), first + count), self._depth))
        self._items[first : first + count] = rows["items"]
        for place, digest in enumerate(rows["digest"]):
            self._rows[digest.tobytes()] = first + place
        self._count += count


def predicted(nearest: NDArray[np.int32], seen: frozenset[int] = frozenset()) -> list[int]:
    """The unique set of a chain, in its order: of each description the best item that is not in `seen`.

    `nearest` [n, depth] is of its descriptions, the likeliest first.
    """
    chosen = (next((item for item in row if item not in seen), None) for row in nearest.tolist())
    return list(dict.fromkeys(item for item in chosen if item is not None))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest()
