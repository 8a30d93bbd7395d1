"""Stage `tokenize` (A.1, Table 7): item texts -> embeddings -> unique semantic IDs.

Output folder:

    embeddings.npy  float32 [N, D], unit length, row i - 1 for item i
    codes.npy       int64 [N, L], unique rows
    summary.json    encoder, collisions before repair, codes in use by level, reconstruction error
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from offline.encoder import SentenceEncoder
from offline.errors import StageError
from offline.prepare import load_dataset
from offline.quantize import Quantizer, ResidualKMeans, collisions, make_unique
from offline.recipe import TokenizeRecipe
from offline.stage import Stage, console, run_stage, write_json

VERSION = 1
CHUNK = 1024  # texts between two moves of the progress bar


def tokenize(work: Path, prepared: Stage, recipe: TokenizeRecipe) -> Stage:
    """Run the stage."""
    return run_stage(
        work, "tokenize", VERSION, recipe.model_dump(), [prepared], lambda folder: _build(folder, prepared, recipe)
    )


def load_codes(folder: Path) -> NDArray[np.int64]:
    """Semantic IDs int64 [N, L]."""
    codes: NDArray[np.int64] = np.load(folder / "codes.npy", allow_pickle=False)
    return codes


def load_embeddings(folder: Path, num_items: int) -> NDArray[np.float32]:
    """Text embeddings float32 [N, D]. Raises StageError if they are not those of `num_items` items."""
    path = folder / "embeddings.npy"
    vectors: NDArray[np.float32] = np.load(path, allow_pickle=False)
    if len(vectors) != num_items:
        raise StageError(f"{path} has {len(vectors)} rows, the data set {num_items} items: they were not made of it")
    return vectors


def codes_digest(folder: Path) -> str:
    """What tells one set of semantic IDs from another: weights mean nothing with any but their own."""
    return hashlib.sha256(load_codes(folder).tobytes()).hexdigest()


def _build(folder: Path, prepared: Stage, recipe: TokenizeRecipe) -> None:
    items = load_dataset(prepared.folder).items
    path = folder / "embeddings.npy"
    if path.is_file():  # of a run that was cut off while quantising
        vectors: NDArray[np.float32] = np.load(path)
    else:
        # An item with no text still needs a place of its own: its id is all there is to tell it by.
        texts = [item.text or item.title for item in items]
        encoder = SentenceEncoder(recipe.encoder, recipe.precision)
        chunks = range(0, len(texts), CHUNK)
        vectors = np.concatenate(
            [
                encoder.encode(texts[start : start + CHUNK])
                for start in track(chunks, "  encoding", console=console, transient=True)
            ]
        )
        temporary = folder / "embeddings.partial.npy"
        np.save(temporary, vectors)
        temporary.replace(path)
    quantizer: Quantizer = ResidualKMeans(recipe.levels, recipe.codebook, recipe.iterations, recipe.seed)
    found = quantizer.fit(vectors)
    codes = make_unique(vectors, found, recipe.codebook)
    rebuilt = sum(book[found.codes[:, level]] for level, book in enumerate(found.codebooks))
    repaired = collisions(found.codes)
    np.save(folder / "codes.npy", codes)
    write_json(
        folder / "summary.json",
        {
            "encoder": recipe.encoder,
            "width": int(vectors.shape[1]),
            "items": len(items),
            "collisions_repaired": repaired,
            "codes_in_use": [len(np.unique(column)) for column in codes.T],
            "reconstruction_error": round(float(np.mean((vectors - rebuilt) ** 2) / np.mean(vectors**2)), 4),
        },
    )
    console.print(f"  {len(items)} items, {repaired} collisions repaired")
