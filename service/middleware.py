"""What happens around every request, as pure ASGI: Starlette's BaseHTTPMiddleware would cost most of the throughput."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from secrets import token_hex

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyLate, BodyTooLarge
from service.metrics import Metrics
from service.problems import problem_response
from service.timings import BODY, StageTimings
from service.trace import accepted, trace_id, traceparent

log = structlog.get_logger(__name__)

# What may be echoed into headers and logs.
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestContext:
    """Gives each request an id and a clock, and each failure a problem document; the outermost layer.

    Sets `request.state.request_id` and `request.state.timings`; adds X-Request-Id and Server-Timing to the response.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str], draining: Callable[[], bool]) -> None:
        self._app = app
        self._metrics = metrics
        self._draining = draining
        self._routes = routes  # paths that may become a label; any other is "other"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        offered = headers.get("x-request-id", "")
        request_id = offered if _SANE_ID.fullmatch(offered) else token_hex(16)
        timings = StageTimings()
        trace = accepted(headers.get("traceparent", ""))
        traceparent.set(trace)  # the server runs each request in a context of its own
        scope.setdefault("state", {}).update(request_id=request_id, timings=timings)
        route = scope["path"] if scope["path"] in self._routes else "other"
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                timings.stop()
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"server-timing", timings.server_timing().encode()),
                ]
                if self._draining():  # send the caller's next request to another replica
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            log.exception("request_failed", request_id=request_id, route=route, trace=trace_id(trace))
            if status is not None:
                raise  # half an answer is out; the server can only drop the connection
            await problem_response(error, request_id)(scope, receive, send_with_headers)
        finally:
            if status is not None:  # counted once the answer is out, so that nobody waits for it
                self._metrics.responded(route, status)
                # A batch that is answered has counted its own; one that is refused whole is one refusal.
                if route == "/recommend" or (route == "/recommend/batch" and status != HTTPStatus.OK):
                    self._metrics.recommended(status)
                self._metrics.answered(timings)


class BodyLimit:
    """Reads the whole body before the application runs, and refuses one that is too large.

    A declared length is refused before a byte of it is read; a chunked body as soon as it has grown too long, and any
    body that takes too long to arrive. What the body takes is a stage of the request.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit  # bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            timings: StageTimings = scope["state"]["timings"]
            with timings.stage(BODY):
                async with asyncio.timeout(self._seconds):
                    body = await self._read(scope, receive)
        except BodyTooLarge as error:
            await problem_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        except TimeoutError:
            late = BodyLate(f"the whole body must arrive within {self._seconds:g} s")
            await problem_response(late, scope["state"]["request_id"])(scope, receive, send)
            return
        if body is None:
            return  # nobody is there to be answered

        delivered = False

        async def receive_read() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_read, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None if the caller disconnects. Raises BodyTooLarge."""
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limit:
            raise self._too_large()
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part: bytes = message.get("body", b"")
            body += part
            if len(body) > self._limit:
                raise self._too_large()
            if not message.get("more_body", False):
                return body

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body may be at most {self._limit} bytes long")
