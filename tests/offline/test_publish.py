import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline import publish as module
from offline.errors import StageError
from offline.publish import latest_release, publish
from service.errors import ReleaseCorrupt, ReleaseError, ReleaseMissing, StoreUnavailable
from service.release.blob import BlobMiss, Reasoning, decode
from service.store.base import Store
from service.store.keys import RELEASE_POINTER, history_key, reasoning_key, steps_key, user_tag
from service.store.records import decode_history, decode_steps
from tests.service.tiny_release import TinyRelease, seal, write_release

asynchronous = pytest.mark.anyio


class Watched:
    """A store that records what is written, and may fail or lose a value."""

    def __init__(self, inner: Store, *, fail_at: int | None = None, lose: bytes = b"no key holds this") -> None:
        self.inner = inner
        self.fail_at = fail_at
        self.lose = lose
        self.writes: list[list[tuple[bytes, bytes]]] = []

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self.inner.get(keys)

    async def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        if len(self.writes) == self.fail_at:
            raise StoreUnavailable("the store went away")
        self.writes.append(list(pairs))
        await self.inner.put(pair for pair in self.writes[-1] if self.lose not in pair[0])

    async def delete(self, keys: Iterable[bytes]) -> None:
        raise NotImplementedError

    async def ping(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


async def pointer(store: Store) -> bytes | None:
    return (await store.get([RELEASE_POINTER]))[0]


async def reasoning(store: Store, tiny: TinyRelease, user: str) -> Reasoning | BlobMiss:
    entry = tiny.manifest.models[0].reasoning
    assert entry is not None
    release = tiny.manifest.release_id
    (blob,) = await store.get([reasoning_key(user_tag(user), release, entry.name)])
    return decode(blob, entry.blob_format(release), user)


def resealed(tiny: TinyRelease, folder: Path) -> TinyRelease:
    """The release with a manifest that fits the files as they are now."""
    size = tiny.manifest.dataset
    manifest = seal(folder, tiny.manifest.models, items=size.items, users=size.users)
    return replace(tiny, path=folder.rename(folder.parent / manifest.release_id), manifest=manifest)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    return write_release(tmp_path_factory.mktemp("older"), seed=9)


@asynchronous
async def test_every_user_s_records_are_the_release_s(store: Store, tiny: TinyRelease) -> None:
    before = int(time.time())
    done = await publish(tiny.path, store)
    entry = tiny.manifest.models[0].reasoning
    assert entry is not None
    for user in tiny.users:
        found = await reasoning(store, tiny, user.id)
        assert isinstance(found, Reasoning)
        np.testing.assert_array_equal(found.matrix, user.matrix)
        assert found.history_length == len(user.history)
        assert found.written == entry.written
        tag = user_tag(user.id)
        history, steps = await store.get([history_key(tag), steps_key(tag, tiny.manifest.release_id)])
        kept = decode_history(history)
        assert kept is not None
        assert kept.items == user.history
        assert before <= kept.updated <= time.time()
        assert decode_steps(steps) == user.steps
    assert await pointer(store) == tiny.manifest.release_id.encode()
    assert (done.release_id, done.users, done.blobs) == (tiny.manifest.release_id, 6, 18)
    assert done.seconds > 0


@asynchronous
async def test_the_pointer_moves_last_and_alone(
    store: Store, tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    watched = Watched(store)
    done = await publish(tiny.path, watched)
    assert [len(write) for write in watched.writes] == [12, 6, 1]
    assert watched.writes[-1] == [(RELEASE_POINTER, tiny.manifest.release_id.encode())]
    assert all(key != RELEASE_POINTER for write in watched.writes[:-1] for key, _ in write)
    assert done.bytes == sum(len(key) + len(value) for write in watched.writes[:-1] for key, value in write)


@asynchronous
@pytest.mark.parametrize("fail_at", [0, 1, 2])
async def test_an_interrupted_publication_leaves_the_live_release(
    store: Store, tiny: TinyRelease, older: TinyRelease, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    await publish(older.path, store)
    monkeypatch.setattr(module, "BATCH", 4)
    with pytest.raises(StoreUnavailable, match="went away"):
        await publish(tiny.path, Watched(store, fail_at=fail_at))
    assert await pointer(store) == older.manifest.release_id.encode()
    for user in older.users:
        found = await reasoning(store, older, user.id)
        assert isinstance(found, Reasoning)
        np.testing.assert_array_equal(found.matrix, user.matrix)
    await publish(tiny.path, store)
    assert await pointer(store) == tiny.manifest.release_id.encode()


@asynchronous
async def test_going_back_is_publishing_the_older_release_again(
    store: Store, tiny: TinyRelease, older: TinyRelease
) -> None:
    for release in (older, tiny, older):
        await publish(release.path, store)
    assert await pointer(store) == older.manifest.release_id.encode()
    for release in (older, tiny):  # the records of both stay
        found = await reasoning(store, release, "user-3")
        assert isinstance(found, Reasoning)
        np.testing.assert_array_equal(found.matrix, release.users[3].matrix)
    (history,) = await store.get([history_key(user_tag("user-3"))])
    kept = decode_history(history)
    assert kept is not None
    assert kept.items == older.users[3].history


@asynchronous
@pytest.mark.parametrize("kind", [b":reasoning:", b":steps:"])
async def test_what_the_store_does_not_return_stops_the_pointer(
    store: Store, tiny: TinyRelease, older: TinyRelease, kind: bytes
) -> None:
    await publish(older.path, store)
    lost = user_tag("user-5").encode() + b"}" + kind
    with pytest.raises(StageError, match="does not return what was written for user row 5: the pointer was not moved"):
        await publish(tiny.path, Watched(store, lose=lost))
    assert await pointer(store) == older.manifest.release_id.encode()


@asynchronous
async def test_a_history_that_grew_meanwhile_is_no_fault(store: Store, tiny: TinyRelease) -> None:
    await publish(tiny.path, Watched(store, lose=b":history"))
    assert await pointer(store) == tiny.manifest.release_id.encode()


@asynchronous
@pytest.mark.parametrize("row", [0, 5])
async def test_a_sample_spread_over_all_users_is_read_back(
    store: Store, tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    monkeypatch.setattr(module, "SAMPLE", 2)
    monkeypatch.setattr(module, "BATCH", 4)
    with pytest.raises(StageError, match=f"user row {row}"):
        await publish(tiny.path, Watched(store, lose=user_tag(f"user-{row}").encode() + b"}:steps"))
    assert await pointer(store) is None


FILES = ["manifest.json", "reasoning/scoter_h.npy", "reasoning/users.jsonl", "models/hstu/1/model.onnx"]


@asynchronous
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["gone", "cut", "altered"])
async def test_a_damaged_release_is_refused_before_anything_is_written(
    store: Store, own: Path, file: str, damage: str
) -> None:
    path = own / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(content if damage == "altered" else content[:-20])
    watched = Watched(store)
    with pytest.raises(ReleaseError):
        await publish(own, watched)
    assert watched.writes == []
    assert await pointer(store) is None


ROW: dict[str, Any] = {"user": "user-1", "history": ["item-1"], "steps": ["one"]}


@asynchronous
@pytest.mark.parametrize(
    "line, reason",
    [
        ("{", r"users\.jsonl, line 2: not an object with user, history and steps"),
        ("[1]", "line 2: not an object with"),
        (json.dumps({"user": "user-1", "history": []}), r"line 2: not an object with .*KeyError\('steps'\)"),
        (json.dumps(ROW | {"user": 1}), "line 2: user is no text"),
        (json.dumps(ROW | {"history": "item-1"}), "line 2: .*history or steps no list of texts"),
        (json.dumps(ROW | {"history": [1]}), "line 2: .*history or steps no list of texts"),
        (json.dumps(ROW | {"steps": None}), "line 2: .*history or steps no list of texts"),
        (f"{json.dumps(ROW)}\n{json.dumps(ROW)}", "line 7: the manifest speaks of 6 users"),
        (None, r"users\.jsonl holds 5 users, the manifest speaks of 6"),
    ],
)
async def test_users_that_do_not_belong_to_the_release_are_refused(
    store: Store, tiny: TinyRelease, own: Path, line: str | None, reason: str
) -> None:
    path = own / "reasoning" / "users.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1:2] = [] if line is None else [line]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    watched = Watched(store)
    with pytest.raises(ReleaseCorrupt, match=reason):
        await publish(resealed(tiny, own).path, watched)
    assert watched.writes == []


@asynchronous
@pytest.mark.parametrize(
    "matrix, reason",
    [
        (np.zeros((6, 3, 15), np.float16), r"scoter_h\.npy is \[6, 3, 15\], expected \[6, 3, 16\]"),
        (np.zeros((5, 3, 16), np.float16), r"scoter_h\.npy is \[5, 3, 16\], expected \[6, 3, 16\]"),
        (np.full((6, 3, 16), np.nan, np.float16), r"scoter_h\.npy, row 0: reasoning of user 'user-0' is not finite"),
        (None, r"scoter_h\.npy is no array"),
    ],
)
async def test_reasoning_that_does_not_belong_to_the_release_is_refused(
    store: Store, tiny: TinyRelease, own: Path, matrix: Any, reason: str
) -> None:
    path = own / "reasoning" / "scoter_h.npy"
    if matrix is None:
        path.write_bytes(b"not an array")
    else:
        np.save(path, matrix)
    watched = Watched(store)
    with pytest.raises(ReleaseCorrupt, match=reason):
        await publish(resealed(tiny, own).path, watched)
    assert watched.writes == []


@asynchronous
@pytest.mark.parametrize("file", ["reasoning/users.jsonl", "reasoning/scoter_h.npy"])
async def test_a_file_that_the_manifest_does_not_vouch_for_is_refused(
    store: Store, tiny: TinyRelease, own: Path, file: str
) -> None:
    aside = (own / file).rename(own.parent / "aside")
    altered = resealed(tiny, own).path
    aside.rename(altered / file)
    with pytest.raises(ReleaseCorrupt, match=f"the manifest does not list {file}"):
        await publish(altered, Watched(store))
    assert await pointer(store) is None


def exported(work: Path, stage: str, release: str, seconds: int) -> None:
    (work / stage).mkdir(parents=True)
    (work / stage / "release").write_text(release + "\n", encoding="ascii")
    os.utime(work / stage / "release", (seconds, seconds))


def test_the_release_exported_last_is_the_latest(tmp_path: Path) -> None:
    exported(tmp_path, "export-bbb", "b" * 16, 100)
    exported(tmp_path, "export-aaa", "a" * 16, 300)
    exported(tmp_path, "export-ccc", "c" * 16, 200)
    exported(tmp_path, "export-ddd.partial", "", 400)  # cut off
    assert latest_release(tmp_path) == tmp_path / "releases" / ("a" * 16)


@pytest.mark.parametrize("stage", [None, "export-aaa.partial", "evaluate-aaa"])
def test_without_an_export_there_is_no_latest_release(tmp_path: Path, stage: str | None) -> None:
    if stage:
        exported(tmp_path, stage, "a" * 16, 100)
    with pytest.raises(ReleaseMissing, match="holds no release: run `scoter run` first"):
        latest_release(tmp_path)
