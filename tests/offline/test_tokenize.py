import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offline import tokenize as module
from offline.errors import StageError
from offline.prepare import load_dataset, prepare
from offline.recipe import PrepareRecipe, TokenizeRecipe
from offline.stage import Stage
from offline.tokenize import load_codes, tokenize

D = 12
ITEMS = 40
RECIPE = TokenizeRecipe(levels=3, codebook=8)


class FakeEncoder:
    """Unit vectors made of the characters of a text; keeps what it was given."""

    made: list[tuple[str, str]] = []  # noqa: RUF012 - shared by all encoders of a test
    seen: list[list[str]] = []  # noqa: RUF012 - the same

    def __init__(self, name: str, precision: str) -> None:
        self.made.append((name, precision))

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        self.seen.append(texts)
        vectors = np.stack([np.random.default_rng(list(t.encode())).standard_normal(D) for t in texts])
        unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit.astype(np.float32)


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> type[FakeEncoder]:
    monkeypatch.setattr(module, "SentenceEncoder", FakeEncoder)
    monkeypatch.setattr(FakeEncoder, "made", [])
    monkeypatch.setattr(FakeEncoder, "seen", [])
    return FakeEncoder


@pytest.fixture
def prepared(tmp_path: Path) -> Stage:
    data = tmp_path / "data"
    data.mkdir()
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    rows += [f"u{item // 10}\t{item}\t{item}" for item in range(ITEMS)]
    (data / "toy.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    # 0 has no row, 1 a row without text, 2..5 all the same title.
    titles = ["item_id:token\ttitle:token_seq", "1\t", *(f"{item}\tTwin" for item in range(2, 6))]
    titles += [f"{item}\tTitle\u2028{item}" for item in range(6, ITEMS)]
    (data / "toy.item").write_text("\n".join(titles) + "\n", encoding="utf-8")
    return prepare(tmp_path / "prepared", data, PrepareRecipe(min_interactions=1))


def summary(stage: Stage) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((stage.folder / "summary.json").read_text(encoding="utf-8"))
    return body


def test_every_item_has_an_embedding_and_codes_of_its_own(
    prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder]
) -> None:
    stage = tokenize(tmp_path / "work", prepared, RECIPE)
    assert encoder.made == [("minilm", "float32")]
    vectors = np.load(stage.folder / "embeddings.npy")
    assert vectors.shape == (ITEMS, D)
    assert vectors.dtype == np.float32
    codes = load_codes(stage.folder)
    assert codes.shape == (ITEMS, 3)
    assert codes.dtype == np.int64
    assert len(np.unique(codes, axis=0)) == ITEMS
    assert 0 <= codes.min() <= codes.max() < 8
    assert {p.name for p in stage.folder.iterdir()} == {"embeddings.npy", "codes.npy", "summary.json", "stage.json"}


def test_an_item_without_text_is_told_by_its_id(prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder]) -> None:
    tokenize(tmp_path / "work", prepared, RECIPE)
    (texts,) = encoder.seen
    assert texts[:4] == ["item 0", "item 1", "Twin", "Twin"]
    assert texts[6:] == [f"Title\u2028{item}" for item in range(6, ITEMS)]
    assert [item.id for item in load_dataset(prepared.folder).items] == [str(item) for item in range(ITEMS)]


def test_the_summary_counts_repairs(prepared: Stage, tmp_path: Path) -> None:
    found = summary(tokenize(tmp_path / "work", prepared, RECIPE))
    assert (found["encoder"], found["width"], found["items"]) == ("minilm", D, ITEMS)
    assert found["collisions_repaired"] >= 3  # the twins
    assert len(found["codes_in_use"]) == 3
    assert 0 < found["reconstruction_error"] < 0.5


def test_a_run_cut_off_after_encoding_goes_on_from_the_embeddings(
    prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenize(tmp_path / "whole", prepared, RECIPE)
    encoder.seen.clear()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "make_unique", stop)
        with pytest.raises(KeyboardInterrupt):
            tokenize(tmp_path / "cut", prepared, RECIPE)
    (partial,) = (tmp_path / "cut").iterdir()
    assert [p.name for p in partial.iterdir()] == ["embeddings.npy"]
    cut = tokenize(tmp_path / "cut", prepared, RECIPE)
    assert len(encoder.seen) == 1
    for name in ("embeddings.npy", "codes.npy", "summary.json"):
        assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_run_cut_off_while_saving_embeddings_encodes_them_again(
    prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = np.save

    def half(path: Path, vectors: NDArray[Any]) -> None:
        real(path, vectors)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", half)
        with pytest.raises(KeyboardInterrupt):
            tokenize(tmp_path, prepared, RECIPE)
    stage = tokenize(tmp_path, prepared, RECIPE)
    assert len(encoder.seen) == 2
    assert np.load(stage.folder / "embeddings.npy").shape == (ITEMS, D)
    assert not list(stage.folder.glob("*.partial.npy"))


def test_the_recipe_and_the_data_decide_the_folder(prepared: Stage, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = tokenize(work, prepared, RECIPE)
    again = tokenize(work, prepared, RECIPE)
    other = tokenize(work, prepared, TokenizeRecipe(levels=3, codebook=8, seed=8))
    moved = tokenize(work, Stage("prepare", "other data", prepared.folder), RECIPE)
    assert first == again
    assert len({first.folder, other.folder, moved.folder}) == 3
    np.testing.assert_array_equal(load_codes(first.folder), load_codes(moved.folder))


def test_too_few_codes_for_the_items(prepared: Stage, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"raise tokenize\.codebook or tokenize\.levels"):
        tokenize(tmp_path / "work", prepared, TokenizeRecipe(levels=2, codebook=6))
    assert not list((tmp_path / "work").glob("tokenize-????????????"))
