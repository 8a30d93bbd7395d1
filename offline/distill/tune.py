"""Supervised fine-tuning of one student, through trl and peft.

While it runs, `<student>.checkpoints/` holds what going on needs: weights, optimiser, generators and the curve so far.
A finished student's folder appears by one rename. The checkpoints stay until whoever called has written down how it
went: a training that is killed before that goes on from them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from offline.distill.examples import Example
from offline.distill.quiet import quiet
from offline.distill.students import checkpoints
from offline.errors import TrainingError
from offline.llm.extra import llm_extra
from offline.llm.model import load_causal
from offline.progress import progress
from offline.recipe import DistillRecipe
from offline.stage import console, read_json

with llm_extra():
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from trl import SFTConfig, SFTTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHECKPOINTS = 20  # of a run, at most: what a kill can cost is a twentieth
WARMUP = 0.05  # share of the steps
_STATE = "trainer_state.json"  # what a checkpoint is complete with


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a training did."""

    steps: int
    examples: int
    tokens: int  # in one epoch, prompts included
    seconds: float  # in this process
    curve: list[dict[str, float]]  # {"step", "epoch", "loss", "learning_rate"} and, by epoch, {"step", "held_out_loss"}


def tune(out: Path, label: str, learns: Sequence[Example], held: Sequence[Example], recipe: DistillRecipe) -> Tuned:
    """Train `recipe.student` on `learns` and leave it in `out`; `held` is only measured, once an epoch.

    The same examples, recipe and machine give the same weights, also over an interruption. Raises TrainingError when
    the loss is not finite, or when memory runs out.
    """
    kept = checkpoints(out)
    steps = math.ceil(math.ceil(len(learns) / recipe.batch) / recipe.accumulate) * recipe.epochs
    with quiet(), progress() as bars:
        trainer, tokenizer = _trainer(kept, label, learns, held, recipe, steps, bars)
        resumed = _last_whole(kept)
        if resumed is not None:
            console.print(f"  {label}: going on from {resumed.name}")
        try:
            result = trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{label}: out of memory; lower distill.batch (and raise distill.accumulate as much), or "
                "distill.max_length"
            ) from error
        temporary = out.with_name(f"{out.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        model: Any = trainer.model  # of transformers or peft
        model.save_pretrained(str(temporary))
        (temporary / "README.md").unlink(missing_ok=True)  # peft's form for the model hub
        if recipe.method == "full":
            tokenizer.save_pretrained(str(temporary))
    history = trainer.state.log_history
    temporary.rename(out)
    return Tuned(
        trainer.state.global_step,
        len(learns),
        sum(example.tokens for example in learns),
        float(result.metrics["train_runtime"]),
        _curve(history),
    )


def _trainer(
    folder: Path,
    label: str,
    learns: Sequence[Example],
    held: Sequence[Example],
    recipe: DistillRecipe,
    steps: int,
    bars: Progress,
) -> tuple[SFTTrainer, PreTrainedTokenizerBase]:
    # A frozen base may be held in fewer bits than what is trained.
    model, tokenizer = load_causal(recipe.student, recipe.precision if recipe.method == "lora" else "float32")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    cuda = torch.cuda.is_available()
    if torch.cuda.device_count() > 1:  # the trainer would spread batches over them by threads, which trl refuses
        raise TrainingError("a student is trained on one GPU and several are visible: set CUDA_VISIBLE_DEVICES=0")
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=recipe.batch,
        gradient_accumulation_steps=recipe.accumulate,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(WARMUP * steps),
        bf16=recipe.precision == "bfloat16",
        gradient_checkpointing=cuda,  # memory is what is short there; on a CPU it is time
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would show the last good loss instead
        save_strategy="steps",
        save_steps=max(1, math.ceil(steps / CHECKPOINTS)),
        save_total_limit=2,  # the latest may turn out to be spoilt
        eval_strategy="epoch" if held else "no",
        max_length=None,  # what does not fit was left out before
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to="none",
        push_to_hub=False,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([example.row() for example in learns]),
        eval_dataset=datasets.Dataset.from_list([example.row() for example in held]) if held else None,
        processing_class=tokenizer,
        peft_config=_lora(recipe) if recipe.method == "lora" else None,
        callbacks=[_Watch(label, steps, folder, bars)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, tokenizer


def _lora(recipe: DistillRecipe) -> LoraConfig:
    # No dropout: with a few hundred examples and two epochs, fitting is what is short, not forgetting.
    return LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


class _Watch(TrainerCallback):
    """Moves the bar, and stops before a checkpoint is overwritten by weights that are no numbers."""

    def __init__(self, label: str, steps: int, folder: Path, bars: Progress) -> None:
        self._label, self._checkpoints, self._bars = label, folder, bars
        self._task = bars.add_task(label, total=steps)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer calls it so
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        for name in ("loss", "eval_loss"):
            value = float((logs or {}).get(name, 0.0))
            if not math.isfinite(value):
                if name == "loss":  # the weights that made it were saved before it was known
                    shutil.rmtree(self._checkpoints / f"checkpoint-{state.global_step - 1}", ignore_errors=True)
                kept = _last_whole(self._checkpoints)
                raise TrainingError(
                    f"{self._label}: the loss is {value} at step {state.global_step}; "
                    + (f"the last good checkpoint is kept in {kept}" if kept else "there is no checkpoint yet")
                    + ": lower distill.learning_rate, or take distill.precision = 'float32'"
                )
        if logs and "loss" in logs:
            note = f"{self._label} loss {float(logs['loss']):.3f}"
            self._bars.update(self._task, completed=state.global_step, description=note)


def _last_whole(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end; others are removed, as the trainer would trip over them."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            read_json(path / _STATE)  # the last file that is written
        except (OSError, ValueError):
            shutil.rmtree(path)
        else:
            return path
    return None


def _curve(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    curve: list[dict[str, float]] = []
    for entry in history:
        if "loss" in entry:
            curve.append({key: entry[key] for key in ("step", "epoch", "loss", "learning_rate") if key in entry})
        elif "eval_loss" in entry:
            curve.append({"step": entry["step"], "epoch": entry["epoch"], "held_out_loss": entry["eval_loss"]})
    return curve
