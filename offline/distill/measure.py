"""Loss of a student on chains of users it has not learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from offline.distill.examples import IGNORED, Example
from offline.llm.extra import llm_extra
from offline.llm.model import Precision, load_causal

with llm_extra():
    import torch
    from peft import PeftModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(base: str, student: Path | None, method: Literal["lora", "full"], precision: Precision) -> PreTrainedModel:
    """A student, or with None the model that students are made from, in evaluation mode on the device at hand."""
    model, _ = load_causal(str(student) if student is not None and method == "full" else base, precision)
    if student is not None and method == "lora":
        model = PeftModel.from_pretrained(model, str(student))
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


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
