from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from offline.arrays import new_array


def test_an_array_begins_as_zeros_and_keeps_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "train.npy"
    out = new_array(path, np.float16, (3, 2, 4))
    assert not out.any()
    out[1] = 2.0
    out.flush()
    assert np.load(path).sum() == 16.0


def test_an_array_without_anything_in_it_is_one(tmp_path: Path) -> None:
    new_array(tmp_path / "train.npy", "float16", (3, 2, 0)).flush()
    assert np.load(tmp_path / "train.npy").shape == (3, 2, 0)


def test_its_room_is_taken_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "train.npy"
    new_array(path, np.float16, (1000, 5, 384))
    assert path.stat().st_blocks * 512 >= 1000 * 5 * 384 * 2


def test_a_disk_without_room_for_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written to regardless, it would end the process by SIGBUS."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*train\.npy'$"):
        new_array(tmp_path / "train.npy", np.float16, (3, 2, 4))
    assert not list(tmp_path.iterdir())
