"""Logs: one event a line, JSON for machines, readable on a terminal.

Levels go by data loss: WARNING is unexpected but nothing is lost; ERROR means that something
is missing, a guarantee is weaker, or an operator has to act.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from verity_stream.redaction import SECRETS
from verity_stream.settings import StreamSettings


def configure(settings: StreamSettings) -> None:
    """Send the process's logs, ours and those of libraries, to standard error in one format."""
    is_console = settings.log_format == "console" or (
        settings.log_format == "auto" and sys.stderr.isatty()
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    rendering: list[Any] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if is_console
        else [
            # Without the frames' local variables: they hold credentials.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendering,
                lambda _logger, _method, line: SECRETS.hide(str(line)),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # Below WARNING the libraries tell their own story, many lines at every rebalance; the
    # fixes are subclasses of Faust's services and tell it too.
    for package in ("verity_stream", "verity_sdk", "verity_common", "connectors"):
        logging.getLogger(package).setLevel(settings.log_level.upper())
    logging.getLogger("verity_stream.faust_base.fixes").setLevel(logging.WARNING)
