"""Errors as RFC 9457 problem details: one table from exception to status, type and title."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.errors import (
    BodyLate,
    BodyMalformed,
    BodyTooLarge,
    BodyUnsupported,
    Busy,
    DeadlineExceeded,
    EngineError,
    EngineOverloaded,
    ExperimentsError,
    Forbidden,
    HeaderInvalid,
    Overloaded,
    ReleaseError,
    ReleaseMissing,
    RequestInvalid,
    ScoterError,
    StoreError,
    Unauthorized,
    UnknownModel,
)
from service.schemas import Problem, ProblemField

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:scoter:problem:"


@dataclass(frozen=True, slots=True)
class _Kind:
    status: HTTPStatus
    type: str
    title: str
    retry_after: int | None = None  # seconds


# The nearest class in an exception's ancestry decides.
_TABLE: dict[type[Exception], _Kind] = {
    BodyMalformed: _Kind(HTTPStatus.BAD_REQUEST, "body-malformed", "The body is not JSON"),
    BodyTooLarge: _Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body-too-large", "The body is too large"),
    BodyUnsupported: _Kind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "body-unsupported", "The body must be JSON"),
    BodyLate: _Kind(HTTPStatus.REQUEST_TIMEOUT, "body-late", "The body did not arrive in time"),
    HeaderInvalid: _Kind(HTTPStatus.BAD_REQUEST, "header-invalid", "A header cannot be read"),
    Unauthorized: _Kind(HTTPStatus.UNAUTHORIZED, "unauthorized", "Credentials are missing or wrong"),
    Forbidden: _Kind(HTTPStatus.FORBIDDEN, "forbidden", "This is switched off"),
    RequestInvalid: _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "request-invalid", "The request cannot be accepted"),
    UnknownModel: _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "unknown-model", "There is no such model"),
    Busy: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "busy", "The service turned the request away", retry_after=1),
    Overloaded: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "The service is overloaded", retry_after=1),
    DeadlineExceeded: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "deadline", "The time to answer was up", retry_after=1),
    EngineOverloaded: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "The service is overloaded", retry_after=1),
    EngineError: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "engine", "The inference engine is not available", 1),
    StoreError: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "store", "The user store is not available", 1),
    ExperimentsError: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "experiments", "The experiments cannot be used", 1),
    ReleaseMissing: _Kind(HTTPStatus.NOT_FOUND, "release-missing", "There is no such release"),
    ReleaseError: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "release", "The release cannot be served", 1),
    Exception: _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "The service failed"),
}

# Statuses that this table can yield for POST /recommend, for the OpenAPI document.
RECOMMEND_STATUSES = (400, 401, 405, 408, 413, 415, 422, 500, 503)
ADMIN_STATUSES = (*RECOMMEND_STATUSES, 403, 404)


def problem(error: Exception, request_id: str) -> Problem:
    """What to tell a caller about `error`; what is internal stays internal."""
    fields: list[ProblemField] | None = None
    if isinstance(error, HTTPException):  # the router's own: no such path, no such method
        status, title = HTTPStatus(error.status_code), HTTPStatus(error.status_code).phrase
        slug, detail = "http", error.detail
    else:
        kind = _kind(error)
        status, slug, title = kind.status, kind.type, kind.title
        # The text of an unexpected exception may hold anything.
        known = isinstance(error, ScoterError)
        detail = str(error) if known else f"Unexpected failure; the logs tell more under {request_id}."
        if isinstance(error, RequestInvalid):
            fields = [ProblemField(pointer=field.pointer, detail=field.detail) for field in error.fields]
    return Problem(
        type=f"{TYPE_PREFIX}{slug}" if slug != "http" else "about:blank",
        title=title,
        status=int(status),
        detail=detail,
        request_id=request_id,
        errors=fields,
    )


def problem_response(error: Exception, request_id: str) -> Response:
    """The response that tells a caller about `error`."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
    elif (seconds := _kind(error).retry_after) is not None:
        headers["Retry-After"] = str(seconds)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    body = problem(error, request_id)
    return Response(body.model_dump_json(exclude_none=True), body.status, headers, media_type=MEDIA_TYPE)


def _kind(error: Exception) -> _Kind:
    return next(_TABLE[base] for base in type(error).__mro__ if base in _TABLE)
