from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from offline.errors import LLMError
from offline.llm import local as module
from offline.llm.base import Answer, Prompt
from offline.llm.cache import AnswerCache
from offline.llm.grammar import token_bytes
from offline.llm.local import LocalBackend, nucleus
from offline.llm.model import asked_tokens, load_causal, model_place, weights_digest
from tests.offline.llm.prompts import ask, asks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # a model is loaded, on a machine that may be busy


def answers(backend: LocalBackend, prompts: list[Prompt]) -> list[Answer]:
    return sorted(backend.answer(prompts), key=lambda answer: answer.index)


def texts(backend: LocalBackend, prompts: list[Prompt]) -> list[tuple[str, ...]]:
    return [answer.texts for answer in answers(backend, prompts)]


def test_a_padded_batch_says_what_transformers_own_generate_says_of_each_prompt(small: LocalBackend) -> None:
    prompts = [
        ask("Hi", max_tokens=12),
        ask("What is tea? " * 15, max_tokens=9),
        ask("Name three colours.", max_tokens=12),
    ]
    alone = []
    for prompt in prompts:
        tokens = torch.tensor([asked_tokens(small._tokenizer, prompt.messages)])
        with torch.inference_mode():
            written = small._model.generate(tokens, max_new_tokens=prompt.sampling.max_tokens, do_sample=False)
        alone.append((small._tokenizer.decode(written[0, tokens.shape[1] :], skip_special_tokens=True),))
    assert texts(small, prompts) == alone


def test_a_sampled_answer_does_not_depend_on_who_else_is_in_the_batch(small: LocalBackend) -> None:
    prompts = [
        ask(f"Tell me of {what}.", temperature=0.8, seed=11) for what in ("tea", "the sea at night", "wool", "Rome")
    ]
    together = texts(small, prompts)
    assert texts(small, prompts[::-1])[::-1] == together
    assert [texts(small, [prompt])[0] for prompt in prompts] == together


def test_other_seeds_and_other_numbers_give_other_answers(small: LocalBackend) -> None:
    (several,) = texts(small, [ask("Tell me a story.", n=5, temperature=1.0, seed=1)])  # more than a batch of 4
    assert len(set(several)) == 5
    (fewer,) = texts(small, [ask("Tell me a story.", n=2, temperature=1.0, seed=1)])
    assert fewer == several[:2]
    (others,) = texts(small, [ask("Tell me a story.", n=2, temperature=1.0, seed=2)])
    assert not set(others) & set(several)


PATTERN = r"Colour: (red|green|blue)\nReason: [A-Z][a-zé, ]{5,40}\.\n(<item>[a-z ]{3,12}</item>\n){3}"


def test_an_answer_matches_its_pattern(small: LocalBackend) -> None:
    prompts = [
        ask(f"Which colour, {n}?", pattern=PATTERN, max_tokens=90, temperature=1.0, n=2, seed=n) for n in range(2)
    ]
    prompts.append(ask("Which colour?", max_tokens=5))  # one that is free, in the same batch
    *held, free = texts(small, prompts)
    for pair in held:
        assert all(re.fullmatch(PATTERN, text) for text in pair), held
    assert not free[0].startswith("Colour: ")


def test_letters_of_several_bytes_can_be_held_to(small: LocalBackend) -> None:
    ((text,),) = texts(small, [ask("?", pattern="naïve → 東京🙂", max_tokens=40)])
    assert text == "naïve → 東京🙂"


def test_a_pattern_that_is_not_regular_is_that_prompts_error(small: LocalBackend) -> None:
    bad, good = answers(small, [ask("?", pattern=r"(?=a)b"), ask("Hi")])
    assert bad.error is not None
    assert "cannot hold a model to the pattern '(?=a)b'" in bad.error
    assert good.texts


def test_a_prompt_that_is_too_long_is_that_prompts_error(small: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "_context", 60)
    long, edge, short = answers(small, [ask("word " * 80), ask("word " * 20, max_tokens=500), ask("Hi")])
    assert long.error is not None
    assert re.search(r"the prompt has \d+ tokens, and the model reads 60", long.error)
    assert edge.texts  # it ends where the model's context does
    assert short.texts


def test_answers_that_were_written_are_found_by_later_versions(
    small: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "_weights", "w")
    prompt = ask("Yes or no?", pattern="(yes|no)", seed=5, temperature=0.7)
    assert small._key(prompt, 1).hex().startswith("a068e7da6ab62caf")


def test_windows_keep_the_indices(small: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [ask(f"{'very ' * (n % 4)}short, {n}", max_tokens=2) for n in range(10)]
    whole = texts(small, prompts)
    monkeypatch.setattr(module, "WINDOW", 1)
    monkeypatch.setattr(small, "_batch", 3)
    assert texts(small, prompts) == whole


def test_what_was_written_is_not_written_again(
    small: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [*asks(2), ask("Say more.", n=2, temperature=1.0)]
    with AnswerCache(tmp_path) as cache:
        monkeypatch.setattr(small, "_cache", cache)
        first = texts(small, prompts)
        used, cached = small.usage.completion_tokens, small.usage.cached
        assert texts(small, prompts) == first
        assert small.usage.completion_tokens == used
        assert small.usage.cached == cached + 4
        ((*kept, _),) = texts(small, [ask("Say more.", n=3, temperature=1.0)])
        assert tuple(kept) == first[2]
        assert small.usage.cached == cached + 6


def test_whoever_stops_half_way_has_lost_nothing_that_was_whole(
    small: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AnswerCache(tmp_path) as cache:
        monkeypatch.setattr(small, "_cache", cache)
        reading = small.answer(asks(8))
        next(reading)
        reading.close()  # type: ignore[attr-defined]
        assert 1 <= len(cache) < 8


def test_an_adapter_changes_what_is_said_and_the_name(untrained: Path, tmp_path: Path) -> None:
    model, _ = load_causal(untrained, "float32")
    with warnings.catch_warnings():  # peft asks transformers for it by its former name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    prompts = [ask("Tell me of tea.", max_tokens=12)]
    with (
        LocalBackend(untrained, batch=2, precision="float32", seed=7) as plain,
        LocalBackend(untrained, adapter=tmp_path, batch=2, precision="float32", seed=7) as student,
    ):
        assert texts(student, prompts) != texts(plain, prompts)
        assert student.name != plain.name
        assert weights_digest(tmp_path) in student.name


def test_bfloat16_answers_too(untrained: Path) -> None:
    with LocalBackend(untrained, batch=2, precision="bfloat16", seed=7) as backend:
        assert all(text for (text,) in texts(backend, asks(3)))
        assert backend.name.endswith("bfloat16")


def test_a_model_in_a_folder_is_as_good_as_a_file(small: LocalBackend, unpacked: Path) -> None:
    with LocalBackend(unpacked, batch=2) as backend:
        assert texts(backend, asks(2)) == texts(small, asks(2))


def test_a_model_without_a_chat_template_gets_the_plain_text(
    small: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small._tokenizer, "chat_template", None)
    tokens = asked_tokens(small._tokenizer, ask("Hi").messages)
    assert small._tokenizer.decode(tokens) == "You answer in a few words.\n\nHi\n\n"
    assert texts(small, [ask("Hi")])[0][0]


def test_no_memory_is_an_error_that_says_what_to_lower(small: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module._Batch, "_forward", full)
    with pytest.raises(LLMError, match=r"no memory for 2 answers at a time to prompts of up to \d+ tokens: lower"):
        answers(small, asks(2))


@pytest.mark.parametrize("name", [Path("nowhere"), "./nowhere", "nowhere.gguf"])
def test_a_model_that_is_not_there_is_named(name: str | Path) -> None:
    with pytest.raises(LLMError, match=r"no model at (\./)?nowhere"):
        model_place(name)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(LLMError, match=r"cannot load the model .*bad\.gguf"):
        load_causal(tmp_path / "bad.gguf", "float32")
    with pytest.raises(LLMError, match="cannot load the model"):
        load_causal(tmp_path, "float32")


def test_an_adapter_that_is_none_is_named(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="cannot put the adapter"):
        LocalBackend(untrained, adapter=tmp_path, batch=2)


def without(package: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("package", ["transformers", "gguf"])
def test_a_missing_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(package)(monkeypatch)
    with pytest.raises(LLMError, match=rf"needs the package {package}, .*pip install -e '\.\[llm\]'"):
        load_causal("smollm2", "float32")


def test_every_ordinary_token_writes_its_own_bytes(small: LocalBackend) -> None:
    tokenizer = small._tokenizer
    written = token_bytes(tokenizer)
    by_number = {number: raw for raw, numbers in written.items() for number in numbers}
    assert not by_number.keys() & set(tokenizer.all_special_ids)
    assert len(by_number) > 0.99 * (len(tokenizer) - len(tokenizer.all_special_ids))
    for text in ("A plain sentence, and 東京 → naïve 🙂.\n\ttabs", "<item>x</item>"):
        numbers = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(by_number[number] for number in numbers).decode() == text


@settings(max_examples=60)
@given(st.integers(2, 600), st.floats(0.05, 1.0), st.floats(0, 0.999), st.floats(0.1, 20), st.integers(0, 1000))
def test_a_nucleus_draw_is_the_inverse_of_its_distribution(
    size: int, top_p: float, uniform: float, scale: float, seed: int
) -> None:
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * scale
    token = int(nucleus(logits, torch.tensor([[top_p]]), torch.tensor([[uniform]]))[0])
    probabilities = torch.softmax(logits[0].double(), 0)
    order = probabilities.argsort(descending=True, stable=True)
    place = int((order == token).nonzero()[0, 0])
    before = float(probabilities[order[:place]].sum())
    assert before < top_p + 1e-4
    kept = int((probabilities[order].cumsum(0) - probabilities[order] < top_p).sum())
    total = float(probabilities[order[:kept]].sum())
    assert before / total - 1e-3 <= uniform <= (before + float(probabilities[token])) / total + 1e-3
