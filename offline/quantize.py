"""Residual quantisation of item embeddings into semantic IDs, and what makes them unique."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from offline.errors import StageError
from offline.threads import one_thread

BLOCK = 4096  # items compared with a codebook at a time


@dataclass(frozen=True, slots=True)
class Quantization:
    """Codes of N items at L levels, and the codebooks they point into.

    Codebooks divide a space of d dimensions: the embeddings' own (d = D), or a latent space that a network made.
    """

    codes: NDArray[np.int64]  # [N, L]
    codebooks: list[NDArray[np.float32]]  # L of [codes at that level, d]
    latents: NDArray[np.float32]  # [N, d], what was quantised
    decode: Callable[[NDArray[np.float32]], NDArray[np.float32]]  # [n, d] -> embeddings [n, D]
    epochs: list[dict[str, float]] = field(default_factory=list)  # of a network's training: losses by epoch

    def rebuilt(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """The embeddings float32 [N, D] that codes int64 [N, l] stand for; the first l <= L levels are enough."""
        return self.decode(summed(codes, self.codebooks))


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
        codebooks: list[NDArray[np.float32]] = []
        residual = vectors.astype(np.float32)
        with one_thread():
            for level in range(self.levels):
                book = _means(residual, self.codebook, self.iterations, self.seed + level)
                residual = residual - book[nearest(residual, book)]
                codebooks.append(book)
            codes = assign(vectors, codebooks)
        return Quantization(codes, codebooks, vectors, lambda latents: latents)


def assign(vectors: NDArray[np.float32], codebooks: list[NDArray[np.float32]]) -> NDArray[np.int64]:
    """Codes int64 [N, L] of `vectors` [N, d]: at each level the code nearest to what the levels before left over."""
    residual = vectors
    codes: list[NDArray[np.int64]] = []
    for book in codebooks:
        codes.append(nearest(residual, book))
        residual = residual - book[codes[-1]]
    return np.stack(codes, axis=1)


def nearest(vectors: NDArray[np.float32], book: NDArray[np.float32]) -> NDArray[np.int64]:
    """The code of `book` [codes, d] nearest to each of `vectors` [N, d]; of equally near ones the first."""
    wide = book.astype(np.float64)
    half = 0.5 * np.einsum("cd,cd->c", wide, wide)
    found = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), BLOCK):
        rows = vectors[start : start + BLOCK].astype(np.float64)
        found[start : start + BLOCK] = np.argmin(half - rows @ wide.T, axis=1)
    return found


def summed(codes: NDArray[np.int64], codebooks: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The sum float32 [N, d] of the codes [N, l] of the first l levels; a spare code of `make_unique` adds nothing."""
    total = np.zeros((len(codes), codebooks[0].shape[1]), np.float32)
    for column, book in zip(codes.T, codebooks, strict=False):
        known = column < len(book)
        total[known] += book[column[known]]
    return total


def collisions(codes: NDArray[np.int64]) -> int:
    """Items that share their codes with an earlier item."""
    return len(codes) - len(np.unique(codes, axis=0))


def make_unique(found: Quantization, codebook: int) -> NDArray[np.int64]:
    """Codes [N, L] with no two items alike.

    Where several items collide, the nearest keeps its code and the others move to the nearest free last code, or,
    once a prefix is full, to the next nearest code one level up. Near is meant in the codebooks' own space; where a
    level has learnt fewer than `codebook` codes, the spare ones are the last to be taken.

    Raises StageError if the codebooks cannot tell that many items apart.
    """
    codes = found.codes.copy()
    books = [_filled(book, codebook) for book in found.codebooks]
    before = found.latents - summed(codes[:, :-2], found.codebooks)
    error = np.linalg.norm(before - found.codebooks[-2][codes[:, -2]] - found.codebooks[-1][codes[:, -1]], axis=1)
    taken: set[tuple[int, ...]] = set()
    beneath: Counter[tuple[int, ...]] = Counter()  # how many last codes of a prefix are taken
    for item in np.lexsort((np.arange(len(codes)), error)):
        code = tuple(map(int, codes[item]))
        if code in taken:
            code = _free_code(code[:-2], before[item], books, taken, beneath)
            codes[item] = code
        taken.add(code)
        beneath[code[:-1]] += 1
    return codes


def numbered(codes: NDArray[np.int64], codebook: int) -> NDArray[np.int64]:
    """Codes [N, L + 1] with no two items alike: codes [N, L], and which of the items with the same codes it is.

    Raises StageError if more than `codebook` items have the same codes.
    """
    _, group, size = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    if size.max() > codebook:
        raise StageError(
            f"{size.max()} items have the same codes, and one more code tells {codebook} apart: raise "
            "tokenize.codebook or tokenize.levels, or use tokenize.unique = 'nearest'"
        )
    order = np.argsort(group, kind="stable")
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    number = np.empty(len(codes), np.int64)
    number[order] = np.arange(len(codes)) - np.repeat(first, size)
    return np.column_stack([codes, number])


def _means(residual: NDArray[np.float32], codebook: int, iterations: int, seed: int) -> NDArray[np.float32]:
    distinct = len(np.unique(residual.round(6), axis=0))
    means = KMeans(min(codebook, distinct), n_init=1, max_iter=iterations, random_state=seed)
    with warnings.catch_warnings():
        # Residuals that differ by less than float32 tells apart share a code; make_unique sees to that.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means.fit(residual)
    centres: NDArray[np.float32] = means.cluster_centers_.astype(np.float32)
    return centres


def _free_code(
    prefix: tuple[int, ...],
    residual: NDArray[np.float32],
    books: list[NDArray[np.float32]],
    taken: set[tuple[int, ...]],
    beneath: Counter[tuple[int, ...]],
) -> tuple[int, ...]:
    for upper in np.argsort(np.linalg.norm(books[-2] - residual, axis=1), kind="stable").tolist():
        if beneath[*prefix, upper] == len(books[-1]):  # or ten thousand items of one text would take hours
            continue
        rest = residual - books[-2][upper]
        for last in np.argsort(np.linalg.norm(books[-1] - rest, axis=1), kind="stable"):
            code = (*prefix, upper, int(last))
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
