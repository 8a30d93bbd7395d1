from __future__ import annotations

from collections.abc import Iterator

import pytest

from offline.llm.local import LocalBackend
from tests.offline.llm import server as servers
from tests.offline.llm.server import Layer


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real OpenAI-compatible server, with the small local model behind it."""
    with servers.transformers_serve(tmp_path_factory.mktemp("llm-server")) as url:
        yield url


@pytest.fixture
def layer(served: str) -> Iterator[Layer]:
    """In front of that server; it fails as it is told to."""
    running = Layer(served)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def small() -> LocalBackend:
    """SmolLM2-135M, loaded once."""
    return LocalBackend("smollm2", batch=4, seed=7)
