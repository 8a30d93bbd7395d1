"""How far long work is: a bar at a terminal; where the output goes to a file, a plain line every minute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from offline.stage import console

T = TypeVar("T")

EVERY = 60.0  # seconds between lines


@contextmanager
def progress(*more: ProgressColumn, count: ProgressColumn | None = None, shown: bool = True) -> Iterator[Progress]:
    """Bars for the tasks that are added in the block; they are gone after it.

    A bar tells how much of its task is done by `count`, how many of how many if it is None, and has `more` behind its
    times. Nothing is seen of what is not `shown`, as of all processes of a crew but the first.
    """
    said = [TextColumn("  {task.description}"), count or MofNCompleteColumn()]
    columns = [said[0], BarColumn(), said[1], TimeElapsedColumn(), TimeRemainingColumn(), *more]
    bars = Progress(*columns, console=console, transient=True, disable=not shown)
    if console.is_interactive or not shown:
        with bars:
            yield bars
        return
    ended = Event()
    # By the clock and not as work is done: a step may take longer than anybody waits for a line.
    lines = Thread(target=_lines, args=(bars, [*said, *more], ended), daemon=True)
    lines.start()
    try:
        yield bars  # never started, it keeps count and draws nothing
    finally:
        ended.set()
        lines.join()


def track(things: Sequence[T], description: str) -> Iterator[T]:
    """The things one after another, under a bar; each is done when the next is asked for."""
    with progress() as bars:
        task = bars.add_task(description, total=len(things))
        for thing in things:
            yield thing
            bars.advance(task)


def _lines(bars: Progress, columns: list[ProgressColumn], ended: Event) -> None:
    """Say how far the tasks are that are not at their end, unless that was said last."""
    before = ""
    while not ended.wait(EVERY):
        for task in bars.tasks:
            line = "  " + " ".join(str(column.render(task)).strip() for column in columns)
            if not task.finished and line != before:
                before = line
                console.print(Text(line), soft_wrap=True)
