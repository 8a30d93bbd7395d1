"""Loss of a student on chains of users it has not learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from offline.distill.examples import IGNORED, Example
from offline.distill.quiet import quiet
from offline.distill.students import Method
from offline.llm.extra import llm_extra
from offline.llm.model import Precision, load_causal

with llm_extra():
    import torch
    from peft import PeftModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def held_out_losses(
    base: str,
    students: Sequence[Path | None],
    method: Method,
    precision: Precision,
    held: Sequence[Example],
    batch: int,
) -> list[float]:
    """The loss of each student, and of the model that they are made from where there is None."""
    if method == "full":
        return [completion_loss(load(path or base, precision), held, batch) for path in students]
    model = load(base, precision)
    losses: list[float] = []
    for place, path in enumerate(students):
        if path is None:
            losses.append(completion_loss(model, held, batch))
            continue
        with quiet():
            adapted = PeftModel.from_pretrained(model, str(path), adapter_name=str(place)).eval()
        losses.append(completion_loss(cast("PreTrainedModel", adapted), held, batch))
        model = adapted.unload()  # the layers as they were
    return losses


def load(model: str | Path, precision: Precision) -> PreTrainedModel:
    """In evaluation mode, on the device at hand."""
    loaded: Any = load_causal(model, precision)[0]
    placed: PreTrainedModel = loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return placed


def completion_loss(model: PreTrainedModel, examples: Sequence[Example], batch: int) -> float:
    """Mean negative log-likelihood of a completion's token, in nats, over all tokens of all completions."""
    total, tokens = 0.0, 0
    ordered = sorted(examples, key=lambda example: example.tokens)  # of like length: little padding
    for first in range(0, len(ordered), batch):
        group = ordered[first : first + batch]
        width = group[-1].tokens
        ids = torch.zeros((len(group), width), dtype=torch.long)
        labels = torch.full((len(group), width), IGNORED)
        mask = torch.zeros((len(group), width), dtype=torch.long)
        for place, example in enumerate(group):
            row = example.row()
            ids[place, : example.tokens] = torch.tensor(row["input_ids"])
            labels[place, : example.tokens] = torch.tensor(row["labels"])
            mask[place, : example.tokens] = 1
        device = model.device
        with torch.inference_mode():
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            wanted = labels[:, 1:].to(device)  # [B, T-1]
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        total += float(loss)
        tokens += int((wanted != IGNORED).sum())
    return total / max(tokens, 1)
