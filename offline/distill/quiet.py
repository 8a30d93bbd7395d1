"""The libraries of language models without their own bars, and without warnings of what nobody here decides."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from offline.llm.extra import llm_extra

with llm_extra():
    import datasets
    import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Silence in the block; afterwards they say what they said before."""
    verbosity = transformers.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    level = logging.getLogger("trl").level
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
        logging.getLogger("trl").setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
