"""TIGER against Hugging Face's own T5 with the same weights: its forward pass and its beam search."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from offline.models.recommender import Recommender
from offline.models.tiger import T5Decoder, T5Encoder
from tests.offline.models import tiny

ITEMS, LEVELS, CODEBOOK, ROWS = 40, 4, 5, 9


def reference(made: Recommender) -> Any:
    """Hugging Face's model of the same size, with the weights of `made`."""
    shape = tiny.whole("tiger", LEVELS, CODEBOOK).tiger
    size: dict[str, Any] = {
        "vocab_size": 1 + LEVELS * CODEBOOK,
        "d_model": shape.dim,
        "d_kv": shape.head_dim,
        "d_ff": shape.ff,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "dropout_rate": shape.dropout,
        "pad_token_id": 0,
        "eos_token_id": None,
        "decoder_start_token_id": 0,
    }
    model = T5ForConditionalGeneration(T5Config(**size))
    assert isinstance(made.backbone, T5Encoder)
    assert isinstance(made.decoder, T5Decoder)
    tokens = made.decoder.tokens.weight
    state: dict[str, Tensor] = {f"encoder.{k}": v for k, v in made.backbone.stack.state_dict().items()}
    state |= {f"decoder.{k}": v for k, v in made.decoder.stack.state_dict().items()}
    state |= dict.fromkeys(("shared.weight", "lm_head.weight"), tokens)
    state |= {f"{half}.embed_tokens.weight": tokens for half in ("encoder", "decoder")}
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def made() -> Recommender:
    return tiny.model(ITEMS, LEVELS, CODEBOOK, variant="tiger")


def asked(made: Recommender) -> tuple[Tensor, dict[str, Tensor]]:
    """Histories of every length but 0, and the same as Hugging Face reads them."""
    history = tiny.histories(made, ROWS)
    history = history[(history > 0).any(1)]
    tokens = torch.where(
        history[..., None] > 0, 1 + torch.arange(LEVELS) * CODEBOOK + made.item_codes[history], 0
    ).flatten(1)
    return history, {"input_ids": tokens, "attention_mask": (tokens > 0).long()}


def test_logits_are_those_of_hugging_face(made: Recommender) -> None:
    history, inputs = asked(made)
    codes = made.item_codes[torch.arange(1, len(history) + 1)]
    written = 1 + torch.arange(LEVELS) * CODEBOOK + codes
    start = torch.zeros(len(history), 1, dtype=torch.int64)
    with torch.inference_mode():
        expected = reference(made)(**inputs, decoder_input_ids=torch.cat([start, written[:, :-1]], dim=1)).logits
        sequence, present = made.encode(history)
        end = torch.tensor([sequence.shape[1] - 1])
        found = made.decoder.train_logits(made.fuse(sequence, None, None), present, end, codes[:, None])
    for level, logits in enumerate(found):
        first = 1 + level * CODEBOOK
        torch.testing.assert_close(logits[:, 0], expected[:, level, first : first + CODEBOOK], atol=1e-4, rtol=1e-4)


def test_cached_steps_equal_teacher_forcing(made: Recommender) -> None:
    history, _ = asked(made)
    codes = made.item_codes[torch.arange(1, len(history) + 1)][:, None]
    with torch.inference_mode():
        sequence, present = made.encode(history)
        end = torch.tensor([sequence.shape[1] - 1])
        expected = made.decoder.train_logits(sequence, present, end, codes)
        memory, cache, token = made.decoder.memory(sequence), None, made.decoder.begin(sequence)
        for level in range(LEVELS):
            logits, cache = made.decoder.step(token, level, memory, present[:, None, None], cache)
            torch.testing.assert_close(logits, expected[level], atol=1e-4, rtol=1e-4)
            token = made.decoder.token(level, codes[:, :, level])


@pytest.mark.parametrize("width", [3, 10])
def test_the_beam_is_that_of_generate_under_a_prefix_constraint(made: Recommender, width: int) -> None:
    """Renormalised over the allowed tokens, as our scores are."""
    history, inputs = asked(made)
    paths = {tuple(row): item for item, row in enumerate(made.item_codes.tolist()) if item}

    def allowed(_row: int, written: Tensor) -> list[int]:
        level = len(written) - 1
        prefix = tuple(token - 1 - place * CODEBOOK for place, token in enumerate(written[1:].tolist()))
        if prefix not in {path[:level] for path in paths}:  # a beam that was cut, kept to fill up the width
            return [0]
        return sorted({1 + level * CODEBOOK + path[level] for path in paths if path[:level] == prefix})

    generation: dict[str, Any] = {
        "num_beams": width,
        "num_return_sequences": width,
        "max_new_tokens": LEVELS,
        "length_penalty": 0.0,
        "do_sample": False,
        "renormalize_logits": True,
        "prefix_allowed_tokens_fn": allowed,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    with torch.inference_mode():
        expected = reference(made).generate(**inputs, **generation)
        beam = made.recommend(history, history[:, :0], width)
    codes = expected.sequences[:, 1:] - 1 - torch.arange(LEVELS) * CODEBOOK
    items = torch.tensor([paths[tuple(row)] for row in codes.tolist()]).reshape(len(history), width)
    torch.testing.assert_close(beam.scores, expected.sequences_scores.reshape(len(history), width), atol=1e-4, rtol=0)
    assert torch.equal(beam.items, items)


def test_padding_changes_nothing(made: Recommender) -> None:
    history, _ = asked(made)
    row = history[(history > 0).sum(1) == 2][:1]
    with torch.inference_mode():
        long, short = made.recommend(row, row[:, :0], 5), made.recommend(row[:, -2:], row[:, :0], 5)
    assert torch.equal(long.items, short.items)
    torch.testing.assert_close(long.scores, short.scores)


def test_the_head_and_both_halves_share_one_table(made: Recommender) -> None:
    tables = [p for p in made.parameters() if p.shape == (1 + LEVELS * CODEBOOK, made.dim)]
    assert len(tables) == 1


def test_all_weights_learn(made: Recommender) -> None:
    history, _ = asked(made)
    made.zero_grad()
    sequence, present = made.encode(history)
    end = torch.tensor([sequence.shape[1] - 1])
    logits = made.decoder.train_logits(sequence, present, end, made.item_codes[history[:, -1]][:, None])
    sum(each.logsumexp(-1).sum() for each in logits).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())
    made.zero_grad()
