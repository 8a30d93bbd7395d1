"""Triton Inference Server over gRPC.

One client for the process; each request is one inference of batch 1, and Triton makes batches of them. The caller's
time limit goes along twice: to gRPC, which gives up on the answer, and to Triton's queue, which drops the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from tritonclient.grpc import InferRequestedOutput, InferResult
from tritonclient.grpc import aio as triton
from tritonclient.grpc.model_config_pb2 import DataType
from tritonclient.utils import InferenceServerException

from service.engine.base import ModelInput, Ranking
from service.engine.deployed import SHA256, TYPES, VERSION, deployed_name
from service.engine.tensors import differences, feeds, output_names, shown
from service.errors import EngineError, EngineOverloaded, EngineTimeout, EngineUnavailable, ReleaseCorrupt
from service.release.manifest import ModelEntry
from service.release.release import Release
from service.settings import TritonSettings
from service.trace import traceparent

_KEEPALIVE_MS = 5_000  # a server that is silent for so long while requests run is pinged,
_KEEPALIVE_ANSWER_MS = 2_000  # and its connection given up when it does not answer the ping
_RESOLVE_MS = 5_000  # a name is looked up again at most so often
_CONFIG_TYPES = {DataType.Value(config): name for name, (config, _) in TYPES.items()}
_WIRE_TYPES: dict[str, str] = {name: wire for name, (_, wire) in TYPES.items()}


class TritonEngine:
    """The models of one release, on the server that its maker is connected to."""

    local = False

    def __init__(self, engines: TritonEngines, release: Release) -> None:
        self._engines = engines
        self._release = release.id
        self._models = {entry.name: entry for entry in release.manifest.models}
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def infer(self, model: str, request: ModelInput, seconds: float) -> Ranking:
        """Rank items for one request. Raises EngineUnavailable, EngineTimeout or EngineOverloaded."""
        entry = self._models.get(model)
        if entry is None or self._closed:
            raise EngineUnavailable(f"the engine is closed or release {self._release} holds no model {model!r}")
        self._running += 1
        self._idle.clear()
        try:
            return await self._engines.infer(self._release, entry, request, seconds)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def ready(self, model: str) -> bool:
        """Whether the server has `model` of this release loaded."""
        return not self._closed and model in self._models and await self._engines.ready(model, self._release)

    async def close(self) -> None:
        """Wait for the requests that run, none of which outlives its time limit; the client stays open."""
        self._closed = True
        await self._idle.wait()


class TritonEngines:
    """Opens releases on one Triton server, or on all servers behind one name."""

    def __init__(self, settings: TritonSettings) -> None:
        self._settings = settings
        self._in_flight = 0
        self._opened: triton.InferenceServerClient | None = None

    async def open(self, release: Release) -> TritonEngine:
        """Check that the server has every model of a release.

        Raises ReleaseCorrupt if one differs from the manifest, EngineUnavailable if one is missing or the server away.
        """
        await asyncio.gather(*(self._check(release, entry) for entry in release.manifest.models))
        return TritonEngine(self, release)

    def waiting(self) -> int:
        """Requests that the server has not answered yet."""
        return self._in_flight

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            client, self._opened = self._opened, None
            await client.close()

    async def infer(self, release_id: str, entry: ModelEntry, request: ModelInput, seconds: float) -> Ranking:
        """Rank items with a release's model. Raises EngineUnavailable, EngineTimeout or EngineOverloaded."""
        if self._in_flight >= self._settings.in_flight:
            raise EngineOverloaded(f"{self._in_flight} requests wait for {self._settings.url} already")
        doing = f"inference of model {entry.name!r}"
        self._in_flight += 1
        try:
            async with asyncio.timeout(seconds):  # gRPC rounds a time limit up to the next millisecond
                result = await self._client().infer(
                    deployed_name(entry.name, release_id),
                    _tensors(entry, request),
                    model_version=VERSION,
                    outputs=[InferRequestedOutput(name) for name in output_names(entry)],
                    headers=_headers(),
                    timeout=max(1, int(seconds * 1e6)),  # microseconds in the server's queue
                    client_timeout=seconds,
                )
        except TimeoutError as error:
            raise EngineTimeout(f"{doing} on {self._settings.url}: no answer within {seconds * 1000:.0f} ms") from error
        except InferenceServerException as error:
            raise self._translated(error, doing, seconds) from error
        finally:
            self._in_flight -= 1
        return _ranking(result, entry)

    async def ready(self, model: str, release_id: str) -> bool:
        """Whether the server is there and has a release's model loaded."""
        try:
            return bool(
                await self._client().is_model_ready(
                    deployed_name(model, release_id), VERSION, client_timeout=self._settings.check_timeout_ms / 1000
                )
            )
        except InferenceServerException:
            return False

    def _client(self) -> triton.InferenceServerClient:
        # Made on first use, as gRPC's asyncio side belongs to the event loop that it is made in.
        if self._opened is None:
            self._opened = client(self._settings)
        return self._opened

    async def _check(self, release: Release, entry: ModelEntry) -> None:
        name = deployed_name(entry.name, release.id)
        seconds = self._settings.check_timeout_ms / 1000
        try:
            answer = await self._client().get_model_config(name, VERSION, client_timeout=seconds)
        except InferenceServerException as error:
            raise self._translated(error, f"looking up model {name!r}", seconds) from error
        config = answer.config
        wrong = differences(entry, "on the server", _described(config.input), _described(config.output))
        if config.max_batch_size < 1:
            wrong.append("the server does not batch it: max_batch_size is 0")
        found, expected = config.parameters[SHA256].string_value, release.manifest.files[entry.file].sha256
        if found != expected:
            wrong.append(f"the server's graph has sha256 {found or 'unknown'}, the manifest's {expected}")
        if wrong:
            raise ReleaseCorrupt(
                f"model {name!r} on {self._settings.url} is not the release's, run `scoter triton add` again: "
                + "; ".join(wrong)
            )

    def _translated(self, error: InferenceServerException, doing: str, seconds: float) -> EngineError:
        """Triton refuses for several reasons with one status: its words come before the status."""
        status, words = (error.status() or "").removeprefix("StatusCode."), error.message() or ""
        where = f"{doing} on {self._settings.url}"
        if "maximum queue size" in words or status == "RESOURCE_EXHAUSTED":
            return EngineOverloaded(f"{where}: the server's queue is full")
        if "timeout expired" in words or status == "DEADLINE_EXCEEDED":
            return EngineTimeout(f"{where}: no answer within {seconds * 1000:.0f} ms")
        if status == "NOT_FOUND":
            return EngineUnavailable(f"{where}: the server has not loaded it, see `scoter triton add`: {words}")
        return EngineUnavailable(f"{where} failed ({status}): {words}")


def client(settings: TritonSettings, *, pings: bool = True) -> triton.InferenceServerClient:
    """A client of the server that the settings name. It connects by itself, and again whenever it has to.

    A call that may be silent for minutes, such as one that loads a model, has to go without `pings`: a server takes few
    of them without data in between, and hangs up on whoever sends more.
    """
    pinging = [("grpc.keepalive_time_ms", _KEEPALIVE_MS), ("grpc.keepalive_timeout_ms", _KEEPALIVE_ANSWER_MS)]
    return triton.InferenceServerClient(
        target(settings.url),
        ssl=settings.tls or any((settings.ca, settings.certificate, settings.key)),
        root_certificates=settings.ca,
        certificate_chain=settings.certificate,
        private_key=settings.key,
        channel_args=[
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.dns_min_time_between_resolutions_ms", _RESOLVE_MS),
            *(pinging if pings else ()),
            # gRPC's own pauses grow to two minutes: far too long to stay away from a server that is back.
            ("grpc.initial_reconnect_backoff_ms", min(100, int(settings.reconnect_ms))),
            ("grpc.min_reconnect_backoff_ms", int(settings.reconnect_ms)),
            ("grpc.max_reconnect_backoff_ms", int(settings.reconnect_ms)),
        ],
    )


def target(url: str) -> str:
    """The gRPC target for an address: `host:port` is looked up in DNS, anything with a scheme is left as it is."""
    return url if "://" in url or url.startswith(("ipv4:", "ipv6:", "unix:")) else f"dns:///{url}"


def _headers() -> dict[str, str]:
    """The caller's trace goes on at the server."""
    trace = traceparent.get()
    return {"traceparent": trace} if trace is not None else {}


def _tensors(entry: ModelEntry, request: ModelInput) -> list[triton.InferInput]:
    tensors = []
    for name, value in feeds(entry, [request]).items():
        # Triton knows no tensor without a dimension beside the batch.
        array = value if value.ndim > 1 else value[:, None]
        tensor = triton.InferInput(name, array.shape, _WIRE_TYPES[array.dtype.name])
        tensors.append(tensor.set_data_from_numpy(array))
    return tensors


def _ranking(result: InferResult, entry: ModelEntry) -> Ranking:
    names = output_names(entry)
    try:
        rows = [row for (row,) in map(result.as_numpy, names)]
    except (TypeError, ValueError) as error:  # absent, or not of the shape that it says
        raise EngineUnavailable(f"the server answered for model {entry.name!r} with broken tensors: {error}") from error
    # Somebody may have deployed another model under this one's name since the release was opened.
    expected = {tensor.name: tuple(tensor.shape[1:]) for tensor in entry.outputs}
    for name, row in zip(names, rows, strict=True):
        if row.shape != expected[name]:
            raise EngineUnavailable(
                f"the server answered for model {entry.name!r} with {name!r} of shape {row.shape}, not {expected[name]}"
            )
    return Ranking(*rows)


def _described(tensors: Iterable[Any]) -> dict[str, str]:
    return {tensor.name: shown(_CONFIG_TYPES.get(tensor.data_type, "other"), _shape(tensor)) for tensor in tensors}


def _shape(tensor: Any) -> Sequence[int | None]:  # noqa: ANN401  # protobuf publishes no types
    """The graph's shape, batch included, by a tensor's configuration."""
    dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return [None, *(None if size < 0 else size for size in dims)]
