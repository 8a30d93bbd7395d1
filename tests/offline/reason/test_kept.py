import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.errors import StageError
from offline.reason.kept import Kept, digest, remove


def test_what_was_put_is_got_in_the_order_asked_for(tmp_path: Path) -> None:
    with Kept(tmp_path / "deep" / "kept.sqlite") as kept:
        kept.put((digest(str(number)), str(number).encode()) for number in range(1200))
        asked = [digest(str(number)) for number in (1199, 3, 5000, 3)]
        assert kept.get(asked) == [b"1199", b"3", None, b"3"]
        assert kept.get([]) == []
        assert len(kept) == 1200
    with Kept(tmp_path / "deep" / "kept.sqlite") as again:
        assert again.get([digest("7")]) == [b"7"]


def test_the_first_value_of_a_key_stays_until_it_is_dropped(tmp_path: Path) -> None:
    with Kept(tmp_path / "kept.sqlite") as kept:
        kept.put([(b"key", b"first")])
        kept.put([(b"key", b"second"), (b"other", b"1")])
        assert kept.get([b"key", b"other"]) == [b"first", b"1"]
        kept.drop([b"key", b"never there"])
        assert kept.get([b"key", b"other"]) == [None, b"1"]


def test_all_of_a_batch_or_none(tmp_path: Path) -> None:
    def pairs() -> object:
        yield b"key", b"value"
        raise KeyboardInterrupt

    with Kept(tmp_path / "kept.sqlite") as kept:
        with pytest.raises(KeyboardInterrupt):
            kept.put(pairs())  # type: ignore[arg-type]
        assert kept.get([b"key"]) == [None]
        kept.put([(b"key", b"later")])
        assert kept.get([b"key"]) == [b"later"]


def test_new_keys_are_new_once(tmp_path: Path) -> None:
    with Kept(tmp_path / "kept.sqlite") as kept:
        assert kept.new([b"a", b"b", b"a", b"c"]) == [0, 1, 3]
        assert kept.new([b"c", b"d", b"d"]) == [1]
        assert kept.new([]) == []


def test_two_processes_write_into_one_table(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    code = (
        "import sys; from pathlib import Path; from offline.reason.kept import Kept\n"
        "kept = Kept(Path(sys.argv[1]))\n"
        "for n in range(200): kept.put([(f'{sys.argv[2]}{n}'.encode(), b'x'), (f'shared{n}'.encode(), b'y')])\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=Path(__file__).parents[3]) for name in "ab"
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    with Kept(path) as kept:
        assert len(kept) == 600


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    path.write_bytes(b"not a database at all, but long enough to look at" * 10)
    with pytest.raises(StageError, match=r"kept\.sqlite.*remove it"):
        Kept(path)


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    Kept(tmp_path / "kept.sqlite").close()
    other = sqlite3.connect(tmp_path / "kept.sqlite")
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StageError, match="another version"):
        Kept(tmp_path / "kept.sqlite")


def test_removal_leaves_nothing(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.sqlite")
    kept.put([(b"key", b"value")])
    kept.close()
    remove(tmp_path / "kept.sqlite")
    remove(tmp_path / "kept.sqlite")
    assert not list(tmp_path.iterdir())


parts = st.lists(st.one_of(st.text(), st.binary()), max_size=4)


@given(parts, parts)
def test_other_parts_have_another_digest(first: list[str | bytes], second: list[str | bytes]) -> None:
    plain = [[p.encode() if isinstance(p, str) else p for p in parts] for parts in (first, second)]
    assert (digest(*first) == digest(*second)) == (plain[0] == plain[1])


def test_a_new_table_may_be_opened_while_another_process_makes_it(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "kept.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # SQLite waits for no such lock by itself when it switches to WAL
    release = threading.Timer(0.3, other.execute, ("COMMIT",))
    release.start()
    with Kept(tmp_path / "kept.sqlite") as kept:
        kept.put([(b"key", b"value")])
        assert len(kept) == 1
    release.join()
    other.close()
