"""Stage `tokenize` (A.1, Table 7): item embeddings -> unique semantic IDs.

Output folder:

    embeddings.npy     float32 [N, D], row i - 1 for item i: its text in the encoder's space, unit length
    collaborative.npy  float32 [N, width]: only if it is these that were quantised
    codes.npy          int64 [N, L], unique rows; L is one more than `levels` with `unique = "extra"`
    epochs.jsonl       RQ-VAE only: one object an epoch, with its losses
    summary.json       what was quantised and how; collisions, codes in use and reconstruction error by level
    report.html        the same, to look at

The same recipe, data and machine give the same files, whatever the number of threads.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from offline.collaborative import collaborative_embeddings, neighbour_means
from offline.encoder import SentenceEncoder
from offline.errors import StageError
from offline.prepare import Dataset, dataset_name, load_dataset
from offline.progress import progress
from offline.quantize import Quantizer, ResidualKMeans, collisions, make_unique, numbered
from offline.recipe import TokenizeRecipe
from offline.rqvae import ResidualVAE
from offline.stage import Stage, console, run_stage, write_json, write_rows
from offline.usage import CROWDED, check_collapse, level_usage, reconstruction_error, write_usage_page

VERSION = 2
SAME = 1e-6  # components of unit vectors that differ by less are rounding
CHUNK = 1024  # texts between two moves of the progress bar


def tokenize(work: Path, prepared: Stage, recipe: TokenizeRecipe) -> Stage:
    """Run the stage.

    Raises StageError if the items cannot be told apart, if a codebook collapses, or if there are more items than codes;
    TrainingError if the loss of RQ-VAE is not finite.
    """
    settings = recipe.model_dump()
    if recipe.quantizer == "rqvae":
        settings["dead_codes"] = "whole batch"  # are moved into; it was the last one, which may be of one item
    return run_stage(work, "tokenize", VERSION, settings, [prepared], lambda folder: _build(folder, prepared, recipe))


def load_codes(folder: Path, num_items: int | None = None) -> NDArray[np.int64]:
    """Semantic IDs int64 [N, L]. Raises StageError if they are not those of `num_items` items."""
    codes: NDArray[np.int64] = np.load(folder / "codes.npy", allow_pickle=False)
    if num_items is not None and len(codes) != num_items:
        raise StageError(
            f"{folder} holds semantic IDs of {len(codes)} items, the data set has {num_items}: they were not made of it"
        )
    return codes


def load_embeddings(folder: Path, num_items: int) -> NDArray[np.float32]:
    """Text embeddings float32 [N, D]. Raises StageError if they are not those of `num_items` items."""
    path = folder / "embeddings.npy"
    vectors: NDArray[np.float32] = np.load(path, allow_pickle=False)
    if vectors.ndim != 2 or len(vectors) != num_items:
        raise StageError(
            f"{path} holds an array of {list(vectors.shape)}, the data set has {num_items} items: it was not made of "
            f"it. Remove {folder} and run again"
        )
    return vectors


def codes_digest(folder: Path) -> str:
    """What tells one set of semantic IDs from another: weights mean nothing with any but their own."""
    return hashlib.sha256(load_codes(folder).tobytes()).hexdigest()


def _build(folder: Path, prepared: Stage, recipe: TokenizeRecipe) -> None:
    dataset = load_dataset(prepared.folder)
    without = np.array([not item.text for item in dataset.items])
    source = _source(recipe.embeddings, without)
    warning = _text_warning(source, without)
    warnings = [warning] if warning else []
    texts = _text_embeddings(folder, dataset, recipe)
    if source == "collaborative":
        vectors = collaborative_embeddings(dataset.trainings(), dataset.num_items, recipe.width, recipe.seed)
        np.save(folder / "collaborative.npy", vectors)
    else:
        vectors = with_neighbours(dataset, texts)
    _check_vectors(vectors, source)
    found = _quantizer(folder, recipe).fit(vectors)
    check_collapse(found, vectors, recipe.codebook)
    if recipe.unique == "nearest":
        codes = make_unique(found, recipe.codebook)
    else:
        codes = numbered(found.codes, recipe.codebook)
    shared = collisions(found.codes)
    if shared > CROWDED * len(codes):
        warnings.append(
            f"{shared} of {len(codes)} items had the codes of another before they were made unique: raise "
            "tokenize.codebook or tokenize.levels, or look for items with the same text"
        )
    summary: dict[str, Any] = {
        "embeddings": source,
        "encoder": recipe.encoder if source == "text" else None,
        "width": int(vectors.shape[1]),
        "items": len(codes),
        "items_without_text": int(without.sum()),
        "items_without_place": int((~vectors.any(axis=1)).sum()),
        "quantizer": recipe.quantizer,
        "codebook": recipe.codebook,
        "unique": recipe.unique,
        "collisions": shared,
        "collision_rate": round(shared / len(codes), 4),
        "reconstruction_error": reconstruction_error(found, found.codes, vectors),
        "reconstruction_error_unique": reconstruction_error(found, codes, vectors),
        "levels": level_usage(found, vectors),
        "warnings": warnings,
    }
    np.save(folder / "codes.npy", codes)
    if found.epochs:
        write_rows(folder / "epochs.jsonl", found.epochs)
    write_usage_page(folder / "report.html", dataset_name(prepared.folder), summary, found)
    write_json(folder / "summary.json", summary)
    _checkpoint(folder).unlink(missing_ok=True)
    for warning in warnings:
        console.print(f"  [yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    console.print(f"  {len(codes)} items, {codes.shape[1]} codes each, {shared} collisions resolved")


def with_neighbours(dataset: Dataset, texts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Text embeddings [N, D], and what was bought beside it in place of an item without text."""
    without = np.array([not item.text for item in dataset.items])
    return neighbour_means(dataset.trainings(), texts, without) if without.any() else texts


def _source(wanted: Literal["auto", "text", "collaborative"], without: NDArray[np.bool_]) -> str:
    if wanted == "text" and without.all():
        raise StageError(
            f"none of the {len(without)} items has a text, and tokenize.embeddings = 'text': bring a .item file with "
            "texts, or use 'collaborative' or 'auto'"
        )
    if wanted == "auto":
        return "collaborative" if without.all() else "text"
    return wanted


def _text_warning(source: str, without: NDArray[np.bool_]) -> str | None:
    missing = f"{without.sum()} of {len(without)} items have no text"
    if source == "collaborative":
        return f"semantic IDs tell who bought what near what in training, not what items are ({missing})"
    if without.any():
        return f"{missing}: they are placed among the items bought near them in training"
    return None


def _text_embeddings(folder: Path, dataset: Dataset, recipe: TokenizeRecipe) -> NDArray[np.float32]:
    path = folder / "embeddings.npy"
    if not path.is_file():  # else of a run that was cut off while quantising
        # Later stages read texts of all items in this space; where there is none, the title names the id.
        texts = [item.text or item.title for item in dataset.items]
        encoder = SentenceEncoder(recipe.encoder, recipe.precision)
        parts = []
        with progress() as bars:
            bar = bars.add_task("encoding", total=len(texts))
            for start in range(0, len(texts), CHUNK):
                parts.append(encoder.encode(texts[start : start + CHUNK]))
                bars.advance(bar, len(parts[-1]))
        temporary = folder / "embeddings.partial.npy"
        np.save(temporary, np.concatenate(parts))
        temporary.replace(path)
    return load_embeddings(folder, dataset.num_items)


def _check_vectors(vectors: NDArray[np.float32], source: str) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise StageError(
            f"the embeddings of {len(broken)} items are not finite, the first of them item {broken[0] + 1}: try "
            "tokenize.precision = 'float32' or another tokenize.encoder"
        )
    if len(vectors) > 1 and np.abs(vectors - vectors[0]).max() < SAME:
        cause = (
            "no two items were bought by one user in training: bring more data or texts"
            if source == "collaborative"
            else "look at the texts and at tokenize.encoder"
        )
        raise StageError(f"all {len(vectors)} items have the same embedding, which no codes can tell apart: {cause}")
    if not vectors.any():  # the only item, which nothing else was bought near
        raise StageError("the data set has one item and no text of it: bring more data or texts")


def _quantizer(folder: Path, recipe: TokenizeRecipe) -> Quantizer:
    if recipe.quantizer == "rqvae":
        return ResidualVAE(recipe.levels, recipe.codebook, recipe.seed, recipe.rqvae, _checkpoint(folder))
    return ResidualKMeans(recipe.levels, recipe.codebook, recipe.iterations, recipe.seed)


def _checkpoint(folder: Path) -> Path:
    return folder / "rqvae.pt"
