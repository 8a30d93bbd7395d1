from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from loadtest.client import Target
from loadtest.open_loop import app, parsed_rates
from tests.service.server import PATIENT, ROOT, serving

pytestmark = pytest.mark.slow

SHORT = ["--rates", "60,20", "--seconds", "1.2", "--run-in", "0.2", "--rounds", "1"]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the services that are started: a busy test machine degrades nothing."""
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [*SHORT, *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_it_starts_a_service_measures_it_and_draws_it(published: tuple[Path, Path], tmp_path: Path) -> None:
    releases, store = published
    file, plot = tmp_path / "figures.json", tmp_path / "curve.png"
    output = run("--releases", releases, "--store", store, "--deadline-ms", "9000", "--json", file, "--plot", plot)
    report = json.loads(file.read_text())
    assert [row["rate"] for row in report["rows"]] == [20, 60]
    for row in report["rows"]:
        assert row["statuses"] == {"200": row["requests"]}
        assert row["sources"] == {"model": row["requests"]}
        assert row["requests"] == pytest.approx(1.2 * row["rate"], rel=0.8)
        assert set(row["stages"]) >= {"store", "engine", "total"}
        assert row["latency_ms"]["p50"] >= row["stages"]["total"]["p50"]
        assert row["lag_p99_ms"] >= 0
    assert report["generator_per_second"] > 100
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "share this machine's cores" in " ".join(output.split())


def test_two_services_are_compared(published: tuple[Path, Path], tmp_path: Path) -> None:
    releases, store = published
    users = tmp_path / "users"
    users.write_text('user-1\n{"user_id": "user-2", "k": 3}\n\nnobody\n')
    file, plot = tmp_path / "figures.json", tmp_path / "curve.svg"
    with serving(releases, store, tmp_path, environment=PATIENT) as server:
        urls = ["--url", f"one={server.address}", "--url", f"two={server.address}"]
        run(*urls, "--users", users, "--json", file, "--plot", plot, "--header", "X-Deadline-Ms: 9000")
        assert server.metric('scoter_responses_total{route="/recommend",status="200"}') > 80
    report = json.loads(file.read_text())
    assert [(row["target"], row["rate"]) for row in report["rows"]] == [
        ("one", 20),
        ("one", 60),
        ("two", 20),
        ("two", 60),
    ]
    assert [(row["target"], row["to"], row["rate"]) for row in report["ratios"]] == [
        ("two", "one", 20),
        ("two", "one", 60),
    ]
    for row in report["ratios"]:
        kept_up = all(r["valid_runs"] == r["runs"] for r in report["rows"] if r["rate"] == row["rate"])
        assert row["p50"] > 0 if row["p50"] is not None else not kept_up  # on a busy machine the generator is late
    assert all(row["degraded"]["no_history"] == row["sources"]["popular"] for row in report["rows"])
    assert plot.read_text().startswith("<?xml")


def test_a_service_that_is_not_there_is_reported_not_raised(tmp_path: Path) -> None:
    users, file = tmp_path / "users", tmp_path / "figures.json"
    users.write_text("somebody\n")
    run("--url", "http://127.0.0.1:9", "--users", users, "--json", file)
    for row in json.loads(file.read_text())["rows"]:
        ((reason, count),) = row["statuses"].items()
        assert reason.startswith("no connection")
        assert count == row["requests"]
        assert row["within_slo"] == 0


def test_requests_are_made_up_for_those_who_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million users all requests took eight seconds before each measurement, and 160 MiB."""
    made: list[bytes] = []
    post = Target.post

    def counted(target: Target, path: str, body: bytes) -> bytes:
        made.append(body)
        return post(target, path, body)

    monkeypatch.setattr(Target, "post", counted)
    users = tmp_path / "users"
    users.write_text("\n".join(f"user-{number}" for number in range(20_000)))
    run("--url", "http://127.0.0.1:9", "--users", users)
    assert len(made) - 1000 < 500  # 1,000 to find out what the generator reaches
    assert len(set(made[1000:])) > 50


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--users"),
        (["--users", "nowhere", "--url", "http://h"], "nowhere"),
        (["--users", __file__, "--url", "http://h", "--rates", "0"], "--rates"),
        (["--users", __file__, "--url", "h"], "http://host:port"),
        (["--users", __file__, "--url", "http://h", "--url", "http://h"], "name"),
        (["--releases", "nowhere", "--url", "http://h"], "nowhere"),
        (["--users", __file__], "--store"),
        (["--users", __file__, "--url", "http://h", "--json", "nowhere/figures.json"], "nowhere"),
        (["--users", __file__, "--url", "http://h", "--plot", "nowhere/curve.png"], "nowhere"),
        (["--users", __file__, "--url", "http://h", "--plot", "curve.xls"], ".png"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in result.output


def test_rates_are_numbers_above_zero() -> None:
    assert parsed_rates("200, 50,50") == [50, 200]
    for text in ("", "fast", "0", "-1", "inf", "nan"):
        with pytest.raises(typer.BadParameter):
            parsed_rates(text)


def test_the_closed_loop_reports_the_service_beside_the_bare_model(published: tuple[Path, Path]) -> None:
    releases, store = published
    arguments = ["--releases", str(releases), "--store", str(store), "--seconds", "0.4", "--rounds", "1"]
    command = [sys.executable, "-m", "loadtest.closed_loop", *arguments, "--clients", "4"]
    report = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert report["http_ms"]["p50"] > report["bare_ms"]["p50"] > 0
    assert report["http_per_second"] > 0
