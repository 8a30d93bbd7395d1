"""Every query of the dashboard, asked of a real Prometheus that scraped the real service under a short load."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from monitoring.__main__ import files
from monitoring.dashboard import ROWS
from monitoring.objectives import OBJECTIVES
from monitoring.rules import groups
from tests.ports import free_port
from tests.service.conftest import published_settings
from tests.service.server import PATIENT, serving
from tests.service.tiny_release import TinyRelease
from tests.tools import tool

ROOT = Path(__file__).parents[2]
QUERIES = [
    pytest.param(query, legend, id=f"{row}/{panel.title}/{number}")
    for row, panels in ROWS.items()
    for panel in panels
    for number, (legend, query) in enumerate(panel.queries.items())
]
WINDOW = "2m"  # far longer than the load takes: all of it lies in there
ROUNDS, SCRAPES = 60, 6  # of load at least, and of what it does to the metrics


@dataclass(frozen=True)
class Watched:
    """A Prometheus that has scraped the service, and what the service exposed last."""

    prometheus: str
    exposition: str
    at: float  # when the load had been scraped: however long the tests take, their queries are of that moment

    def ask(self, query: str) -> list[dict[str, Any]]:
        return asked(self.prometheus, query, self.at)


def asked(prometheus: str, query: str, at: float) -> list[dict[str, Any]]:
    """The series that a query has at a time, seconds since 1970."""
    answer = httpx2.get(f"{prometheus}/api/v1/query", params={"query": query, "time": at}).json()
    assert answer["status"] == "success", answer
    series: list[dict[str, Any]] = answer["data"]["result"]
    return series


@pytest.fixture(scope="module")
def watched(tiny: TinyRelease, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    published_settings(tiny, folder / "store")
    with (
        serving(tiny.path.parent, folder / "store", folder, environment=PATIENT) as service,
        prometheus(folder, service.address.removeprefix("http://")) as address,
    ):
        load(service.address, tiny, address)
        time.sleep(2)  # one more scrape, and one more evaluation of the rules
        yield Watched(address, httpx2.get(f"{service.address}/metrics").text, time.time())


class prometheus:  # noqa: N801 - reads as a function in `with`
    """A real Prometheus that scrapes one target every second and evaluates the rules."""

    def __init__(self, folder: Path, target: str) -> None:
        self._address = f"127.0.0.1:{free_port()}"
        config = yaml.safe_load((ROOT / "monitoring/prometheus.yaml").read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ROOT / "monitoring/rules.yaml")]
        (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "scoter")
        job.pop("dns_sd_configs")
        config["scrape_configs"] = [{**job, "static_configs": [{"targets": [target]}]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._folder = folder

    def __enter__(self) -> str:
        command = [tool("prometheus"), "--config.file=prometheus.yaml", f"--web.listen-address={self._address}"]
        with (self._folder / "log").open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [*command, f"--storage.tsdb.path={self._folder / 'data'}"], cwd=self._folder, stderr=log
            )
        end = time.monotonic() + 30
        while not self._ready():
            assert self._process.poll() is None, (self._folder / "log").read_text(encoding="utf-8")
            assert time.monotonic() < end
            time.sleep(0.1)
        return f"http://{self._address}"

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _ready(self) -> bool:
        try:
            return httpx2.get(f"http://{self._address}/-/ready").status_code == 200
        except httpx2.ConnectError:
            return False


def load(service: str, tiny: TinyRelease, prometheus: str) -> None:
    """Known users, unknown ones, what cannot be answered, and what is not there, until Prometheus has seen enough."""
    user = tiny.users[0]
    bodies: list[dict[str, object]] = [
        {"user_id": user.id},
        {"user_id": user.id, "model": "hstu"},
        {"user_id": user.id, "reasoning": False},
        {"user_id": "stranger"},
        {"user_id": "stranger", "history": [*user.history, "no-such-item"]},
        {"user_id": user.id, "k": -1},
    ]
    rounds = 0
    end = time.monotonic() + 60
    with httpx2.Client(base_url=service) as client, ThreadPoolExecutor(4) as pool:
        while rounds < ROUNDS or scrapes(prometheus) < SCRAPES:
            assert time.monotonic() < end, f"{rounds} rounds, {scrapes(prometheus)} scrapes"
            asked = [pool.submit(client.post, "/recommend", json=body) for body in bodies]
            statuses = [answer.result().status_code for answer in asked]
            assert statuses == [200, 200, 200, 200, 200, 422]
            rounds += 1
            assert client.get("/nothing-here").status_code == 404
            time.sleep(0.02)


def scrapes(prometheus: str) -> int:
    """How often Prometheus has found requests that were refused, the rarest of all."""
    query = f'count_over_time(scoter_responses_total{{route="/recommend",status="422"}}[{WINDOW}])'
    return max((int(one["value"][1]) for one in asked(prometheus, query, time.time())), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("query, legend", QUERIES)
def test_a_query_returns_data(watched: Watched, query: str, legend: str) -> None:
    series = watched.ask(query.replace("$__rate_interval", WINDOW))
    assert series
    for one in series:
        assert math.isfinite(float(one["value"][1]))
    # A label is named in the legend if and only if the query keeps it.
    kept = re.findall(r"\bby \(([^)]*)\)", query)
    named = set(re.findall(r"{{(\w+)}}", legend))
    assert named == {label for labels in kept for label in labels.replace(" ", "").split(",")} - {"le"}


@pytest.mark.slow
def test_queries_and_rules_name_metrics_that_the_service_exposes(watched: Watched) -> None:
    exposed = set(re.findall(r"^# HELP (\w+)", watched.exposition, re.MULTILINE))
    asked = [param.values[0] for param in QUERIES]
    asked += [rule["expr"] for group in groups() for rule in group["rules"]]
    named = {name for query in asked for name in re.findall(r"\bscoter_\w+", str(query))}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= exposed


@pytest.mark.slow
def test_the_load_shows_where_it_should(watched: Watched) -> None:
    def rates(query: str, label: str) -> dict[str, float]:
        series = watched.ask(query.replace("WINDOW", WINDOW))
        return {one["metric"][label]: float(one["value"][1]) for one in series}

    statuses = rates('sum by (status) (rate(scoter_responses_total{route="/recommend"}[WINDOW]))', "status")
    assert statuses["200"] > 4 * statuses["422"] > 0
    assert rates("sum by (reason) (rate(scoter_degraded_total[WINDOW]))", "reason")["no_history"] > 0
    (coverage,) = watched.ask(ROWS["At a glance"][4].queries[""].replace("$__rate_interval", WINDOW))
    assert 0.15 < float(coverage["value"][1]) < 0.25  # one of the five that are answered


@pytest.mark.slow
def test_the_recording_rules_record(watched: Watched) -> None:
    recorded = {one["metric"]["objective"] for one in watched.ask("scoter:bad_requests:ratio_rate5m")}
    assert recorded == {objective.name for objective in OBJECTIVES}
    (quality,) = watched.ask('scoter:bad_requests:ratio_rate5m{objective="quality"}')
    assert float(quality["value"][1]) == 0  # a user without history is no fault


def test_the_committed_files_are_the_generated_ones() -> None:
    for path, text in files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run `make monitoring`"


def test_panels_lie_beside_and_beneath_each_other() -> None:
    panels = json.loads((ROOT / "monitoring/dashboard.json").read_text(encoding="utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_batches_of_triton_are_shown_too(tmp_path: Path) -> None:
    """The service runs none then: what Triton runs together it alone can tell."""
    model = 'model="scoter_h-1a9da1f769ddbf96"'
    series = {
        f'nv_inference_count{{{model},version="1"}}': "0+60x60",
        f'nv_inference_exec_count{{{model},version="1"}}': "0+20x60",
    }
    shows(tmp_path, "Requests run together", "mean", series, {f"{{{model}}}": 3})


def test_an_arm_that_uses_no_reasoning_is_shown_to_use_none(tmp_path: Path) -> None:
    """Neither by design nor, as after a restart without any H in the store, by accident."""
    series = {
        'scoter_request_seconds_count{arm="control",model="hstu",reasoning="disabled"}': "0+60x60",
        'scoter_request_seconds_count{arm="reasoned",model="scoter_h",reasoning="used"}': "0+45x60",
        'scoter_request_seconds_count{arm="reasoned",model="scoter_h",reasoning="absent"}': "0+15x60",
    }
    shows(tmp_path, "Reasoning used, by arm", "{{arm}}", series, {'{arm="control"}': 0, '{arm="reasoned"}': 0.75})


def shows(folder: Path, title: str, legend: str, series: dict[str, str], values: dict[str, float]) -> None:
    """A panel's query has these values, by labels, of series every five seconds."""
    (panel,) = (panel for panels in ROWS.values() for panel in panels if panel.title == title)
    (query,) = (query for shown, query in panel.queries.items() if shown.startswith(legend))
    case = {
        "interval": "5s",
        "input_series": [{"series": name, "values": text} for name, text in series.items()],
        "promql_expr_test": [
            {
                "expr": query.replace("$__rate_interval", WINDOW),
                "eval_time": "4m",
                "exp_samples": [{"labels": labels, "value": value} for labels, value in values.items()],
            }
        ],
    }
    (folder / "cases.yaml").write_text(yaml.safe_dump({"tests": [case]}), encoding="utf-8")
    command = [tool("promtool"), "test", "rules", str(folder / "cases.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
