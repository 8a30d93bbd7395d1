"""What every store must do; the `any_store` fixture runs each test on all of them."""

from __future__ import annotations

import asyncio

import pytest

from service.store.base import Store

pytestmark = pytest.mark.anyio


async def test_absent_keys_are_none(any_store: Store) -> None:
    assert await any_store.get([b"a", b"b"]) == [None, None]


async def test_values_come_in_the_order_of_the_keys(any_store: Store) -> None:
    await any_store.put([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])
    assert await any_store.get([b"c", b"missing", b"a", b"b", b"a"]) == [b"3", None, b"1", b"2", b"1"]


async def test_no_keys_is_no_question(any_store: Store) -> None:
    assert await any_store.get([]) == []


async def test_put_replaces(any_store: Store) -> None:
    await any_store.put([(b"a", b"old")])
    await any_store.put([(b"a", b"new")])
    assert await any_store.get([b"a"]) == [b"new"]


async def test_values_are_bytes_of_any_kind_and_size(any_store: Store) -> None:
    values = [b"", b"\x00\r\n\xff", b"+OK\r\n", bytes(range(256)) * 4096]
    await any_store.put([(f"k{i}".encode(), value) for i, value in enumerate(values)])
    assert await any_store.get([f"k{i}".encode() for i in range(len(values))]) == values


async def test_put_takes_any_iterable_and_more_than_one_batch(any_store: Store) -> None:
    await any_store.put((f"k{i}".encode(), str(i).encode()) for i in range(1234))
    assert await any_store.get([b"k0", b"k499", b"k500", b"k1233", b"k1234"]) == [b"0", b"499", b"500", b"1233", None]


async def test_keys_of_many_users_are_read_at_once(any_store: Store) -> None:
    keys = [f"{{user-{number}}}:record".encode() for number in range(700)]
    await any_store.put((key, key[::-1]) for key in keys[::2])
    assert await any_store.get(keys) == [None if number % 2 else key[::-1] for number, key in enumerate(keys)]


async def test_swap_replaces_what_was_expected_and_nothing_else(any_store: Store) -> None:
    assert await any_store.swap(b"a", None, b"1")
    assert not await any_store.swap(b"a", None, b"2")
    assert not await any_store.swap(b"a", b"0", b"2")
    assert await any_store.get([b"a"]) == [b"1"]
    assert await any_store.swap(b"a", b"1", b"2")
    assert await any_store.get([b"a"]) == [b"2"]
    assert not await any_store.swap(b"b", b"1", b"2")
    assert await any_store.get([b"b"]) == [None]


async def test_swap_may_be_asked_again(any_store: Store) -> None:
    assert await any_store.swap(b"a", None, b"1")
    assert await any_store.swap(b"a", None, b"1")
    assert await any_store.swap(b"a", b"0", b"1")


async def test_swap_knows_nothing_from_empty(any_store: Store) -> None:
    assert await any_store.swap(b"a", None, b"")
    assert not await any_store.swap(b"a", None, b"1")
    assert await any_store.swap(b"a", b"", b"\x00\r\n\xff")
    assert await any_store.get([b"a"]) == [b"\x00\r\n\xff"]


async def test_many_swaps_are_answered_each_for_itself(any_store: Store) -> None:
    await any_store.put((f"k{i}".encode(), b"old") for i in range(0, 600, 2))
    answers = await any_store.swap_all((f"k{i}".encode(), b"old", str(i).encode()) for i in range(600))
    assert answers == [i % 2 == 0 for i in range(600)]
    assert await any_store.get([b"k0", b"k1", b"k598"]) == [b"0", None, b"598"]


async def test_nothing_is_lost_between_those_who_swap_at_once(any_store: Store) -> None:
    async def add(name: str) -> None:
        for turn in range(10):
            while True:
                (now,) = await any_store.get([b"all"])
                if await any_store.swap(b"all", now, (now or b"") + f"{name}{turn} ".encode()):
                    break

    await asyncio.wait_for(asyncio.gather(*(add(name) for name in "abcdefgh")), 60)
    (found,) = await any_store.get([b"all"])
    assert sorted((found or b"").decode().split()) == [f"{name}{turn}" for name in "abcdefgh" for turn in range(10)]


async def test_delete_removes_and_ignores_what_is_not_there(any_store: Store) -> None:
    await any_store.put([(b"a", b"1"), (b"b", b"2")])
    await any_store.delete([b"a", b"never"])
    assert await any_store.get([b"a", b"b"]) == [None, b"2"]


async def test_ping_answers(any_store: Store) -> None:
    await asyncio.wait_for(any_store.ping(), 5)


async def test_concurrent_readers_each_get_their_own(any_store: Store) -> None:
    await any_store.put((f"k{i}".encode(), f"v{i}".encode()) for i in range(100))
    answers = await asyncio.gather(*(any_store.get([f"k{i % 100}".encode()]) for i in range(500)))
    assert answers == [[f"v{i % 100}".encode()] for i in range(500)]


async def test_a_cancelled_writer_does_not_block_the_next(any_store: Store) -> None:
    for _ in range(5):
        writer = asyncio.create_task(any_store.put((f"k{i}".encode(), b"x" * 1000) for i in range(200)))
        await asyncio.sleep(0)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
    await asyncio.wait_for(any_store.put([(b"after", b"1")]), 5)
    assert await any_store.get([b"after"]) == [b"1"]
