"""POST /recommend, /recommend/batch, /events and /admin/release as bare ASGI, from bytes to bytes.

FastAPI's own route parses, copies and checks the same values several times over, and a model that has just run has
emptied the processor's caches: every layer less is tens of microseconds off each answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.access import Access
from service.context import Context, allowed_seconds
from service.deadline import Deadline
from service.errors import (
    FIELDS_LISTED,
    BodyMalformed,
    BodyUnsupported,
    FieldError,
    RequestInvalid,
    ScoterError,
    pointer_to,
)
from service.events import EventsRequest
from service.experiments.assignment import FORCE_HEADER
from service.metrics import Metrics
from service.problems import problem
from service.schemas import BatchRequest, BatchResponse, BatchResult, RecommendRequest, ReleaseRequest, ReleaseResponse
from service.serving import Serving
from service.settings import LimitSettings
from service.timings import StageTimings
from service.trace import trace_id, traceparent

# pydantic makes all of a body's errors into Python objects or none, ten microseconds each while every caller waits.
ERRORS_READ = 256

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_Body = TypeVar("_Body", bound=BaseModel)


class Recommend:
    """POST /recommend."""

    def __init__(self, access: Access, limits: LimitSettings, metrics: Metrics) -> None:
        self._access = access
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Rank items for one user."""
        headers = Headers(scope=scope)
        self._access.check(headers)
        timings: StageTimings = scope["state"]["timings"]
        # The caller has waited since the request came, and the body may have taken its time.
        deadline = Deadline(allowed_seconds(headers, self._limits) - timings.total())
        body: bytes = (await receive())["body"]  # whole, from BodyLimit
        serving: Serving = scope["app"].state.serving
        await self.answer(serving, headers, body, deadline, scope, receive, send)

    async def answer(
        self,
        serving: Serving,
        headers: Headers,
        body: bytes,
        deadline: Deadline,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer, unless the caller leaves before."""
        request = parsed(RecommendRequest, headers, body)
        forced = headers.get(FORCE_HEADER, "")
        context = Context(scope["state"]["request_id"], scope["state"]["timings"], deadline, forced)
        answer = await unless_gone(serving.recommend(request, context), receive)
        if answer is None:
            self._metrics.caller_gone()
            return
        await _reply(answer)(scope, receive, send)


class RecommendBatch(Recommend):
    """POST /recommend/batch."""

    async def answer(
        self,
        serving: Serving,
        headers: Headers,
        body: bytes,
        deadline: Deadline,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Rank items for many users at once; each has an answer or a problem of its own."""
        batch = parsed(BatchRequest, headers, body)
        if len(batch.requests) > self._limits.batch:
            raise RequestInvalid([FieldError("/requests", f"must hold at most {self._limits.batch} requests")])
        request_id: str = scope["state"]["request_id"]
        forced = headers.get(FORCE_HEADER, "")
        afterwards: list[Callable[[], None]] = []
        contexts = [
            Context(f"{request_id}.{number}", StageTimings(), deadline, forced, afterwards.append)
            for number in range(len(batch.requests))
        ]
        members: list[RecommendRequest | ValidationError] = [*batch.requests]
        work = (self._one(serving, *pair) for pair in zip(members, contexts, strict=True))
        try:
            results = await unless_gone(_gathered(work), receive)
            if results is None:
                self._metrics.caller_gone()
                return  # a batch whose caller has left was shown to nobody
            for result in results:
                self._metrics.recommended(result.status)
            for act in afterwards:
                act()
        finally:
            # What is to be done holds the edition and a context that holds this list. Left as they are, they wait for
            # the garbage collector, and a swap that comes first freezes them, with the whole release, for good.
            afterwards.clear()
        await _reply(BatchResponse(results=results))(scope, receive, send)

    async def _one(
        self, serving: Serving, request: RecommendRequest | ValidationError, context: Context
    ) -> BatchResult:
        try:
            if isinstance(request, ValidationError):
                raise _refusal(request) from request
            response = await serving.recommend(request, context)
        except Exception as error:  # whatever it is, the others of the batch have their answers
            if not isinstance(error, ScoterError):
                trace = trace_id(traceparent.get())
                log.exception("request_failed", request_id=context.request_id, route="/recommend/batch", trace=trace)
            refused = problem(error, context.request_id)
            return BatchResult(status=refused.status, response=None, problem=refused)
        context.timings.stop()
        self._metrics.answered(context.timings)
        return BatchResult(status=200, response=response, problem=None)


class AppendEvents:
    """POST /events."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Append interactions to one user's stored history; what is acknowledged is stored."""
        headers = Headers(scope=scope)
        self._access.check(headers)
        body: bytes = (await receive())["body"]  # whole, from BodyLimit
        answer = await scope["app"].state.serving.append(parsed(EventsRequest, headers, body))
        await _reply(answer)(scope, receive, send)


class SwapRelease:
    """POST /admin/release."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve another release, in this process."""
        headers = Headers(scope=scope)
        self._access.check_admin(headers)
        body: bytes = (await receive())["body"]  # whole, from BodyLimit
        asked = parsed(ReleaseRequest, headers, body)
        serving: Serving = scope["app"].state.serving
        before = serving.edition.release.id
        answer = ReleaseResponse(release=await serving.swap(asked.release), previous=before)
        await _reply(answer)(scope, receive, send)


def parsed(model: type[_Body], headers: Headers, body: bytes) -> _Body:
    """The request in a body. Raises BodyUnsupported, BodyMalformed or RequestInvalid."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise BodyUnsupported(f"send the body as application/json, not as {media_type or 'an undeclared type'}")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise BodyUnsupported(f"send the body as it is, without content-encoding: this one says {coding[:40]!r}")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> BodyMalformed | RequestInvalid:
    count = error.error_count()
    if count > ERRORS_READ:
        return RequestInvalid([FieldError("", f"holds {count:,} errors, too many to name")])
    wrong = error.errors(include_url=False, include_context=False, include_input=False)
    if wrong[0]["type"] == "json_invalid":
        return BodyMalformed(wrong[0]["msg"])
    return RequestInvalid([FieldError(pointer_to(item["loc"]), item["msg"]) for item in wrong[:FIELDS_LISTED]], count)


async def unless_gone(work: Coroutine[Any, Any, _T], receive: Receive) -> _T | None:
    """The result of `work`, or None if the caller disconnects first: `work` is cancelled then."""
    mine = asyncio.current_task()
    assert mine is not None  # noqa: S101 - a coroutine that runs is run by a task
    gone = finished = False

    def leave(watcher: asyncio.Task[None]) -> None:
        nonlocal gone
        if not finished and not watcher.cancelled():
            gone = True
            mine.cancel()

    watcher = asyncio.create_task(_disconnected(receive))
    watcher.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and mine.uncancel() == 0:
            return None
        raise  # somebody else wants this task to end
    finally:
        finished = True
        watcher.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _gathered(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    return await asyncio.gather(*work)


def _reply(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")
