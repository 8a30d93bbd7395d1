"""Holding a model to a regular expression: which tokens may come next."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offline.llm.extra import llm_extra

if TYPE_CHECKING:
    from outlines_core import Guide, Index
    from transformers import PreTrainedTokenizerBase

INDICES = 16  # patterns kept compiled
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's


class PatternError(ValueError):
    """A pattern cannot be held to: it is not regular (look-around, back-references), or malformed."""


class Grammar:
    """Patterns over one tokenizer's vocabulary; each is compiled once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, logits: int) -> None:
        with llm_extra():
            from outlines_core import Vocabulary  # noqa: PLC0415 - in an extra
        self._width = -(-logits // 32)
        self._logits = logits
        self._vocabulary = Vocabulary(tokenizer.eos_token_id, token_bytes(tokenizer))
        self._indices: OrderedDict[str, Index] = OrderedDict()

    def guide(self, pattern: str) -> Guide:
        """At the beginning of an answer. Raises PatternError."""
        from outlines_core import Guide, Index  # noqa: PLC0415

        if pattern not in self._indices:
            try:
                self._indices[pattern] = Index(pattern, self._vocabulary)
            except ValueError as error:
                raise PatternError(f"cannot hold a model to the pattern {pattern!r}: {error}") from error
            while len(self._indices) > INDICES:
                self._indices.popitem(last=False)
        self._indices.move_to_end(pattern)
        return Guide(self._indices[pattern])

    def allowed(self, guides: list[Guide | None]) -> NDArray[np.bool_]:
        """Tokens that may come next, bool [len(guides), logits]; all of them where there is no guide."""
        bits = np.full((len(guides), self._width), -1, np.int32)
        for row, guide in enumerate(guides):
            if guide is not None:
                bits[row] = 0
                guide.write_mask_into(bits[row].ctypes.data, self._width, bits.itemsize)
        return np.unpackbits(bits.view(np.uint8), axis=1, count=self._logits, bitorder="little").view(np.bool_)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, list[int]]:
    """What each ordinary token writes, and its ids; special tokens, which write nothing, are left out."""
    spelled = _byte_level() if _is_byte_level(tokenizer) else None
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    written: dict[bytes, list[int]] = {}
    for token, number in tokenizer.get_vocab().items():
        if number in special:
            continue
        if spelled is not None and all(c in spelled for c in token):
            raw = bytes(spelled[c] for c in token)
        elif spelled is None and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            raw = bytes.fromhex(token[3:5])
        else:
            raw = token.replace(_SPACE, " ").encode()
        if raw:
            written.setdefault(raw, []).append(number)
    return written


def _byte_level() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: PLC0415

    return {character: byte for byte, character in bytes_to_unicode().items()}


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    decoder: Any = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    parts = decoder.get("decoders", [decoder])
    return any(part.get("type") == "ByteLevel" for part in parts)
