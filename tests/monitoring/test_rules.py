"""The alert rules, as Prometheus's own tool reads and runs them."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.objectives import OBJECTIVES
from monitoring.rules import groups
from tests.tools import tool

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("rules_test.yaml")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, check=False)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"] if "alert" in rule]


def test_prometheus_accepts_the_rules() -> None:
    result = promtool("check", "rules", str(ROOT / "monitoring/rules.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_accepts_its_configuration() -> None:
    result = promtool("check", "config", str(ROOT / "monitoring/prometheus.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_alerts_fire_when_they_should_and_only_then() -> None:
    result = promtool("test", "rules", str(CASES))
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_a_case_where_it_fires_and_one_where_it_does_not() -> None:
    tests = yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    fires = Counter(case["alertname"] for case in cases if case["exp_alerts"])
    silent = Counter(case["alertname"] for case in cases if not case["exp_alerts"])
    # One objective's alerts are made like another's: each pace is tried in both directions somewhere.
    made_alike = {"ScoterAvailabilityBudgetBurnsSlowly", "ScoterQualityBudgetBurnsSlowly"}
    names = {alert["alert"] for alert in alerts()}
    assert names - set(fires) == made_alike
    assert names - set(silent) <= {"ScoterQualityBudgetBurnsSlowly", "ScoterLatencyBudgetBurnsSlowly"}


def test_every_alert_is_explained_in_the_documentation() -> None:
    page = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    for alert in alerts():
        assert f"`{alert['alert']}`" in page, alert["alert"]


def test_every_objective_pages_and_files_tickets() -> None:
    for objective in OBJECTIVES:
        severities = {a["labels"]["severity"] for a in alerts() if a["labels"].get("objective") == objective.name}
        assert severities == {"page", "ticket"}
