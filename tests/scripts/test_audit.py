"""The audit says what it found, and says so when it could not look."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import audit

CLEAN = {"name": "numpy", "version": "2.0.0", "vulns": []}
VULNERABLE = {
    "name": "jinja2",
    "version": "3.1.2",
    "vulns": [{"id": "PYSEC-0000-1", "fix_versions": ["3.1.3"], "aliases": [], "description": "made up"}],
}
SKIPPED = {"name": "redis", "skip_reason": "Dependency not found on PyPI and could not be audited: redis (8.0.0)"}


def lock(folder: Path) -> str:
    path = folder / "lock.txt"
    path.write_text("numpy==2.0.0\n", encoding="ascii")
    return str(path)


def test_a_known_vulnerability_is_named_with_its_fix() -> None:
    findings = audit.judged({"dependencies": [CLEAN, VULNERABLE]})
    assert findings == (2, ["jinja2 3.1.2: PYSEC-0000-1, fixed in 3.1.3"], [])


def test_a_report_that_skipped_every_package_is_no_audit() -> None:
    assert audit.judged({"dependencies": [SKIPPED]}) is None


@pytest.mark.parametrize(
    "packages, status", [([CLEAN], 0), ([CLEAN, VULNERABLE], 1), ([CLEAN, SKIPPED], 1), ([SKIPPED], 3)]
)
def test_only_a_complete_and_clean_audit_passes(
    packages: list[dict[str, object]], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "audit", lambda _lock, _service: audit.judged({"dependencies": packages}))
    assert audit.main([lock(tmp_path)]) == status


def test_what_could_not_be_asked_is_said_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "audit", lambda _lock, _service: None)
    assert audit.main([lock(tmp_path), "--may-be-offline"]) == 0
    assert "NOT AUDITED" in capsys.readouterr().out


@pytest.mark.slow
def test_a_service_that_cannot_be_reached_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for service in audit.SERVICES:
        assert audit.audit(Path(lock(tmp_path)), service) is None
