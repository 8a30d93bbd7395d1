"""An engine whose server is away when the service starts: it is opened as soon as the server is there."""

from __future__ import annotations

import asyncio

import structlog

from service.engine.base import Engine, Engines, ModelInput, Ranking
from service.errors import EngineError, EngineUnavailable, ReleaseError
from service.release.release import Release

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 1.0


class AbsentEngine:
    """Fails every request until `maker` can open the release, which is tried again and again."""

    local = False  # what runs in this process is never away

    def __init__(self, maker: Engines, release: Release, *, pause: float = PAUSE_SECONDS) -> None:
        self._maker = maker
        self._release = release
        self._pause = pause
        self._engine: Engine | None = None
        self._opening = asyncio.create_task(self._open())

    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        """Rank items for one request. Raises EngineUnavailable while the engine is away, and what that one raises."""
        if self._engine is None:
            raise EngineUnavailable("the inference server was away when the service started, and is still")
        return await self._engine.infer(model, request, seconds)

    async def ready(self, model: str) -> bool:
        """Whether the engine is there and would answer for `model`."""
        return self._engine is not None and await self._engine.ready(model)

    async def close(self) -> None:
        """Stop trying, or close the engine."""
        self._opening.cancel()
        await asyncio.gather(self._opening, return_exceptions=True)
        if self._engine is not None:
            await self._engine.close()

    async def _open(self) -> None:
        said = ""
        while self._engine is None:
            try:
                self._engine = await self._maker.open(self._release)
            except (EngineError, ReleaseError) as error:
                if str(error) != said:  # once, however long it takes
                    said = str(error)
                    log.warning("engine_absent", release=self._release.id, error=said)
                await asyncio.sleep(self._pause)
        log.info("engine_opened", release=self._release.id)
