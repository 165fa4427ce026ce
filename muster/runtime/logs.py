"""Logs: structured, on standard error. JSON lines for machines, colour for a person at a terminal.

Event names are constants ("round.committed"), values are fields. What is bound by `structlog.contextvars`
(run_id, round, peer_id) is in every line. Records of the standard library's `logging` come out in the same
form.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from muster.errors import ConfigError, MusterError
from muster.texts import shown

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# What these say below a warning is about themselves.
QUIETER = ("asyncio", "alembic", "sqlalchemy", "grpc")


def configure_logging(level: str = "info", *, stream: TextIO | None = None, json: bool | None = None) -> None:
    """Sets up this process's logs; a second call replaces the first.

    `json`: True or False to insist; None asks whether the stream is a terminal. Raises `ConfigError`
    "logs.level".
    """
    if level not in LEVELS:
        raise ConfigError("logs.level", f"there is no log level {level!r}", fix=f"one of {', '.join(LEVELS)}")
    out = sys.stderr if stream is None else stream
    terminal = out.isatty() if json is None else not json
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _tell_errors,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=_endings(terminal=terminal))
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    for name in QUIETER:
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.WARNING))


def _endings(*, terminal: bool) -> list[Processor]:
    drop = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if terminal:
        console = structlog.dev.ConsoleRenderer(
            colors=not os.environ.get("NO_COLOR"), exception_formatter=structlog.dev.plain_traceback
        )
        return [drop, structlog.processors.format_exc_info, _shown, console]
    return [drop, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def _shown(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What peers and tasks say is in many a line; a terminal is to show it and to obey none of it."""
    return {key: shown(value) if isinstance(value, str) else value for key, value in event.items()}


def _tell_errors(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """An error given as a field (`error=...`) is logged whole, with its id, cause and fix."""
    for key, value in event.items():
        if isinstance(value, MusterError):
            told = {"id": value.id, "message": value.message, "cause": value.cause, "fix": value.fix}
            event[key] = {name: text for name, text in told.items() if text}
    return event
