from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from offline.llm import pace
from offline.llm.cache import AnswerCache
from offline.llm.endpoint import EndpointBackend
from offline.llm.local import LocalBackend
from tests.offline.llm import server as servers
from tests.offline.llm.backends import KEY, Open, recipe_of
from tests.offline.llm.server import Layer


@pytest.fixture(scope="session")
def served(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real OpenAI-compatible server, with the small local model behind it."""
    with servers.transformers_serve(unpacked, tmp_path_factory.mktemp("llm-server")) as url:
        yield url


@pytest.fixture
def layer(served: str) -> Iterator[Layer]:
    """In front of that server; it fails as it is told to."""
    running = Layer(served)
    yield running
    running.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits a tenth as long between attempts."""
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(pace, "SPREAD", 0.02)


@pytest.fixture
def connect(impatient: None, layer: Layer, tmp_path: Path) -> Iterator[Open]:
    """Opens backends on one cache."""
    opened: list[EndpointBackend] = []

    def connect_it(key: str | None = KEY, **changes: Any) -> EndpointBackend:
        recipe = recipe_of(changes.pop("url", layer.url), **changes)
        backend = EndpointBackend(recipe, AnswerCache(tmp_path), SecretStr(key) if key else None)
        opened.append(backend)
        return backend

    yield connect_it
    for backend in opened:
        backend.close()


@pytest.fixture(scope="session")
def small() -> LocalBackend:
    """SmolLM2-135M, loaded once."""
    return LocalBackend("smollm2", batch=4, seed=7)


@pytest.fixture(scope="session")
def unpacked(small: LocalBackend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a folder: the server does not read GGUF files, and samples only where a model's settings say so."""
    from transformers import GenerationConfig

    folder = tmp_path_factory.mktemp("unpacked")
    small._model.save_pretrained(folder)
    GenerationConfig(do_sample=True, eos_token_id=2, pad_token_id=2).save_pretrained(folder)
    small._tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untrained(small: LocalBackend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of random weights, which loads in no time, and SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=small._logits, eos_token_id=2, bos_token_id=1, initializer_range=0.5
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    small._tokenizer.save_pretrained(folder)
    return folder
