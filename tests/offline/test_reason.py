import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offline import reason as module
from offline.analyst import Analyst
from offline.chains.template import template
from offline.prepare import SPLITS, load_dataset, prepare
from offline.reason import load_reasoning, load_steps, reason
from offline.recipe import PrepareRecipe, ReasonRecipe
from offline.stage import Stage

USERS = 30
D = 6


class FakeEncoder:
    """Vectors made of the characters of a text; counts what it was given and stops when told to."""

    seen: list[str] = []  # noqa: RUF012 - shared by all encoders of a test
    stop_after: int | None = None

    def __init__(self, name: str, precision: str) -> None:
        assert (name, precision) == ("minilm", "float32")

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        if self.stop_after is not None and len(self.seen) + len(texts) > self.stop_after:
            raise KeyboardInterrupt
        self.seen.extend(texts)
        return np.stack([_vector(text) for text in texts])


def _vector(text: str) -> NDArray[np.float32]:
    return np.random.default_rng(list(text.encode())).standard_normal(D).astype(np.float32)


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> type[FakeEncoder]:
    monkeypatch.setattr(module, "SentenceEncoder", FakeEncoder)
    monkeypatch.setattr(module, "CHUNK", 50)
    monkeypatch.setattr(module, "USERS", 8)
    monkeypatch.setattr(FakeEncoder, "seen", [])
    monkeypatch.setattr(FakeEncoder, "stop_after", None)
    return FakeEncoder


@pytest.fixture
def prepared(tmp_path: Path) -> Stage:
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(3)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(USERS):
        items = rng.permutation(20)[: rng.integers(5, 9)]
        rows += [f"user-{user}\t{item}\t{time}" for time, item in enumerate(items)]
    (data / "toy.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    titles = ["item_id:token\ttitle:token_seq\tcategories:token_seq"]
    titles += [f"{item}\tödd “title” no {item}\tKind {item % 3}" for item in range(20)]
    (data / "toy.item").write_text("\n".join(titles) + "\n", encoding="utf-8")
    return prepare(tmp_path / "prepared", data, PrepareRecipe(min_interactions=1))


def _contents(folder: Path) -> dict[str, Any]:
    """Everything in a stage's folder but the times."""
    files: dict[str, Any] = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json"}
    files["summary"] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for key in ("seconds", "users_per_second"):
        del files["summary"][key]
    return files


def test_h_holds_the_embedding_of_every_step(prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder]) -> None:
    stage = reason(tmp_path / "work", prepared, ReasonRecipe())
    dataset = load_dataset(prepared.folder)
    for split in SPLITS:
        H, steps = load_reasoning(stage.folder, split), load_steps(stage.folder, split)
        assert isinstance(H, np.memmap)
        assert H.shape == (USERS, 5, D)
        assert H.dtype == np.float16
        expected = np.stack([[_vector(step) for step in chain] for chain in steps])
        np.testing.assert_array_equal(H, expected.astype(np.float16))
        lines = (stage.folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["user"] for row in rows] == dataset.users
        assert [row["history_length"] for row in rows] == [len(dataset.history(u, split)) for u in range(USERS)]
        assert [row["steps"] for row in rows] == steps
    assert len(encoder.seen) == len(set(encoder.seen))


def test_the_summary_says_who_wrote_the_chains(prepared: Stage, tmp_path: Path) -> None:
    recipe = ReasonRecipe()
    stage = reason(tmp_path / "work", prepared, recipe)
    summary = json.loads((stage.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["backend"] == "analyst (statistics, no language model)"
    assert summary["template"] == list(template(recipe.template).steps)
    assert (summary["K"], summary["D"], summary["users"], summary["chains"]) == (5, D, USERS, 4 * USERS)
    texts = {step for split in SPLITS for chain in load_steps(stage.folder, split) for step in chain}
    assert summary["unique_texts"] == len(texts)
    assert set(summary["seconds"]) == {"write", "encode", "assemble"}
    assert summary["users_per_second"] > 0
    expected = {f"{split}.{kind}" for split in SPLITS for kind in ("npy", "jsonl")}
    assert {p.name for p in stage.folder.iterdir()} == expected | {"summary.json", "stage.json"}


def test_an_interrupted_run_goes_on_where_it_stopped(
    prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reason(tmp_path / "whole", prepared, ReasonRecipe())
    total = len(encoder.seen)
    assert total > 150
    encoder.seen.clear()
    monkeypatch.setattr(encoder, "stop_after", 120)
    with pytest.raises(KeyboardInterrupt):
        reason(tmp_path / "cut", prepared, ReasonRecipe())
    assert len(encoder.seen) == 100
    assert not list((tmp_path / "cut").glob("reason-????????????"))
    monkeypatch.setattr(encoder, "stop_after", None)
    cut = reason(tmp_path / "cut", prepared, ReasonRecipe())
    assert len(encoder.seen) == len(set(encoder.seen)) == total
    assert _contents(cut.folder) == _contents(whole.folder)


def test_a_run_cut_off_while_writing_texts_keeps_the_finished_splits(
    prepared: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reason(tmp_path / "whole", prepared, ReasonRecipe())
    real = Analyst.chains
    written: list[str] = []
    interrupt = True

    def recorded(self: Analyst, users: range, split: str) -> list[list[str]]:
        written.append(split)
        if interrupt and written.count("valid") == 3:
            raise KeyboardInterrupt
        return real(self, users, split)

    monkeypatch.setattr(Analyst, "chains", recorded)
    with pytest.raises(KeyboardInterrupt):
        reason(tmp_path / "cut", prepared, ReasonRecipe())
    written.clear()
    interrupt = False
    cut = reason(tmp_path / "cut", prepared, ReasonRecipe())
    assert set(written) == set(SPLITS) - {"train"}
    assert _contents(cut.folder) == _contents(whole.folder)


def test_a_run_cut_off_while_assembling_encodes_nothing_again(
    prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reason(tmp_path / "whole", prepared, ReasonRecipe())
    real = module._assemble

    def stopping(folder: Path, split: str, *rest: Any) -> None:
        if split == "test":
            raise KeyboardInterrupt
        real(folder, split, *rest)

    monkeypatch.setattr(module, "_assemble", stopping)
    with pytest.raises(KeyboardInterrupt):
        reason(tmp_path / "cut", prepared, ReasonRecipe())
    monkeypatch.setattr(module, "_assemble", real)
    encoder.seen.clear()
    cut = reason(tmp_path / "cut", prepared, ReasonRecipe())
    assert encoder.seen == []
    assert _contents(cut.folder) == _contents(whole.folder)


def test_vectors_of_other_texts_are_not_taken_over(
    prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial folder may be left from before the program was changed."""
    whole = reason(tmp_path / "whole", prepared, ReasonRecipe())
    monkeypatch.setattr(Analyst, "chains", lambda self, users, split: [[f"{split} {u}"] * 5 for u in users])
    encoder.seen.clear()
    monkeypatch.setattr(encoder, "stop_after", 60)
    with pytest.raises(KeyboardInterrupt):
        reason(tmp_path / "cut", prepared, ReasonRecipe())
    monkeypatch.undo()
    monkeypatch.setattr(module, "SentenceEncoder", encoder)
    monkeypatch.setattr(encoder, "seen", [])
    for left in (tmp_path / "cut").glob("*.partial/*.jsonl"):
        left.unlink()
    cut = reason(tmp_path / "cut", prepared, ReasonRecipe())
    assert _contents(cut.folder) == _contents(whole.folder)


def test_a_second_run_does_nothing(prepared: Stage, tmp_path: Path, encoder: type[FakeEncoder]) -> None:
    first = reason(tmp_path / "work", prepared, ReasonRecipe())
    encoder.seen.clear()
    assert reason(tmp_path / "work", prepared, ReasonRecipe()) == first
    assert encoder.seen == []
    steps = " -> ".join(f"Step {k}" for k in range(5))
    assert reason(tmp_path / "work", prepared, ReasonRecipe(template=steps)) != first
