"""The deployment repository: a release's models as Triton Inference Server reads them.

    <repository>/
        hstu-0a9f42a2c9cd1e84/          named for its release: two of them are loaded during a swap
            config.pbtxt
            1/model.onnx
        scoter_h-0a9f42a2c9cd1e84/
            config.pbtxt
            1/model.onnx
            1/model.py                  only for the Python backend

How many instances, how long a queue: that is the deployment's business and changes without the models changing, so it
is written here and not into the release.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from offline.errors import StageError
from service.engine.deployed import SHA256, TYPES, VERSION, deployed_name
from service.engine.triton import TritonEngines, client
from service.release.manifest import ModelEntry, TensorEntry, file_entry
from service.release.release import Release
from service.settings import TritonSettings

WRAPPER = Path(__file__).parent.parent / "model_repo" / "python" / "model.py"
RAGGED = frozenset({"exclude", "allowed"})  # inputs whose last value may be repeated without meaning anything else
QUEUE_MICROSECONDS = 10_000_000  # for callers that name no time limit; the service names one, and none longer
LOAD_SECONDS = 300.0  # a TensorRT engine is built in minutes
WARM_WIDTH = 32  # of inputs without a fixed width, when the server warms a model up
_PARTIAL = ".partial-"


class Profile(StrEnum):
    """The hardware that a deployment is for."""

    cpu = "cpu"
    gpu = "gpu"


class Backend(StrEnum):
    """What runs the graph inside the server."""

    onnxruntime = "onnxruntime"  # in NVIDIA's image
    python = "python"  # model_repo/python/model.py, for servers without the other


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a server runs the models."""

    profile: Profile
    backend: Backend
    instances: int  # that run at the same time: cores of a CPU, copies on each GPU
    max_queue: int = 0  # requests that wait per model, the next one is refused; 0: no queue policy, see decision 9
    tensorrt: bool = False  # let TensorRT run what it can of the graph, in FP16

    def __post_init__(self) -> None:
        """Refuse combinations that no server can run. Raises StageError."""
        if self.backend is Backend.python and self.profile is Profile.gpu:
            raise StageError("the Python backend runs on the CPU: take --profile cpu, or --backend onnxruntime")
        if self.tensorrt and self.profile is not Profile.gpu:
            raise StageError("TensorRT needs a GPU: take --profile gpu, or leave --tensorrt out")

    @property
    def max_batch(self) -> int:
        """Requests run together; a CPU core gains nothing beyond 16, a GPU does."""
        return 16 if self.profile is Profile.cpu else 64


def config_text(entry: ModelEntry, release_id: str, sha256: str, how: Deployment) -> str:
    """`config.pbtxt` of one model."""
    comment = "# Written by `scoter triton add`, which writes it anew.\n"
    if not how.max_queue:
        comment += "# No queue policy: Triton's stalls batches. `--max-queue` adds one; decision 9 has the figures.\n"
    if how.profile is Profile.gpu:
        comment += (
            "# TensorRT: `--tensorrt` adds it under `optimization`. CUDA graphs need inputs of one fixed shape, which\n"
            "# `exclude` and `allowed` are not: serve them padded to one width first, then add to its parameters\n"
            '#     parameters { key: "trt_cuda_graph_enable" value: "1" }\n'
        )
    text: str = text_format.MessageToString(_config(entry, release_id, sha256, how))
    return comment + text


def add(
    release: Release, repository: Path, how: Deployment, tell: Callable[[str], None] = lambda _line: None
) -> list[str]:
    """Lay out a release's models; return their names. What lies there already and is the same is left alone.

    Each model appears by one rename. Raises StageError if the repository cannot be written.
    """
    names = []
    try:
        repository.mkdir(parents=True, exist_ok=True)
        for left in repository.glob(_PARTIAL + "*"):  # from an `add` that was killed
            shutil.rmtree(left)
        for entry in release.manifest.models:
            name = deployed_name(entry.name, release.id)
            names.append(name)
            sha256 = release.manifest.files[entry.file].sha256
            files = {"config.pbtxt": config_text(entry, release.id, sha256, how).encode("ascii")}
            if how.backend is Backend.python:
                files[f"{VERSION}/model.py"] = WRAPPER.read_bytes()
            if _same(repository / name, files, sha256):
                tell(f"{name} is there already")
            else:
                _lay_out(repository / name, files, release.graph(entry))
                tell(f"{name} laid out")
    except OSError as error:
        raise StageError(f"cannot lay out release {release.id} in {repository}: {error}") from error
    return names


def remove(release_id: str, repository: Path) -> list[str]:
    """Remove a release's models from the repository; return their names."""
    names = [name for name in deployed(repository) if name.endswith(f"-{release_id}")]
    try:
        for name in names:
            _remove(repository / name)
    except OSError as error:
        raise StageError(f"cannot remove release {release_id} from {repository}: {error}") from error
    return names


def deployed(repository: Path) -> list[str]:
    """Names of the models in a deployment repository. Raises StageError if there is no such folder."""
    if not repository.is_dir():  # in which glob finds nothing, and says nothing
        raise StageError(f"{repository} is no folder: name the deployment repository that `scoter triton add` wrote")
    try:
        return sorted(path.parent.name for path in repository.glob("[!.]*/config.pbtxt"))
    except OSError as error:
        raise StageError(f"cannot read the deployment repository {repository}: {error}") from error


async def load(release: Release, settings: TritonSettings) -> None:
    """Make the server load a release's models from its repository, and check that they are the release's.

    Raises StageError if the server refuses or is away, ReleaseCorrupt if it has loaded something else.
    """
    async with client(settings, pings=False) as server:
        for entry in release.manifest.models:
            name = deployed_name(entry.name, release.id)
            try:
                await server.load_model(name, client_timeout=LOAD_SECONDS)
            except InferenceServerException as error:
                raise StageError(f"{settings.url} does not load {name}: {error.message()}{_hint(error)}") from error
    engines = TritonEngines(settings)
    try:
        engine = await engines.open(release)
        for entry in release.manifest.models:
            if not await engine.ready(entry.name):
                raise StageError(f"{settings.url} has loaded {entry.name} of release {release.id}, but is not ready")
    finally:
        await engines.close()


async def unload(names: list[str], settings: TritonSettings) -> None:
    """Make the server give models back; requests that run are answered. Raises StageError if it refuses."""
    async with client(settings, pings=False) as server:
        for name in names:
            try:
                await server.unload_model(name, client_timeout=LOAD_SECONDS)
            except InferenceServerException as error:
                raise StageError(f"{settings.url} does not unload {name}: {error.message()}{_hint(error)}") from error


async def loaded(settings: TritonSettings) -> set[str]:
    """Names of the models that the server has ready. Raises StageError if it is away."""
    async with client(settings) as server:
        try:
            index = await server.get_model_repository_index(client_timeout=settings.check_timeout_ms / 1000)
        except InferenceServerException as error:
            raise StageError(f"{settings.url} does not say what it has loaded: {error.message()}") from error
    return {model.name for model in index.models if model.state == "READY"}


def _hint(error: InferenceServerException) -> str:
    if "explicit model load" in (error.message() or ""):
        return "; start the server with --model-control-mode=explicit"
    return "; the reason is in the server's log" if error.status() != "StatusCode.UNAVAILABLE" else ""


def _same(folder: Path, files: dict[str, bytes], sha256: str) -> bool:
    graph = folder / VERSION / "model.onnx"
    expected = {*files, f"{VERSION}/model.onnx"}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return (
        found - {path for path in found if "__pycache__" in path} == expected
        and all((folder / path).read_bytes() == content for path, content in files.items())
        and file_entry(graph).sha256 == sha256
    )


def _lay_out(folder: Path, files: dict[str, bytes], graph: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder.parent))
    try:
        made = scratch / folder.name
        (made / VERSION).mkdir(parents=True)
        shutil.copyfile(graph, made / VERSION / "model.onnx")
        for path, content in files.items():
            (made / path).write_bytes(content)
        if folder.exists():
            folder.rename(scratch / "old")
        made.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove(folder: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder.parent))
    try:
        folder.rename(scratch / "old")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _config(entry: ModelEntry, release_id: str, sha256: str, how: Deployment) -> pb.ModelConfig:
    ragged = how.backend is Backend.python  # the wrapper fills up; ONNX Runtime's backend cannot
    config = pb.ModelConfig(
        name=deployed_name(entry.name, release_id),
        backend=how.backend.value,
        max_batch_size=how.max_batch,
        version_policy=pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=[int(VERSION)])),
        # No delay: batches form while another one runs, and waiting for company costs every request.
        dynamic_batching=pb.ModelDynamicBatching(default_queue_policy=_queue_policy(how)),
        instance_group=[
            pb.ModelInstanceGroup(
                count=how.instances,
                kind=pb.ModelInstanceGroup.KIND_GPU if how.profile is Profile.gpu else pb.ModelInstanceGroup.KIND_CPU,
            )
        ],
        input=[_input(tensor, ragged=ragged) for tensor in entry.inputs],
        output=[_output(tensor) for tensor in entry.outputs],
        model_warmup=[_warmup(entry, size) for size in (1, how.max_batch)],
    )
    config.parameters[SHA256].string_value = sha256
    if how.backend is Backend.onnxruntime and how.profile is Profile.cpu:
        # One core per instance, as the instances are what runs side by side.
        config.parameters["intra_op_thread_count"].string_value = "1"
        config.parameters["inter_op_thread_count"].string_value = "1"
    if how.tensorrt:
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
        accelerator.parameters["precision_mode"] = "FP16"
        accelerator.parameters["trt_engine_cache_enable"] = "1"
        accelerator.parameters["trt_engine_cache_path"] = f"/tmp/scoter-tensorrt/{sha256[:16]}"  # noqa: S108 - the server's
    return config


def _queue_policy(how: Deployment) -> pb.ModelQueuePolicy | None:
    if not how.max_queue:
        return None
    return pb.ModelQueuePolicy(
        timeout_action=pb.ModelQueuePolicy.REJECT,
        default_timeout_microseconds=QUEUE_MICROSECONDS,  # a request's own counts where it is shorter
        allow_timeout_override=True,
        max_queue_size=how.max_queue,
    )


def _dims(tensor: TensorEntry) -> list[int]:
    # The server adds the batch dimension itself; a scalar per request is a tensor of one value there.
    return [-1 if size is None else size for size in tensor.shape[1:]] or [1]


def _input(tensor: TensorEntry, *, ragged: bool) -> pb.ModelInput:
    made = pb.ModelInput(
        name=tensor.name,
        data_type=pb.DataType.Value(TYPES[tensor.dtype][0]),
        dims=_dims(tensor),
        allow_ragged_batch=ragged and tensor.name in RAGGED,
    )
    if len(tensor.shape) == 1:
        made.reshape.SetInParent()  # to no dimension but the batch
    return made


def _output(tensor: TensorEntry) -> pb.ModelOutput:
    made = pb.ModelOutput(name=tensor.name, data_type=pb.DataType.Value(TYPES[tensor.dtype][0]), dims=_dims(tensor))
    if len(tensor.shape) == 1:
        made.reshape.SetInParent()
    return made


def _warmup(entry: ModelEntry, batch: int) -> pb.ModelWarmup:
    """A batch of requests of the usual shapes, run by each instance before it calls itself ready."""
    warmup = pb.ModelWarmup(name=f"batch of {batch}", batch_size=batch)
    for tensor in entry.inputs:
        # Zeros are valid everywhere: padding in a history, nothing to exclude, nothing allowed, no reasoning.
        warmup.inputs[tensor.name].CopyFrom(
            pb.ModelWarmup.Input(
                data_type=pb.DataType.Value(TYPES[tensor.dtype][0]),
                dims=[WARM_WIDTH if size < 0 else size for size in _dims(tensor)],
                zero_data=True,
            )
        )
    return warmup
