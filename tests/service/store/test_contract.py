"""What every store must do; the `store` fixture runs each test on all of them."""

from __future__ import annotations

import asyncio

import pytest

from service.store.base import Store

pytestmark = pytest.mark.anyio


async def test_absent_keys_are_none(store: Store) -> None:
    assert await store.get([b"a", b"b"]) == [None, None]


async def test_values_come_in_the_order_of_the_keys(store: Store) -> None:
    await store.put([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])
    assert await store.get([b"c", b"missing", b"a", b"b", b"a"]) == [b"3", None, b"1", b"2", b"1"]


async def test_no_keys_is_no_question(store: Store) -> None:
    assert await store.get([]) == []


async def test_put_replaces(store: Store) -> None:
    await store.put([(b"a", b"old")])
    await store.put([(b"a", b"new")])
    assert await store.get([b"a"]) == [b"new"]


async def test_values_are_bytes_of_any_kind_and_size(store: Store) -> None:
    values = [b"", b"\x00\r\n\xff", b"+OK\r\n", bytes(range(256)) * 4096]
    await store.put([(f"k{i}".encode(), value) for i, value in enumerate(values)])
    assert await store.get([f"k{i}".encode() for i in range(len(values))]) == values


async def test_put_takes_any_iterable_and_more_than_one_batch(store: Store) -> None:
    await store.put((f"k{i}".encode(), str(i).encode()) for i in range(1234))
    assert await store.get([b"k0", b"k499", b"k500", b"k1233", b"k1234"]) == [b"0", b"499", b"500", b"1233", None]


async def test_delete_removes_and_ignores_what_is_not_there(store: Store) -> None:
    await store.put([(b"a", b"1"), (b"b", b"2")])
    await store.delete([b"a", b"never"])
    assert await store.get([b"a", b"b"]) == [None, b"2"]


async def test_ping_answers(store: Store) -> None:
    await asyncio.wait_for(store.ping(), 5)


async def test_concurrent_readers_each_get_their_own(store: Store) -> None:
    await store.put((f"k{i}".encode(), f"v{i}".encode()) for i in range(100))
    answers = await asyncio.gather(*(store.get([f"k{i % 100}".encode()]) for i in range(500)))
    assert answers == [[f"v{i % 100}".encode()] for i in range(500)]


async def test_a_cancelled_writer_does_not_block_the_next(store: Store) -> None:
    for _ in range(5):
        writer = asyncio.create_task(store.put((f"k{i}".encode(), b"x" * 1000) for i in range(200)))
        await asyncio.sleep(0)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
    await asyncio.wait_for(store.put([(b"after", b"1")]), 5)
    assert await store.get([b"after"]) == [b"1"]
