from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr, TypeAdapter
from redis import Redis

from service.experiments.arm import Arm
from service.experiments.assignment import UNASSIGNED, Assigned, Assignment
from service.exposures.event import ExposedItem, Exposure, encode
from service.exposures.log import ExposureLog
from service.exposures.sinks import SinkFailed, StdoutSink
from service.metrics import Metrics
from service.schemas import RecommendResponse
from service.settings import ExposureSettings, RedisSettings
from service.store.keys import user_tag
from tests.conftest import redis_settings
from tests.ports import free_port
from tests.redis_server import PLAIN, start

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[3]


def exposure(number: int = 0, user_id: str = "very-private-user") -> Exposure:
    return Exposure(
        ts=1_763_872_086.25,
        request_id=f"r{number}",
        user_id=user_id,
        arm=Arm(model="scoter_h", reasoning=True),
        label="model=scoter",
        experiments=(Assigned("model", "scoter", 0.5, 0.1234, forced=False),),
        holdout=False,
        shadow=False,
        release="0a9f42a2c9cd1e84",
        model="scoter_h",
        reasoning=True,
        reasoning_miss=None,
        reasoning_age=3600.5,
        history_length=7,
        items=tuple(ExposedItem(f"i{position}", position, -1.5 * position) for position in range(1, 11)),
        degraded=(),
        latency_ms=4.25,
    )


class Counts:
    """What the metrics say."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def written(self, sink: str) -> float:
        return self._registry.get_sample_value("scoter_exposures_written_total", {"sink": sink}) or 0

    def dropped(self, sink: str, reason: str) -> float:
        labels = {"sink": sink, "reason": reason}
        return self._registry.get_sample_value("scoter_exposures_dropped_total", labels) or 0


@asynccontextmanager
async def logging(**changes: Any) -> AsyncIterator[tuple[ExposureLog, Counts]]:
    registry = CollectorRegistry()
    settings = ExposureSettings.model_validate({"linger_seconds": 0.001, **changes})
    opened = ExposureLog(settings, Metrics(registry))
    try:
        yield opened, Counts(registry)
    finally:
        await opened.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def failing(log: ExposureLog) -> bool:
    """Whether the only sink has failed at its last try."""
    (channel,) = log._channels
    return channel._failure is not None


def ids(path: Path) -> list[str]:
    return [json.loads(line)["request_id"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_event_is_one_line_that_reads_back() -> None:
    event = exposure(user_id="Zoë\n\u2028")
    line = encode(event, tagged=False)
    assert b"\n" not in line
    assert TypeAdapter(Exposure).validate_json(line) == event
    fields = json.loads(line)
    assert fields["experiments"] == [
        {"experiment": "model", "variation": "scoter", "weight": 0.5, "bucket": 0.1234, "forced": False}
    ]
    assert fields["items"][0] == {"id": "i1", "position": 1, "score": -1.5}


def response(**changes: Any) -> RecommendResponse:
    given: dict[str, Any] = RecommendResponse.model_json_schema()["examples"][0]
    return RecommendResponse.model_validate({**given, **changes})


def test_an_event_says_what_was_answered_and_why() -> None:
    assigned = Assignment(Arm(model="scoter_h"), (Assigned("m", "a", 0.5, 0.1, forced=False),), (), False, "m=a")
    event = Exposure.of(response(), "u1", assigned, 4.25, 9)
    assert (event.request_id, event.user_id, event.label) == ("0f8fad5bd9cb469fa165708b3a6c7c4e", "u1", "m=a")
    assert (event.arm, event.experiments, event.shadow) == (assigned.arm, assigned.experiments, False)
    assert (event.model, event.reasoning, event.history_length) == ("scoter_h", True, 9)
    assert event.items == (ExposedItem("B0002JHI1I", 1, -2.31),)
    assert event.reasoning_age == pytest.approx(time.time() - 1_748_747_565, abs=60)
    assert TypeAdapter(Exposure).validate_json(encode(event, tagged=False)) == event
    shadow = Exposure.of(response(), "u1", assigned, 4.25, 9, Arm(model="hstu"))
    assert (shadow.arm, shadow.shadow) == (Arm(model="hstu"), True)


def test_an_event_of_a_lesser_answer_names_no_model_and_no_history_it_does_not_know() -> None:
    silent = {**dict.fromkeys(response().reasoning.model_dump()), "used": False, "reason": "store_timeout"}
    nothing = {"source": "none", "used": 0, "unknown": 0, "excluded": 0}
    lesser = response(source="popular", reasoning=silent, history=nothing, degraded=["store_timeout", "no_history"])
    event = Exposure.of(lesser, "u1", UNASSIGNED, 4.25, 0)
    assert (event.model, event.reasoning, event.reasoning_age, event.history_length) == (None, False, None, None)
    assert event.degraded == ("store_timeout", "no_history")
    stranger = response(source="popular", reasoning=silent, history=nothing, degraded=["no_history"])
    assert Exposure.of(stranger, "u1", UNASSIGNED, 4.25, 0).history_length == 0


def test_users_are_named_by_tag_unless_asked_otherwise() -> None:
    line = encode(exposure(), tagged=True)
    assert b"very-private-user" not in line
    assert json.loads(line)["user_tag"] == user_tag("very-private-user")
    assert json.loads(line)["user_id"] is None


async def test_every_event_reaches_every_sink_in_order(tmp_path: Path, redis_port: int) -> None:
    admin = Redis(port=redis_port)
    admin.delete("exposures")
    path = tmp_path / "logs" / "exposures.jsonl"
    async with logging(file=path, redis=redis_settings(redis_port), stream="exposures", batch=7) as (log, counts):
        for number in range(100):
            log.record(exposure(number))
        await until(lambda: counts.written("redis") == counts.written("file") == 100)
    assert ids(path) == [f"r{number}" for number in range(100)]
    entries: Any = admin.xrange("exposures")
    assert [json.loads(fields[b"exposure"])["request_id"] for _, fields in entries] == ids(path)
    admin.delete("exposures")
    admin.close()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["sentinel_url", "cluster_url"])
async def test_the_stream_may_be_behind_sentinels_or_in_a_cluster(request: pytest.FixtureRequest, where: str) -> None:
    url = request.getfixturevalue(where)
    async with logging(redis=redis_settings(url), stream="anywhere", batch=7) as (log, counts):
        for number in range(20):
            log.record(exposure(number))
        await until(lambda: counts.written("redis") == 20)


@pytest.mark.slow
async def test_a_user_who_may_not_write_the_stream_costs_exposures_and_nothing_else(tls_url: str) -> None:
    # That server's user may read and write the store, and knows no XADD.
    async with logging(redis=redis_settings(tls_url), queue=1, close_seconds=0.2) as (log, counts):
        log.record(exposure())
        await until(lambda: failing(log))
        log.record(exposure())
        assert counts.dropped("redis", "unavailable") == 1


async def test_the_stream_keeps_about_as_much_as_it_is_told(redis_port: int) -> None:
    admin = Redis(port=redis_port)
    admin.delete("short")
    async with logging(redis=redis_settings(redis_port), stream="short", stream_length=200) as (log, counts):
        for number in range(3000):
            log.record(exposure(number))
        await until(lambda: counts.written("redis") == 3000)
    assert 200 <= admin.xlen("short") < 600
    admin.delete("short")
    admin.close()


async def test_closing_writes_what_waits(tmp_path: Path) -> None:
    async with logging(file=tmp_path / "e", linger_seconds=60, batch=10) as (log, _):
        for number in range(500):
            log.record(exposure(number))
    assert len(ids(tmp_path / "e")) == 500


async def test_what_arrives_while_the_writer_lingers_is_written_together(tmp_path: Path) -> None:
    path = tmp_path / "e"
    async with logging(file=path, linger_seconds=60, batch=10) as (log, counts):
        log.record(exposure(0))
        await until(lambda: counts.written("file") == 1)
        log.record(exposure(1))
        await asyncio.sleep(0.1)
        assert counts.written("file") == 1
        log.record(exposure(2))
    assert ids(path) == ["r0", "r1", "r2"]


async def test_a_file_that_is_moved_away_is_opened_again_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "e"
    async with logging(file=path) as (log, counts):
        for turn in range(3):
            for number in range(10):
                log.record(exposure(10 * turn + number))
            await until(lambda turn=turn: counts.written("file") == 10 * (turn + 1))  # type: ignore[misc]
            path.rename(tmp_path / f"e.{turn}")
    assert [ids(tmp_path / f"e.{turn}") for turn in range(3)] == [
        [f"r{number}" for number in range(10 * turn, 10 * turn + 10)] for turn in range(3)
    ]


async def test_one_thread_writes_it_all_as_the_loop_waits_for_every_one_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    async with logging(file=tmp_path / "e") as (log, counts):
        for number in range(5):
            log.record(exposure(number))
            await until(lambda number=number: counts.written("file") == number + 1)  # type: ignore[misc]
    (writer,) = started
    await asyncio.to_thread(writer.join, 10)
    assert not writer.is_alive()  # closing ends it


async def test_half_a_line_of_a_process_that_was_killed_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    whole, half = encode(exposure(0), tagged=True), encode(exposure(1), tagged=True)[:100]
    path.write_bytes(whole + b"\n" + half)
    for number in (2, 3):  # the second process finds whole lines, and begins no empty one
        async with logging(file=path) as (exposures, _):
            exposures.record(exposure(number))
    first, torn, *rest = path.read_bytes().splitlines()
    assert (first, torn) == (whole, half)
    assert [json.loads(line)["request_id"] for line in rest] == ["r2", "r3"]


async def test_a_full_disk_costs_events_and_no_answer_and_it_recovers(tmp_path: Path) -> None:
    # A limit on the size of files stands in for the disk's end: the write comes back short, and the next one fails.
    path = tmp_path / "e"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with logging(file=path, queue=50, batch=20) as (log, counts):
        log.record(exposure(0))
        await until(lambda: counts.written("file") == 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1000, before[1]))
        try:
            for number in range(1, 41):
                log.record(exposure(number))
            await until(lambda: failing(log))
            await asyncio.sleep(0.3)  # it tries again
            assert counts.written("file") == 1
            for number in range(41, 101):
                log.record(exposure(number))
            assert counts.dropped("file", "disk_full") == 50
            assert ids(path) == ["r0"]  # no half line is left
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await until(lambda: counts.written("file") == 51)
    assert ids(path) == [f"r{number}" for number in range(51)]


async def test_a_full_disk_has_a_reason_of_its_own() -> None:
    async with logging(file=Path("/dev/full"), queue=1, close_seconds=0.2) as (log, counts):
        log.record(exposure())
        await until(lambda: failing(log))
        log.record(exposure())
        assert counts.dropped("file", "disk_full") == 1
    assert counts.dropped("file", "disk_full") == 2


async def test_a_sink_that_is_too_slow_fills_its_queue_and_not_the_others(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        slow = RedisSettings(url=SecretStr(address), connect_timeout_ms=500, write_timeout_ms=60_000)
        async with logging(redis=slow, file=tmp_path / "e", queue=30, close_seconds=0.1) as (log, counts):
            for number in range(200):
                log.record(exposure(number))
                if number % 10 == 0:
                    await asyncio.sleep(0.01)
            await until(lambda: counts.written("file") == 200)
            assert counts.dropped("redis", "queue_full") + counts.dropped("redis", "timeout") == 170
            started = time.perf_counter()
        assert time.perf_counter() - started < 5
        assert counts.dropped("redis", "closed") + counts.dropped("redis", "timeout") >= 30


async def test_redis_may_be_away_for_a_while(tmp_path: Path) -> None:
    port = free_port()
    async with logging(redis=redis_settings(port), stream="later") as (log, counts):
        for number in range(20):
            log.record(exposure(number))
        await asyncio.sleep(0.15)
        assert counts.written("redis") == 0
        late = start(tmp_path, *PLAIN, port=port)
        try:
            await until(lambda: counts.written("redis") == 20)
            assert late.admin.xlen("later") == 20
        finally:
            late.stop()


async def test_what_json_cannot_hold_is_counted_and_harms_nobody(tmp_path: Path) -> None:
    async with logging(file=tmp_path / "e", user="id") as (log, counts):
        log.record(exposure(1, user_id="\ud800"))
        log.record(exposure(2))
        await until(lambda: counts.written("file") == 1)
        assert counts.dropped("file", "unencodable") == 1


async def test_without_a_sink_nothing_is_recorded() -> None:
    async with logging() as (log, _):
        assert not log.enabled
        log.record(exposure())


async def test_recording_takes_microseconds_and_yields_to_nobody(tmp_path: Path) -> None:
    async with logging(file=tmp_path / "e", queue=5000, linger_seconds=10) as (log, _):
        event = exposure()
        started = time.process_time()
        for _ in range(2000):
            log.record(event)
        taken = (time.process_time() - started) / 2000
    assert taken < 200e-6  # about 10; the bound leaves room for a slow machine


PROGRAM = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from service.exposures.log import ExposureLog
from service.exposures.sinks import SinkFailed, StdoutSink
from service.metrics import Metrics
from service.schemas import RecommendResponse
from service.settings import ExposureSettings
from tests.service.exposures.test_exposures import exposure

async def main():
    log = ExposureLog(ExposureSettings(stdout=True, close_seconds=0.5, linger_seconds=0), Metrics(CollectorRegistry()))
    for number in range(int(sys.argv[1])):
        log.record(exposure(number))
        await asyncio.sleep(0)
    await log.close()

asyncio.run(main())
"""


def test_standard_output_gets_the_events_alone() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, "50"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert [json.loads(line)["request_id"] for line in ended.stdout.splitlines()] == [f"r{n}" for n in range(50)]


async def test_half_a_line_on_standard_output_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    end, beginning = os.pipe()
    os.set_blocking(beginning, False)  # full, it takes a part and refuses the rest, as a full disk does
    monkeypatch.setattr(sys, "__stdout__", os.fdopen(beginning, "wb", buffering=0))
    lines = [encode(exposure(number), tagged=True) for number in range(200)]
    sink = StdoutSink()
    with pytest.raises(SinkFailed):
        await sink.write(lines)
    shown = os.read(end, 1_000_000)
    assert not shown.endswith(b"\n")
    await sink.write(lines[:20])  # the batch is written again
    assert (shown + os.read(end, 1_000_000)).splitlines() == [*shown.splitlines(), *lines[:20]]
    await sink.close()
    os.close(end)
    sys.__stdout__.close()  # type: ignore[union-attr]


def test_a_pipe_that_nobody_reads_does_not_keep_the_process_from_ending() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "3000"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.wait(60) == 0  # 3000 events are more than a pipe holds
