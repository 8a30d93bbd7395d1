"""compose.yaml is valid, and what it mounts and starts is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli import DRAIN_SECONDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    return found


def test_it_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_files_that_are_mounted_exist(services: dict[str, dict[str, Any]]) -> None:
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    files = [ROOT / source for source in mounted if source.startswith("./")]
    assert len(files) == 5
    assert all(file.is_file() for file in files)


def test_volumes_and_targets_are_declared(services: dict[str, dict[str, Any]]) -> None:
    declared = set(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["volumes"])
    named = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert {name for name in named if name.isidentifier()} == declared
    stages = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for service in services.values():
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in stages


def test_every_container_is_hardened_and_every_image_pinned(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        tag = service["image"].rpartition(":")[2]
        assert tag not in {"latest", service["image"]}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_the_service_has_time_to_finish_what_runs(services: dict[str, dict[str, Any]]) -> None:
    assert int(services["service"]["stop_grace_period"].removesuffix("s")) > DRAIN_SECONDS


def test_triton_runs_once_on_either_kind_of_hardware(services: dict[str, dict[str, Any]]) -> None:
    assert services["triton"]["profiles"] == ["cpu"]
    assert services["triton-gpu"]["profiles"] == ["gpu"]
    assert services["triton-gpu"]["networks"]["default"]["aliases"] == ["triton"]
    assert services["service"]["environment"]["SCOTER_ENGINE__URL"] == "triton:8001"


def test_grafana_reads_the_prometheus_that_scrapes() -> None:
    (source,) = yaml.safe_load((ROOT / "monitoring/grafana/datasource.yaml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    config = yaml.safe_load((ROOT / "monitoring/prometheus.yaml").read_text(encoding="utf-8"))
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
