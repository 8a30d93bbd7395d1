"""Stage `train` (3.3.2, A.2): a backbone alone, or with order-preserving fusion.

Output folder:

    model.pt      weights of the best validation
    model.json    what the weights are: variant, recipe, catalogue size, K, D, best validation
    epochs.jsonl  one object an epoch: loss, seconds, validation metrics
    epochs.csv    the same as a table

While it runs, `checkpoint.pt` holds everything that going on from the last epoch needs: a run that was cut off,
wherever that was, ends with the very weights of one that was not. The best weights so far are in `best-<epoch>.pt`,
which the checkpoint names by its epoch. `bad_batch.json` is what made a loss infinite or no number.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.progress import TaskProgressColumn
from torch import Tensor

from offline.batches import TrainingRows, prefix_rows, training_rows
from offline.crew import Crew, launch
from offline.errors import TrainingError
from offline.features import item_features
from offline.memory import freed_memory_kept
from offline.metrics import ranks, summary
from offline.models.inputs import ItemVectors
from offline.models.matched import matched
from offline.models.recommender import Recommender, parameters
from offline.objective import Objective
from offline.prepare import Dataset, load_dataset
from offline.progress import progress
from offline.ranking import Asked, drawn
from offline.reason.output import load_reasoning, present
from offline.recipe import BACKBONES, Recipe, TrainRecipe, Variant, reads_reasoning
from offline.scoring import History, score_beam
from offline.stage import Stage, console, read_json, read_rows, run_stage, write_json, write_rows, write_text
from offline.tensors import load_tensors, save_tensors
from offline.tokenize import codes_digest, load_codes, load_embeddings

VERSION = 2


def train(
    work: Path,
    variant: Variant,
    prepared: Stage,
    tokens: Stage,
    reasoned: Stage | None,
    recipe: Recipe,
    *,
    refit_epochs: int | None = None,
    processes: int = 1,
) -> Stage:
    """Run the stage. Raises TrainingError when the loss is not finite.

    Backbones alone need nothing `reasoned`, unless they are to be as large as with fusion.

    With `refit_epochs` the validation items are training targets too; nothing is left to select on then, so it
    trains for that many epochs, which an earlier run chose. `processes` share each batch, one to a GPU where there are
    any. A model that starts from its backbone has that trained first, if it is not yet.
    """
    reads = reads_reasoning(variant)
    assert reasoned is not None or not (reads or recipe.ablation.matched)
    backbone: Stage | None = None
    if reads and recipe.training(variant).start == "backbone":
        # Unwidened: what is compared with a matched backbone stands on the usual one.
        usual = recipe.model_copy(update={"ablation": recipe.ablation.model_copy(update={"matched": False})})
        alone = partial(train, work, BACKBONES[variant], prepared, tokens, reasoned, usual, processes=processes)
        backbone = alone()
        if refit_epochs is not None:
            backbone = alone(refit_epochs=best_epoch(backbone.folder))
    read = reasoned if reads else None
    upstream = [prepared, tokens, *(stage for stage in (read, backbone) if stage is not None)]
    if reasoned is not None and recipe.ablation.matched and not reads:
        steps, width = load_reasoning(reasoned.folder, "train").shape[1:]
        features = _features(recipe, variant, load_dataset(prepared.folder), tokens, refit=refit_epochs is not None)
        size = features.shape[1] if features is not None else 0
        recipe = matched(recipe, variant, load_codes(tokens.folder), (steps, width), size)
    settings = _settings(recipe, variant) | {"refit_epochs": refit_epochs}

    def build(folder: Path) -> None:
        task = _Task(folder, variant, prepared, tokens, read, backbone, recipe, refit_epochs)
        if (folder / "model.json").is_file():  # the last that is written: killed, or failed, with nothing left to train
            console.print("  trained already")
        elif processes == 1:
            _train(task)
        else:
            launch(processes, _train, task)
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        _forget_weights(folder)

    name = f"train-{variant}" + ("-refit" if refit_epochs is not None else "")
    return run_stage(work, name, VERSION, settings, upstream, build)


def _settings(recipe: Recipe, variant: Variant) -> dict[str, Any]:
    """What of the recipe decides the weights.

    What a choice made later leaves as it was before is left out, so that models from then stay valid.
    """
    optimisation = recipe.training(variant).model_dump()
    if optimisation["optimizer"] == "adamw":
        del optimisation["optimizer"]
    if optimisation["start"] == "scratch" or not reads_reasoning(variant):
        del optimisation["start"]
    if not reads_reasoning(variant):  # it has no such term: models of every lambda stand beside the same backbone
        optimisation["contrastive_weight"] = TrainRecipe().contrastive_weight
    settings: dict[str, Any] = {
        "variant": variant,
        "codebook": recipe.tokenize.codebook,
        "model": recipe.model.model_dump(),
        "train": optimisation,
    }
    if not recipe.model.features:
        del settings["model"]["features"]
    match BACKBONES[variant]:
        case "tiger":
            if reads_reasoning(variant):
                settings["norm"] = "of the encoder"  # which it had two of, before
            settings["model"] = {"length": recipe.model.length, "beam": recipe.model.beam}
            settings["tiger"] = recipe.tiger.model_dump(exclude={"train"})
        case "sasrec":
            settings["sasrec"] = recipe.sasrec.model_dump()
        case "hstu":
            pass
    if reads_reasoning(variant) and recipe.alignment.dim:
        chosen = recipe.alignment.model_dump(exclude_defaults=True)
        settings["alignment"] = recipe.alignment.model_dump(include={"dim", "weight"}) | chosen
        settings["alignment"]["first"] = "last"  # the step that counts at the start
    if reads_reasoning(variant) and not recipe.ablation.position:
        settings["position"] = False
    return settings


def _features(
    recipe: Recipe, variant: Variant, dataset: Dataset, tokens: Stage, *, refit: bool
) -> NDArray[np.float32] | None:
    """Of every item [N, F], if its vector reads any."""
    if BACKBONES[variant] == "tiger" or not recipe.model.features:
        return None
    return item_features(recipe.model.features, dataset, tokens.folder, recipe.tokenize, include_validation=refit)


def training_log(folder: Path) -> list[dict[str, Any]]:
    """One row an epoch."""
    return list(read_rows(folder / "epochs.jsonl"))


def best_epoch(folder: Path) -> int:
    """The epoch whose weights were kept."""
    about: dict[str, Any] = read_json(folder / "model.json")
    return int(about["best_epoch"])


def load_model(folder: Path, tokens: Stage) -> Recommender:
    """The trained model, in evaluation mode.

    Raises TrainingError if it was trained on other semantic IDs, or by a version whose recipes were others.
    """
    about: dict[str, Any] = read_json(folder / "model.json")
    codes = codes_digest(tokens.folder)
    if about.get("codes", codes) != codes:  # absent from models of version 0.1.0
        raise TrainingError(
            f"{folder} was trained on other semantic IDs than those in {tokens.folder}: remove it and train again"
        )
    try:
        recipe = Recipe.model_validate(about["recipe"])
    except ValidationError as error:
        raise TrainingError(
            f"{folder} was trained by another version of this package, whose recipes were others: remove it and train "
            f"again ({error.error_count()} settings differ, the first: {'.'.join(map(str, error.errors()[0]['loc']))})"
        ) from error
    reasoning = tuple(about["reasoning"]) if about["reasoning"] else None
    weights = load_tensors(folder / "model.pt")
    features = weights["inputs.features"].shape[1] if "inputs.features" in weights else 0
    model = Recommender(recipe, about["variant"], load_codes(tokens.folder), reasoning, features)
    model.load_state_dict(weights)
    return model.eval()


def _weights(folder: Path, epoch: int) -> Path:
    """Where a training that is not done keeps the weights of an epoch that was the best so far."""
    return folder / f"best-{epoch}.pt"


def _forget_weights(folder: Path, *, but: int | None = None) -> None:
    """Remove what is kept of all epochs but one, half a file that a kill left behind as well."""
    kept = _weights(folder, but) if but is not None else None
    for path in folder.glob("best-*.pt"):
        if path != kept:
            path.unlink()


@dataclass(frozen=True, slots=True)
class _Task:
    """What is trained; sent to the processes of a crew."""

    folder: Path
    variant: Variant
    prepared: Stage
    tokens: Stage
    reasoned: Stage | None
    backbone: Stage | None
    recipe: Recipe
    refit_epochs: int | None


def _train(task: _Task) -> None:
    _Run(task).go()


class _Run:
    def __init__(self, task: _Task) -> None:
        variant, recipe, refit_epochs = task.variant, task.recipe, task.refit_epochs
        tokens, reasoned, backbone = task.tokens, task.reasoned, task.backbone
        self.folder, self.variant, self.recipe = task.folder, variant, recipe
        self.settings = recipe.training(variant)
        refit = refit_epochs is not None
        self.last_epoch = self.settings.epochs if refit_epochs is None else refit_epochs
        self.crew = Crew.here()
        torch.manual_seed(self.settings.seed)
        self.random = np.random.default_rng(self.settings.seed)
        self.dataset: Dataset = load_dataset(task.prepared.folder)
        split = "valid" if refit else "train"
        self.reasoning = load_reasoning(reasoned.folder, split) if reasoned is not None else None  # [U, K, D]
        self.validation = None if refit else self._validation(reasoned)
        shape = self.reasoning.shape[1:] if self.reasoning is not None else None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.codes = codes_digest(tokens.folder)
        codes = load_codes(tokens.folder, self.dataset.num_items)
        features = _features(recipe, variant, self.dataset, tokens, refit=refit)
        self.model = Recommender(recipe, variant, codes, shape, features.shape[1] if features is not None else 0)
        if features is not None and isinstance(self.model.inputs, ItemVectors):
            self.model.inputs.place(features)
        if self.model.alignment is not None:
            self.model.alignment.place(load_embeddings(tokens.folder, self.dataset.num_items))
        self.parameters = parameters(self.model)
        rows = training_rows if self.model.causal else prefix_rows
        self.rows: TrainingRows = rows(self.dataset, recipe.model.length, include_validation=refit)
        self.stands = backbone is not None
        if backbone is not None:
            self.model.stand_on(load_model(backbone.folder, tokens))
            self.rows = self.rows.reasoned()
        self.model.to(self.device)
        self.objective = self.crew.joined(Objective(self.model, self.settings))
        if not self.crew.first:  # the same weights everywhere, but not the same neurons dropped
            torch.manual_seed(self.settings.seed + self.crew.rank)
        optimizer = torch.optim.AdamW if self.settings.optimizer == "adamw" else torch.optim.Adam
        trained = [weights for weights in self.model.parameters() if weights.requires_grad]
        self.optimizer = optimizer(trained, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay)
        self.steps_an_epoch = math.ceil(len(self.rows) / self.settings.batch)
        self.epoch, self.step = 0, 0
        self.best: dict[str, float] = {"ndcg@10": -1.0}
        self.best_epoch, self.stale = 0, 0
        self.before: dict[str, float] | None = None  # what a model that starts from its backbone is worth untrained

    def go(self) -> None:
        settings = self.settings
        self._resume()
        with progress(count=TaskProgressColumn(), shown=self.crew.first) as bars:
            total = self.last_epoch * self.steps_an_epoch
            bar = bars.add_task(f"train {self.variant}", total=total, completed=self.step)
            if self.stands and self.validation is not None and not self.epoch:
                self.before = self._validate()  # the backbone may be as good as it gets
            while self.epoch < self.last_epoch and self.stale < settings.patience:
                with freed_memory_kept():
                    row = self._one_epoch(lambda: bars.advance(bar))
                due = self.epoch % settings.validate_every == 0 or self.epoch == self.last_epoch
                if self.validation is not None and due:
                    row |= self._validate()
                if self.crew.first:
                    self._log(row)
                self._checkpoint()
                note = f" ndcg@10 {row['ndcg@10']:.4f}" if "ndcg@10" in row else ""
                place = f"epoch {self.epoch}/{self.last_epoch}"
                bars.update(bar, description=f"{self.variant} {place} loss {row['loss']:.3f}{note}")
        if self.validation is None:
            self.best_epoch = self.epoch
            self._keep_weights()
        if self.crew.first:
            self._finish()

    def _finish(self) -> None:
        best = _weights(self.folder, self.best_epoch)
        if best.is_file():  # or it has its name already, from a run that was killed right after
            best.replace(self.folder / "model.pt")
        write_json(
            self.folder / "model.json",
            {
                "variant": self.variant,
                "recipe": self.recipe.model_dump(),
                "items": self.dataset.num_items,
                "codes": self.codes,
                "reasoning": list(self.reasoning.shape[1:]) if self.reasoning is not None else None,
                "parameters": self.parameters,
                "epochs": self.epoch,
                "best_epoch": self.best_epoch,
                "validation": self.best if self.validation is not None else None,
                **({"validation_before": self.before} if self.before is not None else {}),
            },
        )

    def _validation(self, reasoned: Stage | None) -> History:
        """What this process validates on."""
        users = self.crew.share(drawn(len(self.dataset.users), self.settings.validation_users, seed=0))
        reasoning = load_reasoning(reasoned.folder, "valid") if reasoned is not None else None
        return History.of(Asked.of(self.dataset, "valid", users), self.recipe.model.length, reasoning)

    def _one_epoch(self, stepped: Callable[[], None]) -> dict[str, Any]:
        self.model.train()  # what is frozen, too: undisturbed it knows the rows by heart, and a fusion learns nothing
        start, losses = time.monotonic(), []
        for rows in self.rows.batches(self.settings.batch, self.random):
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
                loss = self._loss(rows)
            if not torch.isfinite(loss):
                raise self._diverged(rows, loss.item())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            length = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            if not torch.isfinite(length):  # a loss may be a number where its gradient is none
                raise self._diverged(rows, length.item(), "length of the gradient")
            self.optimizer.step()
            self.step += 1
            losses.append(loss.item())
            stepped()
        self.epoch += 1
        mean = float(np.mean(self.crew.gathered(float(np.mean(losses)))))
        return {"epoch": self.epoch, "loss": mean, "seconds": round(time.monotonic() - start, 2)}

    def _diverged(self, rows: NDArray[np.int64], value: float, what: str = "loss") -> TrainingError:
        """Keep what the batch was, for whoever has to find out why."""
        path = self.folder / "bad_batch.json"
        users = self.rows.users[rows]
        targets = self.rows.targets[rows, -1]
        batch = {"rows": rows.tolist(), "users": users.tolist(), "last_targets": targets.tolist()}
        write_json(path, {"epoch": self.epoch + 1, "step": self.step, what: str(value)} | batch)
        section = "train" if self.settings is self.recipe.train else "tiger.train"
        first = ", ".join(map(str, users[:5])) + (", ..." if len(users) > 5 else "")
        return TrainingError(
            f"{self.variant}: the {what} is {value} at epoch {self.epoch + 1}, step {self.step}, in a batch of "
            f"{len(rows)} rows (of users {first} by their place in the data set; all in {path}); the last good "
            f"checkpoint is kept in {self.folder}. Lower {section}.learning_rate, which trains anew in another folder"
        )

    def _loss(self, rows: NDArray[np.int64]) -> Tensor:
        """Loss of a batch; of several processes, of this one's share, such that their mean is that of the batch."""
        if self.crew.size == 1:
            return self._loss_of(rows)
        own = self.crew.share(rows)
        # A model is trained at every position of a row, or at the last one: the share of those that are here.
        everywhere = self.model.causal and not self.stands
        places = self.rows.lengths if everywhere else np.ones_like(self.rows.lengths)
        weight = self.crew.size * places[own].sum() / places[rows].sum()
        return self._loss_of(own if len(own) else rows[:1]) * float(weight)

    def _loss_of(self, rows: NDArray[np.int64]) -> Tensor:
        longest = max(int(self.rows.lengths[rows].max()), 1)
        inputs = torch.from_numpy(self.rows.inputs[rows, -longest:]).to(self.device)
        targets = torch.from_numpy(self.rows.targets[rows, -longest:]).to(self.device)
        if self.reasoning is None:
            loss: Tensor = self.objective(inputs, targets, None, None)
            return loss
        may = self.rows.latest[rows]
        reasoning = np.zeros((len(rows), *self.reasoning.shape[1:]), np.float32)
        reasoning[may] = self.reasoning[self.rows.users[rows[may]]]  # nobody else's is even read
        keep = torch.rand(len(rows), device=self.device) >= self.settings.reasoning_drop
        keep &= torch.from_numpy(may & present(reasoning)).to(self.device)
        fused: Tensor = self.objective(inputs, targets, torch.from_numpy(reasoning).to(self.device), keep)
        return fused

    def _learning_rate(self) -> float:
        settings = self.settings
        total = self.steps_an_epoch * settings.epochs
        warmup = int(total * settings.warmup)
        if self.step < warmup:
            return settings.learning_rate * (self.step + 1) / warmup
        if settings.schedule == "constant":
            return settings.learning_rate
        done = (self.step - warmup) / max(total - warmup, 1)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _validate(self) -> dict[str, float]:
        measured = self._measured()
        if measured["ndcg@10"] > self.best["ndcg@10"]:
            self.best, self.best_epoch, self.stale = measured, self.epoch, 0
            self._keep_weights()
        else:
            self.stale += 1
        return measured

    def _measured(self) -> dict[str, float]:
        """Each process ranks for its share of the users: who waits for another for too long is taken for dead."""
        asked = self.validation
        assert asked is not None
        own = np.zeros(0, np.int64)
        if len(asked.targets):
            found = score_beam(self.model, asked, self.recipe.model.beam, mask_history=True, device=self.device)
            own = ranks(found.items[:, :10], asked.targets)
        return summary(np.concatenate(self.crew.gathered(own)))

    def _keep_weights(self) -> None:
        if not self.crew.first:
            return
        # Under a name of its own: until the checkpoint says that this epoch is the best, the one before it is.
        save_tensors(self.model.state_dict(), _weights(self.folder, self.best_epoch))

    def _log(self, row: dict[str, Any]) -> None:
        rows = [*training_log(self.folder), row]
        # Never half a line: who goes on from a checkpoint reads what was written before it.
        write_rows(self.folder / "epochs.jsonl", rows)
        columns = list(dict.fromkeys(column for each in rows for column in each))
        out = io.StringIO()
        table = csv.DictWriter(out, columns)
        table.writeheader()
        table.writerows(rows)
        write_text(self.folder / "epochs.csv", out.getvalue())

    def _checkpoint(self) -> None:
        drawn = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self.device.type == "cuda" else [])]
        everyone = self.crew.gathered(drawn)
        if not self.crew.first:
            return
        save_tensors(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": everyone,  # by rank: of the CPU, and of the GPU if there is one
                "numpy": json.dumps(self.random.bit_generator.state),
                "epoch": self.epoch,
                "step": self.step,
                "best": self.best,
                "best_epoch": self.best_epoch,
                "stale": self.stale,
                "before": self.before,
            },
            self.folder / "checkpoint.pt",
        )
        _forget_weights(self.folder, but=self.best_epoch)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            if self.crew.first:
                write_rows(self.folder / "epochs.jsonl", [])
            return
        kept = load_tensors(path)
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        everyone = kept["random"] if "random" in kept else [[kept["torch"]]]  # before there could be several
        if self.crew.rank < len(everyone):
            drawn = everyone[self.crew.rank]
            torch.set_rng_state(drawn[0])
            if self.device.type == "cuda" and len(drawn) > 1:
                torch.cuda.set_rng_state(drawn[1])
        self.random.bit_generator.state = json.loads(kept["numpy"])
        self.epoch, self.step, self.stale = kept["epoch"], kept["step"], kept["stale"]
        self.best, self.best_epoch, self.before = kept["best"], kept["best_epoch"], kept.get("before")
        if self.crew.first:
            # An epoch may have been written down and cut off before its checkpoint: it will be trained again.
            write_rows(self.folder / "epochs.jsonl", training_log(self.folder)[: self.epoch])
            console.print(f"  going on after epoch {self.epoch}")
