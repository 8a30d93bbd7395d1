"""What a student learns from: its own prompt, without hindsight, and the teacher's chain, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offline.chains import rationale
from offline.chains.rationale import View
from offline.distill.teach import Taught
from offline.llm.base import Sampling
from offline.llm.model import asked_tokens
from offline.prepare import Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is no part of the loss


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its completion."""

    user: int  # row in the data set
    prompt: tuple[int, ...]  # token ids
    completion: tuple[int, ...]  # token ids, the end of the turn included

    @property
    def tokens(self) -> int:
        """Of both."""
        return len(self.prompt) + len(self.completion)

    def row(self) -> dict[str, list[int]]:
        """As a trainer takes it: no loss on the prompt."""
        labels = [IGNORED] * len(self.prompt) + list(self.completion)
        return {"input_ids": [*self.prompt, *self.completion], "labels": labels}


def examples(
    dataset: Dataset, chains: Sequence[Taught], template: Sequence[str], view: View, tokenizer: PreTrainedTokenizerBase
) -> list[Example]:
    """One for each chain. The prompt is the one that the student will be asked with when it writes for that user."""
    found: list[Example] = []
    for taught in chains:
        prompt = rationale.ask(dataset, taught.user, "train", template, Sampling(), view)
        completion = rationale.write(taught.chain, template) + str(tokenizer.eos_token or "")
        said: Any = tokenizer(completion, add_special_tokens=False)["input_ids"]
        found.append(Example(taught.user, tuple(asked_tokens(tokenizer, prompt.messages)), tuple(said)))
    return found
