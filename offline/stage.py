"""Running a stage: skip it when nothing changed, resume it when it was cut off, never leave half of it.

A stage's output is a folder named by what went into it, `<work>/<stage>-<fingerprint>/`. The fingerprint is
derived from the stage's part of the recipe, its version, and the fingerprints of the stages it reads, so

- an unchanged stage finds its folder and does nothing;
- a changed recipe writes another folder and both stay, ready to be compared;
- the folder appears by one rename when the stage is done. Until then its work is in `<stage>-<fingerprint>.partial/`,
  which a later run may go on from.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

from offline.errors import StageError

console = Console(emoji=False)  # a colon in a path is a colon


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage's finished output."""

    name: str
    fingerprint: str
    folder: Path


def run_stage(
    work: Path,
    name: str,
    version: int,
    settings: dict[str, Any],
    upstream: Sequence[Stage],
    build: Callable[[Path], None],
) -> Stage:
    """Run `build(folder)` unless its output is there already; return where the output is.

    `settings` is JSON-serialisable and holds everything but `upstream` that decides the output. `build` may
    find its own earlier, unfinished work in the folder it is given. Raises StageError if another process is at
    it, or if files cannot be written; what `build` raises passes through.
    """
    fingerprint = _fingerprint(name, version, settings, upstream)
    stage = Stage(name, fingerprint, work / f"{name}-{fingerprint}")
    if stage.folder.is_dir():
        console.print(f"[green]✓[/] {name}: up to date [dim]({escape(str(stage.folder))})[/]", soft_wrap=True)
        return stage
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"cannot make the work folder {work}: {error.strerror}") from error
    with _only_one(work / f".{stage.folder.name}.lock", stage):
        if stage.folder.is_dir():  # finished by another process since we looked
            return stage
        partial = work / f"{stage.folder.name}.partial"
        console.print(f"[bold]▶ {name}[/]" + (" [dim](resuming)[/]" if partial.is_dir() else ""))
        partial.mkdir(exist_ok=True)
        start = time.monotonic()
        try:
            build(partial)
        except BaseException as error:
            with suppress(OSError):
                partial.rmdir()  # succeeds only when there is nothing in it to go on from
            if isinstance(error, OSError):
                raise StageError(f"{name} cannot read or write: {error}") from error
            raise
        seconds = time.monotonic() - start
        record = {
            "stage": name,
            "version": version,
            "settings": settings,
            "upstream": [s.folder.name for s in upstream],
            "seconds": round(seconds, 1),
        }
        (partial / "stage.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        partial.rename(stage.folder)
        console.print(f"[green]✓[/] {name}: {seconds:.1f} s [dim]({escape(str(stage.folder))})[/]", soft_wrap=True)
    return stage


def stage_seconds(stage: Stage) -> float:
    """Wall time of the run that finished the stage."""
    return float(read_json(stage.folder / "stage.json")["seconds"])


def finished(stage: Stage) -> int:
    """When the stage was finished, in seconds since the epoch."""
    return int((stage.folder / "stage.json").stat().st_mtime)


def read_json(path: Path) -> Any:  # noqa: ANN401 - anything JSON gives
    """What a file of JSON holds. Raises OSError and, if it holds none, ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, body: Any) -> None:  # noqa: ANN401 - anything JSON takes
    """Write JSON so that a reader sees the old file or the new one."""
    write_text(path, json.dumps(body, indent=2, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, one at a time."""
    # Not splitlines(): a text may hold U+2028 and others that it takes for the end of a line.
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines so that a reader sees the old file or the new one."""
    _write(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write text so that a reader sees the old file or the new one."""
    _write(path, [text])


def _write(path: Path, parts: Iterable[str]) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as out:
        out.writelines(parts)
    temporary.replace(path)


def _fingerprint(name: str, version: int, settings: dict[str, Any], upstream: Sequence[Stage]) -> str:
    body = json.dumps([name, version, settings, [s.fingerprint for s in upstream]], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:12]


@contextmanager
def _only_one(path: Path, stage: Stage) -> Iterator[None]:
    with _locked(path, stage):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path, stage: Stage) -> TextIO:
    while True:
        try:
            lock = path.open("w")
        except OSError as error:
            raise StageError(f"cannot write into the work folder {path.parent}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file since we opened it: then the lock keeps nobody out.
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        except BlockingIOError:
            lock.close()
            raise StageError(f"another process is running {stage.name} in {stage.folder.parent}: wait for it") from None
        except FileNotFoundError:
            pass
        lock.close()
