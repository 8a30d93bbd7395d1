"""The packages that only a language model needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from offline.errors import LLMError


@contextmanager
def llm_extra() -> Iterator[None]:
    """Around imports: say what to install when a package is missing. Raises LLMError."""
    try:
        yield
    except ImportError as error:
        missing = f"the package {error.name}" if error.name else str(error)
        raise LLMError(
            f"a language model needs {missing}, which is not installed: pip install -e '.[llm]' in a checkout"
        ) from error
