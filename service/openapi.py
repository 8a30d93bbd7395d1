"""The OpenAPI document: what FastAPI knows of the small routes, and POST /recommend written out."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.problems import MEDIA_TYPE, RECOMMEND_STATUSES
from service.schemas import Problem, RecommendRequest, RecommendResponse

_COMPONENT = "#/components/schemas/{model}"


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document of the whole application."""
    document = FastAPI.openapi(app)
    if "/recommend" not in document["paths"]:  # FastAPI keeps the document it made
        _, schemas = models_json_schema(
            [(RecommendRequest, "validation"), (RecommendResponse, "serialization"), (Problem, "serialization")],
            ref_template=_COMPONENT,
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        document["paths"] = {"/recommend": {"post": _recommend()}, **document["paths"]}
    return document


def _recommend() -> dict[str, Any]:
    return {
        "summary": "Recommend",
        "description": "Rank items for one user.",
        "operationId": "recommend",
        "requestBody": {"required": True, "content": _content("application/json", "RecommendRequest")},
        "responses": {
            "200": {"description": "Ranked items", "content": _content("application/json", "RecommendResponse")},
            **{
                str(status): {"description": HTTPStatus(status).phrase, "content": _content(MEDIA_TYPE, "Problem")}
                for status in RECOMMEND_STATUSES
            },
        },
    }


def _content(media_type: str, model: str) -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _COMPONENT.format(model=model)}}}
