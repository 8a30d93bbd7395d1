"""Residual quantisation of item embeddings into semantic IDs, and the repair that makes them unique."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from offline.errors import StageError


@dataclass(frozen=True, slots=True)
class Quantization:
    """Codes of N items at L levels, and the codebooks they point into."""

    codes: NDArray[np.int64]  # [N, L]
    codebooks: list[NDArray[np.float32]]  # L of [codes at that level, D]


class Quantizer(Protocol):
    """Learns codebooks and assigns codes; `vectors` is float32 [N, D]."""

    def fit(self, vectors: NDArray[np.float32]) -> Quantization:
        """Quantise; two items may get the same codes."""
        ...


@dataclass(frozen=True, slots=True)
class ResidualKMeans:
    """RQ-KMeans: k-means on the embeddings, then on what each level leaves over."""

    levels: int
    codebook: int
    iterations: int
    seed: int

    def fit(self, vectors: NDArray[np.float32]) -> Quantization:
        """Quantise greedily, level by level."""
        residual = vectors.astype(np.float32).copy()
        codes: list[NDArray[np.int64]] = []
        codebooks: list[NDArray[np.float32]] = []
        for level in range(self.levels):
            distinct = len(np.unique(residual.round(6), axis=0))
            means = KMeans(
                min(self.codebook, distinct),
                n_init=1,
                max_iter=self.iterations,
                random_state=self.seed + level,
            )
            with warnings.catch_warnings():
                # Residuals that differ by less than float32 tells apart share a code; make_unique sees to that.
                warnings.simplefilter("ignore", ConvergenceWarning)
                means.fit(residual)
            assigned = means.labels_.astype(np.int64)
            centres = means.cluster_centers_.astype(np.float32)
            residual = residual - centres[assigned]
            codes.append(assigned)
            codebooks.append(centres)
        return Quantization(np.stack(codes, axis=1), codebooks)


def collisions(codes: NDArray[np.int64]) -> int:
    """Items that share their codes with an earlier item."""
    return len(codes) - len(np.unique(codes, axis=0))


def make_unique(vectors: NDArray[np.float32], found: Quantization, codebook: int) -> NDArray[np.int64]:
    """Codes [N, L] with no two items alike.

    Where several items collide, the nearest keeps its code and the others move to the nearest free last code, or,
    once a prefix is full, to the next nearest code one level up.

    Raises StageError if the codebooks cannot tell that many items apart.
    """
    codes = found.codes.copy()
    books = [_filled(book, codebook) for book in found.codebooks]
    before = vectors - sum(book[codes[:, level]] for level, book in enumerate(found.codebooks[:-2]))
    error = np.linalg.norm(before - found.codebooks[-2][codes[:, -2]] - found.codebooks[-1][codes[:, -1]], axis=1)
    taken: set[tuple[int, ...]] = set()
    for item in np.lexsort((np.arange(len(codes)), error)):
        code = tuple(map(int, codes[item]))
        if code in taken:
            code = _free_code(code[:-2], before[item], books, taken)
            codes[item] = code
        taken.add(code)
    return codes


def _free_code(
    prefix: tuple[int, ...],
    residual: NDArray[np.float32],
    books: list[NDArray[np.float32]],
    taken: set[tuple[int, ...]],
) -> tuple[int, ...]:
    for upper in np.argsort(np.linalg.norm(books[-2] - residual, axis=1), kind="stable"):
        rest = residual - books[-2][upper]
        for last in np.argsort(np.linalg.norm(books[-1] - rest, axis=1), kind="stable"):
            code = (*prefix, int(upper), int(last))
            if code not in taken:
                return code
    share = f" share the codes {list(prefix)}" if prefix else ""
    raise StageError(
        f"more than {len(books[-2]) * len(books[-1])} items{share}: raise tokenize.codebook or tokenize.levels"
    )


def _filled(book: NDArray[np.float32], codebook: int) -> NDArray[np.float32]:
    """A level with fewer distinct residuals than codes still has all its codes to give; the spare ones lie far out."""
    spare = codebook - len(book)
    if spare <= 0:
        return book
    far = np.full((spare, book.shape[1]), 1e3, np.float32) * np.arange(1, spare + 1, dtype=np.float32)[:, None]
    return np.concatenate([book, far])
