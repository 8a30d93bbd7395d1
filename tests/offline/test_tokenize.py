import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offline import tokenize as module
from offline.errors import StageError
from offline.prepare import load_dataset, prepare
from offline.quantize import Quantization
from offline.recipe import PrepareRecipe, RqvaeRecipe, TokenizeRecipe
from offline.stage import Stage
from offline.tokenize import load_codes, load_embeddings, tokenize
from offline.usage import level_usage

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
    assert {p.name for p in stage.folder.iterdir()} == {
        "embeddings.npy",
        "codes.npy",
        "summary.json",
        "report.html",
        "stage.json",
    }


def test_an_item_without_text_is_told_by_its_id(prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder]) -> None:
    tokenize(tmp_path / "work", prepared, RECIPE)
    (texts,) = encoder.seen
    assert texts[:4] == ["item 0", "item 1", "Twin", "Twin"]
    assert texts[6:] == [f"Title\u2028{item}" for item in range(6, ITEMS)]
    assert [item.id for item in load_dataset(prepared.folder).items] == [str(item) for item in range(ITEMS)]


def test_the_summary_tells_how_codes_are_used(prepared: Stage, tmp_path: Path) -> None:
    stage = tokenize(tmp_path / "work", prepared, RECIPE)
    found = summary(stage)
    assert (found["embeddings"], found["encoder"], found["width"], found["items"]) == ("text", "minilm", D, ITEMS)
    assert found["collisions"] >= 3  # the twins
    assert found["collision_rate"] == round(found["collisions"] / ITEMS, 4)
    assert [row["level"] for row in found["levels"]] == [1, 2, 3]
    assert all(0 < row["perplexity"] <= row["codes_in_use"] <= 8 for row in found["levels"])
    errors = [row["reconstruction_error"] for row in found["levels"]]
    assert 1 > errors[0] > errors[1] > errors[2] == found["reconstruction_error"] > 0
    assert found["reconstruction_error_unique"] >= found["reconstruction_error"]
    page = (stage.folder / "report.html").read_text(encoding="utf-8")
    assert "Semantic IDs of toy" in page
    assert page.count("<img") == 1


def test_the_perplexity_of_codes_is_how_many_equally_used_ones_would_say_as_much(
    prepared: Stage, tmp_path: Path
) -> None:
    codes = np.array([[0, 0], [0, 1], [1, 2], [1, 2]], np.int64)
    vectors = np.eye(4, dtype=np.float32)
    found = Quantization(codes, [vectors, vectors], vectors, lambda latents: latents)
    first, second = level_usage(found, vectors)
    assert (first["codes_in_use"], first["perplexity"]) == (2, 2.0)
    assert (second["codes_in_use"], second["perplexity"]) == (3, round(2**1.5, 2))


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


def test_one_more_code_counts_the_items_with_the_same_codes(prepared: Stage, tmp_path: Path) -> None:
    usual = tokenize(tmp_path / "work", prepared, RECIPE)
    stage = tokenize(tmp_path / "work", prepared, RECIPE.model_copy(update={"unique": "extra"}))
    codes = load_codes(stage.folder)
    assert codes.shape == (ITEMS, 4)
    assert len(np.unique(codes, axis=0)) == ITEMS
    assert len(np.unique(codes[2:6, :3], axis=0)) == 1  # the twins
    assert codes[2:6, 3].tolist() == sorted({*codes[2:6, 3].tolist()})
    found = summary(stage)
    assert found["unique"] == "extra"
    assert found["levels"] == summary(usual)["levels"]
    assert found["reconstruction_error_unique"] == found["reconstruction_error"]


def test_rq_vae_takes_the_place_of_k_means(prepared: Stage, tmp_path: Path) -> None:
    network = RqvaeRecipe(hidden=[16], latent=6, batch=16, epochs=30)
    stage = tokenize(tmp_path / "work", prepared, RECIPE.model_copy(update={"quantizer": "rqvae", "rqvae": network}))
    codes = load_codes(stage.folder)
    assert codes.shape == (ITEMS, 3)
    assert len(np.unique(codes, axis=0)) == ITEMS
    found = summary(stage)
    assert found["quantizer"] == "rqvae"
    lines = (stage.folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 30
    assert json.loads(lines[-1])["reconstruction"] < json.loads(lines[0])["reconstruction"]
    assert (stage.folder / "report.html").read_text(encoding="utf-8").count("<img") == 2
    assert not (stage.folder / "rqvae.pt").exists()


def written(folder: Path, sequences: list[list[int]], texts: dict[int, str] | None = None) -> Path:
    """RecBole files of these sequences of item numbers."""
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{u}\t{item}\t{t}" for u, sequence in enumerate(sequences) for t, item in enumerate(sequence)]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if texts is not None:
        lines = ["item_id:token\ttitle:token_seq", *(f"{item}\t{text}" for item, text in texts.items())]
        (folder / "toy.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def shopping(users: int = 80, seed: int = 0) -> list[list[int]]:
    """Sequences of eight of thirty items, in which every item is met in the training part of some user first."""
    random = np.random.default_rng(seed)
    rows = [[(6 * user + t) % 30 for t in range(6)] for user in range(5)]
    rows += [random.permutation(10)[:6].tolist() for _ in range(users)]
    rows = [[item + 10 * (user % 3) if user >= 5 else item for item in row] for user, row in enumerate(rows)]
    return [[*row, *(random.integers(0, 30, 2).tolist() if user >= 5 else row[:2])] for user, row in enumerate(rows)]


def test_a_catalogue_without_texts_is_told_by_who_bought_what(tmp_path: Path) -> None:
    stage = tokenize(
        tmp_path / "work",
        prepare(tmp_path / "prepared", written(tmp_path / "data", shopping()), PrepareRecipe()),
        RECIPE,
    )
    found = summary(stage)
    assert (found["embeddings"], found["encoder"], found["items_without_text"]) == ("collaborative", None, 30)
    assert found["warnings"] == [
        "semantic IDs tell who bought what near what in training, not what items are (30 of 30 items have no text)"
    ]
    assert "who bought what near what in training" in (stage.folder / "report.html").read_text(encoding="utf-8")
    assert np.load(stage.folder / "collaborative.npy").shape == (30, 30)
    # What reads texts later still finds them in the encoder's space.
    assert load_embeddings(stage.folder, 30).shape == (30, D)
    assert len(np.unique(load_codes(stage.folder), axis=0)) == 30


@pytest.mark.parametrize("quantizer", ["rqkmeans", "rqvae"])
def test_no_validation_or_test_item_reaches_the_embeddings(tmp_path: Path, quantizer: str) -> None:
    network = RqvaeRecipe(hidden=[16], latent=6, batch=16, epochs=3)
    recipe = RECIPE.model_copy(update={"quantizer": quantizer, "rqvae": network, "width": 8})
    sequences = shopping()
    other = [[*row[:-2], (row[-2] + 7) % 30, (row[-1] + 13) % 30] for row in sequences]
    other[:5] = sequences[:5]  # so that items keep their order of appearance
    texts = {item: f"Title {item}" if item % 3 else "" for item in range(30)}
    for name, items in (("none", None), ("some", texts)):
        codes, kept = [], []
        for version, rows in (("first", sequences), ("other", other)):
            data = written(tmp_path / f"{name}-{version}", rows, items)
            prepared = prepare(tmp_path / "prepared", data, PrepareRecipe())
            stage = tokenize(tmp_path / "work", prepared, recipe)
            codes.append(load_codes(stage.folder))
            kept.append(prepared.folder)
        assert [item.id for item in load_dataset(kept[0]).items] == [item.id for item in load_dataset(kept[1]).items]
        assert kept[0] != kept[1]
        np.testing.assert_array_equal(codes[0], codes[1])


def test_training_items_do_reach_collaborative_embeddings(tmp_path: Path) -> None:
    sequences = shopping()
    other = [[row[2], row[1], row[0], *row[3:]] if user >= 5 else row for user, row in enumerate(sequences)]
    found = []
    for version, rows in (("first", sequences), ("other", other)):
        prepared = prepare(tmp_path / "prepared", written(tmp_path / version, rows), PrepareRecipe())
        found.append(np.load(tokenize(tmp_path / "work", prepared, RECIPE).folder / "collaborative.npy"))
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_an_item_without_text_is_placed_among_its_neighbours_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {item: f"Title {item // 10}" if item else "" for item in range(30)}
    prepared = prepare(tmp_path / "prepared", written(tmp_path / "data", shopping(), texts), PrepareRecipe())
    stage = tokenize(tmp_path / "work", prepared, TokenizeRecipe(levels=3, codebook=16))
    warning = "1 of 30 items have no text: they are placed among the items bought near them in training"
    assert summary(stage)["warnings"][0] == warning
    assert f"warning: {warning}" in capsys.readouterr().out
    rows = {item.id: row for row, item in enumerate(load_dataset(prepared.folder).items)}
    codes = load_codes(stage.folder)
    assert codes[rows["0"], 0] in {codes[rows[str(item)], 0] for item in range(1, 10)}


def test_texts_are_asked_for_where_there_are_none(tmp_path: Path, encoder: type[FakeEncoder]) -> None:
    prepared = prepare(tmp_path / "prepared", written(tmp_path / "data", shopping()), PrepareRecipe())
    with pytest.raises(StageError, match=r"none of the 30 items has a text, and tokenize\.embeddings = 'text': bring"):
        tokenize(tmp_path / "work", prepared, RECIPE.model_copy(update={"embeddings": "text"}))
    assert not encoder.seen


@pytest.mark.parametrize("quantizer", ["rqkmeans", "rqvae"])
def test_a_single_item_that_nothing_is_known_of_is_an_error(
    tmp_path: Path, encoder: type[FakeEncoder], quantizer: str
) -> None:
    data = written(tmp_path / "data", [[0] * 5, [0] * 4])
    prepared = prepare(tmp_path / "prepared", data, PrepareRecipe(min_interactions=1))
    recipe = TokenizeRecipe.model_validate({"quantizer": quantizer})
    with pytest.raises(StageError, match="one item and no text of it: bring more data or texts"):
        tokenize(tmp_path / "work", prepared, recipe)
    assert encoder.seen  # its title, for later stages


@pytest.mark.parametrize("quantizer", ["rqkmeans", "rqvae"])
def test_embeddings_that_are_all_the_same_are_an_error(
    prepared: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantizer: str
) -> None:
    monkeypatch.setattr(FakeEncoder, "encode", lambda self, texts: np.full((len(texts), D), D**-0.5, np.float32))
    recipe = TokenizeRecipe.model_validate({"quantizer": quantizer})
    with pytest.raises(
        StageError, match="all 40 items have the same embedding, which no codes can tell apart: look at"
    ):
        tokenize(tmp_path / "work", prepared, recipe)


def test_embeddings_that_are_no_numbers_are_an_error(
    prepared: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: FakeEncoder, texts: list[str]) -> NDArray[np.float32]:
        vectors = np.ones((len(texts), D), np.float32)
        vectors[[4, 9]] = np.nan
        return vectors

    monkeypatch.setattr(FakeEncoder, "encode", encode)
    with pytest.raises(StageError, match=r"the embeddings of 2 items are not finite, the first of them item 5: try"):
        tokenize(tmp_path / "work", prepared, RECIPE)


def test_nobody_who_bought_two_items_is_nothing_to_learn_from(tmp_path: Path) -> None:
    sequences = [[user] * 6 for user in range(6)]
    prepared = prepare(tmp_path / "prepared", written(tmp_path / "data", sequences), PrepareRecipe())
    with pytest.raises(StageError, match="no two items were bought by one user in training: bring more data or texts"):
        tokenize(tmp_path / "work", prepared, RECIPE)


def test_items_that_hardly_differ_are_warned_of(
    prepared: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: FakeEncoder, texts: list[str]) -> NDArray[np.float32]:
        return np.eye(D, dtype=np.float32)[[len(text) % 3 for text in texts]]

    monkeypatch.setattr(FakeEncoder, "encode", encode)
    found = summary(tokenize(tmp_path / "work", prepared, RECIPE))
    assert any(
        "of 40 items had the codes of another before they were made unique" in line for line in found["warnings"]
    )


def test_embeddings_of_another_data_set_are_refused(prepared: Stage, tmp_path: Path) -> None:
    stage = tokenize(tmp_path / "work", prepared, RECIPE)
    with pytest.raises(StageError, match=r"embeddings\.npy holds an array of \[40, 12\], the data set has 41 items"):
        load_embeddings(stage.folder, 41)
    with pytest.raises(
        StageError, match="holds semantic IDs of 40 items, the data set has 41: they were not made of it"
    ):
        load_codes(stage.folder, 41)
    # The same when a run that was cut off left such a file behind.
    partial = tmp_path / "cut" / f"{stage.folder.name}.partial"
    partial.mkdir(parents=True)
    np.save(partial / "embeddings.npy", np.ones((39, D), np.float32))
    with pytest.raises(StageError, match=r"holds an array of \[39, 12\], the data set has 40 items.*Remove .* and run"):
        tokenize(tmp_path / "cut", prepared, RECIPE)
