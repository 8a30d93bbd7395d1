"""The experiments in use: looked at again and again, replaced when they have changed and are good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Literal

import structlog

from service.errors import ExperimentsError, ExperimentsInvalid, ExperimentsUnavailable
from service.experiments.assignment import Experiments
from service.experiments.source import Source, open_source
from service.metrics import Metrics
from service.settings import ExperimentSettings

log = structlog.get_logger(__name__)


class LiveExperiments:
    """Holds the experiments of one process. `current` is replaced as a whole: take it once per request."""

    def __init__(
        self,
        source: Source | None,
        models: Callable[[], Collection[str]],  # of the release that is served now
        metrics: Metrics,
        prefix: str = "",
    ) -> None:
        self._source = source
        self._models = models
        self._metrics = metrics
        self._prefix = prefix
        self._looking = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._outage: str | None = None  # why the source cannot be read
        self._refusal: str | None = None  # what is wrong with its content
        self.current = Experiments.none()

    @classmethod
    async def open(
        cls, settings: ExperimentSettings, models: Callable[[], Collection[str]], metrics: Metrics
    ) -> LiveExperiments:
        """Read the experiments and watch their source.

        Raises ExperimentsInvalid if they are wrong, ExperimentsUnavailable if a file cannot be read: at start there is
        no earlier version to go on with. A URL that does not answer is no reason not to start: everybody gets the
        default, and the source is asked again.
        """
        source = open_source(settings)
        live = cls(source, models, metrics, settings.prefix)
        if source is None:
            return live
        metrics.experimenting(live.current.version)
        try:
            await live.reload()
        except ExperimentsUnavailable:
            if not settings.source or not settings.source.startswith(("http://", "https://")):
                raise
        live._watcher = asyncio.create_task(live._watch(settings.reload_seconds))
        return live

    async def reload(self) -> None:
        """Read the source now, changed or not; to be called when another release is served, too.

        Raises ExperimentsError if it cannot be read or is wrong. What was in use stays in use.
        """
        if self._source is not None:
            async with self._looking:
                self._source.forget()
                await self._look(self._source)

    @property
    def problem(self) -> str | None:
        """Why the experiments in use may not be those of the source; None if they are."""
        return self._outage or self._refusal

    async def close(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def _watch(self, seconds: float) -> None:
        assert self._source is not None  # noqa: S101 - `open` starts no watcher without one
        while True:
            await asyncio.sleep(seconds)
            try:
                async with self._looking:
                    await self._look(self._source)
            except ExperimentsError:
                continue  # told by `_look`
            except Exception:
                log.exception("experiments_watch_failed")  # a watcher that ends would let them go stale unnoticed

    async def _look(self, source: Source) -> None:
        try:
            content = await asyncio.to_thread(source.read)
            if content is None:  # and still as wrong as it was, if it was
                self._noted("unchanged", None, self._refusal)
                return
            experiments = await asyncio.to_thread(Experiments.read, content, self._prefix)
            experiments.check(self._models())
        except ExperimentsInvalid as error:
            self._noted("refused", None, f"{source.name}: {error}")
            raise
        except ExperimentsError as error:
            self._noted("unavailable", str(error), self._refusal)
            raise
        if experiments.version != self.current.version:
            log.info("experiments_loaded", version=experiments.version, experiments=list(experiments.variations))
        self.current = experiments
        self._metrics.experimenting(experiments.version)
        self._noted("loaded", None, None)

    def _noted(
        self, outcome: Literal["loaded", "unchanged", "refused", "unavailable"], outage: str | None, refusal: str | None
    ) -> None:
        before = self.problem
        self._outage, self._refusal = outage, refusal
        if outcome in {"refused", "unavailable"} and self.problem != before:  # once, not at every look
            log.error("experiments_not_loaded", reason=self.problem, still=self.current.version)
        self._metrics.experiments_looked(outcome, good=self.problem is None)
