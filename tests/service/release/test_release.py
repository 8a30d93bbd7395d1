from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.errors import ReleaseCorrupt, ReleaseMissing, ReleaseUnsupported, UnknownModel
from service.release.manifest import Manifest, content_id
from service.release.release import Release
from tests.service.tiny_release import TinyRelease

FILES = [
    "catalogue/items.jsonl",
    "catalogue/codes.npy",
    "catalogue/popularity.npy",
    "models/scoter_h/1/model.onnx",
    "models/hstu/1/model.onnx",
    "reasoning/scoter_h.npy",
    "reasoning/users.jsonl",
    "warmup/requests.jsonl",
]


def rewrite(release: Path, change: dict[str, object]) -> None:
    """Change the manifest and give it the id that belongs to its content."""
    body = {**json.loads((release / "manifest.json").read_text()), **change}
    manifest = Manifest.model_validate(body)
    manifest = manifest.model_copy(update={"release_id": content_id(manifest)})
    (release / "manifest.json").write_text(manifest.model_dump_json())


def test_a_whole_release_opens(tiny: TinyRelease) -> None:
    release = Release.open(tiny.path)
    assert release.id == tiny.path.name
    assert len(release.catalogue) == 60
    assert [model.name for model in release.manifest.models] == ["scoter_h", "hstu"]
    assert release.graph(release.model("hstu")).is_file()
    assert len(release.warmup()) == len(tiny.users)
    assert sorted(release.manifest.files) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(own: Path, name: str) -> None:
    (own / name).write_bytes((own / name).read_bytes()[:-1])
    with pytest.raises(ReleaseCorrupt, match=name):
        Release.open(own)


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_named(own: Path, name: str) -> None:
    content = bytearray((own / name).read_bytes())
    content[len(content) // 2] ^= 1
    (own / name).write_bytes(content)
    with pytest.raises(ReleaseCorrupt, match=name):
        Release.open(own)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(own: Path, name: str) -> None:
    (own / name).unlink()
    with pytest.raises(ReleaseCorrupt, match=name):
        Release.open(own)


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("reasoning/")])
def test_a_file_that_the_manifest_does_not_list_is_not_read(own: Path, name: str) -> None:
    files = json.loads((own / "manifest.json").read_text())["files"]
    del files[name]
    rewrite(own, {"files": files})
    with pytest.raises(ReleaseCorrupt, match=f"does not list {name}"):
        Release.open(own)


def test_a_file_outside_the_release_is_refused(own: Path) -> None:
    files = json.loads((own / "manifest.json").read_text())["files"]
    rewrite(own, {"files": {**files, "../../secret": files["warmup/requests.jsonl"]}})
    with pytest.raises(ReleaseCorrupt, match="outside"):
        Release.open(own)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ReleaseMissing, match="scoter export"):
        Release.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"schema_version": 2}'])
def test_a_manifest_that_is_none(own: Path, content: bytes) -> None:
    (own / "manifest.json").write_bytes(content)
    with pytest.raises(ReleaseCorrupt, match=r"manifest\.json"):
        Release.open(own)


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"schema_version": 1}', b'{"schema_version": "1"}'])
def test_another_schema(own: Path, content: bytes) -> None:
    (own / "manifest.json").write_bytes(content)
    with pytest.raises(ReleaseUnsupported, match="schema version"):
        Release.open(own)


def test_an_altered_manifest(own: Path) -> None:
    text = (own / "manifest.json").read_text()
    (own / "manifest.json").write_text(text.replace('"default_model": "scoter_h"', '"default_model": "hstu"'))
    with pytest.raises(ReleaseCorrupt, match="altered after export"):
        Release.open(own)


def test_a_default_model_that_is_not_there(own: Path) -> None:
    rewrite(own, {"default_model": "tiger"})
    with pytest.raises(ReleaseCorrupt, match="'tiger'"):
        Release.open(own)


def test_a_catalogue_of_another_size(own: Path) -> None:
    rewrite(own, {"levels": 4})
    with pytest.raises(ReleaseCorrupt, match="4 codes"):
        Release.open(own)


def test_an_unknown_model_names_those_there_are(tiny: TinyRelease) -> None:
    with pytest.raises(UnknownModel, match="scoter_h, hstu"):
        Release.open(tiny.path).model("tiger")


@pytest.mark.parametrize("line", ["", "{", "[]", "\udcff"])
def test_a_bad_warm_up_request_is_named(own: Path, line: str) -> None:
    release = Release.open(own)
    path = own / "warmup" / "requests.jsonl"
    path.write_bytes((line + "\n").encode("utf-8", "surrogateescape"))
    with pytest.raises(ReleaseCorrupt, match=r"requests\.jsonl"):
        release.warmup()
