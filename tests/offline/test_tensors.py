from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from offline.errors import StageError
from offline.tensors import load_tensors, save_tensors


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk on which no more than `size` bytes of a file find room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_tensors({"weights": torch.arange(3), "epoch": 2}, path)
    kept = load_tensors(path)
    assert (kept["weights"].tolist(), kept["epoch"]) == ([0, 1, 2], 2)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_disk_that_is_full_is_said_to_be_and_spoils_nothing(tmp_path: Path, room: int) -> None:
    path = tmp_path / "checkpoint.pt"
    save_tensors(torch.zeros(3), path)
    with files_of_at_most(room), pytest.raises(OSError, match=r"checkpoint\.pt") as refused:
        save_tensors({"large": torch.zeros(100_000), "small": torch.zeros(3)}, path)
    assert refused.value.errno == errno.EFBIG
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.equal(load_tensors(path), torch.zeros(3))


@pytest.mark.parametrize("left", [0, 3, 600, -1])
@pytest.mark.parametrize("folder, gone", [("train.partial", r"checkpoint\.pt"), ("train", "train")])
def test_half_a_file_is_said_to_be_one(tmp_path: Path, folder: str, gone: str, left: int) -> None:
    """Of a stage that goes on, the file has to be removed; of one that is finished, all of it."""
    path = tmp_path / folder / "checkpoint.pt"
    path.parent.mkdir()
    save_tensors({"weights": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:left])
    said = rf"checkpoint\.pt cannot be read \(\w+: .*\): remove \S+/{gone} and run again$"
    with pytest.raises(StageError, match=said):
        load_tensors(path)


def test_tensors_of_a_gpu_are_read_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        save_tensors(torch.arange(3), path)
    assert load_tensors(path).tolist() == [0, 1, 2]
