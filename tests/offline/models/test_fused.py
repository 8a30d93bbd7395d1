from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import pytest
import torch

from offline.models.fused import FusedGraph, fused_graph, reasoning_width, write_onnx
from offline.models.recommender import Recommender
from offline.recipe import BACKBONES, SearchRecipe, Variant
from offline.trie import packed_alive
from tests.offline.models import tiny

Layout = Literal["projected", "raw"]


GRAPHS: list[tuple[Variant, Layout]] = [
    ("hstu", "projected"),
    ("scoter_h", "projected"),
    ("scoter_h", "raw"),
    ("scoter_t", "projected"),
    ("scoter_s", "projected"),
    ("tiger", "projected"),
]


@dataclass(frozen=True)
class Exported:
    """A graph in PyTorch, its file, and that file opened: opening it takes as long as all that is asked of it."""

    graph: FusedGraph
    path: Path
    session: ort.InferenceSession


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    variant, layout = request.param
    small: dict[str, Any] = {"layers": 1} if BACKBONES[variant] == "tiger" else {"blocks": 1, "decoder_layers": 1}
    # Each switch is on in some graph and off in another; all of them at once in SCoTER-S.
    everything = variant == "scoter_s"
    wide = everything or variant in ("hstu", "tiger")
    search = SearchRecipe(widen=[3, 2] if wide else [], rerank=0.4 if everything or layout == "raw" else 0.0)
    if everything:
        small["features"] = ["text"]
    # The raw layout has the adapter and the alignment in the graph.
    whitened = {"dim": 4, "weight": 2.0, "whiten": 0.5, "cosine": True}
    alignment = whitened if everything or layout == "raw" else 4 if variant == "scoter_t" else 0
    graph = fused_graph(tiny.model(80, 4, 6, variant=variant, alignment=alignment, **small), layout, search)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    write_onnx(graph, layout, path)
    return Exported(graph, path, ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]))


ALL = torch.full((7, 1), 0xFF, dtype=torch.uint8)


def feeds(graph: FusedGraph, rows: int, excluded: int, seed: int, filtered: float = 0.5) -> dict[str, Any]:
    """Inputs of `rows` requests, of which about `filtered` allow a third of the items."""
    made = graph.model
    random = np.random.default_rng(seed)
    items = len(made.item_codes) - 1
    masks = np.stack([packed_alive(made.trie, random.random(items) < 1 / 3) for _ in range(rows)])
    found: dict[str, Any] = {
        "history": tiny.histories(made, rows, seed).numpy(),
        "exclude": random.integers(0, items + 1, (rows, excluded)),
        "allowed": np.where(random.random((rows, 1)) < filtered, masks, np.uint8(0xFF)),
    }
    if made.adapter is not None:
        width = reasoning_width(made, "raw" if type(graph).__name__ == "RawGraph" else "projected")
        found["reasoning"] = random.normal(size=(rows, tiny.STEPS, width)).astype(np.float32)
        found["has_reasoning"] = random.random(rows) < 0.5
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("excluded", [0, 1, 30, 90])
def test_graph_agrees_with_the_model(exported: Exported, rows: int, excluded: int) -> None:
    given = feeds(exported.graph, rows, excluded, seed=rows * 100 + excluded)
    item, score, valid, *explained = exported.session.run(None, given)
    with torch.inference_mode():
        expected = [t.numpy() for t in exported.graph(**{k: torch.from_numpy(v) for k, v in given.items()})]
    assert (item == expected[0]).all()
    assert (valid == expected[2]).all()
    np.testing.assert_allclose(score[valid], expected[1][valid], atol=1e-4)
    assert len(explained) == len(expected[3:])
    for found, attention in zip(explained, expected[3:], strict=True):
        np.testing.assert_allclose(found, attention, atol=1e-5)
        np.testing.assert_allclose(found.sum(1), given["has_reasoning"], atol=1e-5)
    for row in range(rows):
        assert not set(item[row][valid[row]]) & set(given["exclude"][row])


@pytest.mark.slow
def test_no_loop_survives_in_the_graph(exported: Exported) -> None:
    import onnx

    kinds = {node.op_type for node in onnx.load(str(exported.path)).graph.node}
    assert not kinds & {"Loop", "If", "Scan", "SequenceConstruct"}


@pytest.mark.slow
def test_free_dimensions_are_named(exported: Exported) -> None:
    graph, session = exported.graph, exported.session
    shapes = {i.name: i.shape for i in session.get_inputs()}
    assert shapes["history"] == ["batch", graph.model.recipe.length]
    assert shapes["exclude"] == ["batch", "excluded"]
    assert shapes["allowed"] == ["batch", "packed"]
    explained = {} if graph.model.adapter is None else {"attention": ["batch", tiny.STEPS]}
    beam = ["batch", graph.model.recipe.beam]
    assert {o.name: o.shape for o in session.get_outputs()} == {"item": beam, "score": beam, "valid": beam} | explained


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 7])
def test_one_byte_of_ones_is_no_filter(exported: Exported, rows: int) -> None:
    given = feeds(exported.graph, rows, 3, seed=rows, filtered=0)
    whole = exported.session.run(None, given)
    one_byte = exported.session.run(None, given | {"allowed": np.full((rows, 1), 0xFF, np.uint8)})
    for one, other in zip(whole, one_byte, strict=True):
        np.testing.assert_array_equal(one, other)


def projected(made: Recommender, raw: torch.Tensor) -> torch.Tensor:
    assert made.adapter is not None
    found: torch.Tensor = made.project(raw)
    return found


@pytest.mark.parametrize("alignment", [0, 4])
@pytest.mark.parametrize("variant", ["scoter_h", "scoter_t", "scoter_s"])
def test_both_layouts_rank_alike(variant: Variant, alignment: int) -> None:
    made = tiny.model(80, 4, 6, variant=variant, alignment=alignment)
    history, raw = tiny.histories(made, 7), tiny.reasoning(7)
    has, exclude = torch.ones(7, dtype=torch.bool), torch.zeros(7, 1, dtype=torch.int64)
    with torch.inference_mode():
        one = fused_graph(made, "raw")(history, raw, has, exclude, ALL)
        other = fused_graph(made, "projected")(history, projected(made, raw), has, exclude, ALL)
    assert torch.equal(one[0], other[0])
    torch.testing.assert_close(one[1], other[1])
    torch.testing.assert_close(one[3], other[3])


@pytest.mark.parametrize("variant", ["scoter_h", "scoter_t", "scoter_s"])
def test_reasoning_changes_the_ranking_only_where_there_is_any(variant: Variant) -> None:
    made = tiny.model(80, 4, 6, variant=variant)
    history = tiny.histories(made, 7)
    has = torch.tensor([True, False] * 3 + [True])
    exclude = torch.zeros(7, 1, dtype=torch.int64)
    graph = fused_graph(made, "raw")
    with torch.inference_mode():
        one = graph(history, tiny.reasoning(7, seed=1), has, exclude, ALL)[1]
        other = graph(history, tiny.reasoning(7, seed=2), has, exclude, ALL)[1]
    changed = (one - other).abs().amax(1) > 1e-6
    assert torch.equal(changed, has)
