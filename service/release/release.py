"""A release on disk, opened and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ReleaseCorrupt, UnknownModel
from service.release.catalogue import Catalogue
from service.release.manifest import Manifest, ModelEntry, file_entry, read_manifest

CATALOGUE_FILES = ("catalogue/items.jsonl", "catalogue/codes.npy", "catalogue/popularity.npy")
WARMUP = "warmup/requests.jsonl"


@dataclass(frozen=True, slots=True)
class Release:
    """An immutable release: its manifest, its catalogue, and where its files are."""

    path: Path
    manifest: Manifest
    catalogue: Catalogue

    @property
    def id(self) -> str:
        """The release id, 16 hex digits."""
        return self.manifest.release_id

    def model(self, name: str) -> ModelEntry:
        """The model of that name. Raises UnknownModel, naming those there are."""
        entry = self.manifest.model(name)
        if entry is None:
            known = ", ".join(m.name for m in self.manifest.models)
            raise UnknownModel(f"release {self.id} holds no model {name!r}: it holds {known}")
        return entry

    def graph(self, model: ModelEntry) -> Path:
        """Path of a model's ONNX graph."""
        return self.path / model.file

    def warmup(self) -> list[dict[str, Any]]:
        """Real requests (bodies of POST /recommend) to replay before the service calls itself ready.

        Raises ReleaseCorrupt with file and line.
        """
        path = self.path / WARMUP
        requests: list[dict[str, Any]] = []
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    requests.append(_request(line, path, number))
        except (OSError, UnicodeDecodeError) as error:
            raise ReleaseCorrupt(f"cannot read {path}: {error}") from error
        return requests

    @classmethod
    def open(cls, path: Path) -> Release:
        """Open a release and check every file of it against the manifest.

        Raises ReleaseMissing, ReleaseUnsupported or ReleaseCorrupt; the message names the file.
        """
        manifest = read_manifest(path)
        # A file that the manifest does not list would be read unchecked.
        for name in (*CATALOGUE_FILES, WARMUP, *(model.file for model in manifest.models)):
            if name not in manifest.files:
                raise ReleaseCorrupt(f"{path}: the manifest does not list {name}: run `scoter export` again")
        for name, expected in manifest.files.items():
            _check(path, name, expected.bytes, expected.sha256)
        catalogue = Catalogue.read(path / "catalogue")
        if len(catalogue) != manifest.dataset.items or catalogue.codes.shape[1] != manifest.levels:
            raise ReleaseCorrupt(
                f"{path}: the manifest speaks of {manifest.dataset.items} items with {manifest.levels} codes, "
                f"the catalogue holds {len(catalogue)} with {catalogue.codes.shape[1]}"
            )
        if manifest.model(manifest.default_model) is None:
            raise ReleaseCorrupt(f"{path}: default model {manifest.default_model!r} is not among its models")
        return cls(path, manifest, catalogue)


def _check(release: Path, name: str, size: int, sha256: str) -> None:
    file = (release / name).resolve()
    if not file.is_relative_to(release.resolve()):
        raise ReleaseCorrupt(f"the manifest of {release} names a file outside it: {name}")
    if not file.is_file():
        raise ReleaseCorrupt(f"{file} is missing: copy the release again")
    found = file.stat().st_size
    if found != size:
        raise ReleaseCorrupt(f"{file} is {found} bytes long, the manifest says {size}: copy the release again")
    try:
        same = file_entry(file).sha256 == sha256
    except OSError as error:
        raise ReleaseCorrupt(f"cannot read {file}: {error}") from error
    if not same:
        raise ReleaseCorrupt(f"{file} was altered (sha256 differs from the manifest): copy the release again")


def _request(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        body = json.loads(line)
    except ValueError as error:
        raise ReleaseCorrupt(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(body, dict):
        raise ReleaseCorrupt(f"{path}, line {number}: a request is a JSON object")
    return body
