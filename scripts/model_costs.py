"""What each model costs to serve: parameters, size of its graph, time of one request and of requests in batches.

    python -m scripts.model_costs WORK/tokenize-.../codes.npy --recipe beauty

Costs depend on the trie and on sizes, not on what was learnt: weights are untrained, histories and H are random. ONNX
Runtime works in the calling thread, whose processor time is what is measured: other work on the machine does not count.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import onnxruntime as ort
import torch
import typer
from numpy.typing import NDArray

from offline.models.fused import fused_graph, reasoning_width, write_onnx
from offline.models.recommender import Recommender, parameters
from offline.recipe import BACKBONES, Variant, load_recipe, reads_reasoning

STEPS, WIDTH = 5, 384  # K and D
SEEN = 9  # items of a history, and as many excluded


def main(
    codes: Annotated[Path, typer.Argument(help="Semantic IDs of a catalogue, as `scoter tokenize` wrote them.")],
    recipe: Annotated[str, typer.Option(help="Sizes of the models.")] = "beauty",
    models: Annotated[list[str] | None, typer.Option("--model", help="One of them; all, if none is named.")] = None,
    batch: Annotated[int, typer.Option(help="Requests together.")] = 16,
    seconds: Annotated[float, typer.Option(help="For each of the two measurements of a model.")] = 5.0,
) -> None:
    """Print a table with a row for each model."""
    torch.set_num_threads(1)
    settings, catalogue = load_recipe(recipe), np.load(codes)
    random = np.random.default_rng(0)
    print(f"recipe {recipe}, {len(catalogue):,} items, K = {STEPS}, beam {settings.model.beam}, one thread")
    print(f"| model | parameters | graph, MB | one request, ms | requests/s and core in batches of {batch} |")
    print("| --- | --- | --- | --- | --- |")
    variants: tuple[Variant, ...] = get_args(Variant)
    for variant in variants:
        if models and variant not in models:
            continue
        torch.manual_seed(0)
        shape = (STEPS, WIDTH) if reads_reasoning(variant) else None
        features = WIDTH if settings.model.features and BACKBONES[variant] != "tiger" else 0
        model = Recommender(settings, variant, catalogue, shape, features).eval()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(fused_graph(model, "projected", settings.search), "projected", path)
            alone = _seconds(path, _requests(model, 1, random), seconds)
            together = _seconds(path, _requests(model, batch, random), seconds)
            print(
                f"| {variant} | {parameters(model):,} | {path.stat().st_size / 1e6:.1f} "
                f"| {1e3 * np.median(alone):.2f} | {batch / np.median(together):,.0f} |",
                flush=True,
            )


def _requests(model: Recommender, batch: int, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    history = np.zeros((batch, model.recipe.length), np.int64)
    history[:, -SEEN:] = random.integers(1, len(model.item_codes), (batch, SEEN))
    feeds: dict[str, NDArray[Any]] = {
        "history": history,
        "exclude": history[:, -SEEN:],
        "allowed": np.full((batch, 1), 0xFF, np.uint8),
    }
    if model.adapter is not None:
        feeds["reasoning"] = random.normal(size=(batch, STEPS, reasoning_width(model, "projected"))).astype(np.float32)
        feeds["has_reasoning"] = np.ones(batch, np.bool_)
    return feeds


def _seconds(path: Path, feeds: dict[str, NDArray[Any]], seconds: float) -> list[float]:
    """Processor time of each call in seconds, for about that long, after some to warm up."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(10):
        session.run(None, feeds)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.thread_time()
        session.run(None, feeds)
        taken.append(time.thread_time() - start)
    return taken


if __name__ == "__main__":
    typer.run(main)
