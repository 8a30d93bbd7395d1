"""How well semantic IDs use their codebooks, as figures and as a page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from offline.errors import StageError
from offline.page import html, picture, table
from offline.quantize import Quantization

COLLAPSED = 0.1  # share of the codes in use, of those that the items could use, below which a level says too little
CROWDED = 0.5  # share of items whose codes are another's, above which the codes were not made for these items


def level_usage(found: Quantization, vectors: NDArray[np.float32]) -> list[dict[str, Any]]:
    """What each level adds, before any repair.

    Codes in use, their perplexity (as many equally used ones would say as much), and the squared error of the
    embeddings [N, D] rebuilt from the levels so far, as a share of their square.
    """
    size = float(np.mean(np.square(vectors, dtype=np.float64)))
    rows = []
    for level, column in enumerate(found.codes.T, start=1):
        share = np.bincount(column) / len(column)
        used = share[share > 0]
        rows.append(
            {
                "level": level,
                "codes_in_use": len(used),
                "perplexity": round(float(np.exp(-np.sum(used * np.log(used)))), 2),
                "reconstruction_error": round(_error(found, found.codes[:, :level], vectors) / size, 4),
            }
        )
    return rows


def reconstruction_error(found: Quantization, codes: NDArray[np.int64], vectors: NDArray[np.float32]) -> float:
    """The squared error of embeddings [N, D] rebuilt from codes [N, L], as a share of their square."""
    return round(_error(found, codes, vectors) / float(np.mean(np.square(vectors, dtype=np.float64))), 4)


def check_collapse(found: Quantization, vectors: NDArray[np.float32], codebook: int) -> None:
    """Raises StageError if a level uses a small part of the codes that there are differences to tell apart with."""
    different = len(np.unique(vectors, axis=0))
    smallest = max(1e-3 * float(found.latents.std(axis=0).max()), 1e-30)  # less is nothing left over
    residual = found.latents
    for level, book in enumerate(found.codebooks):
        column = found.codes[:, level]
        used = len(np.unique(column))
        if used < COLLAPSED * min(codebook, different):
            raise StageError(
                f"level {level + 1} of the semantic IDs has collapsed: {len(column)} items use {used} of {codebook} "
                "codes. Lower tokenize.rqvae.learning_rate or tokenize.codebook, train for more tokenize.rqvae.epochs, "
                "or use tokenize.quantizer = 'rqkmeans'"
            )
        residual = residual - book[column]
        different = len(np.unique((residual / smallest).round(), axis=0))


def write_usage_page(path: Path, name: str, summary: dict[str, Any], found: Quantization) -> None:
    """Write the page of a `tokenize` run; `summary` is what its summary.json holds."""
    facts = {key: value for key, value in summary.items() if key not in {"levels", "warnings"}}
    parts = [
        f"<h1>Semantic IDs of {escape(name)}</h1>",
        *(f"<p><strong>Warning:</strong> {escape(warning)}</p>" for warning in summary["warnings"]),
        table([{"what": key.replace("_", " "), "value": value} for key, value in facts.items()]),
        "<h2>By level, before codes were made unique</h2>",
        table(summary["levels"]),
        picture(_shares(found), "Share of the items by code, the most used code first; the dotted line is an even use"),
    ]
    if found.epochs:
        parts.append(picture(_losses(found.epochs), "Training of RQ-VAE: mean squared errors by epoch"))
    path.write_text(html(f"Semantic IDs of {name}", parts), encoding="utf-8")


def _error(found: Quantization, codes: NDArray[np.int64], vectors: NDArray[np.float32]) -> float:
    return float(np.mean(np.square(vectors - found.rebuilt(codes), dtype=np.float64)))


def _shares(found: Quantization) -> Figure:
    figure, axes = plt.subplots(figsize=(8, 3.2))
    for level, column in enumerate(found.codes.T, start=1):
        share = np.sort(np.bincount(column, minlength=len(found.codebooks[level - 1])) / len(column))[::-1]
        axes.plot(np.arange(1, len(share) + 1), share, label=f"level {level}")
    even = max(len(book) for book in found.codebooks)
    axes.axhline(1 / even, color="#888888", linestyle=":")
    axes.set_xlabel("code, by use")
    axes.set_ylabel("share of items")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _losses(epochs: list[dict[str, float]]) -> Figure:
    figure, axes = plt.subplots(figsize=(8, 3.2))
    for name in ("reconstruction", "quantization"):
        axes.plot([row["epoch"] for row in epochs], [row[name] for row in epochs], label=name)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
