"""What a student learns from: its own prompt, without hindsight, and the teacher's chain, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offline.chains import rationale
from offline.chains.rationale import View
from offline.distill.teach import Taught
from offline.llm.base import Message, Sampling
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
        said = _ids(tokenizer, completion, special=False)
        found.append(Example(taught.user, _asked(tokenizer, prompt.messages), said))
    return found


def _asked(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """A conversation up to where the model's own turn begins, as `offline.llm.local` asks it."""
    if tokenizer.chat_template is None:
        return _ids(tokenizer, "".join(f"{message.content}\n\n" for message in messages), special=True)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return _ids(tokenizer, text, special=False)  # the chat template has put them in already


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
    encoded: Any = tokenizer(text, add_special_tokens=special)["input_ids"]
    return tuple(encoded)
