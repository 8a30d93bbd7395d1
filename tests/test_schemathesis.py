"""The service against its own OpenAPI document: thousands of requests, as documented and not, to every operation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.service.conftest import published_settings
from tests.service.server import PATIENT, ROOT, serving
from tests.service.tiny_release import TinyRelease

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "s3cret"  # API key and admin token; schemathesis also tries without
LEAST_CASES = 3_000
CONFIG = f"""
seed = 1

[cache]
enabled = false

[generation]
mode = "all"
max-examples = 800
database = "none"

[auth.openapi]
bearer = {{ bearer = "{SECRET}" }}
key = {{ api_key = "{SECRET}" }}

[checks.positive_data_acceptance]
# A schema cannot say what the release holds, nor the time: a model or k that it does not have, an event of tomorrow.
# 401: it makes up credentials as well.
expected-statuses = ["2xx", "401", "404", "422"]

[checks.negative_data_rejection]
# Too long a list may be too long a body before anybody counts it.
expected-statuses = ["400", "401", "404", "405", "413", "415", "422"]

[[operations]]
# One bad request of a batch has a problem of its own, and the others have their answers.
include-path = "/recommend/batch"
checks.negative_data_rejection.expected-statuses = ["200", "400", "401", "404", "405", "413", "415", "422"]
"""


def test_the_service_does_what_its_document_says(tiny: TinyRelease, tmp_path: Path) -> None:
    """All checks of schemathesis on all operations; 5xx is a failure, and so is a 503."""
    published_settings(tiny, tmp_path / "store")
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    settings = {**PATIENT, "SCOTER_ACCESS__API_KEYS": f'["{SECRET}"]', "SCOTER_ACCESS__ADMIN_TOKEN": SECRET}
    with serving(tiny.path.parent, tmp_path / "store", tmp_path, environment=settings) as server:
        program = Path(sys.executable).parent / "schemathesis"
        done = subprocess.run(
            [
                program,
                "--config-file",
                config,
                "run",
                f"{server.address}/openapi.json",
                "--checks",
                "all",
                "--no-color",
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks"},
            capture_output=True,
            text=True,
            check=False,
        )
        report = "\n".join(line[:500] for line in done.stdout.splitlines())  # of bodies, the beginning
        assert done.returncode == 0, report + done.stderr
        assert "7 selected / 7 total" in report
        cases = re.search(r"(\d+) generated", report)
        assert cases is not None, report
        print(f"schemathesis: {cases[1]} cases")  # noqa: T201 - the figure of the run, shown by -rP
        assert int(cases[1]) >= LEAST_CASES
        assert not any("Traceback" in line for line in server.lines())
        assert server.metric('scoter_responses_total{route="/recommend",status="200"}') > 100
        exposed = httpx2.get(f"{server.address}/metrics").text
        for status in ("500", "503"):
            assert not re.search(rf'scoter_responses_total{{.*status="{status}"', exposed)
            assert f'scoter_recommendations_total{{status="{status}"}} 0.0' in exposed
