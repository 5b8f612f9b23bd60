"""Logs: for people, or as JSON lines with what is known of the request that a line is about."""

from __future__ import annotations

import json
import logging
import os
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum

_subject: ContextVar[dict[str, object] | None] = ContextVar("subject", default=None)

FORMAT_VARIABLE = "MINT_LOG_FORMAT"
TEXT = "%(asctime)s %(name)s %(levelname)s %(message)s"


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


def begin(**fields: object) -> None:
    """From here on, this task's log lines are about something new."""
    _subject.set(fields)


def bind(**fields: object) -> None:
    """Add to what this task's log lines are about: `request_id`, `run_id`, `owner`."""
    subject = _subject.get()
    if subject is not None:
        subject.update(fields)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, the subject's fields, the exception."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _subject.get() or {}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(level: str, style: LogFormat) -> None:
    """Log to stderr from this level on."""
    os.environ[FORMAT_VARIABLE] = style  # workers inherit it
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if style == LogFormat.JSON else logging.Formatter(TEXT))
    logging.basicConfig(level=level, handlers=[handler])
