from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from offline import train as training
from offline.errors import StageError, TrainingError
from offline.features import item_features
from offline.models.alignment import Alignment
from offline.models.inputs import ItemVectors
from offline.models.recommender import Recommender, parameters
from offline.objective import Objective
from offline.prepare import load_dataset, prepare
from offline.recipe import BACKBONES, AlignmentRecipe, PrepareRecipe, Recipe, Variant, reads_reasoning
from offline.sample import write_sample
from offline.scoring import score_beam
from offline.stage import Stage
from offline.tokenize import load_codes
from offline.train import best_epoch, load_model, train, training_log
from tests.offline.models import tiny
from tests.offline.test_tensors import files_of_at_most

STEPS, WIDTH = 5, 12
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def recipe(ablation: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    train = {
        "batch": 16,
        "learning_rate": 5e-3,
        "warmup": 0.1,
        "schedule": "cosine",
        "epochs": 4,
        "label_smoothing": 0.1,
        "reasoning_dropout": 0.1,
    } | changes
    body = {
        "name": "test",
        "tokenize": {"codebook": 8},
        "model": tiny.recipe(dropout=0.1).model_dump(),
        "train": {"catalogue_weight": 0.5} | train,
        "sasrec": tiny.SASREC,
        "tiger": tiny.TIGER | {"dropout": 0.1, "train": train | {"batch": 64}},
        "ablation": ablation or {},
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_learns_and_says_what_it_did(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, variant: Variant
) -> None:
    stage = train(tmp_path, variant, *upstream, recipe(epochs=8, patience=8))
    log = training_log(stage.folder)
    assert [row["epoch"] for row in log] == list(range(1, 9))
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    with (stage.folder / "epochs.csv").open(encoding="utf-8", newline="") as lines:
        assert [float(row["loss"]) for row in csv.DictReader(lines)] == [row["loss"] for row in log]
    best = max(log, key=lambda row: row["ndcg@10"])
    assert best_epoch(stage.folder) == best["epoch"]
    about = json.loads((stage.folder / "model.json").read_text(encoding="utf-8"))
    assert about["validation"]["ndcg@10"] == best["ndcg@10"]
    made = load_model(stage.folder, upstream[1])
    assert (made.adapter is not None) == reads_reasoning(variant)
    assert made.variant == variant
    assert about["parameters"] == sum(p.numel() for p in made.parameters())
    assert not (stage.folder / "checkpoint.pt").exists()


def test_the_last_epoch_is_validated_whatever_the_rhythm(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    stage = train(tmp_path, "hstu", *upstream, recipe(epochs=3, validate_every=2))
    assert ["ndcg@10" in row for row in training_log(stage.folder)] == [False, True, True]
    assert best_epoch(train(tmp_path, "hstu", *upstream, recipe(epochs=1, validate_every=5)).folder) == 1


def test_a_backbone_alone_needs_no_chains(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    prepared, tokens, _ = upstream
    stage = train(tmp_path, "hstu", prepared, tokens, None, recipe(epochs=1))
    assert train(tmp_path, "hstu", *upstream, recipe(epochs=1)).folder == stage.folder


def presence(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """To be filled while training, batch by batch: which rows have H, and which of them see it, both bool [B]."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(Objective):
        def forward(self, *given: Any) -> torch.Tensor:
            seen.append((given[2].flatten(1).any(1), given[3]))
            return super().forward(*given)

    monkeypatch.setattr(training, "Objective", Watched)
    return seen


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
    seen = presence(monkeypatch)
    train(tmp_path, "scoter_h", prepared, tokens, some, recipe(epochs=2))
    present, kept = (torch.cat(column) for column in zip(*seen, strict=True))
    assert not kept[~present].any()
    assert kept[present].any()


@pytest.mark.parametrize("variant, losses", [("hstu", (6.3359030, 6.1094916)), ("scoter_h", (6.8444613, 6.4828166))])
def test_the_first_models_train_as_they_always_have(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, variant: Variant, losses: tuple[float, float]
) -> None:
    """Or VERSION has to be raised: the numbers are those of the version before there were other backbones."""
    log = training_log(train(tmp_path, variant, *upstream, recipe(epochs=2)).folder)
    assert [row["loss"] for row in log] == pytest.approx(losses, rel=1e-4)
    known = training._settings(recipe(), variant)
    assert known.keys() == {"variant", "codebook", "model", "train"}
    assert "optimizer" not in known["train"]


@pytest.mark.parametrize("variant, start", [*((v, "scratch") for v in VARIANTS), ("scoter_h", "backbone")])
def test_an_interrupted_run_goes_on_bit_for_bit(
    upstream: tuple[Stage, Stage, Stage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: Variant,
    start: str,
) -> None:
    """Cut in the first epoch, at the end of one, within a later one, and between an epoch's log and its checkpoint."""
    standing: dict[str, Any] = {"start": "backbone"} if start == "backbone" else {}
    whole = train(tmp_path / "whole", variant, *upstream, recipe(**standing))
    if standing:
        train(tmp_path / "parts", BACKBONES[variant], *upstream, recipe())

    def cut(method: str, epoch: int, call: int) -> None:
        real, calls = getattr(training._Run, method), 0

        def interrupted(run: training._Run, *given: Any) -> Any:
            nonlocal calls
            if run.epoch == epoch:
                calls += 1
                if calls == call:
                    raise KeyboardInterrupt
            return real(run, *given)

        with monkeypatch.context() as patch:
            patch.setattr(training._Run, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path / "parts", variant, *upstream, recipe(**standing))

    cut("_loss", 0, 2)
    cut("_one_epoch", 1, 1)
    cut("_loss", 1, 3)
    cut("_checkpoint", 3, 1)
    assert not list((tmp_path / "parts").glob(f"train-{variant}-*[!l]/model.json"))
    resumed = train(tmp_path / "parts", variant, *upstream, recipe(**standing))
    assert (whole.folder / "model.json").read_bytes() == (resumed.folder / "model.json").read_bytes()
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    keep = ("epoch", "loss", "ndcg@10")
    one, other = ([[row[k] for k in keep] for row in training_log(s.folder)] for s in (whole, resumed))
    assert one == other


def test_weights_are_those_of_the_epoch_that_is_called_the_best(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a better epoch and before its checkpoint: in other processes it may be no better when repeated."""
    seen: dict[int, dict[str, torch.Tensor]] = {}
    worth = {1: 0.3, 2: 0.4, 3: 0.1}

    def measured(run: training._Run) -> dict[str, float]:
        seen[run.epoch] = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        return {"ndcg@10": worth[run.epoch]}

    real = training._Run._checkpoint

    def killed(run: training._Run) -> None:
        if run.epoch == 2:
            raise KeyboardInterrupt
        real(run)

    monkeypatch.setattr(training._Run, "_measured", measured)
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "hstu", *upstream, recipe(epochs=3))
    worth[2] = 0.25
    stage = train(tmp_path, "hstu", *upstream, recipe(epochs=3))
    assert best_epoch(stage.folder) == 1
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in weights(stage).items())
    kept = {"epochs.csv", "epochs.jsonl", "model.json", "model.pt", "stage.json"}
    assert {path.name for path in stage.folder.iterdir()} == kept


@pytest.mark.parametrize("moment", ["model.pt", "model.json"])
def test_weights_that_have_their_name_keep_it(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed before the weights are named, or between that and what is said of them."""
    whole = train(tmp_path / "whole", "hstu", *upstream, recipe(epochs=2))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    owner, name = (training._Run, "_finish") if moment == "model.pt" else (training, "write_json")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", "hstu", *upstream, recipe(epochs=2))
    stage = train(tmp_path / "cut", "hstu", *upstream, recipe(epochs=2))
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(stage).items())
    assert best_epoch(stage.folder) == best_epoch(whole.folder)


def test_a_disk_that_is_full_ends_training_in_one_line(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    """Where it can be written again, training goes on; a checkpoint of which half was written is none."""
    with (
        files_of_at_most(100_000),  # room for the weights, not for a checkpoint
        pytest.raises(StageError, match=r"train-hstu cannot read or write: .*File too large: '.*checkpoint\.pt'$"),
    ):
        train(tmp_path, "hstu", *upstream, recipe(epochs=1))
    train(tmp_path, "hstu", *upstream, recipe(epochs=1))


def test_what_was_trained_to_its_end_is_not_trained_again(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the stage's folder had its name, or failed as a crew parted."""
    real = training._Run._finish

    def killed(run: training._Run) -> None:
        real(run)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "hstu", *upstream, recipe(epochs=1))
    monkeypatch.setattr(training, "_train", lambda *_: pytest.fail("trained again"))
    stage = train(tmp_path, "hstu", *upstream, recipe(epochs=1))
    kept = {"epochs.csv", "epochs.jsonl", "model.json", "model.pt", "stage.json"}
    assert {path.name for path in stage.folder.iterdir()} == kept


def test_an_epoch_is_written_down_as_a_whole_or_not_at_all(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a row, as a full disk leaves one behind, would be met again by every run that goes on."""
    real = training._Run._log

    def watched(run: training._Run, row: dict[str, Any]) -> None:
        os.link(run.folder / "epochs.jsonl", tmp_path / f"before-{run.epoch}")
        real(run, row)

    monkeypatch.setattr(training._Run, "_log", watched)
    train(tmp_path, "hstu", *upstream, recipe(epochs=2))
    assert [(tmp_path / f"before-{epoch}").read_bytes().count(b"\n") for epoch in (1, 2)] == [0, 1]


def assert_kept_from_the_first_epoch(partial: Path) -> None:
    """The checkpoint that a run which diverged in its second epoch leaves behind."""
    kept = torch.load(partial / "checkpoint.pt", weights_only=True)
    assert kept["epoch"] == 1
    assert all(torch.isfinite(t).all() for t in kept["model"].values() if t.is_floating_point())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training._Run._loss

    def diverging(run: training._Run, rows: Any) -> torch.Tensor:
        loss = real(run, rows)
        return loss * torch.nan if run.epoch == 1 else loss

    monkeypatch.setattr(training._Run, "_loss", diverging)
    with pytest.raises(TrainingError, match=r"the loss is nan at epoch 2, step \d+, in a batch of \d+ rows \(of users"):
        train(tmp_path, "hstu", *upstream, recipe())
    (partial,) = tmp_path.glob("train-hstu-*.partial")
    batch = json.loads((partial / "bad_batch.json").read_text(encoding="utf-8"))
    assert (batch["epoch"], batch["rows"]) == (2, batch["users"])
    assert len(batch["users"]) == len(batch["last_targets"]) > 0
    assert_kept_from_the_first_epoch(partial)


def test_a_gradient_that_is_not_finite_at_the_end_of_an_epoch_spoils_no_checkpoint(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training._Run._loss

    def diverging(run: training._Run, rows: Any) -> torch.Tensor:
        loss = real(run, rows)
        if run.step < 2 * run.steps_an_epoch - 1:
            return loss
        weights = next(weights for weights in run.model.parameters() if weights.requires_grad)
        return loss + torch.sqrt((weights * 0).abs().sum())  # nothing, with a gradient that is no number

    monkeypatch.setattr(training._Run, "_loss", diverging)
    with pytest.raises(TrainingError, match=r"the length of the gradient is nan at epoch 2, step \d+.* Lower train\."):
        train(tmp_path, "hstu", *upstream, recipe())
    (partial,) = tmp_path.glob("train-hstu-*.partial")
    assert_kept_from_the_first_epoch(partial)


@pytest.mark.parametrize("killed_in", [None, 5])
def test_training_stops_when_validation_no_longer_improves(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: int | None
) -> None:
    """Three times in a row, which a run that goes on has not forgotten; as good as the best is no better."""
    worth = {1: 0.3, 2: 0.2, 3: 0.4, 4: 0.4, 5: 0.1, 6: 0.39}
    monkeypatch.setattr(training._Run, "_measured", lambda run: {"ndcg@10": worth[run.epoch]})
    real = training._Run._one_epoch

    def killed(run: training._Run, stepped: Any) -> Any:
        if run.epoch + 1 == killed_in:
            raise KeyboardInterrupt
        return real(run, stepped)

    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_one_epoch", killed)
        with pytest.raises(KeyboardInterrupt) if killed_in else nullcontext():
            train(tmp_path, "hstu", *upstream, recipe(epochs=30, patience=3))
    stage = train(tmp_path, "hstu", *upstream, recipe(epochs=30, patience=3))
    assert [row["ndcg@10"] for row in training_log(stage.folder)] == list(worth.values())
    assert best_epoch(stage.folder) == 3


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_learning_rate_rises_and_falls_and_a_refit_repeats_it(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    """A refit is to end in the place that validation has chosen, not at the end of a shorter schedule."""
    rates: list[float] = []
    real = torch.optim.AdamW.step

    def watched(optimizer: torch.optim.AdamW, *given: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return real(optimizer, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    settings = recipe(epochs=4, warmup=0.25, learning_rate=0.01, schedule=schedule)
    train(tmp_path, "hstu", *upstream, settings)
    whole = rates.copy()
    rates.clear()
    train(tmp_path, "hstu", *upstream, settings, refit_epochs=2)
    assert rates == whole[: len(whole) // 2]
    warmup = len(whole) // 4
    assert whole[:warmup] == pytest.approx(np.linspace(0, 0.01, warmup + 1)[1:])
    done = np.arange(len(whole) - warmup) / (len(whole) - warmup)
    falling = 0.01 * np.cos(done * np.pi / 2) ** 2 if schedule == "cosine" else np.full(len(done), 0.01)
    assert whole[warmup:] == pytest.approx(falling)


def test_no_step_is_longer_than_its_gradient_may_be(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[float] = []
    real, loss = torch.optim.AdamW.step, training._Run._loss

    def watched(optimizer: torch.optim.AdamW, *given: Any) -> Any:
        found = [weights.grad.norm() for weights in optimizer.param_groups[0]["params"] if weights.grad is not None]
        lengths.append(float(torch.stack(found).norm()))
        return real(optimizer, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    monkeypatch.setattr(training._Run, "_loss", lambda run, rows: 1000 * loss(run, rows))
    train(tmp_path, "hstu", *upstream, recipe(epochs=1))
    assert lengths == pytest.approx([1.0] * len(lengths), rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_reasoning_is_left_out_as_often_as_the_recipe_says(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    seen = presence(monkeypatch)
    train(tmp_path, "scoter_h", *upstream, recipe(epochs=3, reasoning_drop=share))
    present, kept = (torch.cat(column) for column in zip(*seen, strict=True))
    rate = float(kept[present].float().mean())
    assert rate == 1.0 if share == 0 else abs(rate - 0.5) < 4 * 0.5 / len(kept[present]) ** 0.5


def test_validation_is_of_validation_s_own_chains_with_the_history_masked(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []

    def watched(model: Any, history: Any, *rest: Any, **how: Any) -> Any:
        asked.append((history, how))
        return score_beam(model, history, *rest, **how)

    monkeypatch.setattr(training, "score_beam", watched)
    train(tmp_path, "scoter_h", *upstream, recipe(epochs=1))
    ((history, how),) = asked
    assert how["mask_history"] is True
    prepared, _, reasoned = upstream
    dataset = load_dataset(prepared.folder)
    np.testing.assert_array_equal(history.reasoning, np.load(reasoned.folder / "valid.npy"))
    assert history.targets.tolist() == [dataset.target(user, "valid") for user in range(len(dataset.users))]


def test_a_refit_trains_as_long_as_it_is_told(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    stage = train(tmp_path, "hstu", *upstream, recipe(), refit_epochs=2)
    assert stage.folder.name.startswith("train-hstu-refit-")
    assert len(training_log(stage.folder)) == 2
    about = json.loads((stage.folder / "model.json").read_text(encoding="utf-8"))
    assert about["validation"] is None


@pytest.mark.parametrize("variant", ["scoter_h", "scoter_s", "scoter_t"])
def test_a_model_can_stand_on_its_backbone(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, variant: Variant, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe(epochs=3, start="backbone", learning_rate=0.1)
    alone = train(tmp_path, BACKBONES[variant], *upstream, recipe(epochs=3, learning_rate=0.1))
    fused = train(tmp_path, variant, *upstream, settings)
    assert f"train-{BACKBONES[variant]}: up to date" in capsys.readouterr().out
    before, after = weights(alone), weights(fused)
    last = "backbone.stack.final_layer_norm." if variant == "scoter_t" else "norm."
    for name, tensor in before.items():
        moved = f"fusion.norm.{name.removeprefix(last)}" if name.startswith(last) else name
        assert torch.equal(tensor, after[moved]), name
    about = json.loads((fused.folder / "model.json").read_text(encoding="utf-8"))
    best = json.loads((alone.folder / "model.json").read_text(encoding="utf-8"))["validation"]
    assert about["validation_before"] == best
    assert about["validation"]["ndcg@10"] == max(
        [best["ndcg@10"], *(row["ndcg@10"] for row in training_log(fused.folder))]
    )
    assert about["parameters"] == sum(p.numel() for p in load_model(fused.folder, upstream[1]).parameters())
    made, own = load_model(fused.folder, upstream[1]), load_model(alone.folder, upstream[1])
    history, none = torch.tensor([[0, 0, 0, 1, 2, 3]]), torch.zeros(1, 0, dtype=torch.int64)
    with torch.inference_mode():
        steps = made.project(torch.randn(1, STEPS, WIDTH))
        withheld = made.recommend(history, none, 5, steps, torch.tensor([False]))
        expected = own.recommend(history, none, 5)
    assert torch.equal(withheld.items, expected.items)  # whatever it has learnt: without H it is the backbone
    torch.testing.assert_close(withheld.scores, expected.scores)


def test_what_stands_on_a_backbone_trains_what_reads_reasoning(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the backbone alone was better, and its weights are the ones to keep."""
    kept: list[dict[str, torch.Tensor]] = []
    real = training._Run._finish

    def watched(run: training._Run) -> None:
        kept.append({name: tensor.clone() for name, tensor in run.model.state_dict().items()})
        real(run)

    monkeypatch.setattr(training._Run, "_finish", watched)
    monkeypatch.setattr(training._Run, "_measured", lambda run: {"ndcg@10": 1.0 / (1 + run.epoch)})
    stage = train(tmp_path, "scoter_h", *upstream, recipe(epochs=2, start="backbone"))
    assert best_epoch(stage.folder) == 0
    assert len(training_log(stage.folder)) == 2
    changed = {name for name, tensor in weights(stage).items() if not torch.equal(tensor, kept[-1][name])}
    assert changed == {
        *(f"adapter.{name}" for name in ("project.weight", "project.bias", "norm.weight", "norm.bias", "position")),
        *(f"fusion.{part}.{name}" for part in ("query", "key_value", "out", "gate") for name in ("weight", "bias")),
    }


def test_a_refit_of_what_stands_on_a_backbone_stands_on_a_refitted_one(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    settings = recipe(epochs=2, start="backbone")
    alone = train(tmp_path, "hstu", *upstream, settings)
    refitted = train(tmp_path, "hstu", *upstream, settings, refit_epochs=best_epoch(alone.folder))
    for epochs in (0, 2):  # 0: nothing that was learnt about reading H was better than the backbone
        stage = train(tmp_path, "scoter_h", *upstream, settings, refit_epochs=epochs)
        assert len(training_log(stage.folder)) == epochs
        assert best_epoch(stage.folder) == epochs
        after = weights(stage)
        assert torch.equal(after["decoder.start.weight"], weights(refitted)["decoder.start.weight"])
        assert after["fusion.out.weight"].any() == (epochs > 0)


@pytest.mark.parametrize("variant", ["hstu", "scoter_h", "tiger"])
def test_item_vectors_read_the_features_that_the_recipe_names(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, variant: Variant
) -> None:
    plain = recipe(epochs=1, start="backbone")
    shape = plain.model.model_copy(update={"features": ["collaborative"]})
    settings = plain.model_copy(update={"model": shape})
    stage = train(tmp_path, variant, *upstream, settings)
    same = train(tmp_path, variant, *upstream, plain).folder == stage.folder
    made = load_model(stage.folder, upstream[1])
    if variant == "tiger":  # knows items by their codes alone, whatever the recipe says
        assert same
        return
    assert not same
    dataset = load_dataset(upstream[0].folder)
    features = item_features(["collaborative"], dataset, tmp_path, settings.tokenize, include_validation=False)
    assert isinstance(made.inputs, ItemVectors)
    assert torch.equal(made.inputs.features[1:], torch.from_numpy(features))
    again = load_model(train(tmp_path, variant, *upstream, settings, refit_epochs=1).folder, upstream[1])
    assert isinstance(again.inputs, ItemVectors)
    assert not torch.equal(again.inputs.features, made.inputs.features)  # bought together once more


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


def test_weights_of_another_version_of_the_recipes_are_refused(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    stage = train(tmp_path / "work", "hstu", *upstream, recipe(epochs=1, validate_every=1))
    path = stage.folder / "model.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    about["recipe"]["reason"]["backend"] = "analyst"
    path.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"another version .* train again \(1 settings differ, .*reason\.backend"):
        load_model(stage.folder, upstream[1])


@pytest.mark.parametrize("variant", ["scoter_h", "scoter_t"])
def test_a_model_that_compares_with_item_texts_keeps_them(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, variant: Variant
) -> None:
    prepared, tokens, reasoned = upstream
    embedded = Stage("tokenize", "embedded", tmp_path / "tokens")
    shutil.copytree(tokens.folder, embedded.folder)
    texts = tiny.texts(len(load_codes(tokens.folder)))
    np.save(embedded.folder / "embeddings.npy", texts)
    settings = recipe(epochs=2).model_copy(update={"alignment": AlignmentRecipe(dim=3, weight=2.0)})
    stage = train(tmp_path, variant, prepared, embedded, reasoned, settings)
    made = load_model(stage.folder, embedded)
    assert made.alignment is not None
    expected = Alignment(len(texts), STEPS, WIDTH, settings.alignment).place(texts)
    torch.testing.assert_close(made.alignment.texts, expected.texts)
    assert made.alignment.weight == 2.0
    assert made.alignment.steps[:-1].any()  # it has learnt which steps count
    assert train(tmp_path, variant, prepared, embedded, reasoned, recipe(epochs=2)).folder != stage.folder


def test_position_and_lambda_can_be_taken_away(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    """Each of them changes the weights, nothing else does, and without P the steps have no order."""
    full = train(tmp_path, "scoter_h", *upstream, recipe(epochs=1))
    flat = train(tmp_path, "scoter_h", *upstream, recipe({"position": False}, epochs=1))
    unaligned = train(tmp_path, "scoter_h", *upstream, recipe(epochs=1, contrastive_weight=0.0))
    assert len({full.folder, flat.folder, unaligned.folder}) == 3
    made = load_model(flat.folder, upstream[1])
    assert made.adapter is not None
    assert not made.adapter.position.any()
    assert weights(full)["adapter.position"].any()
    assert torch.equal(weights(flat)["adapter.position"], torch.zeros_like(weights(full)["adapter.position"]))
    assert not torch.equal(weights(full)["adapter.project.weight"], weights(unaligned)["adapter.project.weight"])
    reasoning, history = torch.randn(3, STEPS, WIDTH), torch.tensor([[0, 0, 0, 1, 2, 3]]).expand(3, -1)
    with torch.inference_mode():
        one, other = (
            made.recommend(history, history, 5, made.project(steps), torch.ones(3, dtype=torch.bool)).scores
            for steps in (reasoning, reasoning.flip(1))
        )
    torch.testing.assert_close(one, other)


def test_without_reasoning_an_ablation_changes_nothing(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    plain = train(tmp_path, "hstu", *upstream, recipe(epochs=1))
    assert train(tmp_path, "hstu", *upstream, recipe({"position": False}, epochs=1)) == plain
    other = train(tmp_path, "hstu", *upstream, recipe(epochs=1, contrastive_weight=0.0))
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(other)[name]), name


@pytest.mark.parametrize("variant", ["hstu", "tiger", "sasrec"])
def test_a_matched_backbone_is_as_large_as_its_fused_variant(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, variant: Variant
) -> None:
    wide = train(tmp_path, variant, *upstream, recipe({"matched": True}, epochs=1))
    fused: dict[Variant, Variant] = {"hstu": "scoter_h", "tiger": "scoter_t", "sasrec": "scoter_s"}
    size = {
        v: parameters(Recommender(recipe(), v, load_codes(upstream[1].folder), shape))
        for v, shape in ((variant, None), (fused[variant], (STEPS, WIDTH)))
    }
    made = load_model(wide.folder, upstream[1])
    narrow = recipe().tiger.dim if variant == "tiger" else recipe().model.dim
    assert made.dim > narrow
    a_step = (parameters(made) - size[variant]) / (made.dim - narrow)
    assert abs(parameters(made) - size[fused[variant]]) < a_step
    assert train(tmp_path, fused[variant], *upstream, recipe({"matched": True}, epochs=1)) == train(
        tmp_path, fused[variant], *upstream, recipe(epochs=1)
    )


def test_adam_is_what_the_recipe_calls_it(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    """Without weight decay the two are the same; with it they are not."""
    for decay, same in ((0.0, True), (0.1, False)):
        one, other = (
            weights(train(tmp_path, "hstu", *upstream, recipe(epochs=1, weight_decay=decay, optimizer=optimizer)))
            for optimizer in ("adamw", "adam")
        )
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items()) == same


def test_weights_of_earlier_versions_load(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    """The item vectors were the model's own then, and recipes named no models."""
    stage = train(tmp_path, "scoter_h", *upstream, recipe(epochs=1))
    now = weights(stage)
    torch.save({name.removeprefix("inputs."): tensor for name, tensor in now.items()}, stage.folder / "model.pt")
    about = json.loads((stage.folder / "model.json").read_text(encoding="utf-8"))
    for section in ("models", "sasrec", "tiger", "ablation"):
        del about["recipe"][section]
    (stage.folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
    for name, tensor in load_model(stage.folder, upstream[1]).state_dict().items():
        assert torch.equal(tensor, now[name]), name


def test_semantic_ids_of_another_data_set_are_refused(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    prepared, tokens, reasoned = upstream
    other = tmp_path / "tokenize"
    other.mkdir()
    np.save(other / "codes.npy", load_codes(tokens.folder)[:-1])
    with pytest.raises(
        StageError, match=r"tokenize holds semantic IDs of \d+ items, the data set has \d+: they were not"
    ):
        train(tmp_path / "work", "hstu", prepared, Stage("tokenize", "x", other), reasoned, recipe(epochs=1))


def test_what_onednn_keeps_is_bounded_before_torch_is_asked_for_anything() -> None:
    program = "import offline, os; print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")}
    for given, expected in (({}, "64"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "9"}, "9")):
        run = subprocess.run(
            [sys.executable, "-c", program], env=bare | given, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == expected
