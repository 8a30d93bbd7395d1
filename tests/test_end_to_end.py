"""From a simulated data set to answered requests, through the same commands that a user gives."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from offline.batches import left_pad
from offline.models.recommender import Recommender
from offline.prepare import Dataset, load_dataset
from offline.publish import latest_release, publish
from offline.ranking import Row, load_ranks
from offline.reason import load_reasoning
from offline.recipe import Recipe
from offline.run import run
from offline.sample import write_sample
from offline.stage import Stage
from offline.train import load_model
from service.app import create_app
from service.errors import ReleaseCorrupt
from service.release.release import Release
from service.settings import LmdbSettings, Settings
from service.store.open import open_store
from tests.offline.models import tiny
from tests.service.conftest import PATIENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test runs all stages

RECIPE: dict[str, Any] = {
    "name": "end-to-end",
    "tokenize": {"codebook": 16},
    "model": tiny.recipe(length=8, blocks=1, decoder_layers=1, beam=12).model_dump(),
    "train": {"batch": 32, "learning_rate": 5e-3, "epochs": 3, "catalogue_weight": 0.5, "reasoning_drop": 0.3},
    "evaluate": {"exact_users": 50},
    "export": {"warmup_requests": 6, "dtype": "float32"},
}


METRICS = ("recall@10", "ndcg@10")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which everything has been run and published."""
    folder = tmp_path_factory.mktemp("end-to-end")
    write_sample(folder / "data", users=130, items=60)
    recipe = Recipe.model_validate(RECIPE)
    release = run(folder / "work", folder / "data", recipe)
    store = open_store(LmdbSettings(path=folder / "store"))

    async def load() -> None:
        done = await publish(release, store)
        assert done.release_id == release.name
        await store.close()

    asyncio.run(load())
    return folder


@pytest.fixture(scope="module")
def client(work: Path) -> Iterator[TestClient]:
    settings = Settings(releases=work / "work" / "releases", store=LmdbSettings(path=work / "store"), limits=PATIENT)
    with TestClient(create_app(settings)) as opened:
        yield opened


@pytest.fixture(scope="module")
def dataset(work: Path) -> Dataset:
    return load_dataset(stage(work, "prepare"))


def stage(work: Path, name: str) -> Path:
    (folder,) = (work / "work").glob(f"{name}-*[!l]")
    return folder


def model(work: Path, name: str) -> Recommender:
    return load_model(stage(work, f"train-{name}"), Stage("tokenize", "", stage(work, "tokenize")))


def ask(client: TestClient, **request: Any) -> dict[str, Any]:
    response = client.post("/recommend", json=request)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_every_stage_leaves_its_output_and_a_second_run_does_nothing(work: Path) -> None:
    folder = work / "work"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert run(folder, work / "data", Recipe.model_validate(RECIPE)) == latest_release(folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    names = {p.name.rpartition("-")[0] for p in folder.iterdir() if "-" in p.name}
    models = {f"{stage}-{model}" for stage in ("train", "measure") for model in ("hstu", "scoter_h")}
    assert names == {"prepare", "tokenize", "reason", *models, "measure-untrained", "evaluate", "export"}


@pytest.mark.parametrize("reasoning", [True, False])
def test_the_service_answers_what_the_trained_model_ranks(
    client: TestClient, work: Path, dataset: Dataset, reasoning: bool
) -> None:
    """Store, codec, graph, engine and HTTP on one side; PyTorch and the stage's own files on the other."""
    made = model(work, "scoter_h")
    assert made.adapter is not None
    raw = load_reasoning(stage(work, "reason"), "serve")
    for user in range(0, len(dataset.users), 9):
        sequence = dataset.sequences[user]
        with torch.inference_mode():
            beam = made.recommend(
                torch.from_numpy(left_pad([sequence], made.recipe.length)),
                torch.from_numpy(sequence.astype(np.int64)[None]),
                made.recipe.beam,
                made.project(torch.from_numpy(raw[user : user + 1].astype(np.float32))),
                torch.tensor([reasoning]),
            )
        body = ask(client, user_id=dataset.users[user], reasoning=reasoning, k=10)
        assert body["reasoning"]["used"] is reasoning
        assert body["history"]["source"] == "stored"
        expected = beam.scores[0, :10].numpy()
        np.testing.assert_allclose([item["score"] for item in body["items"]], expected, atol=1e-4)
        found = [item["id"] for item in body["items"]]
        assert len(set(found)) == 10
        assert not set(found) & {dataset.items[i - 1].id for i in sequence}
        for place, item in enumerate(found):  # where scores are apart, the very same items
            gaps = np.abs(np.delete(beam.scores[0].numpy(), place) - expected[place])
            if gaps.min() > 1e-3:
                assert item == dataset.items[int(beam.items[0, place]) - 1].id


def test_reasoning_changes_answers(client: TestClient, dataset: Dataset) -> None:
    changed = 0
    for user in dataset.users[:20]:
        one = ask(client, user_id=user)["items"]
        other = ask(client, user_id=user, reasoning=False)["items"]
        changed += [i["score"] for i in one] != [i["score"] for i in other]
    assert changed == 20


def test_the_steps_behind_an_answer_are_shown(client: TestClient, work: Path, dataset: Dataset) -> None:
    lines = (stage(work, "reason") / "serve.jsonl").read_text(encoding="utf-8").split("\n")
    body = ask(client, user_id=dataset.users[0], explain=True)
    assert [step["text"] for step in body["reasoning"]["steps"]] == json.loads(lines[0])["steps"]
    assert len(body["reasoning"]["steps"]) == 5


def test_the_backbone_is_served_beside_it(client: TestClient, dataset: Dataset) -> None:
    body = ask(client, user_id=dataset.users[0], model="hstu")
    assert body["model"] == "hstu"
    assert body["reasoning"] == {
        "used": False,
        "reason": "unsupported",
        "written": None,
        "history_length": None,
        "age_seconds": None,
        "behind": None,
        "steps": None,
    }


def test_a_stranger_is_answered_without_reasoning(client: TestClient, dataset: Dataset) -> None:
    history = [item.id for item in dataset.items[:3]]
    body = ask(client, user_id="nobody knows me", history=[*history, "unheard of"])
    assert body["reasoning"]["reason"] == "absent"
    assert body["history"] == {"source": "request", "used": 3, "unknown": 1, "excluded": 3}
    assert len(body["items"]) == 10


def test_a_full_list_comes_back_until_the_catalogue_is_used_up(client: TestClient, dataset: Dataset) -> None:
    user, everything = dataset.users[0], [item.id for item in dataset.items]
    few = ask(client, user_id=user, exclude=everything[:-4], k=12)
    assert not few["complete"]
    assert {i["id"] for i in few["items"]} <= set(everything[-4:])
    many = ask(client, user_id=user, exclude=everything[:-30], k=12)
    assert many["complete"]
    assert {i["id"] for i in many["items"]} <= set(everything[-30:])


def test_the_report_names_the_switches_of_every_figure(work: Path) -> None:
    report = json.loads((stage(work, "evaluate") / "report.json").read_text(encoding="utf-8"))
    rows = {(r["model"], r["labels"], r["history"], r["reasoning"], r["scoring"]) for r in report["results"]}
    assert len(rows) == len(report["results"])
    for history in ("masked", "not masked"):
        for labels in ("train", "train+validation"):
            assert ("knn", labels, history, False, "full") in rows
            assert ("popularity", labels, history, False, "full") in rows
        assert ("hstu", "train", history, False, "beam 12") in rows
        assert ("scoter_h", "train", history, True, "beam 12") in rows
        assert ("scoter_h", "train", history, False, "beam 12") in rows
    page = (stage(work, "evaluate") / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 3
    assert "knn" in page


def test_the_report_can_be_compared_user_by_user_and_group_by_group(work: Path) -> None:
    evaluated = stage(work, "evaluate")
    report = json.loads((evaluated / "report.json").read_text(encoding="utf-8"))
    users, rows = load_ranks(evaluated / "ranks.npz")
    assert len(users) == report["users"]
    told = [row for row in report["results"] if row["scoring"] != "exact"]
    assert [row.told() for row in rows] == [{k: v for k, v in row.items() if k != "groups"} for row in told]
    assert {(row.model, row.seed) for row in rows} == {
        ("popularity", None),
        ("knn", None),
        ("hstu", 1),
        ("scoter_h", 1),
    }
    for row in told:
        for name, groups in report["groups"].items():
            assert len(row["groups"][name]["recall@10"]) == len(groups)
            assert sum(group["users"] for group in groups) == report["users"]
    lifts = {(row["labels"], row["history"], row["metric"]): row for row in report["against_backbone"]}
    assert set(lifts) == {("train", history, metric) for history in ("masked", "not masked") for metric in METRICS}
    for row in lifts.values():
        assert (row["model"], row["backbone"]) == ("scoter_h", "hstu")
        assert row["low"] <= row["value"] <= row["high"]
        assert 0 < row["p"] <= 1
    assert report["settings"]["train"]["seed"] == 1


def test_a_damaged_release_is_refused_by_name(work: Path, tmp_path: Path) -> None:
    import shutil

    release = tmp_path / "release"
    shutil.copytree(latest_release(work / "work"), release)
    graph = release / "models" / "scoter_h" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(ReleaseCorrupt, match=r"scoter_h/1/model\.onnx"):
        Release.open(release)


def of_hstu(evaluated: Path) -> list[Row]:
    return [row for row in load_ranks(evaluated / "ranks.npz")[1] if row.model == "hstu"]


def test_a_backbone_is_measured_once_whatever_it_is_compared_with(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(work / "work", folder)
    before = {path.name for path in folder.iterdir()}
    other = Recipe.model_validate(RECIPE | {"train": RECIPE["train"] | {"contrastive_weight": 0.5}})
    evaluated = run(folder, work / "data", other, "evaluate")
    new = sorted(path.name.rpartition("-")[0] for path in folder.iterdir() if path.name not in before)
    assert new == ["evaluate", "measure-scoter_h", "train-scoter_h"]
    for here, there in zip(of_hstu(evaluated), of_hstu(stage(work, "evaluate")), strict=True):
        np.testing.assert_array_equal(here.rank, there.rank)
    report = json.loads((evaluated / "report.json").read_text(encoding="utf-8"))
    assert {told["model"] for told in report["beam"]} == {"hstu", "scoter_h"}
    assert report["seconds"]["evaluate train-scoter_h"] > 0
    assert [row["users"] for row in report["results"] if row["scoring"] == "exact"] == [50, 50]
