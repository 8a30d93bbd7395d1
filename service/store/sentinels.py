"""Sentinels: they name the master to whoever connects."""

from __future__ import annotations

import asyncio

from redis.asyncio import Sentinel

Where = tuple[str, int]  # host and port


class Sentinels(Sentinel):
    """Asked once for all connections that are made at the same time.

    The library has each of them open another one to a sentinel, which stays, and a sentinel serves many processes.
    """

    _asked: asyncio.Task[Where] | None = None

    async def discover_master(self, service_name: str) -> Where:
        """Where the master is, of the one service that this is for. Raises MasterNotFoundError."""
        if self._asked is None:
            self._asked = asyncio.ensure_future(super().discover_master(service_name))
            self._asked.add_done_callback(self._answered)
        return await asyncio.shield(self._asked)  # whoever is cancelled cancels nobody else

    def _answered(self, task: asyncio.Task[Where]) -> None:
        self._asked = None
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more
