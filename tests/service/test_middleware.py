from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from service.metrics import Metrics
from service.middleware import BodyLimit, RequestContext
from service.timings import StageTimings

pytestmark = pytest.mark.anyio


def http(**headers: str) -> Scope:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http",
        "path": "/x",
        "method": "POST",
        "headers": pairs,
        "state": {"request_id": "r", "timings": StageTimings()},
    }


def receiving(*messages: Message) -> Receive:
    left = list(messages)

    async def receive() -> Message:
        return left.pop(0)

    return receive


class Sent(list[Message]):
    async def __call__(self, message: Message) -> None:
        self.append(message)


class Echo:
    """Answers with the body it received and remembers what came after it."""

    def __init__(self) -> None:
        self.calls = 0
        self.after: Message | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        message = await receive()
        assert message["more_body"] is False
        self.after = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})


def chunk(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_chunked_body_arrives_whole_and_then_the_connection_goes_on() -> None:
    echo, sent = Echo(), Sent()
    gone = {"type": "http.disconnect"}
    await BodyLimit(echo, 10, 5)(
        http(), receiving(chunk(b"abc", more=True), chunk(b"", more=True), chunk(b"def", more=False), gone), sent
    )
    assert sent[1]["body"] == b"abcdef"
    assert echo.after == gone


@pytest.mark.parametrize(
    "headers, messages",
    [
        ({"content_length": "11"}, []),  # not one byte is read
        ({"content_length": "9" * 30}, []),
        ({}, [chunk(b"x" * 6, more=True), chunk(b"x" * 5, more=True)]),  # nor is the rest
        ({"content_length": "3"}, [chunk(b"x" * 11, more=False)]),  # a lie
    ],
)
async def test_too_large(headers: dict[str, str], messages: list[Message]) -> None:
    echo, sent = Echo(), Sent()
    await BodyLimit(echo, 10, 5)(http(**headers), receiving(*messages), sent)
    assert sent[0]["status"] == 413
    assert echo.calls == 0


async def test_a_caller_who_leaves_is_not_answered() -> None:
    echo, sent = Echo(), Sent()
    await BodyLimit(echo, 10, 5)(http(), receiving(chunk(b"a", more=True), {"type": "http.disconnect"}), sent)
    assert (echo.calls, sent) == (0, [])


async def test_what_is_not_http_passes_untouched() -> None:
    seen: list[Any] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def unused() -> Message:
        raise AssertionError

    scope, sent = {"type": "lifespan"}, Sent()
    outer = RequestContext(BodyLimit(inner, 1, 5), Metrics(CollectorRegistry()), frozenset(), lambda: False)
    await outer(scope, unused, sent)
    assert seen == [(scope, unused, sent)]


async def test_a_failure_after_the_answer_has_begun_is_not_answered_twice() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("late")

    sent = Sent()
    with pytest.raises(KeyError):
        await RequestContext(inner, Metrics(CollectorRegistry()), frozenset(), lambda: False)(http(), receiving(), sent)
    assert len(sent) == 1
