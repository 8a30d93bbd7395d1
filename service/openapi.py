"""The OpenAPI document: what FastAPI knows of the small routes, and POST /recommend written out."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.events import EventsRequest, EventsResponse
from service.problems import MEDIA_TYPE, RECOMMEND_STATUSES
from service.schemas import BatchRequest, BatchResponse, Problem, RecommendRequest, RecommendResponse

_COMPONENT = "#/components/schemas/{model}"
_HEADERS: list[tuple[str, dict[str, Any], str]] = [
    (
        "X-Deadline-Ms",
        {"type": "number", "exclusiveMinimum": 0},
        "Milliseconds that the caller will wait; the answer is a lesser one rather than late.",
    ),
    (
        "X-Scoter-Arm",
        {"type": "string"},
        "Experiments and variations to use, `experiment=variation, ...`, where the service allows it.",
    ),
    ("X-Request-Id", {"type": "string"}, "Comes back in the answer; made up if left out."),
]


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document of the whole application."""
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
                (Problem, "serialization"),
            ],
            ref_template=_COMPONENT,
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        document["paths"] = {
            "/recommend": _post("recommend", "Rank items for one user.", "RecommendRequest", "RecommendResponse"),
            "/recommend/batch": _post(
                "recommend_batch",
                "Rank items for many users at once; each request has an answer or a problem of its own.",
                "BatchRequest",
                "BatchResponse",
            ),
            "/events": _post(
                "events",
                "Append interactions to a user's stored history: each event id once, in order of time.",
                "EventsRequest",
                "EventsResponse",
                [_HEADERS[-1]],
            ),
            **document["paths"],
        }
    return document


def _post(
    operation: str,
    description: str,
    request: str,
    response: str,
    headers: Sequence[tuple[str, dict[str, Any], str]] = _HEADERS,
) -> dict[str, Any]:
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
                "200": {"description": "What came of it", "content": _content("application/json", response)},
                **{
                    str(status): {"description": HTTPStatus(status).phrase, "content": _content(MEDIA_TYPE, "Problem")}
                    for status in RECOMMEND_STATUSES
                },
            },
        }
    }


def _content(media_type: str, model: str) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _COMPONENT.format(model=model)}}}
