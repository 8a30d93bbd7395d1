"""What each layout and dtype of the H blob costs: bytes a user, Recall@10 and NDCG@10 on the test split.

    python -m scripts.blob_formats WORK --recipe beauty --users 4000

WORK is the folder of a finished run. Every user's test H goes through the blob codec itself and then through the model
that read it in training; histories are masked, the beam is the one that serves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track

from offline.measure import chosen
from offline.metrics import ranks, summary
from offline.prepare import load_dataset
from offline.ranking import Asked
from offline.reason import load_reasoning
from offline.recipe import load_recipe
from offline.scoring import History
from offline.stage import Stage
from offline.train import load_model
from service.release.blob import BlobFormat, Dtype, Layout, Reasoning, decode, encode

BATCH = 256


def main(
    work: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    recipe: Annotated[str, typer.Option(help="The recipe it was run with.")] = "beauty",
    users: Annotated[int, typer.Option(help="Test users, drawn at random; 0: all.")] = 4000,
) -> None:
    """Print one line per layout and dtype."""
    chosen_recipe = load_recipe(recipe)
    settings, search = chosen_recipe.model, chosen_recipe.search
    dataset = load_dataset(_stage(work, "prepare").folder)
    model = load_model(_stage(work, "train-scoter_h").folder, _stage(work, "tokenize"))
    if model.adapter is None:
        raise typer.BadParameter(f"the model in {work} reads no reasoning")
    model.eval()
    asked = Asked.of(dataset, "test", chosen(dataset, users))
    history = History.of(asked, settings.length, load_reasoning(_stage(work, "reason").folder, "test"))
    raw = torch.from_numpy(cast("NDArray[np.float16]", history.reasoning).astype(np.float32))
    with torch.inference_mode():
        projected = model.project(raw)
    best: NDArray[np.int64] | None = None
    print(f"{len(asked.users)} test users, beam {settings.beam}")
    for layout, matrices in ((Layout.projected, projected.numpy()), (Layout.raw, raw.numpy())):
        for dtype in ("float32", "float16", "int8"):
            stored, size = _through_the_codec(matrices, layout, dtype)
            found: list[NDArray[np.int64]] = []
            for start in track(range(0, len(asked.users), BATCH), f"{layout.name} {dtype}", transient=True):
                rows = slice(start, start + BATCH)
                steps = torch.from_numpy(stored[rows])
                with torch.inference_mode():
                    beam = model.recommend(
                        torch.from_numpy(history.items[rows]),
                        torch.from_numpy(history.excluded(rows)),
                        settings.beam,
                        model.project(steps) if layout is Layout.raw else steps,
                        torch.ones(len(steps), dtype=torch.bool),
                        search,
                    )
                found.append(beam.items[:, :10].numpy())
            top = np.concatenate(found)
            best = top if best is None else best
            score = summary(ranks(top, history.targets))
            error = np.linalg.norm(stored - matrices, axis=-1) / np.linalg.norm(matrices, axis=-1)
            print(
                f"{layout.name:9} {dtype:8} {size:6} bytes  recall@10 {score['recall@10']:.4f}  "
                f"ndcg@10 {score['ndcg@10']:.4f}  same top 10 as projected float32 {(top == best).all(1).mean():.4f}  "
                f"relative error of a step {error.mean():.5f}"
            )


def _through_the_codec(matrices: NDArray[np.float32], layout: Layout, dtype: Dtype) -> tuple[NDArray[np.float32], int]:
    """H [U, K, width] as it comes out of its blobs, and the size of one."""
    fmt = BlobFormat("measured", layout, dtype, matrices.shape[1], matrices.shape[2])
    out = np.empty_like(matrices)
    size = 0
    for row, matrix in enumerate(matrices):
        blob = encode(matrix, fmt, "u", history_length=0, written=0)
        out[row] = cast("Reasoning", decode(blob, fmt, "u")).matrix
        size = len(blob)
    return out, size


def _stage(work: Path, name: str) -> Stage:
    """The one finished output of a stage."""
    found = [p for p in work.glob(f"{name}-*") if p.suffix != ".partial" and "refit" not in p.name]
    if len(found) != 1:
        raise typer.BadParameter(f"{work} holds {len(found)} finished outputs of {name}, one is needed")
    return Stage(name, found[0].name.rpartition("-")[2], found[0])


if __name__ == "__main__":
    typer.run(main)
