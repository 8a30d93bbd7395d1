from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from service.context import Context
from service.experiments.arm import Arm
from service.experiments.assignment import UNASSIGNED, Assignment
from service.exposures.event import Exposure
from service.metrics import Metrics
from service.schemas import RecommendRequest
from service.shadows import ROOM, Shadows
from tests.service.exposures.test_exposures import response

pytestmark = pytest.mark.anyio

TWO = Assignment(UNASSIGNED.arm, (), (Arm(name="a"), Arm(name="b")), holdout=False, label="default")


class Stage:
    """Everything that shadows need: an edition whose answers are held back, and a log that keeps what it is given."""

    def __init__(self) -> None:
        self.spare = True
        self.release = asyncio.Event()
        self.asked: list[str | None] = []
        self.logged: list[str | None] = []
        self.registry = CollectorRegistry()
        log: Any = SimpleNamespace(record=self._record)
        self.shadows = Shadows(lambda: self.spare, 1.0, log, Metrics(self.registry))

    unseen = property(lambda self: self)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    async def recommend(self, request: RecommendRequest, context: Context, assignment: Assignment) -> Any:
        self.asked.append(assignment.arm.name)
        await self.release.wait()
        return response()

    def _record(self, exposure: Exposure) -> None:
        assert exposure.shadow
        self.logged.append(exposure.arm.name)

    def begin(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.shadows.run(cast("Any", self), RecommendRequest(user_id="u"), "r", TWO))

    def skipped(self) -> float | None:
        return self.registry.get_sample_value("scoter_shadows_skipped_total")


async def test_few_run_at_the_same_time_and_the_others_are_counted() -> None:
    stage = Stage()
    tasks = [stage.begin() for _ in range(ROOM + 3)]
    await asyncio.sleep(0.01)
    assert (len(stage.asked), stage.skipped()) == (ROOM, 3 * len(TWO.shadow))
    stage.release.set()
    await asyncio.gather(*tasks)
    assert sorted(map(str, stage.logged)) == sorted(["a", "b"] * ROOM)
    await stage.begin()  # there is room again
    assert len(stage.logged) == 2 * ROOM + 2


async def test_an_arm_makes_way_when_answers_wait() -> None:
    stage = Stage()
    running = stage.begin()
    await asyncio.sleep(0.01)
    stage.spare = False  # while the first arm is being computed
    stage.release.set()
    await running
    assert (stage.logged, stage.skipped()) == (["a"], 1)
    await stage.begin()
    assert (stage.logged, stage.skipped()) == (["a"], 3)


async def test_a_cancelled_one_gives_its_room_back() -> None:
    stage = Stage()
    for _ in range(ROOM + 1):
        running = stage.begin()
        await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert (len(stage.asked), stage.skipped()) == (ROOM + 1, 0)
