import io
import time

import pytest
from rich.console import Console
from rich.progress import ProgressColumn, Task, TextColumn
from rich.text import Text

from offline import progress as module
from offline.progress import progress, track


class Errors(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['errors']} errors")


def at(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=out, force_terminal=terminal, width=80))
    monkeypatch.setattr(module, "EVERY", 0.01)
    return out


def wait_for(out: io.StringIO, text: str) -> None:
    end = time.monotonic() + 60
    while text not in out.getvalue():
        assert time.monotonic() < end, f"{out.getvalue()!r} has no {text!r}"
        time.sleep(0.01)


def test_in_a_file_long_work_says_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = at(monkeypatch, terminal=False)
    with progress(Errors()) as bars:
        task = bars.add_task("chains", total=1000, errors=0)
        wait_for(out, "chains 0/1000")
        bars.update(task, completed=250, errors=3)
        wait_for(out, "chains 250/1000 3 errors\n")
        time.sleep(0.1)  # nothing new, nothing said
        bars.update(task, description="chains [of the teacher]", completed=251)
        wait_for(out, "251/1000")
        bars.update(task, completed=1000)
    lines = out.getvalue().split("\n")
    assert lines[0] == "  chains 0/1000 0 errors"
    assert lines.count("  chains 250/1000 3 errors") == 1
    assert lines.index("") == len(lines) - 1  # no blank line


def test_what_is_done_before_a_line_is_due_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    out = at(monkeypatch, terminal=False)
    monkeypatch.setattr(module, "EVERY", 60.0)
    with progress() as bars:
        bars.advance(bars.add_task("short", total=1))
    assert out.getvalue() == ""


def test_only_what_is_shown_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        out = at(monkeypatch, terminal=terminal)
        with progress(shown=False) as bars:
            bars.add_task("of another process", total=10)
            time.sleep(0.1)
        assert out.getvalue() == ""


def test_a_terminal_has_a_bar_counted_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    out = at(monkeypatch, terminal=True)
    with progress(count=TextColumn("{task.completed} epochs")) as bars:
        bars.update(bars.add_task("train", total=10), completed=4, refresh=True)
    assert "━" in out.getvalue()
    assert "4 epochs" in out.getvalue()


def test_what_is_gone_through_is_counted_and_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    out = at(monkeypatch, terminal=False)
    seen = []
    for thing in track("abcd", "letters"):
        seen.append(thing)
        wait_for(out, f"  letters {len(seen) - 1}/4\n")
    assert seen == [*"abcd"]
    assert out.getvalue() == "".join(f"  letters {done}/4\n" for done in range(4))
