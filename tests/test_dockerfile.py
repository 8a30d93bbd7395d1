"""The image of the service, built step by step in a clean environment, and what it starts."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx2
import pytest

from tests.images import Image, Replay
from tests.ports import free_port
from tests.service.conftest import published_settings
from tests.service.server import PATIENT
from tests.service.tiny_release import TinyRelease

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test installs the lock


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Replay(ROOT / "Dockerfile", tmp_path_factory.mktemp("image")).build("service")


def program(image: Image, name: str) -> str:
    found = shutil.which(name, path=image.environment["PATH"])
    assert found is not None
    assert Path(found).is_relative_to(image.root), f"{name} is not of the image"
    return found


def inside(image: Image, code: str) -> subprocess.CompletedProcess[str]:
    command = [program(image, "python"), "-c", code]
    return subprocess.run(
        command, env=image.environment, cwd=image.root, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_image_holds_the_lock_and_nothing_else(image: Image) -> None:
    code = "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()))"
    found = {re.sub(r"[-_.]+", "-", name).lower() for name in inside(image, code).stdout.split()}
    lock = (ROOT / "locks/service.txt").read_text(encoding="utf-8")
    locked = {re.sub(r"[-_.]+", "-", pin).lower() for pin in re.findall(r"^(\S+==\S+)", lock, re.MULTILINE)}
    assert {pin for pin in found if not pin.startswith("scoter-serving==")} == locked
    assert len(found) == len(locked) + 1


@pytest.mark.parametrize("module", ["torch", "transformers", "pip"])
def test_the_image_cannot_import(image: Image, module: str) -> None:
    result = inside(image, f"import {module}")
    assert "ModuleNotFoundError" in result.stderr


def test_the_image_runs_as_a_numeric_user_who_is_not_root(image: Image) -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", image.user)  # Kubernetes cannot check a name for runAsNonRoot


def test_the_image_answers_and_leaves_on_sigterm(image: Image, tiny: TinyRelease, tmp_path: Path) -> None:
    published_settings(tiny, tmp_path)
    releases = Path(image.environment["SCOTER_RELEASES"])
    shutil.copytree(tiny.path, releases / tiny.path.name)
    environment = image.environment | {
        **PATIENT,
        "SCOTER_HOST": "127.0.0.1",
        "SCOTER_PORT": str(port := free_port()),
        "SCOTER_STORE__PATH": str(tmp_path),
        "SCOTER_ENGINE__THREADS": "1",
    }
    command = [program(image, image.entrypoint[0]), *image.entrypoint[1:]]
    health = [program(image, image.healthcheck[0]), *image.healthcheck[1:]]
    assert subprocess.run(health, env=environment, capture_output=True, check=False).returncode == 1
    with subprocess.Popen(command, env=environment, cwd=image.root, stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + 60
            while subprocess.run(health, env=environment, capture_output=True, check=False).returncode:
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                assert time.monotonic() < end
            answer = httpx2.post(f"http://127.0.0.1:{port}/recommend", json={"user_id": tiny.users[0].id}).json()
            assert answer["source"] == "model"
            assert answer["reasoning"]["used"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
