from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from service.context import allowed_seconds
from service.deadline import Deadline
from service.errors import HeaderInvalid
from service.settings import LimitSettings
from service.trace import accepted, trace_id

LIMITS = LimitSettings(deadline_ms=200, deadline_ceiling_ms=5000)


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({}, 0.2),
        ({"x-deadline-ms": "50"}, 0.05),
        ({"x-deadline-ms": "0.5"}, 0.0005),
        ({"x-deadline-ms": "60000"}, 5.0),
        ({"x-envoy-expected-rq-timeout-ms": "80"}, 0.08),
        ({"x-envoy-expected-rq-timeout-ms": "80", "x-deadline-ms": "30"}, 0.03),
    ],
)
def test_the_caller_says_how_long_it_waits(headers: dict[str, str], seconds: float) -> None:
    assert allowed_seconds(Headers(headers), LIMITS) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", "nan", "inf", "1e999", "50ms"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(HeaderInvalid, match="x-deadline-ms: must be a positive number"):
        allowed_seconds(Headers({"x-deadline-ms": text}), LIMITS)


def test_a_deadline_passes() -> None:
    assert 9 < Deadline(10).left() <= 10
    assert Deadline(-1).left() < 0


def test_a_traceparent_is_carried_only_if_it_is_one() -> None:
    header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert accepted(header) == header
    assert trace_id(header) == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert trace_id(None) is None
    zero = "0" * 32
    for wrong in (
        "",
        "x",
        header[:-1],
        header + "0",
        header.upper(),
        f"00-{zero}-00f067aa0ba902b7-01",
        "ff" + header[2:],
    ):
        assert accepted(wrong) is None
