from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, structlog
from service.logs import LogLevel, configure_logs

configure_logs(LogLevel.info)
log = structlog.get_logger("service.test")
log.debug("hidden")
log.info("shown", release="r1")
logging.getLogger("uvicorn.error").warning("from %s", "a library")

def fail(user_id):
    raise KeyError("boom")

try:
    fail("very-private-user")
except KeyError:
    log.exception("failed", request_id="r-1")
"""


def test_every_line_is_json_and_tracebacks_hold_no_variables() -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    shown, library, failed = [json.loads(line) for line in ended.stderr.splitlines()]
    assert (shown["event"], shown["release"], shown["level"]) == ("shown", "r1", "info")
    assert (library["event"], library["logger"]) == ("from a library", "uvicorn.error")
    assert failed["exception"][0]["exc_type"] == "KeyError"
    assert failed["request_id"] == "r-1"
    assert "locals" not in failed["exception"][0]["frames"][0] or not failed["exception"][0]["frames"][0]["locals"]
    assert "timestamp" in failed
    assert ended.stderr.count("very-private-user") == 0
    assert ended.stdout == ""
