"""A real Triton server for tests, with the models that they deploy."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass
from pathlib import Path

from model_repo.local_server import Server, install
from offline.errors import StageError
from offline.triton import Backend, Deployment, Profile, add, load
from service.release.release import Release
from service.settings import TritonSettings
from tests.ports import free_port

INSTALLED = Path(__file__).parent.parent / ".tools" / "triton"
START_SECONDS = 60.0
ATTEMPTS = 3
END_SECONDS = 5.0  # for a server that crashes to be gone


@dataclass
class Triton:
    """A server, its deployment repository and how to reach it."""

    repository: Path
    server: Server

    @classmethod
    def start(cls, folder: Path, *options: str, port: int | None = None) -> Triton:
        repository = folder / "repository"
        repository.mkdir(exist_ok=True)
        home = install(INSTALLED)
        server = Server(home, repository, port or free_port(), folder / "triton.log", options)
        try:
            server.wait(START_SECONDS)
        except BaseException:
            server.kill()
            raise
        return cls(repository, server)

    def revive(self) -> None:
        """Start the server anew, with all that lies in the repository, if it has ended.

        2.51 crashes when the machine stops for more than a second while it loads or runs Python models, whose processes
        it then takes for dead (boost::interprocess::lock_exception).
        """
        if self.server.process.poll() is not None:
            self.server.kill()  # what it has left
            self.server = Triton.start(self.repository.parent, "--load-model=*", port=self.server.port).server

    def settings(self, **changes: object) -> TritonSettings:
        """Patient enough for a busy test machine, unless the test is about impatience."""
        return TritonSettings.model_validate({"url": self.server.url, "check_timeout_ms": 20_000, **changes})

    async def deploy(self, release: Release, *, instances: int = 1, max_queue: int = 0) -> None:
        """Lay a release out and load it, if need be on a server that is started anew."""
        how = Deployment(Profile.cpu, Backend.python, instances, max_queue)
        add(release, self.repository, how)
        for _ in range(ATTEMPTS - 1):
            try:
                return await load(release, self.settings())
            except StageError as error:
                try:
                    await asyncio.to_thread(self.server.process.wait, END_SECONDS)
                except subprocess.TimeoutExpired:
                    raise error from None
                await asyncio.to_thread(self.revive)
        return await load(release, self.settings())
