"""Stage `export`: trained models, catalogue, H and warm-up requests -> one release.

Writes `<work>/releases/<release id>/`. The release appears there by one rename, complete and checked; every graph
has been run in ONNX Runtime against the PyTorch model on real histories before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.markup import escape

from offline.arrays import new_array
from offline.batches import left_pad
from offline.errors import StageError
from offline.models.fused import FusedGraph, fused_graph, reasoning_width, write_onnx
from offline.models.recommender import Recommender
from offline.prepare import Dataset, dataset_name, load_dataset
from offline.publish import HISTORIES, USERS, latest_release
from offline.reason.output import load_reasoning, load_steps, load_template
from offline.recipe import BACKBONES, Recipe, Variant, reads_reasoning
from offline.stage import Stage, console, finished, read_json, run_stage
from offline.tokenize import load_codes
from offline.train import load_model
from offline.trie import packed_alive
from service.engine.tensors import expected_inputs, expected_outputs
from service.release.catalogue import Catalogue, Item
from service.release.manifest import (
    FILE_NAME,
    SCHEMA_VERSION,
    DatasetEntry,
    Manifest,
    ModelEntry,
    ReasoningEntry,
    content_id,
    file_entry,
)
from service.release.release import Release
from service.schemas import RecommendRequest
from service.settings import HISTORY_CEILING

VERSION = 5
PARITY_ROWS = 64
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Parts:
    """The stages a release is made of."""

    prepared: Stage
    tokens: Stage
    reasoned: Stage
    trained: Mapping[Variant, Stage]  # by model name
    evaluated: Stage


def export(work: Path, parts: Parts, recipe: Recipe) -> Path:
    """Run the stage; return the release's folder. Raises StageError if a graph disagrees with its model."""
    upstream = [parts.prepared, parts.tokens, parts.reasoned, *parts.trained.values(), parts.evaluated]
    settings = {
        "recipe": recipe.export.model_dump(),
        "search": recipe.search.model_dump(),
        "models": list(parts.trained),
    }
    releases = work / "releases"

    def build(folder: Path) -> None:
        releases.mkdir(exist_ok=True)
        # Named for the stage, which nobody else is at: what a run that was killed left there goes with the next one.
        unfinished = releases / f".{folder.name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            manifest = _write_release(unfinished, parts, recipe)
            Release.open(unfinished)  # what the service will do
            final = releases / manifest.release_id
            if not final.is_dir():
                unfinished.rename(final)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        (folder / "release").write_text(manifest.release_id + "\n", encoding="ascii")

    stage = run_stage(work, "export", VERSION, settings, upstream, build)
    path = releases / (stage.folder / "release").read_text(encoding="ascii").strip()
    if not path.is_dir():
        raise StageError(f"{path} is gone: remove {stage.folder} and export again")
    if latest_release(work) != path:  # `publish` takes what was asked for last, also where it was there already
        (stage.folder / "release").touch()
    console.print(f"  release [bold]{path.name}[/] [dim]({escape(str(path))})[/]", soft_wrap=True)
    return path


def _write_release(release: Path, parts: Parts, recipe: Recipe) -> Manifest:
    dataset = load_dataset(parts.prepared.folder)
    report = read_json(parts.evaluated.folder / "report.json")
    popularity = np.bincount(np.concatenate(dataset.trainings()), minlength=dataset.num_items + 1)[1:]
    codes = load_codes(parts.tokens.folder, dataset.num_items)
    Catalogue(
        [Item(i.id, i.title, i.attributes) for i in dataset.items],
        codes.astype(np.uint16),
        (popularity / popularity.sum()).astype(np.float32),
    ).write(release / "catalogue")
    written = finished(parts.reasoned)
    models = [
        _write_model(release, name, load_model(stage.folder, parts.tokens), dataset, parts, recipe, report, written)
        for name, stage in parts.trained.items()
    ]
    _write_users(release, dataset, parts)
    _write_warmup(release, dataset, recipe.export.warmup_requests)
    (release / "report").mkdir()
    for name in ("report.json", "report.html"):
        shutil.copy(parts.evaluated.folder / name, release / "report" / name)
    files = sorted(p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file())
    draft = Manifest(
        schema_version=SCHEMA_VERSION,
        release_id="",
        dataset=DatasetEntry(
            name=dataset_name(parts.prepared.folder),
            users=len(dataset.users),
            items=dataset.num_items,
            interactions=sum(len(s) for s in dataset.sequences),
        ),
        levels=codes.shape[1],
        codebook=recipe.tokenize.codebook,
        template=load_template(parts.reasoned.folder),
        encoder=recipe.reason.encoder,
        models=models,
        default_model=next((name for name in parts.trained if reads_reasoning(name)), next(iter(parts.trained))),
        files={name: file_entry(release / name) for name in files},
    )
    manifest = draft.model_copy(update={"release_id": content_id(draft)})
    (release / FILE_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _write_model(
    release: Path,
    name: str,
    model: Recommender,
    dataset: Dataset,
    parts: Parts,
    recipe: Recipe,
    report: dict[str, Any],
    written: int,
) -> ModelEntry:
    layout = recipe.export.layout
    graph = fused_graph(model, layout, recipe.search)
    file = f"models/{name}/1/model.onnx"
    path = release / file
    path.parent.mkdir(parents=True)
    console.print(f"  exporting {name}")
    write_onnx(graph, layout, path)
    reasoning = None
    if model.adapter is not None:
        reasoning = ReasoningEntry(
            name=name if layout == "projected" else "raw",
            layout=layout,
            dtype=recipe.export.dtype,
            steps=int(model.adapter.position.shape[0]),
            width=reasoning_width(model, layout),
            written=written,
            file=f"reasoning/{name if layout == 'projected' else 'raw'}.npy",
        )
        _write_reasoning(release / reasoning.file, model, load_reasoning(parts.reasoned.folder, "serve"), reasoning)
    _check_parity(path, name, graph, reasoning, dataset)
    entry = ModelEntry(
        name=name,
        backbone=BACKBONES[model.variant],
        file=file,
        history_length=recipe.model.length,
        beam=recipe.model.beam,
        inputs=[],
        outputs=[],
        reasoning=reasoning,
        metrics=_metrics(report, name),
    )
    return entry.model_copy(update={"inputs": expected_inputs(entry), "outputs": expected_outputs(entry)})


def _metrics(report: dict[str, Any], name: str) -> dict[str, float]:
    """The model's own line of the report: test split, training labels, history masked, beam as served."""
    row = next(
        r
        for r in report["results"]
        if r["model"] == name and r["labels"] == "train" and r["history"] == "masked" and r["scoring"] != "exact"
    )
    return {key: value for key, value in row.items() if "@" in key}


def _write_reasoning(path: Path, model: Recommender, raw: NDArray[np.float16], entry: ReasoningEntry) -> None:
    """H of every user, [U, K, width]; what int8 leaves of it is decided where blobs are written."""
    assert model.adapter is not None
    path.parent.mkdir(exist_ok=True)
    if path.is_file():  # raw H, written for another model of this release
        return
    dtype = "float16" if entry.dtype == "int8" else entry.dtype
    out = new_array(path, dtype, (len(raw), entry.steps, entry.width))
    for start in range(0, len(raw), 4096):
        part = raw[start : start + 4096].astype(np.float32)
        if entry.layout == "projected":
            with torch.inference_mode():
                part = model.project(torch.from_numpy(part)).numpy()
        out[start : start + 4096] = part.astype(out.dtype)
    out.flush()


def _check_parity(path: Path, name: str, graph: FusedGraph, reasoning: ReasoningEntry | None, dataset: Dataset) -> None:
    """The same items and scores from ONNX Runtime and PyTorch, on real histories of every length."""
    random = np.random.default_rng(3)
    users = random.choice(len(dataset.users), min(PARITY_ROWS, len(dataset.users)), replace=False)
    histories = [dataset.sequences[u][: random.integers(1, len(dataset.sequences[u]) + 1)] for u in users]
    length = graph.model.recipe.length
    feeds: dict[str, NDArray[Any]] = {"history": left_pad(histories, length), "exclude": left_pad(histories, length)}
    if reasoning is not None:
        steps = random.normal(size=(len(users), reasoning.steps, reasoning.width)).astype(np.float32)
        if reasoning.layout == "raw":  # as an encoder writes them: scores that are many times as large differ by more
            steps /= np.linalg.norm(steps, axis=2, keepdims=True)
        feeds["reasoning"] = steps
        feeds["has_reasoning"] = random.random(len(users)) < 0.5
    eligible = np.arange(1, dataset.num_items + 1) % 7 < 3  # as a campaign would choose: at random
    alive = packed_alive(graph.model.trie, eligible)
    feeds["allowed"] = np.where(random.random((len(users), 1)) < 0.5, alive, np.uint8(0xFF))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    item, score, valid, *explained = session.run(None, feeds)
    with torch.inference_mode():
        expected = [t.numpy() for t in graph(**{key: torch.from_numpy(value) for key, value in feeds.items()})]
    if not (valid == expected[2]).all():
        raise StageError(f"{name}: the exported graph and the model disagree on how many items are valid")
    apart = float(np.abs(score[valid] - expected[1][valid]).max(initial=0.0))  # who has had everything gets nothing
    if apart > TOLERANCE:
        raise StageError(f"{name}: scores of the exported graph are {apart:.2g} from the model's, allowed {TOLERANCE}")
    if explained and float(np.abs(explained[0] - expected[3]).max()) > TOLERANCE:
        raise StageError(f"{name}: the exported graph and the model disagree on the attention of the steps")
    # Items whose scores tie within rounding may change places.
    moved = (item != expected[0]) & valid
    if moved.any():
        ranked = np.where(valid, expected[1], np.finfo(np.float32).min)
        gaps = np.abs(np.diff(ranked, axis=1, append=-np.inf, prepend=np.inf))
        tied = np.minimum(gaps[:, :-1], gaps[:, 1:]) < TOLERANCE
        if (moved & ~tied).any():
            raise StageError(f"{name}: the exported graph and the model rank different items")


def _write_users(release: Path, dataset: Dataset, parts: Parts) -> None:
    """What publishing puts beside H: everything each user has had, and the steps as text."""
    steps = load_steps(parts.reasoned.folder, "serve")
    (release / "reasoning").mkdir(exist_ok=True)
    with (release / USERS).open("w", encoding="utf-8") as out:
        for user, sequence, texts in zip(dataset.users, dataset.sequences, steps, strict=True):
            row = {"user": user, "history": [dataset.items[i - 1].id for i in sequence], "steps": texts}
            out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    # Not when chains were written: other chains about yesterday's data must not take today's purchases out of a store.
    (release / HISTORIES).write_text(json.dumps({"read": finished(parts.prepared)}) + "\n", encoding="utf-8")


def _write_warmup(release: Path, dataset: Dataset, count: int) -> None:
    """Requests as they will come: known users, their histories in the request, strangers.

    Whom or what nobody can ask for, as an id or a value is longer than a request may hold, is left out: the service
    serves no release whose own requests it would refuse.
    """
    random = np.random.default_rng(4)
    users = random.choice(len(dataset.users), min(count, len(dataset.users)), replace=False)
    (release / "warmup").mkdir()
    with (release / "warmup" / "requests.jsonl").open("w", encoding="utf-8") as out:
        for number, user in enumerate(users):
            request: dict[str, Any] = {"user_id": dataset.users[user]}
            if number % 3:  # the store may not hold users yet when the service warms up
                request["history"] = [dataset.items[i - 1].id for i in dataset.sequences[user][-HISTORY_CEILING:]]
            if number % 4 == 3:
                request["reasoning"] = False
            latest = dataset.items[dataset.sequences[user][-1] - 1].attributes
            if number % 5 == 4 and latest:
                column, values = next(iter(latest.items()))
                request["filters"] = {"allow": {column: values[:1]}} if values else {}
            with suppress(ValidationError):
                RecommendRequest.model_validate(request)
                out.write(json.dumps(request, ensure_ascii=False) + "\n")
