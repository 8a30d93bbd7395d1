"""The OpenAPI document: what FastAPI knows of the small routes, and those of service/routes.py written out."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic.json_schema import models_json_schema

from service.errors import (
    BodyLate,
    BodyMalformed,
    BodyTooLarge,
    BodyUnsupported,
    Busy,
    DeadlineExceeded,
    Forbidden,
    Overloaded,
    ReleaseMissing,
    StoreUnavailable,
    Unauthorized,
)
from service.events import EventsRequest, EventsResponse
from service.problems import ADMIN_STATUSES, MEDIA_TYPE, RECOMMEND_STATUSES, problem
from service.schemas import (
    BatchRequest,
    BatchResponse,
    Problem,
    RecommendRequest,
    RecommendResponse,
    ReleaseRequest,
    ReleaseResponse,
)
from service.settings import LimitSettings

_COMPONENT = "#/components/schemas/{model}"
_Header = tuple[str, dict[str, Any], str]
_REQUEST_ID: _Header = ("X-Request-Id", {"type": "string"}, "Comes back in the answer; made up if left out.")

# What each status looks like, for a reader who would else see one example of the schema under all of them. A 422 has
# the schema's own.
_ERRORS: dict[int, Sequence[Exception]] = {
    400: [BodyMalformed("Invalid JSON: key must be a string at line 1 column 2")],
    401: [Unauthorized("send one of the service's API keys as `Authorization: Bearer KEY` or `X-API-Key: KEY`")],
    403: [Forbidden("administration is off: start the service with SCOTER_ACCESS__ADMIN_TOKEN to allow it")],
    404: [ReleaseMissing("releases/33ee5dad124d851a holds no manifest.json")],
    405: [HTTPException(405)],
    408: [BodyLate("the whole body must arrive within 5 s")],
    413: [BodyTooLarge("the body may be at most 262144 bytes long")],
    415: [BodyUnsupported("send the body as application/json, not as text/plain")],
    500: [RuntimeError()],
    503: [
        Overloaded("512 requests are being answered already"),
        DeadlineExceeded("the deadline of 50 ms was over before the request was begun"),
        StoreUnavailable("Redis failed: Error 111 connecting to redis:6379."),
    ],
}
_EXAMPLE_ID = "0f8fad5bd9cb469fa165708b3a6c7c4e"
_SENT_ALWAYS = {
    "X-Request-Id": "The request's id, as in logs and problems.",
    "Server-Timing": "Milliseconds by stage, and in all.",
}
_SENT_WITH = {
    401: {"WWW-Authenticate": "Always `Bearer`."},
    405: {"Allow": "The methods that there are."},
    503: {"Retry-After": "Seconds to wait before the next attempt."},
}

_SECURITY: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or the admin token."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same, in a header of its own."},
}


def openapi(app: FastAPI, *, keys: bool, limits: LimitSettings) -> dict[str, Any]:
    """The document of the whole application; `keys`: recommendations are for callers with an API key only.

    Sizes are those that this service takes, which may be set below what the schemas allow.
    """
    document = FastAPI.openapi(app)
    if "/recommend" not in document["paths"]:  # FastAPI keeps the document it made
        _, schemas = models_json_schema(
            [
                (RecommendRequest, "validation"),
                (RecommendResponse, "serialization"),
                (BatchRequest, "validation"),
                (BatchResponse, "serialization"),
                (EventsRequest, "validation"),
                (EventsResponse, "serialization"),
                (ReleaseRequest, "validation"),
                (ReleaseResponse, "serialization"),
                (Problem, "serialization"),
            ],
            ref_template=_COMPONENT,
        )
        definitions = schemas["$defs"]
        asked = definitions["RecommendRequest"]["properties"]
        asked["history"]["anyOf"][0]["maxItems"] = limits.history
        asked["exclude"]["maxItems"] = limits.exclude
        definitions["BatchRequest"]["properties"]["requests"]["maxItems"] = limits.batch
        document.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        document["components"]["securitySchemes"] = _SECURITY
        document["paths"] = {
            "/recommend": _post(
                "recommend", "Rank items for one user.", "RecommendRequest", "RecommendResponse", _headers(limits)
            ),
            "/recommend/batch": _post(
                "recommend_batch",
                "Rank items for many users at once; each request has an answer or a problem of its own.",
                "BatchRequest",
                "BatchResponse",
                _headers(limits),
            ),
            "/events": _post(
                "events",
                "Append interactions to a user's stored history: each event id once, in order of time.",
                "EventsRequest",
                "EventsResponse",
                [_REQUEST_ID],
            ),
            "/admin/release": _post(
                "swap_release",
                "Serve another release, in this process: the one named, or the one that the store's pointer names now. "
                "To change all replicas, move the pointer with `scoter publish`: each follows it within seconds.",
                "ReleaseRequest",
                "ReleaseResponse",
                [_REQUEST_ID],
                ADMIN_STATUSES,
            ),
            **document["paths"],
        }
        for path in ("/recommend", "/recommend/batch", "/events", "/admin/release"):
            if keys or path == "/admin/release":
                document["paths"][path]["post"]["security"] = [{name: []} for name in _SECURITY]
    return document


def _headers(limits: LimitSettings) -> list[_Header]:
    """What a request for recommendations may bring."""
    return [
        (
            "X-Deadline-Ms",
            {"type": "number", "exclusiveMinimum": 0, "default": limits.deadline_ms},
            (
                f"Milliseconds that the caller will wait, the body's included, up to {limits.deadline_ceiling_ms:g}; "
                "the answer is a lesser one rather than late."
            ),
        ),
        (
            "X-Scoter-Arm",
            {"type": "string"},
            "Experiments and variations to use, `experiment=variation, ...`, where the service allows it.",
        ),
        _REQUEST_ID,
    ]


def _post(
    operation: str,
    description: str,
    request: str,
    response: str,
    headers: Sequence[_Header],
    statuses: Sequence[int] = RECOMMEND_STATUSES,
) -> dict[str, Any]:
    timed = any(name == "X-Deadline-Ms" for name, _, _ in headers)
    return {
        "post": {
            "summary": operation.replace("_", " ").capitalize(),
            "description": description,
            "operationId": operation,
            "parameters": [
                {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
                for name, schema, text in headers
            ],
            "requestBody": {"required": True, "content": _content("application/json", request)},
            "responses": {
                "200": {
                    "description": "What came of it",
                    "headers": _sent(200),
                    "content": _content("application/json", response),
                },
                **{str(status): _refused(status, timed=timed) for status in sorted(statuses)},
            },
        }
    }


def _refused(status: int, *, timed: bool) -> dict[str, Any]:
    """What a status comes with. Who has a deadline may be turned away, and is answered without the store."""
    content = _content(MEDIA_TYPE, "Problem")
    told = [
        problem(error, _EXAMPLE_ID)
        for error in _ERRORS.get(status, ())
        if status != 503 or isinstance(error, Busy) is timed
    ]
    if told:
        content[MEDIA_TYPE]["examples"] = {
            one.type.rpartition(":")[2]: {"summary": one.title, "value": one.model_dump(exclude_none=True)}
            for one in told
        }
    return {"description": HTTPStatus(status).phrase, "headers": _sent(status), "content": content}


def _sent(status: int) -> dict[str, Any]:
    """The headers of an answer."""
    return {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in {**_SENT_ALWAYS, **_SENT_WITH.get(status, {})}.items()
    }


def _content(media_type: str, model: str) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _COMPONENT.format(model=model)}}}
