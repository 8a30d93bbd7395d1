"""What callers get when Triton fails, on a real server that is killed, paused, emptied, and given the wrong model."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import onnx
import pytest

from model_repo.local_server import ServerFailed
from offline.triton import Backend, Deployment, Profile, add, unload
from service.engine.deployed import deployed_name
from service.engine.triton import client
from service.release.manifest import TensorEntry
from service.release.release import Release
from tests.failures.scenario import Answer, Clients, run
from tests.ports import free_port
from tests.service.conftest import published_settings
from tests.service.server import ROOT, Server, command, serving, variables
from tests.service.tiny_release import TinyRelease, graph, write_release
from tests.triton_server import Triton

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

ATTEMPTS = 5
FALLBACK = {"SCOTER_FALLBACK__THREADS": "1"}
ADMIN = {"Authorization": "Bearer root"}
CPU = Deployment(Profile.cpu, Backend.python, 1)
PROBE_SECONDS = 2.0  # that Kubernetes waits for /readyz, k8s/base/service.yaml


@dataclass
class World:
    """A Triton server with a release's models, and what a service needs besides."""

    triton: Triton
    written: TinyRelease
    release: Release
    folder: Path

    @property
    def names(self) -> list[str]:
        return [deployed_name(model.name, self.release.id) for model in self.release.manifest.models]

    def service(self, **settings: str) -> AbstractContextManager[Server]:
        environment = self.settings(settings)
        return serving(self.folder / "releases", self.folder / "store", self.folder, environment=environment)

    def settings(self, more: dict[str, str]) -> dict[str, str]:
        engine = {"SCOTER_ENGINE__KIND": "triton", "SCOTER_ENGINE__URL": self.triton.server.url}
        return {**engine, "SCOTER_ACCESS__ADMIN_TOKEN": "root", **more}

    async def kill(self) -> None:
        await asyncio.to_thread(self.triton.server.kill)

    async def start(self) -> None:
        """A server on the same port, with the models that lie in the repository.

        Now and then 2.51 crashes while it loads two Python models at once (boost::interprocess::lock_exception); an
        orchestrator would start it again, too.
        """
        port = self.triton.server.port
        for attempt in range(ATTEMPTS):
            try:
                self.triton = await asyncio.to_thread(Triton.start, self.folder, "--load-model=*", port=port)
            except ServerFailed:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    async def unload(self) -> None:
        await unload(self.names, self.triton.settings())

    async def deploy(self) -> None:
        await self.triton.deploy(self.release)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Triton]:
    running = Triton.start(tmp_path)
    yield running
    running.server.kill()


@pytest.fixture
async def world(server: Triton, tmp_path: Path) -> AsyncIterator[World]:
    written = write_release(tmp_path / "releases")
    await asyncio.to_thread(published_settings, written, tmp_path / "store")
    made = World(server, written, Release.open(written.path), tmp_path)
    await made.deploy()
    yield made
    if made.triton is not server:
        made.triton.server.kill()


@pytest.fixture(params=[True, False], ids=["with-fallback", "without-fallback"])
def fallback(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def told(answers: list[Answer], *, fallback: bool) -> None:
    """Everybody was answered, and every answer says what became of it."""
    assert {answer.status for answer in answers} == {200}
    lesser = [answer for answer in answers if not answer.whole]
    assert lesser, "it made no difference"
    for answer in lesser:
        failures = {*answer.degraded} & {"engine_unavailable", "engine_timeout"}
        assert failures, answer.degraded
        if "engine_fallback" in answer.degraded:
            assert answer.source == "model"
            assert answer.reasoned  # the answer is the one that Triton would have given
        else:
            assert {*answer.degraded} == failures
            assert answer.source == "popular"
    saved = sum("engine_fallback" in answer.degraded for answer in lesser)
    if fallback:  # on a busy machine, whoever waited for Triton first may have no time left for the fallback
        assert saved > len(lesser) * 0.8
        assert all("engine_timeout" in one.degraded for one in lesser if "engine_fallback" not in one.degraded)
    else:
        assert saved == 0


async def broken_and_mended(world: World, failure: str, *, fallback: bool, **how: Callable[[], object]) -> None:
    """One failure under load; the service is whole again by itself, and Kubernetes never saw it unready."""
    name = f"{failure}, fallback" if fallback else failure
    with world.service(**(FALLBACK if fallback else {})) as service:
        probes: list[tuple[int, str, float]] = []

        async def mend() -> None:
            probes.append(await probe(service))
            await done(how["mend"])

        answers = await run(name, Clients(service, world.written), lambda: done(how["break_it"]), mend)
        told(answers, fallback=fallback)
        ((status, said, seconds),) = probes
        assert (status, said) == (200, "degraded")
        assert seconds < PROBE_SECONDS
        assert (await probe(service))[:2] == (200, "ok")
        assert service.metric("scoter_breakers_open") == 0
        assert "Traceback" not in "\n".join(service.lines())


async def done(step: Callable[[], object]) -> None:
    result = step()
    if asyncio.iscoroutine(result):
        await result


async def probe(service: Server) -> tuple[int, str, float]:
    """Status and state of /readyz, and the seconds that it took to say so: a busy test machine has three tries."""
    async with httpx2.AsyncClient(base_url=service.address, timeout=30) as asking:
        probes: list[tuple[int, str, float]] = []
        while len(probes) < 3 and not (probes and probes[-1][0] == 200 and probes[-1][2] < PROBE_SECONDS):
            started = time.monotonic()
            ready = await asking.get("/readyz")
            probes.append((ready.status_code, ready.json()["status"], time.monotonic() - started))
        return probes[-1]


async def test_killed(world: World, fallback: bool) -> None:
    await broken_and_mended(world, "Triton killed", fallback=fallback, break_it=world.kill, mend=world.start)


async def test_paused(world: World, fallback: bool) -> None:
    """A server that hangs, until its orchestrator starts it anew.

    Let go on by SIGCONT alone, 2.51 with its Python backend does not always answer again on a busy machine (requests
    time out in it, or are refused, for as long as one looks): that is the server's, and not what is tested here.
    """

    async def restart() -> None:
        world.triton.server.signal(signal.SIGCONT)
        await world.kill()
        await world.start()

    await broken_and_mended(
        world,
        "Triton paused, then restarted",
        fallback=fallback,
        break_it=partial(world.triton.server.signal, signal.SIGSTOP),
        mend=restart,
    )


async def test_model_missing(world: World, fallback: bool) -> None:
    await broken_and_mended(
        world, "Triton: model unloaded", fallback=fallback, break_it=world.unload, mend=world.deploy
    )


async def test_wrong_shape_under_the_live_releases_name(world: World, fallback: bool) -> None:
    async def redeploy() -> None:
        """A graph that returns one item less, whose configuration says so."""
        for model in world.release.manifest.models:
            folder = world.triton.repository / deployed_name(model.name, world.release.id)
            path = folder / "1" / "model.onnx"
            other = model.model_copy(
                update={"beam": model.beam - 1, "outputs": [fewer(tensor, model.beam) for tensor in model.outputs]}
            )
            onnx.save(graph(other, world.written.embeddings, world.written.bias), path)
            config = folder / "config.pbtxt"
            told = config.read_text().replace(world.release.manifest.files[model.file].sha256, digest(path))
            config.write_text(told.replace(f"dims: {model.beam}", f"dims: {model.beam - 1}"))
            async with client(world.triton.settings()) as connection:
                await connection.load_model(folder.name)

    await broken_and_mended(
        world,
        "Triton: model of wrong shape",
        fallback=fallback,
        break_it=redeploy,
        mend=world.deploy,
    )


def fewer(tensor: TensorEntry, beam: int) -> TensorEntry:
    return tensor.model_copy(update={"shape": [beam - 1 if size == beam else size for size in tensor.shape]})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_release_whose_model_on_the_server_is_another_is_refused(world: World) -> None:
    """The old release goes on answering, and the new one is taken once the right model is there."""
    other = write_release(world.folder / "releases", seed=5)
    new = Release.open(other.path)
    add(new, world.triton.repository, CPU)
    name = deployed_name("scoter_h", new.id)
    path = world.triton.repository / name / "1" / "model.onnx"
    proto = onnx.load(path)
    proto.doc_string = "altered"
    onnx.save(proto, path)
    config = path.parents[1] / "config.pbtxt"
    config.write_text(config.read_text().replace(new.manifest.files[new.model("scoter_h").file].sha256, digest(path)))
    async with client(world.triton.settings()) as connection:
        for model in new.manifest.models:
            await connection.load_model(deployed_name(model.name, new.id))

    with world.service() as service:
        refused: list[httpx2.Response] = []

        async def swap() -> None:
            refused.append(await asked_to_serve(service, new.id))

        answers = await run(
            "swap to a release that Triton has wrong", Clients(service, world.written), swap, lambda: None, seconds=0.5
        )
        assert all(answer.whole for answer in answers)
        (problem,) = refused
        assert problem.status_code == 503
        assert problem.json()["type"] == "urn:scoter:problem:release"
        assert name in problem.json()["detail"]
        assert "sha256" in problem.json()["detail"]
        assert service.metric('scoter_swaps_total{outcome="refused"}') == 1

        await world.triton.deploy(new)
        assert (await asked_to_serve(service, new.id)).json() == {"release": new.id, "previous": world.release.id}


async def asked_to_serve(service: Server, release_id: str) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=service.address, timeout=60, headers=ADMIN) as admin:
        return await admin.post("/admin/release", json={"release": release_id})


async def test_away_when_the_service_starts(world: World) -> None:
    """The fallback answers from the first request on; Triton does from when it is there, with nobody's help."""
    await world.kill()
    with world.service(**FALLBACK) as service:
        assert (await probe(service))[:2] == (200, "degraded")
        answers = await run(
            "Triton away at the start, fallback",
            Clients(service, world.written),
            lambda: None,
            world.start,
            well_before=False,
        )
        told(answers, fallback=True)
        assert (await probe(service))[:2] == (200, "ok")


@pytest.mark.parametrize("away", ["nobody there", "hanging", "without the model"])
async def test_without_triton_and_fallback_a_start_says_why_and_ends(world: World, away: str) -> None:
    match away:
        case "nobody there":
            await world.kill()
        case "hanging":
            world.triton.server.signal(signal.SIGSTOP)
        case _:
            await world.unload()
    done = await asyncio.to_thread(
        subprocess.run,
        command(world.folder / "releases", world.folder / "store", free_port()),
        cwd=ROOT,
        env=variables(world.settings({})),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # beside the log's own lines
    assert len(said) == 1, done.stderr
    assert said[0].startswith("scoter-serve: looking up model '")
    assert world.triton.server.url in said[0]
