"""All models in one release, told apart by the manifest alone: trained, evaluated, exported and served as arms."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from offline.batches import left_pad
from offline.models.recommender import Recommender
from offline.prepare import Dataset, load_dataset
from offline.publish import publish
from offline.reason import load_reasoning
from offline.recipe import BACKBONES, Recipe, Variant, reads_reasoning
from offline.run import run
from offline.sample import write_sample
from offline.stage import Stage
from offline.train import load_model
from service.app import create_app
from service.release.manifest import read_manifest
from service.settings import ExperimentSettings, LmdbSettings, Settings
from service.store.open import open_store
from tests.offline.models import tiny
from tests.service.conftest import PATIENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first test runs all stages

VARIANTS: tuple[Variant, ...] = get_args(Variant)
AXES = 8
TRAIN = {"batch": 64, "learning_rate": 5e-3, "epochs": 1, "reasoning_drop": 0.3}
RECIPE = {
    "name": "variants",
    "models": list(VARIANTS),
    "tokenize": {"levels": 2, "codebook": 16},  # fewer levels, shorter graphs, quicker exports
    "model": tiny.recipe(
        length=6, blocks=1, decoder_layers=1, beam=12, features=["text", "collaborative"]
    ).model_dump(),
    "sasrec": tiny.SASREC | {"blocks": 1},
    "tiger": tiny.TIGER | {"layers": 1, "train": TRAIN | {"start": "backbone"}},
    "alignment": {"dim": AXES},
    "train": TRAIN | {"catalogue_weight": 0.5, "start": "backbone"},
    "search": {"rerank": 0.4},
    "evaluate": {"users": 40, "exact_users": 20},
    "export": {"warmup_requests": 6, "dtype": "float32"},
}
EXPERIMENTS = {
    "features": {
        "ranking": {
            "defaultValue": {},
            "rules": [
                {
                    "key": "backbones",
                    "hashVersion": 2,
                    "variations": [{"model": variant} for variant in VARIANTS],
                    "meta": [{"key": variant} for variant in VARIANTS],
                }
            ],
        }
    }
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants")
    write_sample(folder / "data", users=120, items=60)
    made = run(folder / "work", folder / "data", Recipe.model_validate(RECIPE))
    store = open_store(LmdbSettings(path=folder / "store"))

    async def load() -> None:
        await publish(made, store)
        await store.close()

    asyncio.run(load())
    (folder / "experiments.json").write_text(json.dumps(EXPERIMENTS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def client(work: Path) -> Iterator[TestClient]:
    settings = Settings(
        releases=work / "work" / "releases",
        store=LmdbSettings(path=work / "store"),
        experiments=ExperimentSettings(source=str(work / "experiments.json")),
        limits=PATIENT,
    )
    with TestClient(create_app(settings)) as opened:
        yield opened


@pytest.fixture(scope="module")
def dataset(work: Path) -> Dataset:
    return load_dataset(stage(work, "prepare"))


def stage(work: Path, name: str) -> Path:
    (folder,) = (work / "work").glob(f"{name}-*[!l]")
    return folder


def model(work: Path, name: Variant) -> Recommender:
    return load_model(stage(work, f"train-{name}"), Stage("tokenize", "", stage(work, "tokenize")))


def release(work: Path) -> Path:
    (folder,) = (work / "work" / "releases").iterdir()
    return folder


def ask(client: TestClient, **request: Any) -> dict[str, Any]:
    response = client.post("/recommend", json=request)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_the_release_holds_all_models_and_says_what_they_are(work: Path) -> None:
    found = read_manifest(release(work))
    assert [(m.name, m.backbone, m.reasoning is not None) for m in found.models] == [
        (variant, BACKBONES[variant], reads_reasoning(variant)) for variant in VARIANTS
    ]
    assert found.default_model == "scoter_h"
    widths = {m.name: m.reasoning.width for m in found.models if m.reasoning is not None}
    dim, tiger = tiny.recipe().dim + AXES, cast("int", tiny.TIGER["dim"]) + AXES
    assert widths == {"scoter_h": dim, "scoter_t": tiger, "scoter_s": dim}
    assert all(m.metrics.keys() >= {"recall@10", "ndcg@10"} for m in found.models)


def test_the_report_has_a_line_for_every_model(work: Path) -> None:
    report = json.loads((release(work) / "report" / "report.json").read_text(encoding="utf-8"))
    how = {v: "beam 12" + ("" if BACKBONES[v] == "tiger" else " rerank 0.4") for v in VARIANTS}
    masked = {(r["model"], r["reasoning"]) for r in report["results"] if r["scoring"] == how.get(r["model"])}
    assert masked == {(v, False) for v in VARIANTS} | {(v, True) for v in VARIANTS if reads_reasoning(v)}
    assert [row["model"] for row in report["beam"]] == list(VARIANTS)
    assert {row["model"] for row in report["against_backbone"]} == {v for v in VARIANTS if reads_reasoning(v)}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reasoning", [True, False])
def test_the_service_answers_what_the_trained_model_ranks(
    client: TestClient, work: Path, dataset: Dataset, variant: Variant, reasoning: bool
) -> None:
    made = model(work, variant)
    raw = load_reasoning(stage(work, "reason"), "serve")
    used = reasoning and reads_reasoning(variant)
    for user in range(0, len(dataset.users), 29):
        sequence = dataset.sequences[user]
        steps = has = None
        if made.adapter is not None:
            with torch.inference_mode():
                steps = made.project(torch.from_numpy(raw[user : user + 1].astype(np.float32)))
            has = torch.tensor([used])
        with torch.inference_mode():
            beam = made.recommend(
                torch.from_numpy(left_pad([sequence], made.recipe.length)),
                torch.from_numpy(sequence.astype(np.int64)[None]),
                made.recipe.beam,
                steps,
                has,
                Recipe.model_validate(RECIPE).search,
            )
        body = ask(client, user_id=dataset.users[user], model=variant, reasoning=reasoning, k=10)
        assert (body["model"], body["reasoning"]["used"], body["degraded"]) == (variant, used, [])
        expected = beam.scores[0, :10].numpy()
        np.testing.assert_allclose([item["score"] for item in body["items"]], expected, atol=1e-4)
        found = [item["id"] for item in body["items"]]
        assert len(set(found)) == 10
        assert not set(found) & {dataset.items[i - 1].id for i in sequence}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_filter_holds_whichever_model_answers(client: TestClient, dataset: Dataset, variant: Variant) -> None:
    column, (value, *_) = next(iter(dataset.items[0].attributes.items()))
    fitting = {item.id for item in dataset.items if value in item.attributes.get(column, [])}
    user = dataset.users[3]
    had = {dataset.items[i - 1].id for i in dataset.sequences[3]}
    body = ask(client, user_id=user, model=variant, filters={"allow": {column: [value]}}, k=12)
    found = {item["id"] for item in body["items"]}
    assert found <= fitting - had
    assert len(found) == min(12, len(fitting - had))


def test_arms_are_whatever_the_release_holds(client: TestClient, dataset: Dataset) -> None:
    answers = [ask(client, user_id=user) for user in dataset.users[:60]]
    for answer in answers:
        assert answer["experiments"][0]["variation"] == answer["model"]
    assert {answer["model"] for answer in answers} == set(VARIANTS)
    again = [ask(client, user_id=user)["model"] for user in dataset.users[:60]]
    assert again == [answer["model"] for answer in answers]


def test_another_choice_of_models_trains_none_of_them_again(work: Path) -> None:
    changed = RECIPE | {"models": ["tiger", "scoter_t"]}
    before = {p.name for p in (work / "work").glob("train-*")}
    evaluated = run(work / "work", work / "data", Recipe.model_validate(changed), "evaluate")
    assert {p.name for p in (work / "work").glob("train-*")} == before
    report = json.loads((evaluated / "report.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in report["beam"]] == ["tiger", "scoter_t"]


def test_backbones_alone_are_trained_and_measured_where_no_chain_was_ever_written(work: Path, tmp_path: Path) -> None:
    changed = RECIPE | {"models": ["hstu"]}
    evaluated = run(tmp_path, work / "data", Recipe.model_validate(changed), "evaluate")
    report = json.loads((evaluated / "report.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in report["beam"]] == ["hstu"]
    assert not list(tmp_path.glob("reason*"))
    both = run(work / "work", work / "data", Recipe.model_validate(changed), "evaluate")
    assert both.name == evaluated.name  # chains that are there make it no other evaluation


def test_steps_on_whitened_axes_are_exported_as_the_encoder_writes_them(work: Path) -> None:
    changes = {
        "models": ["scoter_h"],
        "alignment": {"dim": 40, "whiten": 1.0},  # scores as large as they get
        "export": {"layout": "raw", "warmup_requests": 6},
    }
    made = run(work / "work", work / "data", Recipe.model_validate(RECIPE | changes))
    (entry,) = read_manifest(made).models
    assert entry.reasoning is not None
    assert entry.reasoning.layout == "raw"
