"""Errors as RFC 9457 problem details: one table from exception to status, type and title."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.errors import (
    BodyMalformed,
    BodyTooLarge,
    BodyUnsupported,
    EngineError,
    EngineOverloaded,
    ReleaseError,
    RequestInvalid,
    ScoterError,
    StoreError,
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
    RequestInvalid: _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "request-invalid", "The request cannot be accepted"),
    UnknownModel: _Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "unknown-model", "There is no such model"),
    EngineOverloaded: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "The service is overloaded", retry_after=1),
    EngineError: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "engine", "The inference engine is not available", 1),
    StoreError: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "store", "The user store is not available", 1),
    ReleaseError: _Kind(HTTPStatus.SERVICE_UNAVAILABLE, "release", "The release cannot be served", 1),
    Exception: _Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "The service failed"),
}

# Statuses that this table can yield for POST /recommend, for the OpenAPI document.
RECOMMEND_STATUSES = (400, 405, 413, 415, 422, 500, 503)


def problem_response(error: Exception, request_id: str) -> Response:
    """The response that tells a caller about `error`; what is internal stays internal."""
    headers: dict[str, str] = {}
    fields: list[ProblemField] | None = None
    if isinstance(error, HTTPException):  # the router's own: no such path, no such method
        status, title = HTTPStatus(error.status_code), HTTPStatus(error.status_code).phrase
        slug, detail = "http", error.detail
        headers.update(error.headers or {})
    else:
        kind = next(_TABLE[base] for base in type(error).__mro__ if base in _TABLE)
        status, slug, title = kind.status, kind.type, kind.title
        # The text of an unexpected exception may hold anything.
        known = isinstance(error, ScoterError)
        detail = str(error) if known else f"Unexpected failure; the logs tell more under {request_id}."
        if kind.retry_after is not None:
            headers["Retry-After"] = str(kind.retry_after)
        if isinstance(error, RequestInvalid):
            fields = [ProblemField(pointer=field.pointer, detail=field.detail) for field in error.fields]
    problem = Problem(
        type=f"{TYPE_PREFIX}{slug}" if slug != "http" else "about:blank",
        title=title,
        status=int(status),
        detail=detail,
        request_id=request_id,
        errors=fields,
    )
    return Response(problem.model_dump_json(exclude_none=True), int(status), headers, media_type=MEDIA_TYPE)
