from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import aio as triton
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.grpc.aio import InferenceServerClient

from model_repo.write_reference import FOLDER, configs
from offline.errors import StageError
from offline.triton import (
    WRAPPER,
    Backend,
    Deployment,
    Profile,
    add,
    config_text,
    deployed,
    load,
    loaded,
    remove,
    unload,
)
from service.release.manifest import ModelEntry, TensorEntry, file_entry
from service.release.release import Release
from service.settings import TritonSettings
from tests.service.tiny_release import TinyRelease
from tests.triton_server import Triton

ROOT = Path(__file__).parent.parent.parent
CPU = Deployment(Profile.cpu, Backend.onnxruntime, instances=2)
PYTHON = Deployment(Profile.cpu, Backend.python, instances=2)


@pytest.fixture
def release(tiny: TinyRelease) -> Release:
    return Release.open(tiny.path)


def parsed(text: str) -> pb.ModelConfig:
    config = pb.ModelConfig()
    text_format.Parse(text, config)
    return config


def entry(*, inputs: list[TensorEntry], outputs: list[TensorEntry]) -> ModelEntry:
    return ModelEntry(
        name="m",
        backbone="hstu",
        file="m/1/model.onnx",
        history_length=4,
        beam=3,
        inputs=inputs,
        outputs=outputs,
        reasoning=None,
        metrics={},
    )


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_ino)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def scoter(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from offline.cli import main; main()"
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", code, "triton", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_config_says_all_that_a_server_needs(release: Release) -> None:
    model = release.model("scoter_h")
    sha256 = release.manifest.files[model.file].sha256
    config = parsed(config_text(model, release.id, sha256, Deployment(Profile.cpu, Backend.onnxruntime, 3, 100)))
    assert config.name == f"scoter_h-{release.id}"
    assert config.backend == "onnxruntime"
    assert list(config.version_policy.specific.versions) == [1]
    assert config.parameters["onnx_sha256"].string_value == sha256
    assert config.max_batch_size == 16
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.allow_timeout_override) == (100, True)
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert policy.default_timeout_microseconds >= 10_000_000
    assert [(group.count, group.kind) for group in config.instance_group] == [(3, pb.ModelInstanceGroup.KIND_CPU)]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 16]
    assert config.parameters["intra_op_thread_count"].string_value == "1"


def test_tensors_are_the_manifests_whatever_they_are() -> None:
    model = entry(
        inputs=[
            TensorEntry(name="history", dtype="int64", shape=[None, 4]),
            TensorEntry(name="flag", dtype="bool", shape=[None]),
            TensorEntry(name="exclude", dtype="int64", shape=[None, None]),
            TensorEntry(name="allowed", dtype="uint8", shape=[None, None]),
            TensorEntry(name="wide", dtype="float32", shape=[None, 2, None]),
        ],
        outputs=[
            TensorEntry(name="item", dtype="int64", shape=[None, 3]),
            TensorEntry(name="best", dtype="float32", shape=[None]),
        ],
    )
    config = parsed(config_text(model, "r", "0" * 64, PYTHON))
    assert [(t.name, list(t.dims), t.HasField("reshape"), t.allow_ragged_batch) for t in config.input] == [
        ("history", [4], False, False),
        ("flag", [1], True, False),
        ("exclude", [-1], False, True),
        ("allowed", [-1], False, True),
        ("wide", [2, -1], False, False),
    ]
    assert [(t.name, list(t.dims), t.HasField("reshape")) for t in config.output] == [
        ("item", [3], False),
        ("best", [1], True),
    ]
    assert all(size > 0 for warmup in config.model_warmup for i in warmup.inputs.values() for size in i.dims)
    assert not any(t.allow_ragged_batch for t in parsed(config_text(model, "r", "0" * 64, CPU)).input)


def test_a_gpu_gets_its_instances_and_tensorrt_when_asked(release: Release) -> None:
    plain, tensorrt = (
        parsed(config_text(release.model("hstu"), release.id, "0" * 64, how))
        for how in (
            Deployment(Profile.gpu, Backend.onnxruntime, 2),
            Deployment(Profile.gpu, Backend.onnxruntime, 2, tensorrt=True),
        )
    )
    assert [(group.count, group.kind) for group in plain.instance_group] == [(2, pb.ModelInstanceGroup.KIND_GPU)]
    assert plain.max_batch_size == 64
    assert not plain.HasField("optimization")
    (accelerator,) = tensorrt.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP16"


def test_what_no_server_can_run_is_refused() -> None:
    with pytest.raises(StageError, match="Python backend runs on the CPU"):
        Deployment(Profile.gpu, Backend.python, 1)
    with pytest.raises(StageError, match="TensorRT needs a GPU"):
        Deployment(Profile.cpu, Backend.onnxruntime, 1, tensorrt=True)


def test_the_committed_reference_is_what_the_code_writes() -> None:
    expected = configs()
    assert set(FOLDER.rglob("config.pbtxt")) == set(expected), "run python model_repo/write_reference.py"
    for path, text in expected.items():
        assert path.read_text() == text, "run python model_repo/write_reference.py"


def test_adding_twice_changes_nothing(release: Release, tmp_path: Path) -> None:
    names = add(release, tmp_path, PYTHON)
    assert names == [f"scoter_h-{release.id}", f"hstu-{release.id}"]
    assert deployed(tmp_path) == sorted(names)
    before = contents(tmp_path)
    files = ("config.pbtxt", "1/model.onnx", "1/model.py")
    assert set(before) == {f"{name}/{file}" for name in names for file in files}
    graph = tmp_path / names[0] / "1" / "model.onnx"
    assert file_entry(graph) == release.manifest.files[release.model("scoter_h").file]
    assert (tmp_path / names[0] / "1" / "model.py").read_bytes() == WRAPPER.read_bytes()
    add(release, tmp_path, PYTHON)
    assert contents(tmp_path) == before


def test_another_deployment_or_a_damaged_file_is_laid_out_anew(release: Release, tmp_path: Path) -> None:
    names = add(release, tmp_path, PYTHON)
    add(release, tmp_path, CPU)
    assert set(contents(tmp_path)) == {f"{name}/{file}" for name in names for file in ("config.pbtxt", "1/model.onnx")}
    whole = contents(tmp_path)
    damaged = tmp_path / names[1] / "1" / "model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:100])
    add(release, tmp_path, CPU)
    assert {name: body for name, (body, _) in contents(tmp_path).items()} == {n: body for n, (body, _) in whole.items()}


def test_what_a_killed_add_left_is_swept_and_never_listed(release: Release, tmp_path: Path) -> None:
    left = tmp_path / ".partial-abc" / f"hstu-{release.id}"
    left.mkdir(parents=True)
    (left / "config.pbtxt").touch()
    assert deployed(tmp_path) == []
    add(release, tmp_path, CPU)
    assert not (tmp_path / ".partial-abc").exists()


def test_removing_takes_one_release_and_leaves_the_other(release: Release, tmp_path: Path) -> None:
    other = tmp_path / "hstu-ffffffffffffffff"
    add(release, tmp_path, CPU)
    other.mkdir()
    (other / "config.pbtxt").touch()
    assert len(remove(release.id, tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [other.name]
    assert remove(release.id, tmp_path) == []


def test_a_repository_that_cannot_be_written_is_one_line(release: Release, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StageError, match="cannot lay out release"):
        add(release, tmp_path / "file", CPU)


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_commands_load_and_unload_on_a_server(triton: Triton, tiny: TinyRelease) -> None:
    release = tiny.manifest.release_id
    where = ["--repository", str(triton.repository), "--url", triton.server.url]
    assert "✓" in scoter("add", str(tiny.path), "--backend", "python", "--instances", "1", *where).stdout
    assert {f"hstu-{release}", f"scoter_h-{release}"} <= await loaded(triton.settings())
    assert f"hstu-{release}  loaded" in scoter("list", *where).stdout
    done = scoter("remove", release, *where)
    assert f"removed hstu-{release}" in done.stdout, done.stderr
    assert not {name for name in await loaded(triton.settings()) if name.endswith(release)}
    assert not [name for name in deployed(triton.repository) if name.endswith(release)]
    again = scoter("remove", release, *where)
    assert again.returncode == 1
    assert f"holds no models of release {release}" in again.stderr


@pytest.mark.anyio
async def test_who_waits_minutes_for_a_server_does_not_ping_it(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that loads a model sends nothing for so long, and hangs up at the fourth ping within five minutes."""
    options: list[str] = []

    class Recorded(InferenceServerClient):  # type: ignore[misc]  # publishes no types
        def __init__(self, url: str, *, channel_args: list[tuple[str, int]], **more: Any) -> None:
            options.extend(name for name, _ in channel_args)
            super().__init__(url, channel_args=channel_args, **more)

    monkeypatch.setattr(triton, "InferenceServerClient", Recorded)
    nobody = TritonSettings(url="127.0.0.1:9")
    with pytest.raises(StageError, match="does not load"):
        await load(release, nobody)
    with pytest.raises(StageError, match="does not unload"):
        await unload(["scoter_h"], nobody)
    assert options
    assert not [name for name in options if "keepalive" in name]


@pytest.mark.anyio
async def test_a_server_that_is_away_is_one_line() -> None:
    with pytest.raises(StageError, match=r"127\.0\.0\.1:9 does not say"):
        await loaded(TritonSettings(url="127.0.0.1:9"))


def test_tls_files_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    done = scoter("list", "--repository", str(tmp_path), "--url", "triton:8001", "--ca", str(tmp_path / "absent.pem"))
    assert done.returncode == 1
    assert "ca: Path does not point to a file" in done.stderr
    assert "Traceback" not in done.stderr
