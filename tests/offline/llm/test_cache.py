from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.errors import LLMError
from offline.llm.cache import FILE, AnswerCache, request_key


def test_an_answer_is_there_after_the_cache_was_closed(tmp_path: Path) -> None:
    key = request_key({"model": "m"}, 0)
    with AnswerCache(tmp_path / "new" / "folder") as cache:
        assert cache.get([key]) == {}
        cache.put({key: "said — ünïcode \0 and all"})
    with AnswerCache(tmp_path / "new" / "folder") as cache:
        assert cache.get([key]) == {key: "said — ünïcode \0 and all"}
        assert len(cache) == 1


def test_the_first_answer_stays(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        cache.put({b"k": "first"})
        cache.put({b"k": "second"})
        assert cache.get([b"k"]) == {b"k": "first"}


def test_many_keys_are_looked_up_at_once(tmp_path: Path) -> None:
    keys = [request_key({}, number) for number in range(2500)]
    with AnswerCache(tmp_path) as cache:
        cache.put({key: str(place) for place, key in enumerate(keys[::2])})
        assert list(cache.get(keys)) != []
        assert cache.get(keys) == {key: str(place) for place, key in enumerate(keys[::2])}


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.floats(allow_nan=False), st.none())), st.integers(0, 9))
def test_a_key_depends_on_what_is_asked_and_not_on_the_order_it_is_written_in(
    parts: dict[str, str | float | None], number: int
) -> None:
    key = request_key(parts, number)
    assert key == request_key(dict(reversed(parts.items())), number)
    assert key != request_key(parts, number + 1)
    assert key != request_key({**parts, "another": 1}, number)


def test_a_budget_is_never_exceeded_however_many_reserve_at_once(tmp_path: Path) -> None:
    granted: list[bool] = []

    def spend() -> None:
        with AnswerCache(tmp_path) as cache:
            granted.extend(cache.reserve(1.0, 10.0) for _ in range(20))

    with AnswerCache(tmp_path) as cache:
        threads = [threading.Thread(target=spend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert granted.count(True) == 10
        assert cache.spent == pytest.approx(10.0)
        cache.put({b"k": "text"}, correction=-0.75)
        assert cache.spent == pytest.approx(9.25)


WRITER = """
import sys
from pathlib import Path
from offline.llm.cache import AnswerCache, request_key
with AnswerCache(Path(sys.argv[1])) as cache:
    for number in range(200):
        cache.put({request_key({"writer": sys.argv[2]}, number): sys.argv[2]})
"""


def test_two_processes_may_write_at_the_same_time(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], cwd=Path.cwd(), stderr=subprocess.PIPE)
        for name in ("a", "b", "c")
    ]
    for writer in writers:
        assert writer.communicate()[1] == b""
    with AnswerCache(tmp_path) as cache:
        assert len(cache) == 600


def test_a_new_file_may_be_opened_while_another_process_makes_it(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # SQLite waits for no such lock here
    release = threading.Timer(0.3, other.execute, ("COMMIT",))
    release.start()
    with AnswerCache(tmp_path) as cache:
        cache.put({b"k": "text"})
        assert len(cache) == 1
    release.join()
    other.close()


def test_a_damaged_file_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        cache.put({request_key({}, number): "x" * 500 for number in range(200)})
    path = tmp_path / FILE
    content = bytearray(path.read_bytes())
    content[4096:20480] = os.urandom(16384)
    path.write_bytes(content)
    with pytest.raises(LLMError, match=r"answers\.sqlite is damaged .* left as it was.*\.recover"):
        AnswerCache(tmp_path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"this was never a database " * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_file_that_is_no_database_is_named_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(LLMError, match=r"answers\.sqlite"):
        AnswerCache(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_database_of_somebody_else_is_not_written_into(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    with pytest.raises(LLMError, match="no cache of answers that this version reads"):
        AnswerCache(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMError, match=r"cannot open the cache of answers .*file/sub"):
        AnswerCache(tmp_path / "file" / "sub")
