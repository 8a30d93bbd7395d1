"""Structured logs: one JSON object a line on stderr, ours and those of the libraries alike."""

from __future__ import annotations

import logging
from enum import StrEnum

import structlog


class LogLevel(StrEnum):
    """The least serious of the lines that are written."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def configure_logs(level: LogLevel = LogLevel.info) -> None:
    """Send structlog and the standard library's loggers through one JSON renderer. Call once, at start-up."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        # Without local variables: they would carry users' ids and histories into the logs.
        structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
    ]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
