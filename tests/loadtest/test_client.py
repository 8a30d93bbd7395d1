from __future__ import annotations

import asyncio
import resource
import socket

import pytest
import typer

from loadtest.client import Pool, Request, Target, allow_connections
from tests.loadtest.conftest import answering
from tests.tries import three_tries

pytestmark = pytest.mark.anyio


def request_to(target: Target, patience: float = 5.0) -> Request:
    return Request(target.post("/recommend", b"{}"), patience)


async def test_an_answer_comes_back_whole() -> None:
    async with answering() as target:
        pool = Pool(target, 4)
        exchange = await pool.ask(request_to(target))
        await pool.close()
    assert exchange.status == 200
    assert exchange.failure == ""
    assert exchange.server_timing == b"store;dur=1, total;dur=2.5"
    assert exchange.body.startswith(b'{"source"')
    assert exchange.body.endswith(b"}")
    assert exchange.due <= exchange.handed < exchange.done


async def test_one_connection_serves_one_caller_after_another() -> None:
    async with answering() as target:
        pool = Pool(target, 4)
        for _ in range(50):
            await pool.ask(request_to(target))
        assert pool.opened == 1
        await pool.close()


async def test_the_pool_grows_with_need_up_to_its_limit() -> None:
    async with answering(delay=lambda _: 0.2) as target:
        pool = Pool(target, 5)
        exchanges = await asyncio.gather(*(pool.ask(request_to(target)) for _ in range(12)))
        await pool.drained()
        assert [exchange.status for exchange in exchanges] == [200] * 12
        assert pool.opened == 5
        assert sum(exchange.waited for exchange in exchanges) == 7
        # Those that waited for a connection waited in their latency.
        assert max(exchange.latency for exchange in exchanges) > 0.55
        await pool.close()


async def test_a_connection_that_the_server_closed_costs_no_request() -> None:
    async with answering(answers=1) as target:
        pool = Pool(target, 2)
        for _ in range(5):
            exchange = await pool.ask(request_to(target))
            assert exchange.status == 200
        await pool.close()


@three_tries
async def test_a_caller_who_loses_patience_hangs_up() -> None:
    async with answering(delay=lambda _: 1.0) as target:
        pool = Pool(target, 1)
        waiting = asyncio.create_task(pool.ask(request_to(target, 0.1)))
        behind = asyncio.create_task(pool.ask(request_to(target, 0.05)))  # has no connection yet
        for exchange in (await waiting, await behind):
            assert exchange.status == 0
            assert exchange.failure == "no answer in time"
            assert exchange.latency < 0.9
        await pool.drained()
        await pool.close()


async def test_nobody_gets_the_answer_of_one_who_left() -> None:
    async with answering(delay=lambda seconds: 0.3 if seconds < 0.2 else 0.0) as target:
        pool = Pool(target, 1)
        left = await pool.ask(request_to(target, 0.1))
        next_one = await pool.ask(request_to(target))
        assert (left.status, next_one.status) == (0, 200)
        assert pool.opened == 2
        await pool.close()


async def test_no_service_is_a_reason_and_no_hang() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        target = Target("none", "127.0.0.1", probe.getsockname()[1])
        pool = Pool(target, 2)
        exchange = await pool.ask(request_to(target))
        assert exchange.failure.startswith("no connection: ")
        await pool.close()


async def test_a_machine_without_another_descriptor_is_not_the_services_fault() -> None:
    async with answering() as target:
        with socket.socket() as last:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, limits[1]))
            try:
                pool = Pool(target, 2)
                exchange = await pool.ask(request_to(target))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert exchange.failure == "no connection: Too many open files"
        assert exchange.waited
        await pool.close()


def test_as_many_files_are_allowed_as_connections_need() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, limits[1]))
        allow_connections(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, limits[1])
        allow_connections(400)
        assert 400 < resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 500
        allow_connections(10**9)  # more than there may be
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_what_is_no_http_is_a_reason() -> None:
    async with answering(answer=b"SSH-2.0-OpenSSH\r\n\r\n") as target:
        pool = Pool(target, 2)
        exchange = await pool.ask(request_to(target))
        assert exchange.failure.startswith("not HTTP: ")
        await pool.close()


async def test_an_answer_that_breaks_off_is_a_reason() -> None:
    async with answering(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", answers=1) as target:
        pool = Pool(target, 2)
        exchange = await pool.ask(request_to(target))
        assert exchange.failure == "the service hung up"
        await pool.close()


def test_a_target_has_an_address_and_perhaps_a_name() -> None:
    assert Target.parse("http://localhost:8000") == Target("localhost:8000", "localhost", 8000)
    assert Target.parse("triton=https://example.com/v2/", ("A: b",)) == Target(
        "triton", "example.com", 443, tls=True, prefix="/v2", headers=("A: b",)
    )
    for text in ("localhost:8000", "name=ftp://host", "http://", "http://host:port"):
        with pytest.raises(typer.BadParameter):
            Target.parse(text)


def test_a_request_carries_the_headers_of_its_target() -> None:
    message = Target("t", "h", 80, prefix="/v2", headers=("X-Deadline-Ms: 100",)).post("/recommend", b"{}")
    head, _, body = message.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/recommend HTTP/1.1\r\nHost: h:80\r\n")
    assert b"\r\nContent-Length: 2\r\nX-Deadline-Ms: 100" in head
    assert body == b"{}"
