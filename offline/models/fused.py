"""The serving graph: encoder, fusion and the whole trie beam as one ONNX model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from offline.models.beam import beam_search
from offline.models.recommender import Recommender

OPSET = 20
Outputs = tuple[Tensor, Tensor, Tensor]


class FusedGraph(nn.Module):
    """A trained model as it is served; item vectors are summed once, at export."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            table = model.embed(torch.arange(model.items.num_embeddings))
            vectors = model.node_vectors()
        self.table: Tensor
        self.register_buffer("table", table)  # [N + 1, d]
        self.vectors = nn.ParameterList(nn.Parameter(v, requires_grad=False) for v in vectors)
        self.eval()

    def rank(self, history: Tensor, exclude: Tensor, steps: Tensor | None, has_reasoning: Tensor | None) -> Outputs:
        """Item index int64, score float32 and valid bool, [B, N] each."""
        present = history > 0
        sequence = self.model.backbone(self.table[history], present)
        context = self.model.fuse(sequence, steps, has_reasoning)
        beam = beam_search(
            self.model.decoder,
            self.model.tables,
            context,
            present,
            exclude,
            list(self.vectors),
            self.model.recipe.beam,
        )
        return beam.items, beam.scores, beam.valid


class PlainGraph(FusedGraph):
    """A backbone alone: history int64 [B, T], exclude int64 [B, E]."""

    def forward(self, history: Tensor, exclude: Tensor) -> Outputs:
        """See `rank`."""
        return self.rank(history, exclude, None, None)


class ProjectedGraph(FusedGraph):
    """Reads z_pos of eq. 2, projected offline: reasoning float32 [B, K, d_item]."""

    def forward(self, history: Tensor, reasoning: Tensor, has_reasoning: Tensor, exclude: Tensor) -> Outputs:
        """See `rank`."""
        return self.rank(history, exclude, reasoning, has_reasoning)


class RawGraph(FusedGraph):
    """Reads step embeddings and projects them itself: reasoning float32 [B, K, D]."""

    def forward(self, history: Tensor, reasoning: Tensor, has_reasoning: Tensor, exclude: Tensor) -> Outputs:
        """See `rank`."""
        assert self.model.adapter is not None
        return self.rank(history, exclude, self.model.adapter(reasoning), has_reasoning)


def fused_graph(model: Recommender, layout: Literal["projected", "raw"]) -> FusedGraph:
    """The graph that fits the model and the layout of its H blobs."""
    if model.adapter is None:
        return PlainGraph(model)
    return ProjectedGraph(model) if layout == "projected" else RawGraph(model)


def reasoning_width(model: Recommender, layout: Literal["projected", "raw"]) -> int:
    """Width of a stored step: d_item if projected, D if raw."""
    assert model.adapter is not None
    return model.adapter.project.out_features if layout == "projected" else model.adapter.project.in_features


def example_inputs(graph: FusedGraph, layout: Literal["projected", "raw"], batch: int = 2) -> dict[str, Tensor]:
    """Inputs of the right shapes by name. No dimension that is free may be 1, or the export would fix it."""
    recipe = graph.model.recipe
    history = torch.zeros(batch, recipe.length, dtype=torch.int64)
    history[:, -3:] = 1
    exclude = torch.zeros(batch, 3, dtype=torch.int64)
    if graph.model.adapter is None:
        return {"history": history, "exclude": exclude}
    steps = graph.model.adapter.position.shape[0]
    return {
        "history": history,
        "reasoning": torch.zeros(batch, steps, reasoning_width(graph.model, layout)),
        "has_reasoning": torch.tensor([True, False]).repeat(batch)[:batch],
        "exclude": exclude,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of its own deprecations, of packages we do not use, and of two names for the batch."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)


def write_onnx(graph: FusedGraph, layout: Literal["projected", "raw"], path: Path) -> None:
    """Export to `path`, free in the batch and in the number of excluded items."""
    inputs = example_inputs(graph, layout)
    batch, excluded = torch.export.Dim("batch"), torch.export.Dim("excluded")
    shapes = {name: {0: batch} for name in inputs} | {"exclude": {0: batch, 1: excluded}}
    with _quiet():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["item", "score", "valid"],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
