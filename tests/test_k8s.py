"""What kustomize makes of k8s/: valid objects, hardened pods, and parts that fit together."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from monitoring.rules import groups
from service.cli import DRAIN_SECONDS
from service.engine.ladder import READY_SECONDS
from service.settings import Settings, TritonSettings
from tests.tools import tool

ROOT = Path(__file__).parents[1]
KUBERNETES = "1.35"
OVERLAYS = ["dev", "prod"]
# Of the Prometheus operator: custom resources, whose schemas are not Kubernetes's.
CUSTOM = {"PrometheusRule", "PodMonitor"}

Object = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """An overlay, as kubectl would apply it."""
    command = [tool("kubectl"), "kustomize", str(ROOT / "k8s/overlays" / request.param)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr
    return list(yaml.safe_load_all(result.stdout))


def of(objects: list[Object], kind: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def templates(objects: list[Object]) -> dict[str, Object]:
    """Every pod that may run: its name and its template."""
    found = {
        f"{kind} {name}": body["spec"]["template"]
        for kind in ("Deployment", "StatefulSet")
        for name, body in of(objects, kind).items()
    }
    jobs = {name: body["spec"]["jobTemplate"]["spec"]["template"] for name, body in of(objects, "CronJob").items()}
    return found | {f"CronJob {name}": template for name, template in jobs.items()}


def containers(template: Object) -> list[Object]:
    found: list[Object] = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
    return found


def test_every_object_is_valid(objects: list[Object]) -> None:
    validated = [found for found in objects if found["kind"] not in CUSTOM]
    assert len(validated) >= 18
    for found in validated:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)


def test_every_object_is_in_the_namespace_of_its_overlay(objects: list[Object]) -> None:
    (namespace,) = of(objects, "Namespace")
    spaces = {found["metadata"].get("namespace") for found in objects if found["kind"] != "Namespace"}
    assert spaces == {namespace}


def test_the_parts_that_are_promised_are_there(objects: list[Object]) -> None:
    kinds = {found["kind"] for found in objects}
    assert {"PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy", "ConfigMap", "ServiceAccount"} <= kinds
    assert set(of(objects, "Deployment")) == {"scoter", "triton"}
    assert of(objects, "CronJob")["publish"]["spec"]["suspend"]


def test_every_pod_meets_the_restricted_standard(objects: list[Object]) -> None:
    for name, template in templates(objects).items():
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"], name
        assert pod["runAsUser"] > 0, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert template["spec"]["automountServiceAccountToken"] is False, name
        for container in containers(template):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["readOnlyRootFilesystem"], name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name
            assert not container["image"].endswith(":latest"), name
            assert re.search(r":[\w.-]+$", container["image"]), name


def test_every_pod_is_closed_to_those_who_have_no_business_with_it(objects: list[Object]) -> None:
    closed = [policy["spec"]["podSelector"]["matchLabels"] for policy in of(objects, "NetworkPolicy").values()]
    for name, template in templates(objects).items():
        labels = template["metadata"]["labels"]
        assert any(selector.items() <= labels.items() for selector in closed), name
    for policy in of(objects, "NetworkPolicy").values():
        assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_mounted_volumes_and_named_ports_exist(objects: list[Object]) -> None:
    claims = set(of(objects, "PersistentVolumeClaim"))
    for name, template in templates(objects).items():
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
        } <= claims
        made = {"data"} if name == "StatefulSet redis" else set()
        for container in containers(template):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes) | made, name
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                ask = container.get(probe, {}).get("httpGet") or container.get(probe, {}).get("tcpSocket")
                assert ask is None or ask["port"] in ports, name


def test_a_model_that_fails_costs_no_other_one_and_no_pod(objects: list[Object]) -> None:
    (container,) = of(objects, "Deployment")["triton"]["spec"]["template"]["spec"]["containers"]
    assert {"--exit-on-error=false", "--strict-readiness=false"} <= set(container["args"])


def test_services_and_budgets_select_pods(objects: list[Object]) -> None:
    labels = [template["metadata"]["labels"] for template in templates(objects).values()]
    for found in of(objects, "Service").values():
        assert any(found["spec"]["selector"].items() <= each.items() for each in labels)
    for found in of(objects, "PodDisruptionBudget").values():
        assert any(found["spec"]["selector"]["matchLabels"].items() <= each.items() for each in labels)


def test_the_service_has_time_to_finish_what_runs(objects: list[Object]) -> None:
    pod = of(objects, "Deployment")["scoter"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (settings,) = (found for name, found in of(objects, "ConfigMap").items() if name.startswith("scoter-service"))
    waits = int(settings["data"]["SCOTER_DRAIN_SECONDS"])
    readiness = container["readinessProbe"]
    assert waits >= readiness["periodSeconds"] * readiness["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] > waits + DRAIN_SECONDS
    assert readiness["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_probes_wait_for_an_engine_that_hangs(objects: list[Object]) -> None:
    """`/readyz` gives it a second, and the fallback ranks meanwhile: no reason to end a replica that starts."""
    (container,) = of(objects, "Deployment")["scoter"]["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] == "/readyz"
        assert container[probe].get("timeoutSeconds", 1) > READY_SECONDS


def test_the_service_understands_its_settings(objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = of(objects, "Deployment")["scoter"]["spec"]["template"]["spec"]["containers"]
    (source,) = container["envFrom"]
    environment = dict(of(objects, "ConfigMap")[source["configMapRef"]["name"]]["data"])
    assert "SCOTER_STORE__URL" not in environment  # it holds a password
    assert {entry["name"] for entry in container["env"]} == {"SCOTER_STORE__URL"}
    for name in os.environ:
        if name.startswith("SCOTER_"):
            monkeypatch.delenv(name)
    for name, value in {**environment, "SCOTER_STORE__URL": "redis://:secret@redis:6379/0"}.items():
        assert name.removeprefix("SCOTER_").partition("__")[0].lower() in Settings.model_fields, name
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.store.kind == "redis"
    assert isinstance(settings.engine, TritonSettings)
    assert settings.engine.url == "triton:8001"
    assert settings.fallback is not None
    mounted = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounted[str(settings.releases)] is True


def test_publishing_deploys_the_models_before_it_moves_the_pointer(objects: list[Object]) -> None:
    pod = of(objects, "CronJob")["publish"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (models,) = pod["initContainers"]
    (pointer,) = pod["containers"]
    assert models["args"][:2] == ["triton", "add"]
    assert pointer["args"][0] == "publish"
    triton = of(objects, "Deployment")["triton"]["spec"]["template"]["spec"]
    profile = "gpu" if "nvidia.com/gpu" in triton["containers"][0]["resources"]["limits"] else "cpu"
    assert models["args"][models["args"].index("--profile") + 1] == profile
    if profile == "cpu":
        cores = float(triton["containers"][0]["resources"]["requests"]["cpu"].replace("500m", "0.5"))
        assert int(models["args"][models["args"].index("--instances") + 1]) >= cores


def test_the_operator_gets_the_rules_that_are_tested(objects: list[Object]) -> None:
    for rules in of(objects, "PrometheusRule").values():
        assert rules["spec"]["groups"] == groups()
    dashboards = [found for name, found in of(objects, "ConfigMap").items() if name.startswith("scoter-dashboard")]
    assert len(dashboards) == len(of(objects, "PrometheusRule"))
