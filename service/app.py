"""The HTTP application: routes, their error handling, and the life of the parts behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.errors import BodyMalformed, BodyUnsupported, FieldError, RequestInvalid, ScoterError
from service.metrics import Metrics
from service.middleware import BodyLimit, RequestContext
from service.openapi import openapi
from service.problems import problem_response
from service.schemas import RecommendRequest, RecommendResponse
from service.serving import Serving
from service.settings import Settings

ROUTES = frozenset({"/recommend", "/livez", "/readyz", "/metrics"})


def create_app(settings: Settings) -> FastAPI:
    """The application. Nothing is opened before its lifespan starts, which raises a ScoterError if a part fails."""
    metrics = Metrics(CollectorRegistry())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.serving = await Serving.open(settings, metrics)
        try:
            yield
        finally:
            await app.state.serving.close()

    app = FastAPI(
        title="SCoTER Serving",
        summary="Recommendations enriched by reasoning that a language model wrote beforehand.",
        version="0.1.0",
        lifespan=lifespan,
        routes=[Route("/recommend", Recommend(), methods=["POST"])],
    )
    app.state.metrics = metrics
    app.add_middleware(BodyLimit, limit=settings.limits.body_bytes)
    app.add_middleware(RequestContext, metrics=metrics, routes=ROUTES)  # added last, runs first
    app.add_exception_handler(ScoterError, _problem)
    app.add_exception_handler(HTTPException, _problem)
    _add_routes(app, metrics)
    app.openapi = partial(openapi, app)  # type: ignore[method-assign]
    return app


class Recommend:
    """POST /recommend as bare ASGI, from bytes to bytes.

    FastAPI's own route parses, copies and checks the same values several times over, and a model that has just run has
    emptied the processor's caches: every layer less is tens of microseconds off each answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Rank items for one user."""
        body: bytes = (await receive())["body"]  # whole, from BodyLimit
        asked = _parsed(Headers(scope=scope).get("content-type", ""), body)
        state, serving = scope["state"], scope["app"].state.serving
        answer: RecommendResponse = await serving.recommender.recommend(asked, state["request_id"], state["timings"])
        await Response(answer.model_dump_json(), media_type="application/json")(scope, receive, send)


def _add_routes(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Whether the process answers; depends on nothing else."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "A part is not ready."}})
    async def readyz(request: Request) -> JSONResponse:
        """Whether every part that a request needs is ready, and which is not.

        A store that is down costs answers their reasoning, not the caller his answer: `degraded`, and still 200, or a
        Redis outage would take every replica out of rotation at once.
        """
        serving: Serving = request.app.state.serving
        parts = await serving.readiness()
        failing = {name for name, state in parts.items() if state != "ok"}
        status = "ok" if not failing else "degraded" if failing == {"store"} else "not ready"
        body = {"status": status, "release": serving.release.id, "parts": parts}
        return JSONResponse(body, 503 if status == "not ready" else 200)

    @app.get("/metrics", response_class=Response)
    async def scrape() -> Response:
        """Metrics in Prometheus's text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _parsed(content_type: str, body: bytes) -> RecommendRequest:
    """The request in a body. Raises BodyUnsupported, BodyMalformed or RequestInvalid."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise BodyUnsupported(f"send the body as application/json, not as {media_type or 'an undeclared type'}")
    try:
        return RecommendRequest.model_validate_json(body)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        if wrong[0]["type"] == "json_invalid":
            raise BodyMalformed(wrong[0]["msg"]) from error
        raise RequestInvalid([FieldError(_pointer(item["loc"]), item["msg"]) for item in wrong]) from error


def _pointer(location: tuple[int | str, ...]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


async def _problem(request: Request, error: Exception) -> Response:
    return problem_response(error, request.state.request_id)
