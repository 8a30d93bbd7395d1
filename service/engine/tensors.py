"""What goes into a model and what comes out of it, as tensors; the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.base import ModelInput
from service.release.manifest import ModelEntry, TensorEntry

_OUTPUTS = ("item", "score", "valid")  # in the order of Ranking's fields
_EXPLAINED = (*_OUTPUTS, "attention")


def feeds(entry: ModelEntry, requests: Sequence[ModelInput]) -> dict[str, NDArray[Any]]:
    """The graph's inputs for a batch: history [B, T], exclude [B, E], allowed [B, A], and reasoning if it reads any."""
    inputs: dict[str, NDArray[Any]] = {
        "history": np.stack([request.history for request in requests]),
        "exclude": _exclude(requests),
        "allowed": _allowed(requests),
    }
    if entry.reasoning is not None:
        shape = (len(requests), entry.reasoning.steps, entry.reasoning.width)
        reasoning = np.zeros(shape, np.float32)
        present = np.zeros(len(requests), np.bool_)
        for row, request in enumerate(requests):
            if request.reasoning is not None:
                reasoning[row] = request.reasoning
                present[row] = True
        inputs["reasoning"] = reasoning
        inputs["has_reasoning"] = present
    return inputs


def output_names(entry: ModelEntry) -> tuple[str, ...]:
    """What to ask a model for, in the order of Ranking's fields."""
    return _OUTPUTS if entry.reasoning is None else _EXPLAINED


def expected_inputs(entry: ModelEntry) -> list[TensorEntry]:
    """What `feeds` makes for a model, with the batch as first dimension."""
    inputs = [TensorEntry(name="history", dtype="int64", shape=[None, entry.history_length])]
    if entry.reasoning is not None:
        matrix: list[int | None] = [None, entry.reasoning.steps, entry.reasoning.width]
        inputs += [
            TensorEntry(name="reasoning", dtype="float32", shape=matrix),
            TensorEntry(name="has_reasoning", dtype="bool", shape=[None]),
        ]
    return [
        *inputs,
        TensorEntry(name="exclude", dtype="int64", shape=[None, None]),
        TensorEntry(name="allowed", dtype="uint8", shape=[None, None]),
    ]


def expected_outputs(entry: ModelEntry) -> list[TensorEntry]:
    """What a Ranking is made of, with the batch as first dimension."""
    shape: list[int | None] = [None, entry.beam]
    outputs = [
        TensorEntry(name="item", dtype="int64", shape=shape),
        TensorEntry(name="score", dtype="float32", shape=shape),
        TensorEntry(name="valid", dtype="bool", shape=shape),
    ]
    if entry.reasoning is not None:
        outputs.append(TensorEntry(name="attention", dtype="float32", shape=[None, entry.reasoning.steps]))
    return outputs


def differences(entry: ModelEntry, where: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> list[str]:
    """What differs between the tensors that the service feeds and reads, those in the manifest, and those found.

    `where` names the place of the found ones, e.g. "in the graph"; both mappings go from tensor name to `shown` type.
    """
    return [
        *_differences("input", where, expected_inputs(entry), entry.inputs, inputs),
        *_differences("output", where, expected_outputs(entry), entry.outputs, outputs),
    ]


def shown(dtype: str, shape: Sequence[int | None]) -> str:
    """A tensor's type in words: `int64[*, 20]`, a free dimension being `*`."""
    return f"{dtype}[{', '.join('*' if size is None else str(size) for size in shape)}]"


def _differences(
    kind: str, where: str, served: list[TensorEntry], declared: list[TensorEntry], found: Mapping[str, str]
) -> list[str]:
    manifest = {tensor.name: shown(tensor.dtype, tensor.shape) for tensor in declared}
    wanted = {tensor.name: shown(tensor.dtype, tensor.shape) for tensor in served}
    return [
        f"{kind} {name!r} is {found.get(name, 'absent')} {where}, {manifest.get(name, 'absent')} in the "
        f"manifest, {wanted.get(name, 'absent')} by the model's history, beam and reasoning"
        for name in sorted({*found, *manifest, *wanted})
        if not found.get(name) == manifest.get(name) == wanted.get(name)
    ]


def _exclude(requests: Sequence[ModelInput]) -> NDArray[np.int64]:
    # Powers of two, so that ONNX Runtime meets few shapes and its memory arena settles, and so that Triton finds
    # requests of equal shape to batch; 0 excludes nothing.
    longest = max(1, *(len(request.exclude) for request in requests))
    exclude = np.zeros((len(requests), 1 << (longest - 1).bit_length()), np.int64)
    for row, request in enumerate(requests):
        exclude[row, : len(request.exclude)] = request.exclude
    return exclude


def _allowed(requests: Sequence[ModelInput]) -> NDArray[np.uint8]:
    # One byte of ones allows everything; beside a request with a filter, others are filled up with such bytes.
    longest = max(1 if request.allowed is None else len(request.allowed) for request in requests)
    allowed = np.full((len(requests), longest), 0xFF, np.uint8)
    for row, request in enumerate(requests):
        if request.allowed is not None:
            allowed[row, : len(request.allowed)] = request.allowed
    return allowed
