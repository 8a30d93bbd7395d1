"""Backend `local`: a Hugging Face or GGUF model in this process, on the GPU if there is one.

How a batch is made: the prompts are cut into windows, and those of a window sorted by their number of tokens, so that a
batch pads little; every answer carries its prompt's index, whatever the order. A prompt with n answers is read once.
Padding is on the left. Keys and values are written into a buffer that grows by halves, instead of being copied for each
token; rows that have ended leave the batch.

An answer is drawn with random numbers of its own, derived from the backend's seed, the prompt, the sampling and the
answer's number. So it does not depend on what else is in the batch, but for the rounding of matrix products, which
differs between batch sizes: docs/llm.md has how often that shows.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from offline.errors import LLMError
from offline.llm.base import Answer, Prompt, Sampling, Usage
from offline.llm.cache import AnswerCache, request_key
from offline.llm.extra import llm_extra
from offline.llm.grammar import Grammar, PatternError
from offline.llm.model import Precision, asked_tokens, load_causal, model_place, weights_digest

if TYPE_CHECKING:
    from outlines_core import Guide
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 32  # batches whose prompts are sorted together
LIKELY = 256  # tokens looked at for top-p before all of them are


@dataclass(slots=True)
class _Row:
    """One answer in the making."""

    index: int  # of its prompt
    number: int  # of the answer
    key: bytes
    sampling: Sampling
    limit: int  # tokens
    uniforms: NDArray[np.float64]  # [limit], one for each token
    guide: Guide | None
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Question:
    """A prompt, its tokens, and the answers that are wanted still."""

    index: int
    tokens: list[int]
    rows: list[_Row]


class LocalBackend:
    """Writes with a model of its own, `batch` answers at a time. Use as a context manager.

    `model` is a folder, a hub name, a .gguf file or `smollm2`; `adapter` the folder of a LoRA that peft saved. With a
    `cache` (closed along with the backend) no answer is written twice. Raises LLMError if it cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: Path | None = None,
        batch: int = 16,
        precision: Precision = "float32",
        seed: int = 7,
        cache: AnswerCache | None = None,
    ) -> None:
        place = model_place(model)
        self._model, self._tokenizer = _load(model, adapter, precision)
        self._batch = batch
        self._seed = seed
        self._cache = cache
        title = Path(model).name if isinstance(place, Path) else str(model)
        self._weights = weights_digest(place) if isinstance(place, Path) else _revision(self._model)
        if adapter is not None:
            self._weights += f"+{weights_digest(adapter)}"
        self._precision = precision
        self._usage = Usage(model=title)
        self._context = int(getattr(self._model.config, "max_position_embeddings", 0)) or 1 << 20
        self._ends = _ends(self._model, self._tokenizer)
        self._logits = int(self._model.get_output_embeddings().weight.shape[0])
        self._pad = int(self._tokenizer.pad_token_id or 0)
        self._grammar: Grammar | None = None

    @property
    def name(self) -> str:
        """The model and a digest of its weights."""
        return f"local {self._usage.model} {self._weights} {self._precision}"

    @property
    def usage(self) -> Usage:
        """Counted so far."""
        return self._usage

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the cache; the model's memory goes with the backend."""
        if self._cache is not None:
            self._cache.close()

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """As `Backend.answer`."""
        size = WINDOW * self._batch
        for first in range(0, len(prompts), size):
            yield from self._window(prompts, range(first, min(first + size, len(prompts))))

    def _window(self, prompts: Sequence[Prompt], indices: range) -> Iterator[Answer]:
        texts: dict[int, dict[int, str]] = {}
        questions: list[_Question] = []
        for index in indices:
            texts[index], question = self._question(index, prompts[index])
            if isinstance(question, str):
                self._usage.failed += 1
                yield Answer(index, error=question)
            elif question.rows:
                questions.append(question)
            else:
                yield _answer(index, texts[index])
        questions.sort(key=lambda question: len(question.tokens), reverse=True)  # what is too large fails at once
        for group in _groups(questions, self._batch):
            start = time.monotonic()
            for row, text in self._written(group):
                texts[row.index][row.number] = text
                if len(texts[row.index]) == prompts[row.index].sampling.n:
                    self._usage.seconds += time.monotonic() - start
                    yield _answer(row.index, texts[row.index])
                    start = time.monotonic()
            self._usage.seconds += time.monotonic() - start

    def _question(self, index: int, prompt: Prompt) -> tuple[dict[int, str], _Question | str]:
        """What the cache has of a prompt's answers, and the rest of them as a question, or why it cannot be asked."""
        keys = [self._key(prompt, number) for number in range(prompt.sampling.n)]
        found = self._cache.get(keys) if self._cache is not None else {}
        self._usage.cached += len(found)
        texts = {number: found[key] for number, key in enumerate(keys) if key in found}
        missing = [number for number in range(len(keys)) if number not in texts]
        if not missing:
            return texts, _Question(index, [], [])
        tokens = asked_tokens(self._tokenizer, prompt.messages)
        limit = min(prompt.sampling.max_tokens, self._context - len(tokens))
        if limit < 1:
            return texts, f"the prompt has {len(tokens)} tokens, and the model reads {self._context}"
        try:
            rows = [
                _Row(
                    index,
                    number,
                    keys[number],
                    prompt.sampling,
                    limit,
                    self._uniforms(keys[number], limit),
                    self._guide(prompt.pattern),
                )
                for number in missing
            ]
        except PatternError as error:
            return texts, str(error)
        return texts, _Question(index, tokens, rows)

    def _key(self, prompt: Prompt, number: int) -> bytes:
        sampling = prompt.sampling
        parts = {
            "format": 1,
            "local": self._weights,
            "precision": self._precision,
            "messages": [(message.role, message.content) for message in prompt.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": (self._seed, sampling.seed),
            "stop": [],  # which there once was: without it, all that was written would be written again
            "pattern": prompt.pattern,
        }
        return request_key(parts, number)

    def _uniforms(self, key: bytes, limit: int) -> NDArray[np.float64]:
        seed = int.from_bytes(hashlib.sha256(b"draw" + key).digest()[:16])
        return np.random.Generator(np.random.Philox(seed)).random(limit)

    def _guide(self, pattern: str | None) -> Guide | None:
        if pattern is None:
            return None
        if self._grammar is None:
            self._grammar = Grammar(self._tokenizer, self._logits)
        return self._grammar.guide(pattern)

    def _written(self, group: list[_Question]) -> Iterator[tuple[_Row, str]]:
        """Every answer to a group of questions as it ends; it is in the cache by then."""
        import torch  # noqa: PLC0415

        ended = self._generate(group)
        while True:
            try:
                rows = next(ended, None)
            except torch.OutOfMemoryError as error:
                count = sum(len(question.rows) for question in group)
                raise LLMError(
                    f"no memory for {count} answers at a time to prompts of up to {len(group[0].tokens)} tokens: lower "
                    "`batch`, or take bfloat16 or a smaller model"
                ) from error
            if rows is None:
                return
            texts = [self._text(row) for row in rows]
            if self._cache is not None:
                self._cache.put({row.key: text for row, text in zip(rows, texts, strict=True)})
            yield from zip(rows, texts, strict=True)

    def _generate(self, group: list[_Question]) -> Iterator[list[_Row]]:
        """The rows of the group, filled in, as they end."""
        import torch  # noqa: PLC0415

        rows = [row for question in group for row in question.rows]
        with torch.inference_mode():
            batch = _Batch(self._model, [question.tokens for question in group], self._pad)
            batch.spread([len(question.rows) for question in group])
        self._usage.requests += len(group)
        self._usage.prompt_tokens += sum(len(question.tokens) for question in group)
        while True:
            with torch.inference_mode():
                chosen = self._draw(batch.logits, rows)
            self._usage.completion_tokens += len(rows)
            ended = [self._append(row, token) for row, token in zip(rows, chosen, strict=True)]
            if any(ended):
                yield [row for row, end in zip(rows, ended, strict=True) if end]
                live = [place for place, end in enumerate(ended) if not end]
                if not live:
                    return
                rows = [rows[place] for place in live]
                chosen = [chosen[place] for place in live]
                with torch.inference_mode():
                    batch.keep(live)
            with torch.inference_mode():
                batch.step(chosen)

    def _draw(self, logits: Tensor, rows: list[_Row]) -> list[int]:
        """The next token of each row, from logits float32 [rows, vocabulary]."""
        import torch  # noqa: PLC0415

        if any(row.guide is not None for row in rows):
            assert self._grammar is not None
            allowed = torch.from_numpy(self._grammar.allowed([row.guide for row in rows])).to(logits.device)
            logits = logits.masked_fill(~allowed, -torch.inf)
        chosen = logits.argmax(dim=-1)
        drawn = [place for place, row in enumerate(rows) if row.sampling.temperature > 0]
        if drawn:
            some = [rows[place] for place in drawn]

            def column(values: list[float]) -> Tensor:
                return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

            temperature = column([row.sampling.temperature for row in some])
            top_p = column([row.sampling.top_p for row in some])
            uniform = column([float(row.uniforms[len(row.tokens)]) for row in some])
            chosen[drawn] = nucleus(logits[drawn] / temperature, top_p, uniform)
        return [int(token) for token in chosen.tolist()]

    def _append(self, row: _Row, token: int) -> bool:
        """Add a token to a row; whether the row has ended."""
        row.tokens.append(token)
        if token in self._ends or len(row.tokens) == row.limit:
            return True
        if row.guide is None:
            return False
        row.guide.advance(token, return_tokens=False)
        # Whether nothing but the end may follow.
        return row.guide.is_finished() and self._ends.issuperset(row.guide.get_tokens())

    def _text(self, row: _Row) -> str:
        """What a row says."""
        tokens = row.tokens[:-1] if row.tokens[-1] in self._ends else row.tokens
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def nucleus(logits: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Tokens int64 [R] drawn from the smallest set of tokens whose probability reaches `top_p`.

    `logits` float32 [R, V]; `top_p` and `uniform` (from [0, 1)) float32 [R, 1].
    """
    import torch  # noqa: PLC0415

    likely, tokens = torch.softmax(logits, dim=-1).topk(min(LIKELY, logits.shape[1]), dim=-1)  # both [R, LIKELY]
    if likely.shape[1] < logits.shape[1] and bool((likely.sum(dim=-1, keepdim=True) < top_p).any()):
        likely, tokens = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
    reached = likely.cumsum(dim=-1)
    likely = likely.masked_fill(reached - likely >= top_p, 0.0)  # tokens behind the one that reaches it
    reached = likely.cumsum(dim=-1)
    place = torch.searchsorted(reached, uniform * reached[:, -1:], right=True)
    last = (likely > 0).sum(dim=-1, keepdim=True) - 1  # rounding may carry the search past it
    return tokens.gather(1, torch.minimum(place, last))[:, 0]


class _Batch:
    """Rows that are read and written together: their keys and values, mask, positions, and next logits."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], pad: int) -> None:
        import torch  # noqa: PLC0415

        self._model = model
        self._cache = _cache(model)
        width = max(map(len, prompts))
        tokens = torch.full((len(prompts), width), pad)
        self._mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
            self._mask[row, width - len(prompt) :] = 1
        self._mask = self._mask.to(model.device)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._position = positions[:, -1:]  # of the last token
        self.logits = self._forward(tokens.to(model.device), positions)  # float32 [R, vocabulary]

    def spread(self, counts: list[int]) -> None:
        """Make `counts[i]` rows of row i."""
        self.keep([row for row, count in enumerate(counts) for _ in range(count)])

    def keep(self, rows: list[int]) -> None:
        """These rows, in this order."""
        import torch  # noqa: PLC0415

        if rows == list(range(self.logits.shape[0])):
            return
        chosen = torch.tensor(rows, device=self.logits.device)
        self._cache.batch_select_indices(chosen)
        self._mask, self._position, self.logits = self._mask[chosen], self._position[chosen], self.logits[chosen]

    def step(self, tokens: list[int]) -> None:
        """Read one more token in each row."""
        import torch  # noqa: PLC0415

        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        self._position = self._position + 1
        self.logits = self._forward(torch.tensor(tokens, device=self._mask.device)[:, None], self._position)

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        output = self._model(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


def _cache(model: PreTrainedModel) -> Any:  # noqa: ANN401 - a transformers DynamicCache, imported when it is needed
    """Keys and values of all layers; those that see everything get a buffer to grow in."""
    from transformers import DynamicCache  # noqa: PLC0415
    from transformers.cache_utils import DynamicLayer  # noqa: PLC0415

    from offline.llm.buffer import BufferLayer  # noqa: PLC0415

    cache = DynamicCache(config=model.config)
    cache.layers = [BufferLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _load(model: str | Path, adapter: Path | None, precision: Precision) -> tuple[Any, Any]:
    loaded: Any
    loaded, tokenizer = load_causal(model, precision)
    with llm_extra():
        import torch  # noqa: PLC0415

        if adapter is not None:
            from peft import PeftModel  # noqa: PLC0415

            try:
                with warnings.catch_warnings():  # peft asks transformers for it by its former name
                    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
                    loaded = PeftModel.from_pretrained(loaded, str(adapter)).merge_and_unload()
            except (OSError, ValueError, RuntimeError) as error:
                raise LLMError(f"cannot put the adapter {adapter} on the model {model}: {error}") from error
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer."""
    settings = getattr(model.generation_config, "eos_token_id", None)
    named = settings if isinstance(settings, list) else [settings]
    return frozenset(token for token in (*named, tokenizer.eos_token_id) if token is not None)


def _revision(model: PreTrainedModel) -> str:
    """The commit of a model from a hub."""
    return str(getattr(model.config, "_commit_hash", None) or model.config.name_or_path)


def _groups(questions: list[_Question], batch: int) -> Iterator[list[_Question]]:
    """Questions that are asked together: as many as have `batch` answers, or one that has more, in parts."""
    group: list[_Question] = []
    rows = 0
    for question in questions:
        for first in range(0, len(question.rows), batch):
            part = _Question(question.index, question.tokens, question.rows[first : first + batch])
            if group and rows + len(part.rows) > batch:
                yield group
                group, rows = [], 0
            group.append(part)
            rows += len(part.rows)
    if group:
        yield group


def _answer(index: int, texts: dict[int, str]) -> Answer:
    return Answer(index, tuple(text for _, text in sorted(texts.items())))
