"""What happens around every request, as pure ASGI: Starlette's BaseHTTPMiddleware would cost most of the throughput."""

from __future__ import annotations

import re
from secrets import token_hex

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge
from service.metrics import Metrics
from service.problems import problem_response
from service.timings import StageTimings

log = structlog.get_logger(__name__)

# What may be echoed into headers and logs.
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestContext:
    """Gives each request an id and a clock, and each failure a problem document; the outermost layer.

    Sets `request.state.request_id` and `request.state.timings`; adds X-Request-Id and Server-Timing to the response.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes  # paths that may become a label; any other is "other"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if _SANE_ID.fullmatch(offered) else token_hex(16)
        timings = StageTimings()
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
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            log.exception("request_failed", request_id=request_id, route=route)
            if status is not None:
                raise  # half an answer is out; the server can only drop the connection
            await problem_response(error, request_id)(scope, receive, send_with_headers)
        finally:
            if status is not None:  # counted once the answer is out, so that nobody waits for it
                self._metrics.responded(route, status, timings)


class BodyLimit:
    """Reads the whole body before the application runs, and refuses one that is too large.

    A declared length is refused before a byte of it is read; a chunked body as soon as it has grown too long.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        declared = Headers(scope=scope).get("content-length", "0")
        too_large = declared.isdecimal() and int(declared) > self._limit
        more = not too_large
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return  # nobody is there to be answered
            body += message.get("body", b"")
            too_large = len(body) > self._limit
            more = message.get("more_body", False) and not too_large
        if too_large:
            error = BodyTooLarge(f"the body may be at most {self._limit} bytes long")
            await problem_response(error, scope["state"]["request_id"])(scope, receive, send)
            return

        delivered = False

        async def receive_read() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, receive_read, send)
