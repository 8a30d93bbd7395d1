"""What finished runs leave in the repository: one JSON file each, and the ranks of each user's target.

    docs/results/runs.toml        the runs in the order they are shown, with notes, and what of them is void and why
    docs/results/runs/NAME.json   report, curves, recipe and summaries
    docs/results/runs/NAME.npz    ranks (`offline.ranking.load_ranks`), of runs that kept them

No weights, and nothing about any single user but where the target was ranked.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from offline.errors import DataError
from offline.ranking import Row, load_ranks
from offline.stage import read_json, write_json

LIST = "runs.toml"
FOLDER = "runs"
# What of a stage's folder is kept: small files of figures.
_KEPT = ("report.json", "summary.json", "results.json")
# What of a training's `model.json`: epoch 0 is the fusion as it starts, on a trained backbone.
_TRAINED = ("best_epoch", "validation", "validation_before")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Void(_Section):
    """Rows of a run that must not be read, all of them where nothing is named."""

    why: str
    models: list[str] = []
    labels: str = ""

    def covers(self, row: dict[str, Any]) -> bool:
        """Whether it is about this row of the report."""
        return (not self.models or row["model"] in self.models) and self.labels in {"", row["labels"]}


class Listed(_Section):
    """A run as `runs.toml` lists it."""

    name: str
    note: str = ""
    void: list[Void] = []


class Tried(_Section):
    """Something that was tried to reach a target, and what came of it."""

    date: str
    what: str


class Unmeasurable(_Section):
    """An ablation or control that ends in no figure, and why: shown in place of the commands for it."""

    what: str  # a key of `offline.results.settings.TAKEN`
    why: str


class _List(_Section):
    run: list[Listed] = []
    tried: list[Tried] = []
    unmeasurable: list[Unmeasurable] = []


@dataclass(frozen=True, slots=True)
class Run:
    """A run: what of its stage was kept."""

    name: str
    stage: str  # evaluate, baselines, discover, compare, ...
    recipe: dict[str, Any]
    body: dict[str, Any]  # the stage's own figures
    curves: dict[str, list[dict[str, Any]]]  # epochs of each model
    summaries: dict[str, dict[str, Any]]  # of the stages that it stands on
    note: str = ""
    void: list[Void] = field(default_factory=list)
    ranks: list[Row] = field(default_factory=list)

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return str(self.body["dataset"])

    @property
    def ids(self) -> str:
        """Which semantic IDs it stands on: `414 (.2048)`, of `tokenize`'s summary; empty where that was not kept.

        So many items shared an ID before they were told apart, and so far are the codes from the embeddings.
        """
        made = self.summaries.get("tokenize", {})
        shared = made.get("collisions", made.get("collisions_repaired"))  # as version 0.1.0 called it
        return "" if shared is None else f"{shared} ({made['reconstruction_error']:.4f})".replace("(0.", "(.")

    def results(self) -> Iterator[dict[str, Any]]:
        """Rows of the report that may be read."""
        for row in self.body.get("results", []):
            if not any(void.covers(row) for void in self.void):
                yield row


@dataclass(frozen=True, slots=True)
class Kept:
    """All that `docs/results` holds."""

    runs: list[Run]
    tried: list[Tried]
    unmeasurable: dict[str, str]


def check_name(name: str) -> None:
    """Raise DataError if a run cannot be called that."""
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} cannot name a run: take lower-case letters, digits, '.' and '-'")


def keep(stage: Path, name: str, docs: Path) -> Path:
    """Copy a stage's figures into `docs` under a name, and list it. Returns the JSON file.

    `stage` is the folder of a finished stage, or a work folder that has a single evaluation. Raises DataError if there
    is nothing to keep, or if the name is taken by figures that differ.
    """
    check_name(name)
    stage = _stage(stage)
    record = _json(stage / "stage.json")
    found = {path.name: _json(path) for path in (stage / kept for kept in _KEPT) if path.is_file()}
    if not found:
        raise DataError(f"{stage} holds none of {', '.join(_KEPT)}: there are no figures to keep")
    body = next(iter(found.values()))
    curves: dict[str, list[dict[str, Any]]] = dict(body.pop("curves", {}))
    summaries: dict[str, dict[str, Any]] = {}
    recipe: dict[str, Any] = body.pop("settings", {})
    for folder in reversed(_upstream(stage, record)):  # of two of a name the nearer one last: it is what was measured
        if (folder / "epochs.jsonl").is_file():
            epochs = (folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
            curves[folder.name.rpartition("-")[0]] = [json.loads(epoch) for epoch in epochs]
        if (folder / "summary.json").is_file():
            summaries[folder.name.rpartition("-")[0]] = _json(folder / "summary.json")
        if (folder / "model.json").is_file():
            model = _json(folder / "model.json")
            summaries[folder.name.rpartition("-")[0]] = {name: model[name] for name in _TRAINED if name in model}
            recipe = recipe or model["recipe"]  # reports of version 0.1.0 do not hold theirs
    if "dataset" not in body:
        if "prepare" not in summaries:
            raise DataError(f"{stage} does not say which data set it is of, nor is its `prepare` beside it")
        body["dataset"] = summaries["prepare"]["name"]
    kept = {"stage": record["stage"], "recipe": _public(recipe), "body": body, "curves": curves, "summaries": summaries}
    path = docs / FOLDER / f"{name}.json"
    if path.is_file() and _json(path) != kept:
        raise DataError(f"{path} holds other figures: take another name, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    if (stage / "ranks.npz").is_file():
        shutil.copyfile(stage / "ranks.npz", path.with_suffix(".npz"))
    write_json(path, kept)
    if name not in {run.name for run in _listed(docs).run}:
        with (docs / LIST).open("a", encoding="utf-8") as out:
            out.write(f'\n[[run]]\nname = "{name}"\n')
    return path


def load_runs(docs: Path) -> Kept:
    """The runs that `runs.toml` lists, and what it says beside them. Raises DataError on anything amiss in them."""
    listed = _listed(docs)
    runs: list[Run] = []
    for one in listed.run:
        path = docs / FOLDER / f"{one.name}.json"
        kept = _json(path)
        ranks = load_ranks(path.with_suffix(".npz"))[1] if path.with_suffix(".npz").is_file() else []
        try:
            runs.append(Run(one.name, **kept, note=one.note, void=one.void, ranks=ranks))
        except TypeError as error:
            raise DataError(f"{path} is no run that `scoter results add` kept: {error}") from error
    unlisted = sorted({path.stem for path in (docs / FOLDER).glob("*.json")} - {run.name for run in runs})
    if unlisted:
        raise DataError(
            f"{docs / LIST} does not list {', '.join(unlisted)}: add a [[run]] with that name, or remove it"
        )
    return Kept(runs, listed.tried, {one.what: one.why for one in listed.unmeasurable})


def _public(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without addresses and folders of the machine it ran on."""
    copied: dict[str, Any] = json.loads(json.dumps(recipe))
    copied.get("teacher", {}).pop("base_url", None)
    for section, key in (("reason", "template"), ("teacher", "model"), ("distill", "student"), ("reason", "encoder")):
        value = copied.get(section, {}).get(key)
        if isinstance(value, str) and Path(value).is_absolute():
            copied[section][key] = Path(value).name
    return copied


def _listed(docs: Path) -> _List:
    path = docs / LIST
    if not path.is_file():
        return _List()
    try:
        return _List.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _stage(folder: Path) -> Path:
    if (folder / "stage.json").is_file():
        return folder
    found = sorted(path.parent for path in folder.glob("evaluate-*/stage.json") if ".partial" not in path.parent.name)
    if len(found) == 1:
        return found[0]
    names = f" ({', '.join(path.name for path in found)})" if found else ""
    raise DataError(f"{folder} holds {len(found)} evaluations{names}: name the folder of one stage")


def _upstream(stage: Path, record: dict[str, Any]) -> list[Path]:
    """Folders of all stages that it stands on, those that fewest steps lead to first."""
    found: dict[Path, None] = {}
    names: list[str] = record["upstream"]
    while names:
        folders = dict.fromkeys(stage.parent / name for name in names)
        new = [folder for folder in folders if folder not in found and (folder / "stage.json").is_file()]
        found |= dict.fromkeys(new)
        names = [name for folder in new for name in _json(folder / "stage.json")["upstream"]]
    return list(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return body
