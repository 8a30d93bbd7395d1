"""A small but real release: a graph with the signature of the trained models, whose ranking numpy can repeat."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.release.blob import Layout, encode
from service.release.catalogue import Catalogue, Item
from service.release.manifest import (
    FILE_NAME,
    SCHEMA_VERSION,
    DatasetEntry,
    Manifest,
    ModelEntry,
    ReasoningEntry,
    TensorEntry,
    content_id,
    file_entry,
)
from service.store.base import Store
from service.store.keys import RELEASE_POINTER, history_key, reasoning_key, steps_key, user_tag
from service.store.records import History, encode_history, encode_steps

T, K, D, BEAM, LEVELS, CODEBOOK = 8, 3, 16, 10, 3, 8
TEMPLATE = ["Summarise the history", "Infer the intent", "Name what comes next"]
WRITTEN = 1_748_747_565  # 2025-06-01T03:12:45Z
MASKED = -1e9


@dataclass(frozen=True)
class User:
    id: str
    history: list[str]  # item ids, oldest first
    matrix: NDArray[np.float32]  # [K, D]
    steps: list[str]


@dataclass(frozen=True)
class TinyRelease:
    path: Path
    manifest: Manifest
    embeddings: NDArray[np.float32]  # [items + 1, D]
    bias: NDArray[np.float32]  # [items + 1]
    users: list[User]

    def expected(
        self,
        history: list[int],
        matrix: NDArray[np.float32] | None,
        exclude: set[int],
        k: int,
        allowed: set[int] | None = None,
    ) -> list[tuple[int, float]]:
        """What the graph must answer, in numpy: [(item index, log-probability)]; `allowed` holds a filter's items."""
        state = self.embeddings[history[-T:]].sum(axis=0)
        if matrix is not None:
            state = state + matrix.sum(axis=0)
        logits = (self.embeddings @ state + self.bias).astype(np.float64)
        logits[[0, *exclude]] = MASKED
        if allowed is not None:
            logits[[index for index in range(len(logits)) if index not in allowed]] = MASKED
        scores = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        best = [int(index) for index in np.argsort(-scores, kind="stable")[:k] if logits[index] > MASKED / 2]
        return [(index, float(scores[index])) for index in best]


def attention(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the graph must say of the steps' attention, [K]: a softmax over the sums of their values."""
    weights = np.exp(matrix.sum(axis=1) - matrix.sum(axis=1).max())
    return np.asarray(weights / weights.sum(), np.float32)


def write_release(releases: Path, *, items: int = 60, users: int = 6, rounds: int = 0, seed: int = 0) -> TinyRelease:
    """Write a release with models `scoter_h` (reads reasoning) and `hstu` (does not); `rounds` makes both slower."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(scale=0.5, size=(items + 1, D)).astype(np.float32)
    embeddings[0] = 0
    popularity = rng.dirichlet(np.ones(items)).astype(np.float32)
    bias = np.concatenate([[np.float32(MASKED)], np.log(popularity + 1e-6)]).astype(np.float32)
    folder = releases / "unsealed"

    catalogue = Catalogue(
        [Item(f"item-{i}", f"Title of {i} – №{i}", {"category": [f"c{i % 3}"]}) for i in range(1, items + 1)],
        np.array(codes(items), np.uint16),
        popularity,
    )
    catalogue.write(folder / "catalogue")

    people = [_user(rng, number, items) for number in range(users)]
    reasoning = ReasoningEntry(
        name="scoter_h",
        layout="projected",
        dtype="float16",
        steps=K,
        width=D,
        written=WRITTEN,
        file="reasoning/scoter_h.npy",
    )
    (folder / "reasoning").mkdir()
    np.save(folder / reasoning.file, np.stack([user.matrix for user in people]).astype(np.float16))
    _write_lines(
        folder / "reasoning" / "users.jsonl",
        [{"user": user.id, "history": user.history, "steps": user.steps} for user in people],
    )
    (folder / "warmup").mkdir()
    _write_lines(folder / "warmup" / "requests.jsonl", [{"user_id": u.id, "history": u.history} for u in people])

    models = [_model("scoter_h", reasoning), _model("hstu", None)]
    for model in models:
        (folder / model.file).parent.mkdir(parents=True)
        onnx.save(graph(model, embeddings, bias, rounds), folder / model.file)

    manifest = seal(folder, models, items=items, users=users)
    path = folder.rename(releases / manifest.release_id)
    return TinyRelease(path, manifest, embeddings, bias, people)


def seal(folder: Path, models: list[ModelEntry], *, items: int, users: int) -> Manifest:
    """Write the manifest of a release whose other files are in place."""
    files = {
        str(file.relative_to(folder)): file_entry(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != FILE_NAME
    }
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        release_id="",
        dataset=DatasetEntry(name="tiny", users=users, items=items, interactions=users * 5),
        levels=LEVELS,
        codebook=CODEBOOK,
        template=TEMPLATE,
        encoder="none",
        models=models,
        default_model=models[0].name,
        files=files,
    )
    manifest = manifest.model_copy(update={"release_id": content_id(manifest)})
    (folder / FILE_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


async def publish(release: TinyRelease, store: Store) -> None:
    """Load every user and point the store at the release."""
    pairs: list[tuple[bytes, bytes]] = []
    for user in release.users:
        tag = user_tag(user.id)
        pairs += [
            (history_key(tag), encode_history(History(user.history, WRITTEN))),
            (reasoning_key(tag, release.manifest.release_id, "scoter_h"), blob(release, user)),
            (steps_key(tag, release.manifest.release_id), encode_steps(user.steps)),
        ]
    await store.put([*pairs, (RELEASE_POINTER, release.manifest.release_id.encode())])


def codes(items: int) -> list[list[int]]:
    """The semantic IDs of a tiny catalogue."""
    return [[(i // CODEBOOK**level) % CODEBOOK for level in range(LEVELS)] for i in range(items)]


def leaves(items: int) -> NDArray[np.int64]:
    """The place of each item's leaf among all nodes of the trie, [items + 1]; 0 for padding."""
    rows = [tuple(row) for row in codes(items)]
    above = sum(len({row[:depth] for row in rows}) for depth in range(1, LEVELS))
    place = {row: above + rank for rank, row in enumerate(sorted(rows))}
    return np.array([0, *(place[row] for row in rows)], np.int64)


def blob(release: TinyRelease, user: User) -> bytes:
    """The user's H blob."""
    entry = release.manifest.models[0].reasoning
    assert entry is not None
    fmt = entry.blob_format(release.manifest.release_id)
    assert fmt.layout is Layout.projected
    return encode(user.matrix, fmt, user.id, history_length=len(user.history), written=WRITTEN)


def graph(
    model: ModelEntry, embeddings: NDArray[np.float32], bias: NDArray[np.float32], rounds: int = 0
) -> onnx.ModelProto:
    """Score items by their product with the summed history (and reasoning), mask what is excluded, take the best."""
    tensors: dict[str, NDArray[Any]] = {
        "embeddings": embeddings,
        "embeddings_t": np.ascontiguousarray(embeddings.T),
        "bias": bias,
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "one": np.array(1, np.int64),
        "eight": np.array(8, np.int64),
        "byte_of": leaves(len(bias) - 1) // 8,
        "bit_of": leaves(len(bias) - 1) % 8,
        "bits": np.unpackbits(np.arange(256, dtype=np.uint8), bitorder="little").astype(np.bool_),  # 8 of each byte
        "column": np.array([-1, 1], np.int64),
        "masked": np.array(MASKED, np.float32),
        "threshold": np.array(MASKED / 2, np.float32),
        "beam": np.array([model.beam], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embeddings", "history"], ["embedded"]),  # [B, T, D]
        helper.make_node("ReduceSum", ["embedded", "axis_1"], ["state_history"], keepdims=0),
    ]
    state = "state_history"  # [B, D]
    if model.reasoning is not None:
        nodes += [
            helper.make_node("ReduceSum", ["reasoning", "axis_1"], ["thought"], keepdims=0),
            helper.make_node("Cast", ["has_reasoning"], ["has"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["has", "column"], ["gate"]),
            helper.make_node("Mul", ["thought", "gate"], ["gated"]),
            helper.make_node("Add", [state, "gated"], ["state_fused"]),
            helper.make_node("ReduceSum", ["reasoning", "axis_2"], ["weight"], keepdims=0),  # [B, K]
            helper.make_node("Softmax", ["weight"], ["attended"], axis=1),
            helper.make_node("Mul", ["attended", "gate"], ["attention"]),
        ]
        state = "state_fused"
    nodes += [
        helper.make_node("MatMul", [state, "embeddings_t"], ["affinity"]),  # [B, items + 1]
        helper.make_node("Add", ["affinity", "bias"], ["logits"]),
        helper.make_node("Shape", ["exclude"], ["exclude_shape"]),
        helper.make_node("Expand", ["masked", "exclude_shape"], ["updates"]),
        helper.make_node("ScatterElements", ["logits", "exclude", "updates"], ["left"], axis=1),
        helper.make_node("Shape", ["allowed"], ["length"], start=1),  # [1]
        helper.make_node("Sub", ["length", "one"], ["last_byte"]),
        helper.make_node("Min", ["byte_of", "last_byte"], ["byte"]),
        helper.make_node("Gather", ["allowed", "byte"], ["packed"], axis=1),  # [B, items + 1]
        helper.make_node("Cast", ["packed"], ["value"], to=TensorProto.INT64),
        helper.make_node("Mul", ["value", "eight"], ["table"]),
        helper.make_node("Add", ["table", "bit_of"], ["place"]),
        helper.make_node("Gather", ["bits", "place"], ["alive"]),
        helper.make_node("Where", ["alive", "left", "masked"], ["eligible"]),
        helper.make_node("LogSoftmax", ["eligible"], ["scores"], axis=1),
        helper.make_node("TopK", ["scores", "beam"], ["best", "item"], axis=1),
    ]
    best = "best"
    if rounds:
        more, busy = _busy(state, rounds)
        nodes += [*more, helper.make_node("Add", ["best", "nothing"], ["delayed"])]
        tensors |= busy
        best = "delayed"
    nodes += [
        helper.make_node("Identity", [best], ["score"]),
        helper.make_node("GatherElements", ["eligible", "item"], ["chosen"], axis=1),
        helper.make_node("Greater", ["chosen", "threshold"], ["valid"]),
    ]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            model.name,
            [_value(tensor) for tensor in model.inputs],
            [_value(tensor) for tensor in model.outputs],
            [numpy_helper.from_array(value, name) for name, value in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _busy(state: str, rounds: int) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """Matrix products as large as a beam search's, whose result, `nothing` [B, 1], is zero."""
    rng = np.random.default_rng(1)
    tensors: dict[str, NDArray[Any]] = {
        "widen": (rng.normal(size=(D, 20 * 256)) / D).astype(np.float32),
        "as_beams": np.array([-1, 20, 256], np.int64),
        "as_row": np.array([0, -1], np.int64),
        "up": (rng.normal(size=(256, 1024)) / 256).astype(np.float32),
        "down": (rng.normal(size=(1024, 256)) / 1024).astype(np.float32),
        "zero": np.array(0, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", [state, "widen"], ["wide"]),
        helper.make_node("Reshape", ["wide", "as_beams"], ["work_0"]),  # [B, 20, 256]
    ]
    for turn in range(rounds):
        nodes += [
            helper.make_node("MatMul", [f"work_{turn}", "up"], [f"up_{turn}"]),
            helper.make_node("Relu", [f"up_{turn}"], [f"relu_{turn}"]),
            helper.make_node("MatMul", [f"relu_{turn}", "down"], [f"work_{turn + 1}"]),
        ]
    nodes += [
        helper.make_node("Reshape", [f"work_{rounds}", "as_row"], ["row"]),
        helper.make_node("ReduceSum", ["row", "axis_1"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
    ]
    return nodes, tensors


def _value(tensor: TensorEntry) -> onnx.ValueInfoProto:
    kinds = {
        "int64": TensorProto.INT64,
        "float32": TensorProto.FLOAT,
        "bool": TensorProto.BOOL,
        "uint8": TensorProto.UINT8,
    }
    free = {"exclude": ["batch", "excluded"], "allowed": ["batch", "packed"]}.get(tensor.name, ["batch"])
    shape = [free[axis] if size is None else size for axis, size in enumerate(tensor.shape)]
    return helper.make_tensor_value_info(tensor.name, kinds[tensor.dtype], shape)


def _model(name: str, reasoning: ReasoningEntry | None) -> ModelEntry:
    inputs = [TensorEntry(name="history", dtype="int64", shape=[None, T])]
    if reasoning is not None:
        inputs += [
            TensorEntry(name="reasoning", dtype="float32", shape=[None, K, D]),
            TensorEntry(name="has_reasoning", dtype="bool", shape=[None]),
        ]
    return ModelEntry(
        name=name,
        backbone="hstu",
        file=f"models/{name}/1/model.onnx",
        history_length=T,
        beam=BEAM,
        inputs=[
            *inputs,
            TensorEntry(name="exclude", dtype="int64", shape=[None, None]),
            TensorEntry(name="allowed", dtype="uint8", shape=[None, None]),
        ],
        outputs=[
            TensorEntry(name="item", dtype="int64", shape=[None, BEAM]),
            TensorEntry(name="score", dtype="float32", shape=[None, BEAM]),
            TensorEntry(name="valid", dtype="bool", shape=[None, BEAM]),
            *([] if reasoning is None else [TensorEntry(name="attention", dtype="float32", shape=[None, K])]),
        ],
        reasoning=reasoning,
        metrics={"ndcg@10": 0.05},
    )


def _user(rng: np.random.Generator, number: int, items: int) -> User:
    history = [f"item-{index}" for index in rng.choice(np.arange(1, items + 1), size=3 + number % 12, replace=False)]
    matrix = rng.normal(size=(K, D)).astype(np.float16).astype(np.float32)
    return User(f"user-{number}", history, matrix, [f"{step}: user {number}" for step in TEMPLATE])


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
