from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offline import ablate as module
from offline import ranking
from offline.ablate import ablate
from offline.cooccurrence import Neighbours
from offline.errors import StageError
from offline.prepare import SPLITS, Dataset, ItemText, load_dataset, prepare
from offline.reason import engines, load_reasoning, load_steps, load_template, present
from offline.recipe import PrepareRecipe, Recipe
from offline.sample import write_sample
from offline.stage import Stage

K, D = 3, 8


class FakeEncoder:
    """A vector made of a text's characters."""

    def __init__(self, name: str, precision: str) -> None:
        assert (name, precision) == ("minilm", "float32")

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        return np.stack([np.random.default_rng(list(text.encode())).standard_normal(D) for text in texts]).astype("f4")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SentenceEncoder", FakeEncoder)
    monkeypatch.setattr(module, "USERS", 50)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, Stage, Stage]:
    """A small prepared sample, item embeddings, and chains that say whose they are."""
    folder = tmp_path_factory.mktemp("upstream")
    write_sample(folder / "data", users=120, items=60)
    prepared = prepare(folder / "work", folder / "data", PrepareRecipe())
    dataset = load_dataset(prepared.folder)
    random = np.random.default_rng(0)
    tokens = Stage("tokenize", "codes", folder / "tokens")
    tokens.folder.mkdir()
    np.save(tokens.folder / "embeddings.npy", random.normal(size=(dataset.num_items, D)).astype(np.float32))
    reasoned = Stage("reason", "chains", folder / "reasoned")
    reasoned.folder.mkdir()
    (reasoned.folder / "summary.json").write_text(json.dumps({"template": ["Look", "Think", "Choose"]}))
    for split in SPLITS:
        np.save(reasoned.folder / f"{split}.npy", random.normal(size=(len(dataset.users), K, D)).astype(np.float16))
        with (reasoned.folder / f"{split}.jsonl").open("w", encoding="utf-8") as out:
            for row, user in enumerate(dataset.users):
                texts = [f"{user} {split} {step}" for step in range(K)]
                length = len(dataset.history(row, split))
                out.write(json.dumps({"user": user, "history_length": length, "steps": texts}) + "\n")
    return prepared, tokens, reasoned


def ablated(work: Path, upstream: tuple[Stage, Stage, Stage], **what: Any) -> Stage:
    return ablate(work, *upstream, Recipe.model_validate({"name": "test", "ablation": what}))


def test_nothing_taken_away_is_no_stage(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    assert ablated(tmp_path, upstream) == upstream[2]
    assert ablated(tmp_path, upstream, position=False, matched=True) == upstream[2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", SPLITS)
def test_one_step_is_left_of_a_collapsed_chain(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, split: str
) -> None:
    whole, texts = load_reasoning(upstream[2].folder, split), load_steps(upstream[2].folder, split)
    chains = [" ".join(steps) for steps in texts]
    expected = {
        "mean": (whole.astype(np.float32).mean(1, keepdims=True), chains, "Look -> Think -> Choose"),
        "last": (whole[:, 2:], [steps[2] for steps in texts], "Choose"),
        "whole": (FakeEncoder("minilm", "float32").encode(chains)[:, None], chains, "Look -> Think -> Choose"),
    }
    for steps, (matrix, words, name) in expected.items():
        stage = ablated(tmp_path, upstream, steps=steps)
        np.testing.assert_allclose(load_reasoning(stage.folder, split), matrix, atol=2e-3, rtol=2e-3)
        assert load_steps(stage.folder, split) == [[text] for text in words]
        assert load_template(stage.folder) == [name]
        lines = (stage.folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["user"] for line in lines] == load_dataset(upstream[0].folder).users


@pytest.mark.parametrize("what", [{"steps": "mean"}, {"steps": "last"}, {"steps": "whole"}, {"control": "shuffled"}])
def test_whoever_has_no_chain_has_none_afterwards(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, what: dict[str, str]
) -> None:
    prepared, tokens, reasoned = upstream
    gaps = Stage("reason", "gaps", tmp_path / "gaps")
    shutil.copytree(reasoned.folder, gaps.folder)
    for split in SPLITS:
        matrix = np.load(gaps.folder / f"{split}.npy")
        matrix[::3] = 0
        np.save(gaps.folder / f"{split}.npy", matrix)
        path = gaps.folder / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows[::3]:
            row["steps"] = []
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stage = ablated(tmp_path / "work", (prepared, tokens, gaps), **what)
    for split in SPLITS:
        there = present(load_reasoning(stage.folder, split))
        assert there.sum() == (np.arange(len(there)) % 3 > 0).sum()
        assert [bool(steps) for steps in load_steps(stage.folder, split)] == there.tolist()


def test_chains_as_one_text_are_encoded_once_though_a_run_is_cut_off(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    limit = 150

    class Counting(FakeEncoder):
        def encode(self, texts: list[str]) -> NDArray[np.float32]:
            if len(asked) > limit:
                raise KeyboardInterrupt
            asked.extend(texts)
            return super().encode(texts)

    monkeypatch.setattr(engines, "SentenceEncoder", Counting)
    with pytest.raises(KeyboardInterrupt):
        ablated(tmp_path, upstream, steps="whole")
    assert asked
    limit = 10**6
    stage = ablated(tmp_path, upstream, steps="whole")
    chains = [" ".join(steps) for split in SPLITS for steps in load_steps(upstream[2].folder, split)]
    assert sorted(asked) == sorted(set(chains))
    straight = ablated(tmp_path / "straight", upstream, steps="whole")
    for split in SPLITS:
        assert (stage.folder / f"{split}.npy").read_bytes() == (straight.folder / f"{split}.npy").read_bytes()


def test_shuffled_reasoning_is_whole_and_always_the_same_other_user_s(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    stage = ablated(tmp_path, upstream, control="shuffled")
    users = load_dataset(upstream[0].folder).users
    sources: list[list[str]] = []
    for split in SPLITS:
        owners = [steps[0].split()[0] for steps in load_steps(stage.folder, split)]
        assert sorted(owners) == sorted(users)
        assert all(owner != user for owner, user in zip(owners, users, strict=True))
        rows = [users.index(owner) for owner in owners]
        assert np.array_equal(load_reasoning(stage.folder, split), load_reasoning(upstream[2].folder, split)[rows])
        assert all(steps[0].split()[1] == split for steps in load_steps(stage.folder, split))
        sources.append(owners)
    assert all(source == sources[0] for source in sources)
    assert load_template(stage.folder) == ["Look", "Think", "Choose"]


def test_successors_are_the_best_unseen_items_of_the_knn_that_never_met_the_user(
    upstream: tuple[Stage, Stage, Stage], tmp_path: Path
) -> None:
    stage = ablated(tmp_path, upstream, control="successors")
    dataset = load_dataset(upstream[0].folder)
    vectors = np.load(upstream[1].folder / "embeddings.npy")
    found, titles = load_reasoning(stage.folder, "valid"), load_steps(stage.folder, "valid")
    for user in range(0, len(dataset.users), 17):
        others = [dataset.training(u) for u in range(len(dataset.users)) if u != user]
        history = dataset.history(user, "valid")
        scores = Neighbours.fit(others, dataset.num_items).score([history])[0]
        scores[history] = -1
        scores[0] = -1
        names = [dataset.items[i].title for i in range(dataset.num_items)]
        ranked = np.argsort(-scores, kind="stable").tolist()[:K][::-1]
        assert titles[user] == [names[i - 1] for i in ranked]
        np.testing.assert_allclose(found[user], vectors[np.array(ranked) - 1], atol=5e-3)


def test_a_large_catalogue_is_scored_for_a_few_users_at_a_time(
    upstream: tuple[Stage, Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset(upstream[0].folder)
    successors = module._Successors(dataset, upstream[1], K)
    users = np.arange(len(dataset.users))
    matrix, titles = successors.of(users, "test")
    together: list[int] = []
    score = Neighbours.score

    def counted(self: Neighbours, histories: Any, own: Any) -> NDArray[np.float32]:
        together.append(len(histories))
        return score(self, histories, own)

    monkeypatch.setattr(Neighbours, "score", counted)
    monkeypatch.setattr(ranking, "_CELLS", 50 * (dataset.num_items + 1))
    few, few_titles = successors.of(users, "test")
    assert together == [50, 50, 20]
    assert (few == matrix).all()
    assert few_titles == titles


def test_where_few_successors_are_known_what_others_buy_most_comes_before_them(tmp_path: Path) -> None:
    """And not the items with the lowest numbers, which are the first user's, the held-out ones among them."""
    bought = [[1, 2, 3, 4, 5], [6, 8, 7, 9, 10], [9, 10, 8, 6, 7], [10, 9, 8, 6, 7]]
    items = [ItemText(str(item), f"item {item}", "", {}) for item in range(1, 11)]
    dataset = Dataset(list("abcd"), items, [np.array(row, np.int32) for row in bought])
    np.save(tmp_path / "embeddings.npy", np.eye(10, dtype=np.float32))
    successors = module._Successors(dataset, Stage("tokenize", "codes", tmp_path), 3)
    _, titles = successors.of(np.array([0, 1]), "train")
    assert titles == [["item 10", "item 9", "item 8"], ["item 1", "item 10", "item 9"]]


def test_who_has_had_nearly_everything_has_no_successors(tmp_path: Path) -> None:
    """Rather than items of the history, or the last one of the catalogue in place of none."""
    items = [ItemText(str(item), f"item {item}", "", {}) for item in range(1, 7)]
    bought = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5], [2, 1, 4, 3]]
    dataset = Dataset(list("abc"), items, [np.array(row, np.int32) for row in bought])
    np.save(tmp_path / "embeddings.npy", np.eye(6, dtype=np.float32))
    for steps in (3, 8):
        successors = module._Successors(dataset, Stage("tokenize", "codes", tmp_path), steps)
        found, titles = successors.of(np.array([0, 1, 2]), "test")
        assert found.shape == (3, steps, 6)
        assert found.any(axis=(1, 2)).tolist() == [False, False, steps == 3]
        assert titles[:2] == [[], []]
        assert sorted(titles[2]) == (["item 3", "item 5", "item 6"] if steps == 3 else [])


def test_successors_collapse_like_chains(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    each = load_reasoning(ablated(tmp_path, upstream, control="successors").folder, "test")
    mean = load_reasoning(ablated(tmp_path, upstream, control="successors", steps="mean").folder, "test")
    np.testing.assert_allclose(mean[:, 0], each.astype(np.float32).mean(1), atol=5e-3)


def test_no_later_item_reaches_the_successors(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    """Validation and test items may be any: the training split's H is the same."""
    prepared, tokens, reasoned = upstream
    other = Stage("prepare", "changed", tmp_path / "prepared")
    other.folder.mkdir()
    for path in prepared.folder.iterdir():
        (other.folder / path.name).write_bytes(path.read_bytes())
    with np.load(prepared.folder / "sequences.npz") as arrays:
        items, offsets = arrays["items"].copy(), arrays["offsets"]
    for end in offsets[1:]:
        items[end - 2 : end] = np.roll(items[end - 2 : end], 1) % items.max() + 1
    np.savez(other.folder / "sequences.npz", items=items, offsets=offsets)
    one = ablated(tmp_path, upstream, control="successors")
    two = ablated(tmp_path, (other, tokens, reasoned), control="successors")
    assert one != two
    assert np.array_equal(load_reasoning(one.folder, "train"), load_reasoning(two.folder, "train"))


def test_embeddings_of_another_catalogue_are_refused(upstream: tuple[Stage, Stage, Stage], tmp_path: Path) -> None:
    tokens = Stage("tokenize", "other", tmp_path / "tokens")
    tokens.folder.mkdir()
    np.save(tokens.folder / "embeddings.npy", np.zeros((3, D), np.float32))
    with pytest.raises(StageError, match=r"embeddings\.npy holds an array of \[3, \d+\], the data set has \d+ items"):
        ablated(tmp_path, (upstream[0], tokens, upstream[2]), control="successors")
