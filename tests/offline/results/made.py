"""Stages as `evaluate` leaves them, with random ranks in which a model's strength is what one says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from offline.groups import Groups
from offline.prepare import Dataset, ItemText
from offline.ranking import Row, save_ranks
from offline.recipe import Recipe

USERS = 400


def dataset() -> Dataset:
    random = np.random.default_rng(0)
    sequences = [random.integers(1, 41, random.integers(4, 20)).astype(np.int32) for _ in range(USERS)]
    return Dataset([f"u{u}" for u in range(USERS)], [ItemText(f"i{i}", "", "", {}) for i in range(40)], sequences)


def evaluated(
    work: Path,
    recipe: dict[str, Any],
    strength: dict[tuple[str, bool], float],
    *,
    name: str = "beauty",
    labels: str = "train",
    loss: float = 2.0,
    collisions: int = 0,
) -> Path:
    """The folder of a finished evaluation of models with that Recall@10, keyed by name and whether H was read.

    `loss` is that of the backbone's first epoch: another one is another training. As many `collisions` are those of the
    semantic IDs; 0: `tokenize` has left nothing.
    """
    whole = Recipe.model_validate({"name": name, **recipe})
    made = dataset()
    histories = [made.history(user, "test") for user in range(USERS)]
    groups = Groups.of(made, histories, np.array([made.target(user, "test") for user in range(USERS)]))
    rows: list[Row] = []
    for (model, reasoning), share in strength.items():
        seed = None if model == "knn" else whole.train.seed
        for place, history in enumerate(("masked", "not masked")):
            # Two models with the same seed miss the same users, but for what one is better at.
            random = np.random.default_rng([seed or 0, place])
            luck, places = random.random(USERS), random.integers(1, 11, USERS)
            rank = np.where(luck < share, places, 0)
            rows.append(Row(model, labels, history, reasoning, "full" if seed is None else "beam 20", seed, rank))
    stage = work / f"evaluate-{len(list(work.glob('evaluate-*'))):012x}"
    stage.mkdir(parents=True)
    train = work / "train-hstu-000000000000"
    train.mkdir(exist_ok=True)
    upstream: list[str] = []
    if collisions:
        tokenize = work / "tokenize-000000000000"
        tokenize.mkdir(exist_ok=True)
        (tokenize / "stage.json").write_text(json.dumps({"stage": "tokenize", "upstream": []}))
        made_of = {"collisions": collisions, "reconstruction_error": 0.2048}
        (tokenize / "summary.json").write_text(json.dumps(made_of))
        upstream = [tokenize.name]
    epochs = [{"epoch": 1, "loss": loss, "seconds": 3.0}, {"epoch": 2, "loss": 1.0, "seconds": 5.0, "ndcg@10": 0.1}]
    (train / "epochs.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    (train / "stage.json").write_text(json.dumps({"stage": "train-hstu", "upstream": upstream}))
    (train / "model.pt").write_bytes(b"weights")
    best = {"recall@10": 0.2, "ndcg@10": 0.1}
    about = {"recipe": whole.model_dump(), "best_epoch": 2, "validation": best}
    (train / "model.json").write_text(json.dumps(about))
    report = {
        "dataset": name,
        "recipe": whole.name,
        "users": USERS,
        "settings": whole.model_dump(),
        "groups": groups.told(),
        "results": [row.told(groups) for row in rows],
        "seconds": {"train-hstu": 8.0, "evaluate train-hstu": 7.0},
    }
    (stage / "report.json").write_text(json.dumps(report))
    (stage / "stage.json").write_text(json.dumps({"stage": "evaluate", "upstream": [train.name]}))
    save_ranks(stage / "ranks.npz", rows, np.arange(USERS))
    return stage
