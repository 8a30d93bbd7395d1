"""`manifest.json`: what a release holds and how its parts fit together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import ReleaseCorrupt, ReleaseMissing, ReleaseUnsupported
from service.release.blob import BlobFormat, Dtype, Layout

SCHEMA_VERSION = 2
FILE_NAME = "manifest.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    """One file of the release, checked on load."""

    sha256: Sha256
    bytes: int


class DatasetEntry(_Part):
    """What the release was trained on."""

    name: str
    users: int
    items: int
    interactions: int


class TensorEntry(_Part):
    """A graph input or output. A dimension of None is free (batch, excluded items, bytes of a filter)."""

    name: str
    dtype: Literal["int64", "float32", "bool", "uint8"]
    shape: list[int | None]


class ReasoningEntry(_Part):
    """The reasoning that a model reads: how its H blobs are laid out.

    `name` is part of the blob's key, so models that read different projections never share a blob.
    """

    name: str
    layout: Literal["projected", "raw"]
    dtype: Dtype  # of the blobs
    steps: int = Field(ge=1, le=255)  # K
    width: int = Field(ge=1, le=65535)  # D of a stored row
    written: int = Field(ge=0)  # when the chains were written, seconds since the epoch
    file: str  # float16 (also for int8 blobs) or float32 [users, K, D], rows in the order of reasoning/users.jsonl

    def blob_format(self, release_id: str) -> BlobFormat:
        """The format of this release's blobs."""
        return BlobFormat(release_id, Layout[self.layout], self.dtype, self.steps, self.width)


class ModelEntry(_Part):
    """One servable model: an ONNX graph that takes a history to ranked items."""

    name: str
    backbone: str
    file: str
    history_length: int  # T of the `history` input
    beam: int  # N of the outputs
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    reasoning: ReasoningEntry | None  # None for a model that reads no H
    metrics: dict[str, float]


class Manifest(_Part):
    """The release's table of contents. `release_id` is derived from everything else in it."""

    schema_version: int
    release_id: str
    dataset: DatasetEntry
    levels: int  # semantic-ID codes per item
    codebook: int  # codes per level
    template: list[str]  # the K steps of the reasoning pattern
    encoder: str  # the sentence encoder of item texts and steps
    models: list[ModelEntry]
    default_model: str
    files: dict[str, FileEntry]

    def model(self, name: str) -> ModelEntry | None:
        """The model of that name, or None."""
        return next((m for m in self.models if m.name == name), None)


def listed(error: ValidationError) -> str:
    """What is wrong, on one line: `models.0.beam: Field required; ...`."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors(include_url=False)
    )


def content_id(manifest: Manifest) -> str:
    """16 hex digits derived from all of the manifest but its own id; names the release's directory."""
    body = manifest.model_dump(mode="json", exclude={"release_id"})
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_entry(path: Path) -> FileEntry:
    """Digest and size of a file."""
    with path.open("rb") as stream:
        sha = hashlib.file_digest(stream, "sha256")
        return FileEntry(sha256=sha.hexdigest(), bytes=stream.tell())


def read_manifest(release: Path) -> Manifest:
    """Read and check `manifest.json` alone (not the files it names).

    Raises ReleaseMissing, ReleaseUnsupported or ReleaseCorrupt.
    """
    path = release / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ReleaseMissing(
            f"{release} holds no {FILE_NAME}: point the service at a release directory made by `scoter export`"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseCorrupt(f"cannot read {path}: {error}") from error
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ReleaseCorrupt(f"{path} is not JSON ({error}): copy the release again") from error
    version = body.get("schema_version") if isinstance(body, dict) else None
    if version != SCHEMA_VERSION:
        raise ReleaseUnsupported(
            f"{path} has schema version {version}, this service reads version {SCHEMA_VERSION}: "
            "export the release again with the matching version of scoter-serving"
        )
    try:
        manifest = Manifest.model_validate(body)
    except ValidationError as error:
        raise ReleaseCorrupt(f"{path} does not describe a release: {listed(error)}") from error
    if content_id(manifest) != manifest.release_id:
        raise ReleaseCorrupt(
            f"{path} was altered after export (its content no longer yields {manifest.release_id}): "
            "copy the release again"
        )
    return manifest
