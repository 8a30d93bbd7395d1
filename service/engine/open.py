"""Which engine the settings ask for."""

from __future__ import annotations

from typing import assert_never

from service.engine.base import Engines
from service.engine.onnx import BatchObserver, OnnxEngines
from service.engine.triton import TritonEngines
from service.settings import OnnxSettings, TritonSettings


def open_engines(
    settings: OnnxSettings | TritonSettings, observe: BatchObserver = lambda _model, _size: None
) -> Engines:
    """The maker of engines. It opens nothing yet: Triton is connected to when the first release is opened.

    `observe` is told of every batch that is run in this process; what Triton runs together, Triton's metrics say.
    """
    match settings:
        case OnnxSettings():
            return OnnxEngines(settings, observe)
        case TritonSettings():
            return TritonEngines(settings)
        case _:
            assert_never(settings)
