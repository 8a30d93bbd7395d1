from __future__ import annotations

import asyncio

import pytest

from service.engine.absent import AbsentEngine
from service.engine.base import Engine
from service.engine.onnx import OnnxEngine
from service.errors import EngineUnavailable
from service.release.release import Release
from service.settings import OnnxSettings
from tests.service.engine.test_contract import PATIENT, asked, check
from tests.service.tiny_release import BEAM, TinyRelease

pytestmark = pytest.mark.anyio


class Coming:
    """A maker whose server is away for the first few looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    async def open(self, release: Release) -> Engine:
        if self.left:
            self.left -= 1
            raise EngineUnavailable("connection refused")
        return OnnxEngine(release, OnnxSettings(threads=1))

    def waiting(self) -> int:
        return 0

    async def close(self) -> None: ...


async def test_it_answers_once_the_server_is_there(tiny: TinyRelease) -> None:
    engine = AbsentEngine(Coming(3), Release.open(tiny.path), pause=0.01)
    with pytest.raises(EngineUnavailable, match="was away"):
        await engine.infer("hstu", asked([5]), PATIENT)
    assert not await engine.ready("hstu")
    async with asyncio.timeout(10):
        while not await engine.ready("hstu"):
            await asyncio.sleep(0.01)
    check(await engine.infer("hstu", asked([5]), PATIENT), tiny.expected([5], None, set(), BEAM))
    await engine.close()
    assert not await engine.ready("hstu")


async def test_it_can_be_closed_while_nobody_is_there(tiny: TinyRelease) -> None:
    engine = AbsentEngine(Coming(10**9), Release.open(tiny.path), pause=0.01)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        await engine.close()
