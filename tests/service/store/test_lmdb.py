from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import lmdb
import pytest

from service.errors import StoreUnavailable
from service.store import lmdb as module
from service.store.lmdb import LmdbStore

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
WRITER = """
import asyncio, sys
from pathlib import Path
from service.store.lmdb import LmdbStore

async def main():
    store = LmdbStore(Path(sys.argv[1]), map_bytes=1 << 16)
    for number in range(50):
        await store.put((f"{number}-{i}".encode(), bytes([number]) * 1000) for i in range(20))
    await store.close()

asyncio.run(main())
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from service.store.lmdb import LmdbStore

reading = LmdbStore(Path(sys.argv[1]))._environment.begin()
os.kill(os.getpid(), signal.SIGKILL)
"""


CUT_OFF = """
import asyncio, sys
from pathlib import Path
from service.errors import StoreUnavailable
from service.store.lmdb import LmdbStore

async def main():
    store = LmdbStore(Path(sys.argv[1]))
    for key in [f"k{i:03}".encode() for i in range(500)]:
        try:
            (value,) = await store.get([key])
            print("whole" if value == bytes([1]) * 1000 else value)
        except StoreUnavailable as error:
            print("corrupt" if "MDB_CORRUPTED" in str(error) else error)
    await store.close()

asyncio.run(main())
"""


async def test_a_full_map_grows(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, map_bytes=1 << 16)
    await store.put((f"k{i}".encode(), bytes(1000)) for i in range(1000))
    await store.put([(b"big", bytes(3_000_000))])
    assert await store.get([b"k999", b"big"]) == [bytes(1000), bytes(3_000_000)]
    await store.close()


async def test_reads_go_on_while_this_process_grows_the_map(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, map_bytes=1 << 16)
    await store.put([(b"fixed", b"value")])
    writer = asyncio.create_task(store.put((f"k{i}".encode(), bytes(1000)) for i in range(5000)))
    while not writer.done():
        assert await store.get([b"fixed"]) == [b"value"]
        await asyncio.sleep(0)
    await writer
    await store.close()


async def test_another_process_writes_and_grows_the_map_while_this_one_reads(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, map_bytes=1 << 16)
    await store.put([(b"fixed", b"value")])
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(tmp_path), cwd=ROOT)
    ended = asyncio.create_task(writer.wait())
    while not ended.done():
        fixed, first, last = await store.get([b"fixed", b"7-0", b"7-19"])
        assert fixed == b"value"
        assert (first is None) == (last is None)  # a transaction is seen whole or not at all
        await asyncio.sleep(0.001)
    assert await ended == 0
    assert await store.get([b"49-19"]) == [bytes([49]) * 1000]
    await store.put([(b"own", b"writes still work")])
    assert await store.get([b"own"]) == [b"writes still work"]
    await store.close()


async def test_a_write_follows_a_map_that_another_process_has_grown(tmp_path: Path) -> None:
    """Though nothing was read since."""
    store = LmdbStore(tmp_path, map_bytes=1 << 16)
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(tmp_path), cwd=ROOT)
    assert await writer.wait() == 0
    await store.put([(b"own", b"value")])
    assert await store.get([b"own", b"49-19"]) == [b"value", bytes([49]) * 1000]
    await store.close()


async def test_closing_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, real = threading.Event(), module._put

    def slowly(transaction: lmdb.Transaction, pairs: list[tuple[bytes, bytes]]) -> None:
        begun.set()
        time.sleep(0.1)
        real(transaction, pairs)

    monkeypatch.setattr(module, "_put", slowly)
    store = LmdbStore(tmp_path)
    writing = asyncio.create_task(store.put([(b"a", b"1")]))
    await asyncio.to_thread(begun.wait)
    await store.close()
    await writing
    again = LmdbStore(tmp_path)
    assert await again.get([b"a"]) == [b"1"]
    await again.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the disk works again: until then, whatever is put waits for it."""
    works, real = threading.Event(), module._put

    def slowly(transaction: lmdb.Transaction, pairs: list[tuple[bytes, bytes]]) -> None:
        works.wait()
        real(transaction, pairs)

    monkeypatch.setattr(module, "_put", slowly)
    return works


async def test_writes_that_wait_for_the_disk_take_nobody_else_s_thread(tmp_path: Path, disk: threading.Event) -> None:
    """Those of the loop read releases, too."""
    store = LmdbStore(tmp_path)
    writing = [asyncio.create_task(store.put([(b"%d" % number, b"1")])) for number in range(100)]
    await asyncio.sleep(0)
    try:
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 30)
    finally:
        disk.set()
        await asyncio.gather(*writing)
    assert await store.get([b"0", b"99"]) == [b"1", b"1"]
    await store.close()


async def test_a_write_that_its_caller_gave_up_is_written(tmp_path: Path, disk: threading.Event) -> None:
    store = LmdbStore(tmp_path)
    writing = [asyncio.create_task(store.put([(key, b"1")])) for key in (b"begun", b"waiting")]
    await asyncio.sleep(0)
    for task in writing:
        task.cancel()
    await asyncio.gather(*writing, return_exceptions=True)
    disk.set()
    await store.put([(b"next", b"1")])
    assert await store.get([b"begun", b"waiting", b"next"]) == [b"1"] * 3
    await store.close()


async def test_a_reader_that_was_killed_does_not_make_the_file_grow_for_good(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    pairs = [(f"k{i}".encode(), bytes(1000)) for i in range(300)]

    async def growth() -> int:
        """Of the file, in bytes, while the same values are written ten times."""
        before = (tmp_path / "data.mdb").stat().st_size
        for _ in range(10):
            await store.put(pairs)
        return (tmp_path / "data.mdb").stat().st_size - before

    await growth()
    assert await growth() == 0
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(tmp_path), cwd=ROOT)
    assert await killed.wait() == -signal.SIGKILL
    assert await growth() > 0
    again = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(tmp_path), cwd=ROOT)
    assert await again.wait() == 0
    await growth()
    assert await growth() == 0
    await store.close()


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_nothing_is_written_to_a_file_that_is_no_longer_the_store_s(tmp_path: Path, how: str) -> None:
    """As `rsync` leaves it: of what was answered, nothing would be found again."""
    store = LmdbStore(tmp_path / "store")
    await store.put([(b"a", b"1")])
    await store.ping()
    if how == "replaced":
        copy = LmdbStore(tmp_path / "copy")
        await copy.close()
        (tmp_path / "copy/data.mdb").rename(tmp_path / "store/data.mdb")
    else:
        (tmp_path / "store/data.mdb").unlink()
    with pytest.raises(StoreUnavailable, match="replaced or removed"):
        await store.swap(b"a", b"1", b"2")
    with pytest.raises(StoreUnavailable, match="replaced or removed"):
        await store.ping()
    assert await store.get([b"a"]) == [b"1"]
    await store.close()


async def test_values_outlive_the_process(tmp_path: Path) -> None:
    first = LmdbStore(tmp_path)
    await first.put([(b"a", b"1")])
    await first.close()
    second = LmdbStore(tmp_path)
    assert await second.get([b"a"]) == [b"1"]
    await second.close()


async def test_a_closed_store_is_unavailable(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.get([b"a"])
    with pytest.raises(StoreUnavailable):
        await store.put([(b"a", b"1")])
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.close()


async def test_a_key_that_lmdb_cannot_hold_is_translated(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    with pytest.raises(StoreUnavailable, match="LMDB"):
        await store.put([(b"k" * 600, b"1")])
    await store.close()


async def test_a_file_that_was_cut_off_ends_nobody_who_reads_it(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    await store.put((f"k{i:03}".encode(), bytes([1]) * 1000) for i in range(500))
    await store.close()
    whole = (tmp_path / "data.mdb").stat().st_size
    os.truncate(tmp_path / "data.mdb", whole * 2 // 3 + 100)
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CUT_OFF, str(tmp_path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await reader.communicate()
    assert reader.returncode == 0
    answers = Counter(printed.decode().split("\n")[:-1])
    assert answers.keys() == {"whole", "corrupt"}
    assert answers.total() == 500
    assert answers["whole"] > 100


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        LmdbStore(tmp_path / "file")


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreUnavailable, match="cannot open"):
        LmdbStore(tmp_path)
