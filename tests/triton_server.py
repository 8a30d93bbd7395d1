"""A real Triton server for tests, with the models that they deploy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_repo.local_server import Server, free_port, install
from offline.triton import Backend, Deployment, Profile, add, load
from service.release.release import Release
from service.settings import TritonSettings

INSTALLED = Path(__file__).parent.parent / ".tools" / "triton"
START_SECONDS = 60.0


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

    def settings(self, **changes: object) -> TritonSettings:
        """Patient enough for a busy test machine, unless the test is about impatience."""
        return TritonSettings.model_validate({"url": self.server.url, "check_timeout_ms": 20_000, **changes})

    async def deploy(self, release: Release, *, instances: int = 1, max_queue: int = 0) -> None:
        """Lay a release out and load it."""
        how = Deployment(Profile.cpu, Backend.python, instances, max_queue)
        add(release, self.repository, how)
        await load(release, self.settings())
