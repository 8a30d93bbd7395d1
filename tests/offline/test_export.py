from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from offline import export as module
from offline.errors import StageError
from offline.export import Parts, export
from offline.models.fused import FusedGraph, fused_graph
from offline.prepare import Dataset, ItemText
from offline.publish import latest_release
from offline.recipe import Recipe
from offline.stage import Stage
from service.release.manifest import ReasoningEntry
from service.schemas import RecommendRequest
from tests.offline.models import tiny


def test_the_release_that_was_asked_for_last_is_the_latest_though_it_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path /= "work [v2]"
    for name, seconds in (("a", 100), ("b", 200)):
        (tmp_path / f"export-{name}").mkdir(parents=True)
        (tmp_path / f"export-{name}" / "release").write_text(name * 16 + "\n", encoding="ascii")
        os.utime(tmp_path / f"export-{name}" / "release", (seconds, seconds))
        (tmp_path / "releases" / (name * 16)).mkdir(parents=True)
    monkeypatch.setattr(module, "run_stage", lambda *_: Stage("export", "a", tmp_path / "export-a"))
    stage = Stage("any", "one", tmp_path)
    parts = Parts(prepared=stage, tokens=stage, reasoned=stage, trained={}, evaluated=stage)
    assert export(tmp_path, parts, Recipe(name="test")).name == "a" * 16
    assert latest_release(tmp_path).name == "a" * 16
    assert f"({tmp_path}/releases/{'a' * 16})\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "user,item,attributes,length",
    [
        ("u", "a", {"brand": ["x"]}, 4),
        ("u" * 257, "a", {}, 4),
        ("u", "a" * 257, {}, 4),
        ("u", "a", {"features": ["x" * 257]}, 4),
        ("u", "a", {"c" * 65: ["x"]}, 4),
        ("u", "a", {}, 10_001),
    ],
    ids=["usual", "user", "item", "value", "column", "history"],
)
def test_the_service_takes_every_warm_up_request(
    tmp_path: Path, user: str, item: str, attributes: dict[str, list[str]], length: int
) -> None:
    """Whatever the data hold: it would serve no release whose own requests it refuses."""
    items = [ItemText(item, "A", "", attributes), ItemText("b", "B", "", {})]
    sequence = np.array([2, 1] * (length // 2) + [1], np.int32)
    dataset = Dataset([user, *(f"u{n}" for n in range(9))], items, [sequence] * 10)
    module._write_warmup(tmp_path, dataset, 10)
    with (tmp_path / "warmup" / "requests.jsonl").open(encoding="utf-8") as lines:
        requests = [RecommendRequest.model_validate(json.loads(line)) for line in lines]
    assert len(requests) >= 3
    if len(user) <= 256 and len(item) <= 256:
        assert sum(request.history is not None for request in requests) >= 4


def test_what_an_export_that_was_killed_left_behind_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = tmp_path / "releases"

    def write(release: Path, *_: object) -> None:
        assert release.parent == releases  # on the same disk, so that it appears there by one rename
        assert not release.exists()
        (release / "models").mkdir(parents=True)
        raise KeyboardInterrupt

    def run_stage(work: Path, *rest: Any) -> Stage:
        build: Callable[[Path], None] = rest[-1]
        build(work / "export-a.partial")
        raise AssertionError("not reached")

    monkeypatch.setattr(module, "_write_release", write)
    monkeypatch.setattr(module, "run_stage", run_stage)
    stage = Stage("any", "one", tmp_path)
    parts = Parts(prepared=stage, tokens=stage, reasoned=stage, trained={}, evaluated=stage)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, parts, Recipe(name="test"))
    assert list(releases.iterdir()) == []
    left = releases / ".export-a.partial" / "models"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half of it")
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, parts, Recipe(name="test"))
    assert list(releases.iterdir()) == []


ENTRY = ReasoningEntry(
    name="scoter_h", layout="projected", dtype="float32", steps=tiny.STEPS, width=10, written=1, file="reasoning/h.npy"
)


def bought(items: int) -> Dataset:
    random = np.random.default_rng(0)
    sequences = [random.integers(1, items + 1, size).astype(np.int32) for size in (2, 3, 9) * 8]
    texts = [ItemText(f"i{place}", "", "", {}) for place in range(items)]
    return Dataset([f"u{place}" for place in range(len(sequences))], texts, sequences)


class Session:
    """ONNX Runtime, in which a model answers as in PyTorch but for a change."""

    def __init__(self, graph: FusedGraph, change: Callable[..., None]) -> None:
        self._graph, self._change = graph, change

    def __call__(self, _path: str, **_options: object) -> Session:
        return self

    def run(self, _names: None, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            answers = [each.clone() for each in self._graph(**{name: torch.from_numpy(f) for name, f in feeds.items()})]
            self._change(*answers)
        return [answer.numpy() for answer in answers]


def _no_change(*_: torch.Tensor) -> None:
    pass


def _one_less_valid(_item: torch.Tensor, _score: torch.Tensor, valid: torch.Tensor, _attention: torch.Tensor) -> None:
    valid[0, -1] ^= True


def _another_score(_item: torch.Tensor, score: torch.Tensor, valid: torch.Tensor, _attention: torch.Tensor) -> None:
    score[valid.nonzero()[0][0], 0] += 2 * module.TOLERANCE


def _another_attention(
    _item: torch.Tensor, _score: torch.Tensor, _valid: torch.Tensor, attention: torch.Tensor
) -> None:
    attention[-1, 0] += 2 * module.TOLERANCE


def _first_and_last_exchanged(item: torch.Tensor, _score: torch.Tensor, valid: torch.Tensor, *_: torch.Tensor) -> None:
    row = valid.all(1).nonzero()[0][0]
    item[row] = item[row].flip(0)


def _what_is_invalid_has_other_items(item: torch.Tensor, score: torch.Tensor, valid: torch.Tensor, *_: object) -> None:
    assert not valid.all()  # a filter leaves too few
    item[~valid] = 77
    score[~valid] -= 5


@pytest.mark.parametrize(
    "change, reason",
    [
        (_no_change, None),
        (_what_is_invalid_has_other_items, None),
        (_one_less_valid, "scoter_h: the exported graph and the model disagree on how many items are valid"),
        (_another_score, r"scoter_h: scores of the exported graph are 0\.0002 from the model's, allowed 0\.0001"),
        (_another_attention, "scoter_h: the exported graph and the model disagree on the attention of the steps"),
        (_first_and_last_exchanged, "scoter_h: the exported graph and the model rank different items"),
    ],
)
def test_a_graph_that_answers_otherwise_than_its_model_is_not_exported(
    monkeypatch: pytest.MonkeyPatch, change: Callable[..., None], reason: str | None
) -> None:
    graph = fused_graph(tiny.model(12, 4, 6), "projected")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session(graph, change))
    with pytest.raises(StageError, match=reason) if reason else nullcontext():
        module._check_parity(Path("model.onnx"), "scoter_h", graph, ENTRY, bought(12))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_h_of_every_user_is_projected_as_the_model_does(tmp_path: Path, dtype: Literal["float32", "int8"]) -> None:
    """However many users there are: they are not projected at once."""
    made = tiny.model(80, 4, 6)
    users = 4096 + 3
    raw = np.random.default_rng(0).normal(size=(users, tiny.STEPS, tiny.WIDTH)).astype(np.float16)
    entry = ENTRY.model_copy(update={"dtype": dtype})
    module._write_reasoning(tmp_path / "reasoning" / "h.npy", made, raw, entry)
    found = np.load(tmp_path / "reasoning" / "h.npy")
    with torch.inference_mode():
        expected = made.project(torch.from_numpy(raw.astype(np.float32))).numpy()
    assert found.dtype == (np.float32 if dtype == "float32" else np.float16)  # which publishing makes int8 of
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_what_a_release_says_of_a_model_is_how_it_serves() -> None:
    """Of all its rows in the report: labels of training, history masked, by the beam."""
    row = {"model": "hstu", "labels": "train", "history": "masked", "scoring": "beam 20", "users": 9, "recall@10": 0.5}
    others: list[dict[str, Any]] = [
        {"model": "knn"},
        {"labels": "train+validation"},
        {"history": "not masked"},
        {"scoring": "exact"},
    ]
    rows = [*(row | other | {"recall@10": 0.9} for other in others), row]
    assert module._metrics({"results": rows}, "hstu") == {"recall@10": 0.5}
