"""What only the Triton engine does, against real servers. What every engine does is in test_contract.py."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import trustme
from tritonclient.grpc import aio as triton_client

from offline.triton import Backend, Deployment, Profile, add, load, unload
from service.engine.base import Engine, ModelInput
from service.engine.deployed import deployed_name
from service.engine.open import open_engines
from service.engine.triton import TritonEngine, TritonEngines, client, target
from service.errors import EngineError, EngineOverloaded, EngineUnavailable, ReleaseCorrupt
from service.release.release import Release
from service.settings import OnnxSettings, TritonSettings
from tests.service.tiny_release import T, TinyRelease, write_release
from tests.triton_server import Triton

pytestmark = pytest.mark.anyio

PATIENT = 30.0  # seconds
LATE = 0.05  # seconds after its time limit by which a request must have ended
SLACK = 0.5  # more of it for a busy test machine


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release whose models take tens of milliseconds."""
    return Release.open(write_release(tmp_path_factory.mktemp("slow"), rounds=96).path)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Triton]:
    """A server that the test may break."""
    running = Triton.start(tmp_path)
    yield running
    running.server.kill()


@pytest.fixture
async def engine(triton: Triton, tiny: TinyRelease) -> AsyncIterator[TritonEngine]:
    release = Release.open(tiny.path)
    await triton.deploy(release)
    engines = TritonEngines(triton.settings())
    opened = await engines.open(release)
    yield opened
    await opened.close()
    await engines.close()


def asked(*exclude: int) -> ModelInput:
    return ModelInput(np.arange(1, T + 1, dtype=np.int64), None, np.array(exclude, np.int64))


async def outcome(engine: Engine, seconds: float) -> tuple[str, float]:
    """What became of a request, and after how many seconds."""
    started = time.perf_counter()
    try:
        await engine.infer("hstu", asked(), seconds)
        ended = "answered"
    except EngineError as error:
        ended = type(error).__name__
    return ended, time.perf_counter() - started


async def quickest(engine: Engine, seconds: float) -> tuple[str, float]:
    """The outcome that came soonest of three: a busy test machine may stop while it waits for one."""
    return min([await outcome(engine, seconds) for _ in range(3)], key=lambda found: found[1])


async def until_answered(engine: Engine, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (await outcome(engine, 5.0))[0] != "answered":
        assert time.monotonic() < end, f"no recovery within {seconds} s"
        await asyncio.sleep(0.05)


async def statistics(server: Triton, name: str) -> Any:
    """A model's counters, once they stand still: they are counted after the answer has been sent."""
    async with client(server.settings()) as connection:
        last = None
        while True:
            (found,) = (await connection.get_inference_statistics(name)).model_stats
            if last == found:
                return found
            last = found
            await asyncio.sleep(0.1)


def test_settings_choose_the_engine() -> None:
    assert type(open_engines(OnnxSettings(threads=1))).__name__ == "OnnxEngines"
    assert type(open_engines(TritonSettings(url="triton:8001"))).__name__ == "TritonEngines"


async def test_requests_of_one_moment_run_together(triton: Triton, slow: Release) -> None:
    await triton.deploy(slow)
    name = deployed_name("hstu", slow.id)
    engines = TritonEngines(triton.settings())
    engine = await engines.open(slow)
    before = await statistics(triton, name)
    # Of different lengths, so that what is padded has to be put together as well.
    rankings = await asyncio.gather(*(engine.infer("hstu", asked(*range(1, n)), PATIENT) for n in range(1, 25)))
    after = await statistics(triton, name)
    for number, ranking in enumerate(rankings, start=1):
        assert not set(ranking.items[ranking.valid].tolist()) & set(range(1, number))
    assert after.inference_count - before.inference_count == 24
    assert after.execution_count - before.execution_count <= 8
    await engine.close()
    await engines.close()


async def test_too_many_requests_of_this_process_are_an_overload(triton: Triton, slow: Release) -> None:
    await triton.deploy(slow)
    engines = TritonEngines(triton.settings(in_flight=3))
    engine = await engines.open(slow)
    running = [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for _ in range(3)]
    await asyncio.sleep(0)
    assert engines.waiting() == 3
    with pytest.raises(EngineOverloaded, match="3 requests"):
        await engine.infer("hstu", asked(), PATIENT)
    await asyncio.gather(*running)
    assert engines.waiting() == 0
    assert (await engine.infer("hstu", asked(), PATIENT)).valid.all()
    await engine.close()
    await engines.close()


@pytest.mark.slow
async def test_a_server_that_crashed_costs_no_other_test(own_server: Triton, tiny: TinyRelease) -> None:
    release = Release.open(tiny.path)
    await own_server.deploy(release)
    own_server.server.kill()
    own_server.revive()
    engines = TritonEngines(own_server.settings())
    engine = await engines.open(release)
    assert (await outcome(engine, PATIENT))[0] == "answered"
    await engines.close()
    own_server.server.kill()
    await own_server.deploy(release)


@pytest.mark.slow
async def test_a_queue_policy_refuses_and_times_out(own_server: Triton, slow: Release) -> None:
    await own_server.deploy(slow, max_queue=4)
    engines = TritonEngines(own_server.settings())
    engine = await engines.open(slow)
    outcomes = [ended for ended, _ in await asyncio.gather(*(outcome(engine, PATIENT) for _ in range(60)))]
    assert set(outcomes) == {"answered", "EngineOverloaded"}
    outcomes = [ended for ended, _ in await asyncio.gather(*(outcome(engine, 0.005) for _ in range(4)))]
    assert "EngineTimeout" in outcomes
    await until_answered(engine, 10)
    await engine.close()
    await engines.close()


async def test_cancelled_requests_are_not_run(triton: Triton, slow: Release) -> None:
    await triton.deploy(slow)
    name = deployed_name("hstu", slow.id)
    engines = TritonEngines(triton.settings())
    engine = await engines.open(slow)
    before = await statistics(triton, name)
    tasks = [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for _ in range(200)]
    await asyncio.sleep(0.1)  # sent, and one batch begun
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert engines.waiting() == 0
    assert (await engine.infer("hstu", asked(), PATIENT)).valid.all()  # queued behind whatever is still run
    after = await statistics(triton, name)
    assert after.inference_count - before.inference_count < 150
    await engine.close()
    await engines.close()


async def test_an_unloaded_model_is_unavailable_until_it_is_loaded_again(
    triton: Triton, engine: TritonEngine, tiny: TinyRelease
) -> None:
    await unload([deployed_name("hstu", tiny.manifest.release_id)], triton.settings())
    end = time.monotonic() + 10
    while await engine.ready("hstu"):
        assert time.monotonic() < end
    with pytest.raises(EngineUnavailable, match=r"scoter triton add|failed"):
        await engine.infer("hstu", asked(), PATIENT)
    assert await engine.ready("scoter_h")
    with pytest.raises(EngineUnavailable, match="looking up model"):
        await TritonEngines(triton.settings()).open(Release.open(tiny.path))
    await triton.deploy(Release.open(tiny.path))
    assert await engine.ready("hstu")
    assert (await engine.infer("hstu", asked(), PATIENT)).valid.all()


async def test_two_releases_are_served_side_by_side(triton: Triton, tiny: TinyRelease, tmp_path: Path) -> None:
    other = write_release(tmp_path, seed=7)
    releases = [Release.open(tiny.path), Release.open(other.path)]
    engines = TritonEngines(triton.settings())
    opened = []
    for release in releases:
        await triton.deploy(release)
        opened.append(await engines.open(release))
    rankings = await asyncio.gather(*(engine.infer("hstu", asked(), PATIENT) for engine in opened))
    for ranking, written in zip(rankings, (tiny, other), strict=True):
        expected = written.expected(list(range(1, T + 1)), None, set(), 10)
        assert ranking.items.tolist() == [item for item, _ in expected]
    # The one that leaves takes nothing from the other.
    await opened[0].close()
    assert not await opened[0].ready("hstu")
    assert (await opened[1].infer("hstu", asked(), PATIENT)).valid.all()
    await opened[1].close()
    await engines.close()


@pytest.mark.slow
async def test_a_polling_server_finds_a_release_by_itself(tmp_path: Path, tiny: TinyRelease) -> None:
    release = Release.open(tiny.path)
    polling = Triton.start(tmp_path, "--model-control-mode=poll", "--repository-poll-secs=1")
    try:
        engines = TritonEngines(polling.settings())
        with pytest.raises(EngineUnavailable, match="looking up model"):
            await engines.open(release)
        add(release, polling.repository, Deployment(Profile.cpu, Backend.python, 1))
        end = time.monotonic() + 20
        engine = None
        while engine is None:
            assert time.monotonic() < end, polling.server.tail()
            with suppress(EngineUnavailable):
                engine = await engines.open(release)
            await asyncio.sleep(0.1)
        assert (await engine.infer("hstu", asked(), PATIENT)).valid.all()
        await engine.close()
        await engines.close()
    finally:
        polling.server.kill()


@pytest.mark.slow
async def test_a_killed_server_is_found_again_by_the_same_client(own_server: Triton, tiny: TinyRelease) -> None:
    release = Release.open(tiny.path)
    await own_server.deploy(release)
    engines = TritonEngines(own_server.settings(check_timeout_ms=2_000))
    engine = await engines.open(release)
    assert (await outcome(engine, PATIENT))[0] == "answered"
    own_server.server.kill()
    for _ in range(3):
        ended, seconds = await quickest(engine, 0.5)
        assert ended in {"EngineUnavailable", "EngineTimeout"}
        assert seconds < 0.5 + LATE + SLACK
    assert not await engine.ready("hstu")
    with pytest.raises(EngineUnavailable):
        await engines.open(release)
    again = Triton.start(own_server.repository.parent, "--load-model=*", port=own_server.server.port)
    try:
        await until_answered(engine, 20)
        assert await engine.ready("hstu")
    finally:
        again.server.kill()
    await engine.close()
    await engines.close()


@pytest.mark.slow
async def test_a_server_that_hangs_costs_no_more_than_the_time_limit(own_server: Triton, tiny: TinyRelease) -> None:
    release = Release.open(tiny.path)
    await own_server.deploy(release)
    engines = TritonEngines(own_server.settings(check_timeout_ms=300))
    engine = await engines.open(release)
    assert (await outcome(engine, PATIENT))[0] == "answered"
    own_server.server.signal(signal.SIGSTOP)
    outcomes = await asyncio.gather(*(quickest(engine, seconds) for seconds in (0.05, 0.1, 0.2, 0.3)))
    for (ended, seconds), limit in zip(outcomes, (0.05, 0.1, 0.2, 0.3), strict=True):
        assert ended == "EngineTimeout"
        assert seconds < limit + LATE + SLACK
    assert not await engine.ready("hstu")
    own_server.server.signal(signal.SIGCONT)
    await until_answered(engine, 10)
    await engine.close()
    await engines.close()


async def test_closing_waits_for_what_runs(triton: Triton, slow: Release) -> None:
    await triton.deploy(slow)
    engines = TritonEngines(triton.settings())
    engine = await engines.open(slow)
    running = [asyncio.create_task(engine.infer("hstu", asked(), PATIENT)) for _ in range(5)]
    await asyncio.sleep(0.01)
    await engine.close()
    assert all(task.done() for task in running)
    assert all(ranking.valid.all() for ranking in await asyncio.gather(*running))
    await engines.close()


async def test_a_model_that_is_not_the_releases_is_refused(triton: Triton, tmp_path: Path) -> None:
    written = write_release(tmp_path, seed=11)
    release = Release.open(written.path)
    how = Deployment(Profile.cpu, Backend.python, 1)
    add(release, triton.repository, how)
    name = deployed_name("hstu", release.id)
    config = triton.repository / name / "config.pbtxt"
    graph = triton.repository / name / "1" / "model.onnx"
    engines = TritonEngines(triton.settings())
    async with client(triton.settings()) as server:
        for model in release.manifest.models:
            await server.load_model(deployed_name(model.name, release.id))
        await engines.open(release)

        # Another graph under the release's name, with a configuration that tells the truth about it.
        proto = onnx.load(graph)
        proto.doc_string = "altered"
        onnx.save(proto, graph)
        config.write_text(config.read_text().replace(sha256(release, "hstu"), digest(graph)))
        await server.load_model(name)
        with pytest.raises(ReleaseCorrupt, match=r"graph has sha256 .* the manifest's"):
            await engines.open(release)

        # A configuration of another shape.
        config.write_text(config.read_text().replace("dims: 10", "dims: 9"))
        await server.load_model(name)
        with pytest.raises(ReleaseCorrupt, match=r"output 'item' is int64\[\*, 9\] on the server"):
            await engines.open(release)

        # A configuration that lies about the graph beside it does not load at all.
        config.write_text(config.read_text().replace(digest(graph), "0" * 64))
        with pytest.raises(triton_client.InferenceServerException, match="deploy it again"):
            await server.load_model(name)
    await engines.close()


def sha256(release: Release, model: str) -> str:
    return release.manifest.files[release.model(model).file].sha256


def digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_nobody_there_is_unavailable_at_once(tiny: TinyRelease) -> None:
    engines = TritonEngines(TritonSettings(url="127.0.0.1:9"))
    times = []
    for _ in range(3):  # a busy test machine may stop for a while
        started = time.perf_counter()
        with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:9"):
            await engines.open(Release.open(tiny.path))
        times.append(time.perf_counter() - started)
    assert min(times) < 2 + SLACK
    await engines.close()


@pytest.mark.parametrize(
    "url, expected",
    [
        ("triton:8001", "dns:///triton:8001"),
        ("127.0.0.1:8001", "dns:///127.0.0.1:8001"),
        ("ipv4:10.0.0.1:8001,10.0.0.2:8001", "ipv4:10.0.0.1:8001,10.0.0.2:8001"),
        ("dns://8.8.8.8/triton:8001", "dns://8.8.8.8/triton:8001"),
        ("xds:///triton", "xds:///triton"),
        ("unix:/run/triton.sock", "unix:/run/triton.sock"),
    ],
)
def test_an_address_without_a_scheme_is_looked_up_in_dns(url: str, expected: str) -> None:
    assert target(url) == expected


@pytest.mark.slow
async def test_tls_on_both_sides(tmp_path: Path, tiny: TinyRelease) -> None:
    authority = trustme.CA()
    ours, theirs = authority.issue_cert("service.example"), authority.issue_cert("127.0.0.1")
    files = {
        name: tmp_path / f"{name}.pem" for name in ("ca", "certificate", "key", "server", "server_key", "stranger")
    }
    authority.cert_pem.write_to_path(files["ca"])
    trustme.CA().cert_pem.write_to_path(files["stranger"])
    for leaf, certificate, key in ((ours, "certificate", "key"), (theirs, "server", "server_key")):
        leaf.cert_chain_pems[0].write_to_path(files[certificate])
        leaf.private_key_pem.write_to_path(files[key])
    options = [
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={files['server']}",
        f"--grpc-server-key={files['server_key']}",
        f"--grpc-root-cert={files['ca']}",
    ]
    running = Triton.start(tmp_path, *options)
    try:
        release = Release.open(tiny.path)
        mutual = running.settings(ca=files["ca"], certificate=files["certificate"], key=files["key"])
        add(release, running.repository, Deployment(Profile.cpu, Backend.python, 1))
        await load(release, mutual)
        engines = TritonEngines(mutual)
        engine = await engines.open(release)
        assert (await outcome(engine, PATIENT))[0] == "answered"
        await engine.close()
        await engines.close()
        plain, anonymous = running.settings(), running.settings(ca=files["ca"])
        misled = mutual.model_copy(update={"ca": files["stranger"]})
        for settings in (plain, anonymous, misled):
            refused = TritonEngines(settings)
            with pytest.raises(EngineUnavailable):
                await refused.open(release)
            await refused.close()
    finally:
        running.server.kill()
