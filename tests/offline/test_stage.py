import fcntl
import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offline import stage as module
from offline.errors import DataError, StageError
from offline.stage import Stage, read_json, run_stage, stage_seconds, write_json


class Build:
    """Writes one file; counts its calls and does what it is told to in between."""

    def __init__(self, then: Callable[[Path], None] = lambda _folder: None) -> None:
        self.calls = 0
        self.then = then

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        with (folder / "out.txt").open("a", encoding="utf-8") as out:
            out.write("line\n")
        self.then(folder)


def raising(error: BaseException) -> Callable[[Path], None]:
    def build(_folder: Path) -> None:
        raise error

    return build


def toy(work: Path, build: Callable[[Path], None], *upstream: Stage, version: int = 1, **settings: Any) -> Stage:
    return run_stage(work, "toy", version, settings, upstream, build)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_finished_stage_is_one_folder_that_says_what_went_into_it(tmp_path: Path) -> None:
    work = tmp_path / "deep" / "work"
    first = toy(work, Build(), a=1)
    second = run_stage(work, "next", 3, {"b": [1, 2]}, [first], Build())
    assert names(work) == {first.folder.name, second.folder.name}
    assert second.folder == work / f"next-{second.fingerprint}"
    record = json.loads((second.folder / "stage.json").read_text(encoding="utf-8"))
    seconds = record.pop("seconds")
    assert record == {"stage": "next", "version": 3, "settings": {"b": [1, 2]}, "upstream": [first.folder.name]}
    assert 0 <= seconds == stage_seconds(second) < 5


def test_fingerprints_are_the_same_on_every_machine(tmp_path: Path) -> None:
    assert toy(tmp_path, Build(), a=1, b="é").fingerprint == toy(tmp_path, Build(), b="é", a=1).fingerprint
    assert toy(tmp_path, Build(), a=1).fingerprint == "3ac895e5b27c"


def test_an_unchanged_stage_does_nothing(tmp_path: Path) -> None:
    build = Build()
    first = toy(tmp_path, build, a=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert toy(tmp_path, build, a=1) == first
    assert build.calls == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_whatever_changes_it_is_another_folder_and_the_old_one_stays(tmp_path: Path) -> None:
    build = Build()
    upstream = [Stage("up", fingerprint, tmp_path / fingerprint) for fingerprint in ("one", "two")]
    stages = [
        toy(tmp_path, build, a=1),
        toy(tmp_path, build, a=2),
        toy(tmp_path, build, a=1, version=2),
        toy(tmp_path, build, upstream[0], a=1),
        toy(tmp_path, build, upstream[1], a=1),
        toy(tmp_path, build, *upstream, a=1),
        toy(tmp_path, build, *reversed(upstream), a=1),
        run_stage(tmp_path, "other", 1, {"a": 1}, [], build),
    ]
    assert build.calls == len(stages) == len({s.folder for s in stages}) == len({s.fingerprint for s in stages})
    assert all((s.folder / "out.txt").read_text(encoding="utf-8") == "line\n" for s in stages)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("bad"), RuntimeError("bug"), SystemExit(1)])
def test_a_stage_that_was_cut_off_goes_on_in_the_same_folder(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        toy(tmp_path, Build(raising(error)), a=1)
    (partial,) = tmp_path.iterdir()
    assert partial.suffix == ".partial"
    assert names(partial) == {"out.txt"}
    resumed: list[Path] = []
    stage = toy(tmp_path, Build(resumed.append), a=1)
    assert resumed == [partial]
    assert names(tmp_path) == {stage.folder.name}
    assert partial.stem == stage.folder.name
    assert (stage.folder / "out.txt").read_text(encoding="utf-8") == "line\nline\n"


def test_a_stage_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        toy(tmp_path, raising(DataError("malformed")))
    assert names(tmp_path) == set()


def test_a_stage_may_write_no_files_of_its_own(tmp_path: Path) -> None:
    assert names(toy(tmp_path, lambda _folder: None).folder) == {"stage.json"}


def test_a_crash_before_the_rename_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda _self, _target: raising(KeyboardInterrupt())(tmp_path))
        with pytest.raises(KeyboardInterrupt):
            toy(tmp_path, Build())
    (partial,) = tmp_path.iterdir()
    assert names(partial) == {"out.txt", "stage.json"}
    stage = toy(tmp_path, Build())
    assert names(tmp_path) == {stage.folder.name}


def test_a_killed_process_leaves_its_lock_to_the_next(tmp_path: Path) -> None:
    stage = toy(tmp_path, Build())
    shutil.rmtree(stage.folder)
    (tmp_path / f".{stage.folder.name}.lock").touch()
    assert toy(tmp_path, Build()) == stage
    assert names(tmp_path) == {stage.folder.name}


def _hold(work: Path, started: Any, go_on: Any) -> None:
    def wait(_folder: Path) -> None:
        started.set()
        assert go_on.wait(30)

    toy(work, Build(wait))


def test_two_processes_at_once_are_one_too_many(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started, go_on = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, started, go_on))
    other.start()
    try:
        assert started.wait(30)
        build = Build()
        with pytest.raises(StageError, match=f"another process is running toy in {tmp_path}: wait for it"):
            toy(tmp_path, build)
        assert build.calls == 0
        different = toy(tmp_path, build, a=1)
    finally:
        go_on.set()
        other.join()
    assert other.exitcode == 0
    done = toy(tmp_path, build)
    assert build.calls == 1
    assert names(tmp_path) == {different.folder.name, done.folder.name}
    assert (done.folder / "out.txt").read_text(encoding="utf-8") == "line\n"


def test_a_stage_finished_by_another_process_meanwhile_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = toy(tmp_path, Build())
    hidden = expected.folder.rename(tmp_path / "hidden")
    build = Build()
    real = module._only_one

    def late(path: Path, stage: Stage) -> Any:
        hidden.rename(stage.folder)
        return real(path, stage)

    monkeypatch.setattr(module, "_only_one", late)
    assert toy(tmp_path, build) == expected
    assert build.calls == 0


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    removed: list[int] = []

    def slow(lock: Any, how: int) -> None:
        if len(removed) < 2:  # the process that had it ends just now; then another one comes and takes it
            removed.append(how)
            (path,) = tmp_path.glob(".*.lock")
            path.unlink()
            if len(removed) == 2:
                path.touch()
        real(lock, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    stage = toy(tmp_path, Build())
    assert len(removed) == 2
    assert names(tmp_path) == {stage.folder.name}


def test_a_full_disk_is_an_error_of_the_stage(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device", "out.txt")
    with pytest.raises(StageError, match=r"toy cannot read or write: .*No space left on device: 'out\.txt'"):
        toy(tmp_path, Build(raising(full)))
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]


def test_a_work_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for work in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StageError, match=f"cannot make the work folder {work}: "):
            toy(work, Build())


def test_paths_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "[bold]out[" / "x]:smile:" / ("long" * 30)
    stage = toy(work, Build())
    assert toy(work, Build()) == stage
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert shown[0] == "▶ toy"
    assert shown[1].endswith(f" s ({stage.folder})")
    assert shown[2] == f"✓ toy: up to date ({stage.folder})"


def test_resuming_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path, Build(raising(KeyboardInterrupt())))
    toy(tmp_path, Build())
    assert "▶ toy (resuming)" in capsys.readouterr().out


def test_json_replaces_what_was_there_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"é": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'
    assert read_json(path) == {"é": 1}
    write_json(path, [1])
    assert read_json(path) == [1]
    with pytest.raises(TypeError):
        write_json(path, {1, 2})
    monkeypatch.setattr(Path, "replace", lambda _self, _target: raising(KeyboardInterrupt())(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        write_json(path, [2])
    assert read_json(path) == [1]
