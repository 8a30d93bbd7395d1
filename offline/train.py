"""Stage `train` (3.3.2, A.2): HSTU, or SCoTER-H with order-preserving fusion.

Output folder:

    model.pt      weights of the best validation
    model.json    what the weights are: variant, recipe, catalogue size, K, D, best validation
    epochs.jsonl  one object an epoch: loss, seconds, validation metrics

While it runs, `checkpoint.pt` holds everything that going on from the last epoch needs.
"""

from __future__ import annotations

import ctypes
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from offline.batches import TrainingRows, training_rows
from offline.errors import TrainingError
from offline.metrics import ranks, summary
from offline.models.recommender import Recommender
from offline.objective import Objective
from offline.prepare import Dataset, load_dataset
from offline.reason.output import load_reasoning, present
from offline.recipe import Recipe
from offline.scoring import History, score_beam
from offline.stage import Stage, console, run_stage, write_json
from offline.tokenize import codes_digest, load_codes

VERSION = 2
Variant = Literal["hstu", "scoter_h"]
VARIANTS: tuple[Variant, ...] = ("hstu", "scoter_h")

# glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX: while training, and by default.
_MALLOC = {-1: (2**31 - 1, 2**17), -2: (2**28, 2**17), -4: (0, 2**16)}


def train(
    work: Path,
    variant: Variant,
    prepared: Stage,
    tokens: Stage,
    reasoned: Stage,
    recipe: Recipe,
    *,
    refit_epochs: int | None = None,
) -> Stage:
    """Run the stage. Raises TrainingError when the loss is not finite.

    With `refit_epochs` the validation items are training targets too; nothing is left to select on then, so it
    trains for that many epochs, which an earlier run chose.
    """
    reads = variant == "scoter_h"
    upstream = [prepared, tokens, *([reasoned] if reads else [])]
    settings: dict[str, Any] = {
        "variant": variant,
        "refit_epochs": refit_epochs,
        "codebook": recipe.tokenize.codebook,
        "model": recipe.model.model_dump(),
        "train": recipe.train.model_dump(),
    }

    def build(folder: Path) -> None:
        with _freed_memory_kept():
            _Run(folder, variant, prepared, tokens, reasoned if reads else None, recipe, refit_epochs).go()

    name = f"train-{variant}" + ("-refit" if refit_epochs is not None else "")
    return run_stage(work, name, VERSION, settings, upstream, build)


def training_log(folder: Path) -> list[dict[str, Any]]:
    """One row an epoch."""
    return [json.loads(line) for line in (folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()]


def best_epoch(folder: Path) -> int:
    """The epoch whose weights were kept."""
    about: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return int(about["best_epoch"])


def load_model(folder: Path, tokens: Stage) -> Recommender:
    """The trained model, in evaluation mode. Raises TrainingError if it was trained on other semantic IDs."""
    about: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    codes = codes_digest(tokens.folder)
    if about.get("codes", codes) != codes:  # absent from models of version 0.1.0
        raise TrainingError(
            f"{folder} was trained on other semantic IDs than those in {tokens.folder}: remove it and train again"
        )
    recipe = Recipe.model_validate(about["recipe"])
    reasoning = tuple(about["reasoning"]) if about["reasoning"] else None
    model = Recommender(recipe.model, load_codes(tokens.folder), recipe.tokenize.codebook, reasoning)
    model.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    return model.eval()


@contextmanager
def _freed_memory_kept() -> Iterator[None]:
    """Let glibc reuse the memory of activations.

    It would hand such large blocks back to the kernel at every free, which then zeroes and maps them anew: a quarter of
    an epoch's time on a CPU. Given back at the end, as scoring allocates blocks of ever other sizes.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # another C library
        yield
        return
    for option, (kept, _) in _MALLOC.items():
        libc.mallopt(option, kept)
    try:
        yield
    finally:
        for option, (_, default) in _MALLOC.items():
            libc.mallopt(option, default)
        libc.malloc_trim(0)


class _Run:
    def __init__(
        self,
        folder: Path,
        variant: Variant,
        prepared: Stage,
        tokens: Stage,
        reasoned: Stage | None,
        recipe: Recipe,
        refit_epochs: int | None,
    ) -> None:
        self.folder, self.variant, self.recipe = folder, variant, recipe
        refit = refit_epochs is not None
        self.last_epoch = recipe.train.epochs if refit_epochs is None else refit_epochs
        torch.manual_seed(recipe.train.seed)
        self.random = np.random.default_rng(recipe.train.seed)
        self.dataset: Dataset = load_dataset(prepared.folder)
        self.rows: TrainingRows = training_rows(self.dataset, recipe.model.length, include_validation=refit)
        split = "valid" if refit else "train"
        self.reasoning = load_reasoning(reasoned.folder, split) if reasoned is not None else None  # [U, K, D]
        self.validation = None if refit else self._validation(reasoned)
        shape = self.reasoning.shape[1:] if self.reasoning is not None else None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.codes = codes_digest(tokens.folder)
        self.model = Recommender(recipe.model, load_codes(tokens.folder), recipe.tokenize.codebook, shape)
        self.model.to(self.device)
        self.objective = Objective(self.model, recipe.train)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.train.learning_rate, weight_decay=recipe.train.weight_decay
        )
        self.steps_an_epoch = math.ceil(len(self.rows) / recipe.train.batch)
        self.epoch, self.step = 0, 0
        self.best: dict[str, float] = {"ndcg@10": -1.0}
        self.best_epoch, self.stale = 0, 0

    def go(self) -> None:
        settings = self.recipe.train
        self._resume()
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task(f"train {self.variant}", total=self.last_epoch, completed=self.epoch)
            while self.epoch < self.last_epoch and self.stale < settings.patience:
                row = self._one_epoch()
                if self.validation is not None and self.epoch % settings.validate_every == 0:
                    row |= self._validate()
                elif self.validation is None and self.epoch == self.last_epoch:
                    self.best_epoch = self.epoch
                    torch.save(self.model.state_dict(), self.folder / "model.pt")
                with (self.folder / "epochs.jsonl").open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
                self._checkpoint()
                note = f" ndcg@10 {row['ndcg@10']:.4f}" if "ndcg@10" in row else ""
                progress.update(bar, completed=self.epoch, description=f"{self.variant} loss {row['loss']:.3f}{note}")
        if not (self.folder / "model.pt").is_file():
            raise TrainingError(f"no validation was reached in {self.epoch} epochs: lower train.validate_every")
        write_json(
            self.folder / "model.json",
            {
                "variant": self.variant,
                "recipe": self.recipe.model_dump(),
                "items": self.dataset.num_items,
                "codes": self.codes,
                "reasoning": list(self.reasoning.shape[1:]) if self.reasoning is not None else None,
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "epochs": self.epoch,
                "best_epoch": self.best_epoch,
                "validation": self.best if self.validation is not None else None,
            },
        )
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)

    def _validation(self, reasoned: Stage | None) -> History:
        users = np.arange(len(self.dataset.users))
        wanted = self.recipe.train.validation_users
        if 0 < wanted < len(users):
            users = np.sort(np.random.default_rng(0).choice(users, wanted, replace=False))
        return History.of(
            self.dataset,
            "valid",
            users,
            self.recipe.model.length,
            load_reasoning(reasoned.folder, "valid") if reasoned is not None else None,
        )

    def _one_epoch(self) -> dict[str, Any]:
        settings = self.recipe.train
        self.model.train()
        start, losses = time.monotonic(), []
        for rows in self.rows.batches(self.recipe.train.batch, self.random):
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                loss = self._loss(rows)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"{self.variant}: the loss is {loss.item()} at epoch {self.epoch + 1}, step {self.step}; the last "
                    f"good checkpoint is kept in {self.folder}: lower train.learning_rate and run again"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            losses.append(loss.item())
        self.epoch += 1
        return {"epoch": self.epoch, "loss": float(np.mean(losses)), "seconds": round(time.monotonic() - start, 2)}

    def _loss(self, rows: NDArray[np.int64]) -> Tensor:
        longest = max(int(self.rows.lengths[rows].max()), 1)
        inputs = torch.from_numpy(self.rows.inputs[rows, -longest:]).to(self.device)
        targets = torch.from_numpy(self.rows.targets[rows, -longest:]).to(self.device)
        if self.reasoning is None:
            return self.objective(inputs, targets, None, None)
        matrix = self.reasoning[rows]
        reasoning = torch.from_numpy(matrix.astype(np.float32)).to(self.device)
        keep = torch.rand(len(rows), device=self.device) >= self.recipe.train.reasoning_drop
        keep &= torch.from_numpy(present(matrix)).to(self.device)
        return self.objective(inputs, targets, reasoning, keep)

    def _learning_rate(self) -> float:
        settings = self.recipe.train
        total = self.steps_an_epoch * settings.epochs
        warmup = int(total * settings.warmup)
        if self.step < warmup:
            return settings.learning_rate * (self.step + 1) / warmup
        if settings.schedule == "constant":
            return settings.learning_rate
        done = (self.step - warmup) / max(total - warmup, 1)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _validate(self) -> dict[str, float]:
        assert self.validation is not None
        found = score_beam(self.model, self.validation, self.recipe.model.beam, mask_history=True, device=self.device)
        measured = summary(ranks(found.items[:, :10], self.validation.targets))
        if measured["ndcg@10"] > self.best["ndcg@10"]:
            self.best, self.best_epoch, self.stale = measured, self.epoch, 0
            temporary = self.folder / "model.partial.pt"
            torch.save(self.model.state_dict(), temporary)
            temporary.replace(self.folder / "model.pt")
        else:
            self.stale += 1
        return measured

    def _checkpoint(self) -> None:
        temporary = self.folder / "checkpoint.partial.pt"
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "torch": torch.get_rng_state(),
                "numpy": json.dumps(self.random.bit_generator.state),
                "epoch": self.epoch,
                "step": self.step,
                "best": self.best,
                "best_epoch": self.best_epoch,
                "stale": self.stale,
            },
            temporary,
        )
        temporary.replace(self.folder / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            (self.folder / "epochs.jsonl").unlink(missing_ok=True)
            return
        kept = torch.load(path, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["torch"])
        self.random.bit_generator.state = json.loads(kept["numpy"])
        self.epoch, self.step, self.stale = kept["epoch"], kept["step"], kept["stale"]
        self.best, self.best_epoch = kept["best"], kept["best_epoch"]
        console.print(f"  going on after epoch {self.epoch}")
