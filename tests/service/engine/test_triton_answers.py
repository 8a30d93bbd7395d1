"""What the Triton engine asks, and what it makes of answers that no healthy server gives, by one that is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from service.engine.base import ModelInput
from service.engine.deployed import SHA256, TYPES, deployed_name
from service.engine.triton import TritonEngines
from service.errors import EngineError, EngineOverloaded, EngineTimeout, EngineUnavailable, ReleaseCorrupt
from service.release.manifest import ModelEntry
from service.release.release import Release
from service.settings import TritonSettings
from service.trace import traceparent
from tests.service.tiny_release import BEAM, T, TinyRelease

pytestmark = pytest.mark.anyio

PATIENT = 30.0  # seconds
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RANKED: dict[str, NDArray[Any]] = {
    "item": np.arange(1, BEAM + 1, dtype=np.int64)[None],
    "score": -np.arange(BEAM, dtype=np.float32)[None],
    "valid": np.ones((1, BEAM), np.bool_),
}
WIRE = {"int64": "INT64", "float32": "FP32", "bool": "BOOL"}


class Told(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Has every model of a release, and answers what it is told to."""

    def __init__(self, release: Release) -> None:
        self.models = {deployed_name(one.name, release.id): one for one in release.manifest.models}
        self.release = release
        self.max_batch = 8
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.tensors: dict[str, Any] = RANKED
        self.spoil: Callable[[service_pb2.ModelInferResponse], object] = lambda _response: None
        self.asked: service_pb2.ModelInferRequest | None = None
        self.headers: dict[str, str] = {}
        self.seconds = 0.0

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        entry: ModelEntry = self.models[request.name]
        response = service_pb2.ModelConfigResponse()
        response.config.max_batch_size = self.max_batch
        for tensors, into in ((entry.inputs, response.config.input), (entry.outputs, response.config.output)):
            for tensor in tensors:
                one = into.add(name=tensor.name, data_type=TYPES[tensor.dtype][0])
                one.dims.extend(-1 if size is None else size for size in tensor.shape[1:] or [1])
                if not tensor.shape[1:]:  # a scalar of each request, which Triton knows only by reshaping
                    one.reshape.SetInParent()
        response.config.parameters[SHA256].string_value = self.release.manifest.files[entry.file].sha256
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.asked, self.seconds = request, context.time_remaining()
        self.headers = dict(context.invocation_metadata())
        if self.refusal is not None:
            await context.abort(*self.refusal)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, value in self.tensors.items():
            response.outputs.add(name=name, datatype=WIRE[value.dtype.name], shape=value.shape)
            response.raw_output_contents.append(value.tobytes())
        self.spoil(response)
        return response


@pytest.fixture
async def told(tiny: TinyRelease) -> AsyncIterator[tuple[Told, TritonEngines]]:
    """The server and a client of it."""
    servicer, server = Told(Release.open(tiny.path)), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    engines = TritonEngines(TritonSettings(url=f"127.0.0.1:{port}", check_timeout_ms=20_000))
    yield servicer, engines
    await engines.close()
    await server.stop(None)


def asked() -> ModelInput:
    return ModelInput(np.arange(1, T + 1, dtype=np.int64), None, np.array([4, 5, 6], np.int64))


async def test_a_request_says_whose_it_is_how_long_it_may_wait_and_what_is_read(
    told: tuple[Told, TritonEngines],
) -> None:
    server, engines = told
    engine = await engines.open(server.release)
    token = traceparent.set(TRACE)
    ranking = await engine.infer("hstu", asked(), 20.0)
    traceparent.reset(token)
    assert (ranking.items.tolist(), ranking.attention) == (RANKED["item"][0].tolist(), None)
    assert server.asked is not None
    assert server.asked.parameters["timeout"].int64_param == 20_000_000  # microseconds
    assert 10 < server.seconds < 21
    assert [one.name for one in server.asked.outputs] == ["item", "score", "valid"]
    assert {one.name: list(one.shape) for one in server.asked.inputs} == {
        "history": [1, T],
        "exclude": [1, 4],
        "allowed": [1, 1],
    }
    assert server.headers["traceparent"] == TRACE
    await engine.infer("hstu", asked(), PATIENT)
    assert "traceparent" not in server.headers


@pytest.mark.parametrize(
    "status, words, expected, said",
    [
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", EngineOverloaded, "queue is full"),
        ("RESOURCE_EXHAUSTED", "no room", EngineOverloaded, "queue is full"),
        ("UNAVAILABLE", "Request timeout expired", EngineTimeout, "no answer within 30000 ms"),
        ("DEADLINE_EXCEEDED", "late", EngineTimeout, "no answer within 30000 ms"),
        ("NOT_FOUND", "Request for unknown model", EngineUnavailable, "scoter triton add.*unknown model"),
        ("UNAVAILABLE", "Socket closed", EngineUnavailable, r"failed \(UNAVAILABLE\): Socket closed"),
        ("INTERNAL", "bad allocation", EngineUnavailable, r"failed \(INTERNAL\): bad allocation"),
    ],
)
async def test_a_refusal_is_told_by_its_words_before_its_status(
    told: tuple[Told, TritonEngines], status: str, words: str, expected: type[EngineError], said: str
) -> None:
    server, engines = told
    engine = await engines.open(server.release)
    server.refusal = grpc.StatusCode[status], words
    with pytest.raises(expected, match=said) as caught:
        await engine.infer("hstu", asked(), PATIENT)
    assert type(caught.value) is expected
    assert "model 'hstu'" in str(caught.value)
    assert engines.waiting() == 0


@pytest.mark.parametrize("tensors", [{"item": RANKED["item"][:, :-1]}, {"score": RANKED["score"][0]}, {"valid": None}])
async def test_an_answer_of_another_model_is_no_ranking(
    told: tuple[Told, TritonEngines], tensors: dict[str, Any]
) -> None:
    """As somebody has deployed one under the release's name: of another beam, without a batch, without an output."""
    server, engines = told
    engine = await engines.open(server.release)
    server.tensors = {name: value for name, value in (RANKED | tensors).items() if value is not None}
    with pytest.raises(EngineUnavailable, match=r"broken tensors|of shape"):
        await engine.infer("hstu", asked(), PATIENT)
    server.tensors = RANKED
    assert (await engine.infer("hstu", asked(), PATIENT)).valid.all()


async def test_an_answer_shorter_than_it_says_is_no_ranking(told: tuple[Told, TritonEngines]) -> None:
    def cut(response: service_pb2.ModelInferResponse) -> None:
        response.raw_output_contents[1] = response.raw_output_contents[1][:-4]

    server, engines = told
    engine = await engines.open(server.release)
    server.spoil = cut
    with pytest.raises(EngineUnavailable, match="broken tensors"):
        await engine.infer("hstu", asked(), PATIENT)


async def test_a_model_that_the_server_does_not_batch_is_refused(told: tuple[Told, TritonEngines]) -> None:
    server, engines = told
    server.max_batch = 0
    with pytest.raises(ReleaseCorrupt, match="does not batch it"):
        await engines.open(server.release)
    server.max_batch = 1
    await engines.open(server.release)
