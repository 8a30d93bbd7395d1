"""W3C Trace Context: the caller's `traceparent`, carried on to what the service calls and into what it logs."""

from __future__ import annotations

import re
from contextvars import ContextVar

# The header of the request that the current task answers, as it came; None if there was none that is valid.
traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def accepted(header: str) -> str | None:
    """The header's value if it is a traceparent of version 00, else None."""
    return header if _FORM.fullmatch(header) else None


def trace_id(header: str | None) -> str | None:
    """The 32 hex digits that name the trace."""
    return header.split("-")[1] if header is not None else None
