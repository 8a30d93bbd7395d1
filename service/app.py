"""The HTTP application: routes, their error handling, and the life of the parts behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import Route

from service.access import Access
from service.errors import ScoterError
from service.metrics import Metrics
from service.middleware import BodyLimit, RequestContext
from service.openapi import openapi
from service.problems import problem_response
from service.routes import AppendEvents, Recommend, RecommendBatch, SwapRelease
from service.schemas import Readiness
from service.serving import Serving
from service.settings import Settings

ROUTES = frozenset({"/recommend", "/recommend/batch", "/events", "/admin/release", "/livez", "/readyz", "/metrics"})


def create_app(settings: Settings) -> FastAPI:
    """The application. Nothing is opened before its lifespan starts, which raises a ScoterError if a part fails."""
    metrics = Metrics(CollectorRegistry())
    access = Access(settings.access)
    path = (access, settings.limits, metrics)

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
        routes=[
            Route("/recommend", Recommend(*path), methods=["POST"]),
            Route("/recommend/batch", RecommendBatch(*path), methods=["POST"]),
            Route("/events", AppendEvents(access), methods=["POST"]),
            Route("/admin/release", SwapRelease(access), methods=["POST"]),
        ],
    )
    app.state.metrics = metrics
    app.add_middleware(BodyLimit, limit=settings.limits.body_bytes, seconds=settings.limits.body_ms / 1000)
    app.add_middleware(
        RequestContext, metrics=metrics, routes=ROUTES, draining=lambda: app.state.serving.draining
    )  # added last, runs first
    app.add_exception_handler(ScoterError, _problem)
    app.add_exception_handler(HTTPException, _problem)
    _add_routes(app, metrics)
    app.openapi = partial(openapi, app, keys=bool(settings.access.api_keys), limits=settings.limits)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, metrics: Metrics) -> None:
    scraper = ThreadPoolExecutor(1, "metrics")  # the loop's own threads may all be waiting for a disk

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Whether the process answers; depends on nothing else."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready"}})
    async def readyz(request: Request) -> Response:
        """Whether requests should come here, and the state of every part that they need."""
        serving: Serving = request.app.state.serving
        status, parts = await serving.readiness()
        body = Readiness(status=status, release=serving.edition.release.id, parts=parts)
        return Response(body.model_dump_json(), 503 if status == "not ready" else 200, media_type="application/json")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def scrape() -> Response:
        """Metrics in Prometheus's text format."""
        metrics.look()
        # In a thread: of fifty arms they are thousands of lines, for which every request would wait tens of ms.
        text = await asyncio.get_running_loop().run_in_executor(scraper, generate_latest, metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _problem(request: Request, error: Exception) -> Response:
    return problem_response(error, request.state.request_id)
