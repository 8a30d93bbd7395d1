from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from offline import train as training
from offline.crew import Crew, launch
from offline.errors import TrainingError
from offline.recipe import Recipe, Variant
from offline.scoring import score_beam
from offline.stage import Stage
from offline.train import train, training_log
from tests.offline.test_train import recipe, weights
from tests.offline.test_train import upstream as upstream  # noqa: PLC0414 - a fixture

pytestmark = pytest.mark.timeout(300)  # processes import torch anew


def certain(**changes: Any) -> Recipe:
    """Nothing is left to chance: what dropout drops differs with the number of processes."""
    made = recipe(epochs=2, contrastive_weight=0.0, reasoning_drop=0.0, reasoning_dropout=0.0, **changes)
    parts = {"model": {"dropout": 0.0, "fusion_dropout": 0.0}, "tiger": {"dropout": 0.0, "fusion_dropout": 0.0}}
    return made.model_copy(
        update={section: getattr(made, section).model_copy(update=update) for section, update in parts.items()}
    )


def test_alone_a_process_has_the_whole_batch() -> None:
    crew, rows = Crew.here(), np.arange(7)
    assert (crew, crew.first, crew.gathered("b")) == (Crew(0, 1), True, ["b"])
    assert crew.share(rows).tolist() == rows.tolist()
    objective = torch.nn.Linear(2, 2)
    assert crew.joined(objective) is objective


def test_a_crew_says_nothing_when_it_is_joined(tmp_path: Path) -> None:
    """Warnings are errors here; each process of a training would show its own."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'met'}", rank=0, world_size=1)
    try:
        joined = Crew(0, 2).joined(torch.nn.Linear(2, 2))
    finally:
        distributed.destroy_process_group()
    assert isinstance(joined, torch.nn.parallel.DistributedDataParallel)


@pytest.mark.parametrize("rows", [0, 1, 7, 8])
def test_shares_are_the_batch(rows: int) -> None:
    shares = [Crew(rank, 3).share(np.arange(rows)).tolist() for rank in range(3)]
    assert sorted(row for share in shares for row in share) == list(range(rows))


@pytest.mark.slow
@pytest.mark.parametrize("variant, start", [("scoter_h", "scratch"), ("scoter_h", "backbone"), ("tiger", "scratch")])
def test_two_processes_train_what_one_does(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, variant: Variant, start: str
) -> None:
    """The last batch of an epoch is of uneven shares, as are the lengths of histories in every one."""
    one = train(tmp_path / "one", variant, *upstream, certain(start=start))
    if start == "backbone":  # both on the very same one
        shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("train-scoter*"))
    two = train(tmp_path / "two", variant, *upstream, certain(start=start), processes=2)
    assert one.fingerprint == two.fingerprint
    losses = [[row["loss"] for row in training_log(stage.folder)] for stage in (one, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    other = weights(two)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, other[name], atol=2e-3, rtol=2e-3, msg=name)


def test_a_crew_validates_each_user_once(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process did so for all, while the others waited until they were taken for dead."""
    asked: list[list[int]] = []

    def watched(model: Any, history: Any, *rest: Any, **how: Any) -> Any:
        asked.append(history.targets.tolist())
        return score_beam(model, history, *rest, **how)

    monkeypatch.setattr(training, "score_beam", watched)
    train(tmp_path / "alone", "hstu", *upstream, recipe(epochs=1))
    monkeypatch.setattr(Crew, "joined", lambda _, objective: objective)
    monkeypatch.setattr(Crew, "gathered", lambda _, own: [own])
    for rank in range(3):
        monkeypatch.setattr(Crew, "here", lambda rank=rank: Crew(rank, 3))
        train(tmp_path / str(rank), "hstu", *upstream, recipe(epochs=1))
    alone, *shares = asked
    assert sorted(target for share in shares for target in share) == sorted(alone)
    assert all(abs(len(share) - len(alone) / 3) < 1 for share in shares)


def diverge(folder: Path) -> None:
    """The second process fails while the first waits for it."""
    if Crew.here().rank == 1:
        raise TrainingError(f"the loss is nan; see {folder}")
    time.sleep(100)


@pytest.mark.slow
def test_the_failure_of_one_stops_all_and_is_told(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(TrainingError, match=rf"^the loss is nan; see {tmp_path}$"):
        launch(2, diverge, tmp_path)
    assert time.monotonic() - start < 90
