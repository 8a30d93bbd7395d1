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
from offline.recipe import PLAIN_SEARCH, SearchRecipe

OPSET = 20
Outputs = tuple[Tensor, ...]
OUTPUTS = ("item", "score", "valid")


class FusedGraph(nn.Module):
    """A trained model as it is served; what does not depend on the request is computed once, at export."""

    def __init__(self, model: Recommender, search: SearchRecipe = PLAIN_SEARCH) -> None:
        super().__init__()
        self.model = model
        self.search = model.searched(search)
        with torch.no_grad():
            vectors = model.node_vectors()
        self.inputs = model.inputs.served()
        self.vectors = (
            nn.ParameterList(nn.Parameter(v, requires_grad=False) for v in vectors) if vectors is not None else None
        )
        self.eval()

    def rank(
        self, history: Tensor, exclude: Tensor, allowed: Tensor, steps: Tensor | None, has_reasoning: Tensor | None
    ) -> Outputs:
        """Item index int64, score float32 and valid bool, [B, N] each; with steps, their attention float32 [B, K]."""
        x, present = self.inputs(history)
        sequence = self.model.backbone(x, present)
        explained: tuple[Tensor, ...] = ()
        if self.model.fusion is None:
            context = self.model.fuse(sequence, None, None)
        else:
            context, attention = self.model.mix(sequence, steps, has_reasoning)
            explained = (attention,)
        beam = beam_search(
            self.model.decoder,
            self.model.tables,
            context,
            present,
            exclude,
            self.model.query(context[:, -1:], steps, has_reasoning)[:, 0],
            list(self.vectors) if self.vectors is not None else None,
            self.model.recipe.beam,
            self.search,
            allowed,
        )
        return beam.items, beam.scores, beam.valid, *explained


class PlainGraph(FusedGraph):
    """A backbone alone: history int64 [B, T], exclude int64 [B, E], allowed uint8 [B, A]."""

    def forward(self, history: Tensor, exclude: Tensor, allowed: Tensor) -> Outputs:
        """See `rank`."""
        return self.rank(history, exclude, allowed, None, None)


class ProjectedGraph(FusedGraph):
    """Reads steps projected offline (`Recommender.project`): reasoning float32 [B, K, p]."""

    def forward(
        self, history: Tensor, reasoning: Tensor, has_reasoning: Tensor, exclude: Tensor, allowed: Tensor
    ) -> Outputs:
        """See `rank`."""
        return self.rank(history, exclude, allowed, reasoning, has_reasoning)


class RawGraph(FusedGraph):
    """Reads step embeddings and projects them itself: reasoning float32 [B, K, D]."""

    def forward(
        self, history: Tensor, reasoning: Tensor, has_reasoning: Tensor, exclude: Tensor, allowed: Tensor
    ) -> Outputs:
        """See `rank`."""
        return self.rank(history, exclude, allowed, self.model.project(reasoning), has_reasoning)


def fused_graph(
    model: Recommender, layout: Literal["projected", "raw"], search: SearchRecipe = PLAIN_SEARCH
) -> FusedGraph:
    """The graph that fits the model and the layout of its H blobs; `search` as in `beam_search`."""
    if model.adapter is None:
        return PlainGraph(model, search)
    return ProjectedGraph(model, search) if layout == "projected" else RawGraph(model, search)


def reasoning_width(model: Recommender, layout: Literal["projected", "raw"]) -> int:
    """Width of a stored step: d_item and the alignment's axes if projected, D if raw."""
    assert model.adapter is not None
    if layout == "raw":
        return model.adapter.project.in_features
    return model.dim + (model.alignment.texts.shape[1] if model.alignment is not None else 0)


def _example_inputs(graph: FusedGraph, layout: Literal["projected", "raw"]) -> dict[str, Tensor]:
    """Inputs of the right shapes by name. No dimension that is free may be 1, or the export would fix it."""
    recipe = graph.model.recipe
    history = torch.zeros(2, recipe.length, dtype=torch.int64)
    history[:, -3:] = 1
    exclude = torch.zeros(2, 3, dtype=torch.int64)
    allowed = torch.full((2, -(-sum(graph.model.tables.sizes) // 8) + 1), 0xFF, dtype=torch.uint8)
    if graph.model.adapter is None:
        return {"history": history, "exclude": exclude, "allowed": allowed}
    steps = graph.model.adapter.position.shape[0]
    return {
        "history": history,
        "reasoning": torch.zeros(2, steps, reasoning_width(graph.model, layout)),
        "has_reasoning": torch.tensor([True, False]),
        "exclude": exclude,
        "allowed": allowed,
    }


def output_names(graph: FusedGraph) -> list[str]:
    """Names of what the graph returns: `attention` only where it reads reasoning."""
    return [*OUTPUTS, *(["attention"] if graph.model.fusion is not None else [])]


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
    """Export to `path`, free in the batch, in the number of excluded items and in the bytes of a filter."""
    inputs = _example_inputs(graph, layout)
    batch, excluded, packed = torch.export.Dim("batch"), torch.export.Dim("excluded"), torch.export.Dim("packed")
    shapes = {name: {0: batch} for name in inputs}
    shapes |= {"exclude": {0: batch, 1: excluded}, "allowed": {0: batch, 1: packed}}
    with _quiet():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=output_names(graph),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
