"""The table of failures, printed at the end of a run."""

from __future__ import annotations

import pytest

from tests.failures.scenario import TABLE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TABLE:
        return
    terminalreporter.section("failures, and what callers got while they lasted")
    terminalreporter.write_line("| failure | answers | got | p50 ms | worst ms | recovered after s |")
    terminalreporter.write_line("| --- | --- | --- | --- | --- | --- |")
    for row in TABLE:
        terminalreporter.write_line(
            f"| {row.failure} | {row.statuses} | {row.got} | {row.p50:.1f} | {row.worst:.0f} | {row.recovery:.1f} |"
        )
