from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from loadtest.arrivals import poisson
from loadtest.mix import DEGRADED, SHARES
from loadtest.process import Running
from loadtest.sample import Sample
from loadtest.soak import MIB, Soaked, app, soak
from tests.loadtest.conftest import answering

CALM = Sample(seconds=0, rss=200 * MIB, uss=150 * MIB, private=100 * MIB, fds=20, connections=0, threads=9)


def soaked(growth: float = 0.0, **changes: int) -> Soaked:
    """A soak of 100 s whose memory grows by `growth` in all, and that ends with `changes`."""
    samples = [
        replace(CALM, seconds=float(second), private=int(CALM.private * (1 + growth * second / 100)))
        for second in range(100)
    ]
    return Soaked(50.0, CALM, replace(CALM, **changes), samples, {"known": Counter({"200": 1000})})


def bad(run: Soaked) -> list[str]:
    return [finding.what for finding in run.findings() if not finding.good]


def test_what_stays_is_good() -> None:
    assert bad(soaked()) == []
    assert bad(soaked(growth=0.01)) == []


def test_what_grows_is_bad() -> None:
    assert bad(soaked(growth=0.05)) == ["memory"]
    assert bad(soaked(fds=21)) == ["file descriptors"]
    assert bad(soaked(connections=1)) == ["TCP connections"]
    assert bad(soaked(threads=10)) == ["threads"]


def test_the_warm_up_may_grow() -> None:
    run = soaked()
    run.samples[:20] = [replace(CALM, private=CALM.private * second // 20) for second in range(20)]
    assert bad(run) == []


def test_wrong_answers_and_many_refusals_are_bad() -> None:
    run = soaked()
    run.wrong = 1
    run.outcomes["known"]["503"] = 11
    assert bad(run) == ["wrong answers", "refused"]


def test_popular_items_for_everybody_are_bad() -> None:
    """An engine that died in the first minute left a soak with statuses of 200, and was good."""
    run = soaked()
    run.outcomes["known"][DEGRADED] = 10
    assert bad(run) == []
    run.outcomes["known"][DEGRADED] = 11
    assert bad(run) == ["degraded"]


@pytest.mark.parametrize("where", [["--json", "nowhere/soak.json"], ["--plot", "nowhere/soak.png"], ["--plot", "soak"]])
def test_what_cannot_be_written_is_said_before_the_soak(where: list[str], tmp_path: Path) -> None:
    arguments = ["--releases", str(tmp_path), "--store", "nowhere", *where]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert where[1] in result.output


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_slow_service_is_asked_as_often_as_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was spared: every ten seconds the load waited until all was answered."""
    monkeypatch.setattr("loadtest.soak.CAPACITY_SECONDS", 0.1)
    monkeypatch.setattr("loadtest.soak.BURST_SECONDS", 0.1)
    monkeypatch.setattr("loadtest.soak.SETTLE_SECONDS", 0.0)
    async with answering(delay=lambda _: 1.5) as target:
        run = await soak(Running(os.getpid(), target.port), [b'{"user_id":"a"}'], 40.0, 3.0)
    assert run.requests == len(poisson(40.0, 3.0, np.random.default_rng(0)))
    assert sum(run.outcomes["known"].values()) == run.outcomes["known"]["200"] == len(run.latencies)
    assert min(run.latencies) >= 1500


@pytest.mark.slow
def test_a_real_service_gives_back_what_it_took(published: tuple[Path, Path], tmp_path: Path) -> None:
    releases, store = published
    file, plot = tmp_path / "soak.json", tmp_path / "soak.png"
    arguments = ["--releases", str(releases), "--store", str(store), "--minutes", "0.25", "--rate", "40"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(file), "--plot", str(plot)])
    report = json.loads(file.read_text())
    findings = {finding["what"]: finding["good"] for finding in report["findings"]}
    # Whether memory stays takes minutes to say; how much is refused depends on what else the machine does.
    assert findings["file descriptors"], report
    assert findings["TCP connections"], report
    assert findings["threads"], report
    assert findings["wrong answers"], report["outcomes"]
    assert result.exit_code == (0 if all(findings.values()) else 1), result.output
    assert set(report["outcomes"]) == set(SHARES)
    assert set(report["outcomes"]["invalid"]) == {"422"}
    assert report["outcomes"]["leaves"]["left"] > 0
    assert len(report["samples"]) >= 10
    assert plot.read_bytes().startswith(b"\x89PNG")
