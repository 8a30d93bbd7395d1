"""Look up known vulnerabilities of every locked package, and never take "could not ask" for "none known".

    python scripts/audit.py [--may-be-offline] LOCK...

Behind a package mirror, pip-audit finds no advisories, skips every package and reports success. Here that is its own
outcome: exit status 0 if every package was looked up and none is known to be vulnerable, 1 if one is, 3 if advisories
were out of reach, which --may-be-offline turns into a loud 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

SERVICES = ("pypi", "osv")  # asked in this order; both know the advisories of PyPA
UNREACHABLE = 3
SECONDS = 600


class Findings(NamedTuple):
    """What became of the packages of one lock."""

    audited: int
    vulnerable: list[str]  # one line for each vulnerability
    skipped: list[str]  # packages that were not looked up


def main(arguments: list[str] | None = None) -> int:
    """Audit the locks; return the exit status."""
    parser = argparse.ArgumentParser(description="Look up known vulnerabilities of every locked package.")
    parser.add_argument("locks", nargs="+", type=Path)
    parser.add_argument("--may-be-offline", action="store_true", help="do not fail if advisories are out of reach")
    options = parser.parse_args(arguments)
    status = 0
    for lock in options.locks:
        findings = next((found for service in SERVICES if (found := audit(lock, service)) is not None), None)
        if findings is None:
            print(
                f"\n{'!' * 100}\n!! NOT AUDITED: {lock}. No source of advisories can be reached from here.\n{'!' * 100}"
            )
            status = status or (0 if options.may_be_offline else UNREACHABLE)
            continue
        print(f"{lock}: {findings.audited} packages looked up, {len(findings.vulnerable)} vulnerabilities known")
        for line in [*findings.vulnerable, *(f"{name}: could not be looked up" for name in findings.skipped)]:
            print(f"  {line}")
        if findings.vulnerable or findings.skipped:
            status = 1
    return status


def audit(lock: Path, service: str) -> Findings | None:
    """Ask one service about a lock; None if it cannot be reached or knows none of the packages."""
    hashes = ["--require-hashes"] if "--hash=" in lock.read_text(encoding="utf-8") else ["--no-deps"]
    options = ["-s", service, "-r", str(lock), "--disable-pip", *hashes, "-f", "json", "--progress-spinner", "off"]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    try:
        return judged(json.loads(done.stdout))
    except ValueError:  # no report: a traceback, of a connection that failed
        return None


def judged(report: dict[str, Any]) -> Findings | None:
    """Read a report of pip-audit; None if not one package was looked up."""
    packages = report["dependencies"]
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        return None
    vulnerable = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in audited
        for found in package["vulns"]
    ]
    return Findings(len(audited), vulnerable, [p["name"] for p in packages if "skip_reason" in p])


if __name__ == "__main__":
    sys.exit(main())
