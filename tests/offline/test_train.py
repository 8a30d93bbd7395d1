from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offline import train as training
from offline.errors import TrainingError
from offline.prepare import prepare
from offline.recipe import PrepareRecipe, Recipe
from offline.sample import write_sample
from offline.stage import Stage
from offline.tokenize import load_codes
from offline.train import best_epoch, load_model, train, training_log
from tests.offline.models import tiny

STEPS, WIDTH = 5, 12


def recipe(**changes: Any) -> Recipe:
    body = {
        "name": "test",
        "tokenize": {"codebook": 8},
        "model": tiny.recipe(dropout=0.1).model_dump(),
        "train": {
            "batch": 16,
            "learning_rate": 5e-3,
            "warmup": 0.1,
            "schedule": "cosine",
            "epochs": 4,
            "label_smoothing": 0.1,
            "catalogue_weight": 0.5,
            "reasoning_dropout": 0.1,
        }
        | changes,
    }
    return Recipe.model_validate(body)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, Stage, Stage]:
    """A small prepared sample, with random semantic IDs and random reasoning."""
    folder = tmp_path_factory.mktemp("upstream")
    write_sample(folder / "data", users=120, items=60)
    prepared = prepare(folder / "work", folder / "data", PrepareRecipe())
    items = len((prepared.folder / "items.jsonl").read_text(encoding="utf-8").split("\n")) - 1
    users = len(json.loads((prepared.folder / "users.json").read_text(encoding="utf-8")))
    tokens = Stage("tokenize", "codes", folder / "tokens")
    tokens.folder.mkdir()
    np.save(tokens.folder / "codes.npy", tiny.random_codes(items, 4, 8, 0))
    reasoned = Stage("reason", "random", folder / "reasoned")
    reasoned.folder.mkdir()
    random = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        np.save(reasoned.folder / f"{split}.npy", random.normal(size=(users, STEPS, WIDTH)).astype(np.float16))
    return prepared, tokens, reasoned


def weights(stage: Stage) -> dict[str, torch.Tensor]:
    kept: dict[str, torch.Tensor] = torch.load(stage.folder / "model.pt", weights_only=True)
    return kept


@pytest.mark.parametrize("variant", ["hstu", "scoter_h"])
def test_training_learns_and_says_what_it_did(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, variant: training.Variant
) -> None:
    stage = train(tmp_path, variant, *upstream, recipe(epochs=8, patience=8))
    log = training_log(stage.folder)
    assert [row["epoch"] for row in log] == list(range(1, 9))
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    best = max(log, key=lambda row: row["ndcg@10"])
    assert best_epoch(stage.folder) == best["epoch"]
    about = json.loads((stage.folder / "model.json").read_text(encoding="utf-8"))
    assert about["validation"]["ndcg@10"] == best["ndcg@10"]
    made = load_model(stage.folder, upstream[1])
    assert (made.adapter is not None) == (variant == "scoter_h")
    assert about["parameters"] == sum(p.numel() for p in made.parameters())
    assert not (stage.folder / "checkpoint.pt").exists()


def test_users_without_a_chain_are_trained_without(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, tokens, reasoned = upstream
    some = Stage("reason", "some", tmp_path / "some")
    some.folder.mkdir()
    for split in ("train", "valid", "test"):
        H = np.load(reasoned.folder / f"{split}.npy")
        H[::2] = 0
        np.save(some.folder / f"{split}.npy", H)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(training.Objective):
        def __call__(self, *given: Any) -> torch.Tensor:
            seen.append((given[2].flatten(1).any(1), given[3]))
            return super().__call__(*given)

    monkeypatch.setattr(training, "Objective", Watched)
    train(tmp_path, "scoter_h", prepared, tokens, some, recipe(epochs=2))
    present, kept = (torch.cat(column) for column in zip(*seen, strict=True))
    assert not kept[~present].any()
    assert kept[present].any()


@pytest.mark.parametrize("variant", ["hstu", "scoter_h"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    upstream: tuple[Stage, Stage, Stage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: training.Variant,
) -> None:
    whole = train(tmp_path / "whole", variant, *upstream, recipe())
    real = training._Run._one_epoch

    def interrupted(run: training._Run) -> dict[str, Any]:
        if run.epoch == 2:
            raise KeyboardInterrupt
        return real(run)

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_one_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", variant, *upstream, recipe())
    assert not list((tmp_path / "parts").glob(f"train-{variant}-*[!l]/model.json"))
    resumed = train(tmp_path / "parts", variant, *upstream, recipe())
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    keep = ("epoch", "loss", "ndcg@10")
    one, other = ([[row[k] for k in keep] for row in training_log(s.folder)] for s in (whole, resumed))
    assert one == other


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training._Run._loss

    def diverging(run: training._Run, rows: Any) -> torch.Tensor:
        loss = real(run, rows)
        return loss * torch.nan if run.epoch == 1 else loss

    monkeypatch.setattr(training._Run, "_loss", diverging)
    with pytest.raises(TrainingError, match=r"the loss is nan at epoch 2, step \d+"):
        train(tmp_path, "hstu", *upstream, recipe())
    (partial,) = tmp_path.glob("train-hstu-*.partial")
    kept = torch.load(partial / "checkpoint.pt", weights_only=True)
    assert kept["epoch"] == 1
    assert all(torch.isfinite(t).all() for t in kept["model"].values() if t.is_floating_point())


def test_training_stops_when_validation_no_longer_improves(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(run: training._Run) -> dict[str, float]:
        measured = {"ndcg@10": 1.0 / run.epoch}
        if run.epoch == 1:
            run.best, run.best_epoch = measured, 1
            torch.save(run.model.state_dict(), run.folder / "model.pt")
        else:
            run.stale += 1
        return measured

    monkeypatch.setattr(training._Run, "_validate", worse)
    stage = train(tmp_path, "hstu", *upstream, recipe(epochs=30, patience=3))
    assert len(training_log(stage.folder)) == 4
    assert best_epoch(stage.folder) == 1


def test_a_refit_trains_as_long_as_it_is_told(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    stage = train(tmp_path, "hstu", *upstream, recipe(), refit_epochs=2)
    assert stage.folder.name.startswith("train-hstu-refit-")
    assert len(training_log(stage.folder)) == 2
    about = json.loads((stage.folder / "model.json").read_text(encoding="utf-8"))
    assert about["validation"] is None


def test_weights_are_not_read_with_other_semantic_ids_than_their_own(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    stage = train(tmp_path / "work", "hstu", *upstream, recipe(epochs=1, validate_every=1))
    tokens = upstream[1]
    load_model(stage.folder, tokens)
    other = tmp_path / "tokenize"
    other.mkdir()
    codes = load_codes(tokens.folder)
    np.save(other / "codes.npy", codes[::-1])
    with pytest.raises(TrainingError, match=r"other semantic IDs than those in .*tokenize: remove it and train again"):
        load_model(stage.folder, Stage("tokenize", "x", other))
