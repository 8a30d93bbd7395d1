"""Train one model of RecBole on our split, and write down whom it would recommend what.

Runs in an environment of its own (`offline.baselines.environment`), which has RecBole and nothing of ours:

    python recbole_run.py JOB.json

The job: `data` (folder), `dataset` (name), `model` (RecBole's name), `parameters` (RecBole's own), `length`, `epochs`,
`patience`, `validate_every`, `seed`, `depth`, `refit` (train for `epochs`, look at no validation item) and `out`
(folder). Written into `out`:

    valid.npy, test.npy   int32 [U, depth]: items best first for each user, in our order, history not masked
    trained.json          best epoch, its validation NDCG@10 by RecBole's own evaluation, seconds and loss of each epoch

Each epoch is a line of JSON on standard output. Nothing but the job decides what is written: a process that finds the
`latest.pt` of one that was cut off goes on with the epoch that was cut, and ends with the same lists.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import ModelType, get_model, get_trainer, init_seed

BATCH = 512  # users whose scores of all items are held at a time


def main(path: Path) -> None:
    """Do the job."""
    job = json.loads(path.read_text(encoding="utf-8"))
    out = Path(job["out"])
    os.chdir(out)  # RecBole logs into the current folder
    # Weights that L2 has driven towards zero become denormal numbers, with which a CPU core multiplies four times as
    # slowly: Caser on beauty from its seventh epoch on.
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    config = Config(model=job["model"], dataset=job["dataset"], config_dict=_settings(job))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train_data.dataset).to(config["device"])
    trainer = _lasting(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)
    # One of RecBole's models switches it on for the whole process when its configuration imports them all: a search
    # for NaN after every operation, half of the time on a CPU. A loss that is no number ends the run without it.
    torch.autograd.set_detect_anomaly(False)
    trainer.start(out / "latest.pt")
    trainer.fit(train_data, None if job["refit"] else valid_data, verbose=False, callback_fn=trainer.validated)
    # Written by this process or the one before: it holds RecBole's configuration, which is no plain weight.
    state = torch.load(trainer.saved_model_file, map_location=config["device"], weights_only=False)
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(state.get("other_parameter"))
    model.eval()
    for split, data in (("valid", valid_data), ("test", test_data)):
        np.save(out / f"{split}.npy", _lists(config, model, dataset, data.dataset, job["depth"]))
    scores, losses = trainer.scores, trainer.train_loss_dict
    best = max(scores, key=lambda epoch: scores[epoch]) if scores else max(losses)
    trained = {
        "best_epoch": best + 1,
        "validation": {"ndcg@10": scores.get(best)},
        "seconds": round(trainer.seconds(), 1),
        "weights": sum(weight.numel() for weight in model.parameters()),
        "epochs": [
            {"epoch": epoch + 1, "loss": loss, "seconds": round(trainer.took[epoch], 2)}
            | ({"ndcg@10": scores[epoch]} if epoch in scores else {})
            for epoch, loss in losses.items()
        ],
    }
    (out / "trained.json").write_text(json.dumps(trained, indent=2) + "\n", encoding="utf-8")


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of scores of a whole catalogue in place of mapping it anew: up to a quarter less time.

    As `offline.train` does, which this environment has not.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for what is large


def _settings(job: dict[str, Any]) -> dict[str, Any]:
    """RecBole's configuration. The job's own parameters come last, so that a recipe may change anything."""
    return {
        "data_path": job["data"],
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": job["columns"]},
        "alias_of_item_id": ["item_id_list"] if "item_id_list" in job["columns"] else None,
        "MAX_ITEM_LIST_LENGTH": job["length"],
        "eval_args": {"split": None, "group_by": None, "order": "TO", "mode": "full"},
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1} if job["negatives"] else None,
        "metrics": ["Recall", "NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "epochs": job["epochs"],
        "stopping_step": job["patience"],
        "eval_step": job["validate_every"],
        "train_batch_size": job["batch"],
        "eval_batch_size": BATCH * (job["items"] + 1) if job["negatives"] else BATCH,  # of plain models in scores
        "metric_decimal_place": 6,
        "seed": job["seed"],
        "reproducibility": True,
        "use_gpu": torch.cuda.is_available(),
        "checkpoint_dir": str(Path(job["out"]) / "saved"),
        "show_progress": False,
        **job["parameters"],
    }


def _lasting(trainer: type) -> type:
    """A trainer that says when it has finished an epoch, and outlasts the end of its process."""

    class Lasting(trainer):  # type: ignore[misc]  # a base class that is chosen at run time
        def start(self, latest: Path) -> None:
            """To be called before `fit`; `latest` is where an earlier process left off, if it is there."""
            self.latest = latest
            self.since = time.monotonic()
            self.took: dict[int, float] = {}
            self.scores: dict[int, float] = {}  # by epoch: NDCG@10 on the validation split
            self.random: tuple[Any, ...] | None = None  # to be restored before the first epoch
            if not latest.is_file():
                return
            left = torch.load(latest, map_location=self.device, weights_only=False)  # by this script
            self.model.load_state_dict(left["weights"])
            self.model.load_other_parameter(left["other"])
            self.optimizer.load_state_dict(left["optimizer"])
            for name, value in left["plain"].items():
                setattr(self, name, value)
            self.since -= left["seconds"]
            self.random = left["random"]
            _say(epoch=self.start_epoch - 1)

        def seconds(self) -> float:
            """That training has taken so far, in all processes."""
            return time.monotonic() - self.since

        def validated(self, epoch: int, score: float) -> None:
            """What `fit` calls after each validation."""
            self.scores[epoch] = score
            _say(epoch=epoch, validation=score)

        def _train_epoch(self, train_data: Any, epoch_idx: int, *rest: Any, **named: Any) -> Any:  # noqa: ANN401
            # Here the epoch before is over: validated, counted for early stopping, and kept where it is the best.
            if self.random is None:
                self._leave(train_data.generator, epoch_idx)
            else:
                self._restore(self.random, train_data.generator)
                self.random = None
            start = time.monotonic()
            loss = super()._train_epoch(train_data, epoch_idx, *rest, **named)
            self.took[epoch_idx] = time.monotonic() - start
            _say(epoch=epoch_idx, loss=float(sum(loss) if isinstance(loss, tuple) else loss))
            return loss

        def _leave(self, order: torch.Generator, epoch: int) -> None:
            plain = ("cur_step", "best_valid_score", "saved_model_file", "train_loss_dict", "took", "scores")
            left = {
                "weights": self.model.state_dict(),
                "other": self.model.other_parameter(),
                "optimizer": self.optimizer.state_dict(),
                "plain": {name: getattr(self, name) for name in plain} | {"start_epoch": epoch},
                "seconds": self.seconds(),
                "random": (
                    random.getstate(),
                    np.random.get_state(),  # noqa: NPY002 - the one that RecBole draws from
                    torch.get_rng_state(),
                    torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                    order.get_state(),
                ),
            }
            temporary = self.latest.with_suffix(".tmp")
            torch.save(left, temporary)
            temporary.replace(self.latest)

        @staticmethod
        def _restore(left: tuple[Any, ...], order: torch.Generator) -> None:
            python, numpy, cpu, devices, items = left
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - as above
            torch.set_rng_state(cpu.cpu())  # as loaded they are where the weights are
            torch.cuda.set_rng_state_all([state.cpu() for state in devices])
            order.set_state(items.cpu())

    return Lasting


@torch.no_grad()
def _lists(config: Any, model: Any, dataset: Any, split: Any, depth: int) -> np.ndarray:  # noqa: ANN401
    """Items best first in our numbers, int32 [U, depth]; of those that score alike, the lower number first."""
    names = dataset.field2id_token[dataset.iid_field]
    ours = np.array([0, *(int(name) for name in names[1:])], np.int32)
    users = torch.tensor(dataset.token2id(dataset.uid_field, [str(row) for row in range(dataset.user_num - 1)]))
    questions = split.inter_feat
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        questions = Interaction({dataset.uid_field: users})
    asked = np.asarray(questions[dataset.uid_field])
    place = np.empty(dataset.user_num, np.int64)
    place[asked] = np.arange(len(asked))
    questions = questions[torch.from_numpy(place[users.numpy()])]
    parts = []
    for start in range(0, len(users), BATCH):
        batch = questions[start : start + BATCH].to(config["device"])
        scores = model.full_sort_predict(batch).view(-1, dataset.item_num).float().cpu()
        if not torch.isfinite(scores).all():
            raise SystemExit(f"{config['model']}: a score is no number")
        scores[:, 0] = -torch.inf
        best, items = (part.numpy() for part in scores.topk(depth, dim=1))
        found = ours[items]
        parts.append(np.take_along_axis(found, np.lexsort((found, -best), axis=1), axis=1))
    return np.concatenate(parts)


def _say(**what: float) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    job_path = Path(sys.argv.pop(1)).resolve()  # RecBole reads what is left of the command line
    main(job_path)
