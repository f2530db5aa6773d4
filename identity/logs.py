"""Structured logs: one JSON object a line on standard error, event names constant, data as fields, never a credential."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from identity.settings import Settings


class JsonLines(logging.Formatter):
    """A record as one line of JSON; its data comes in `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
            line["trace"] = self._trace(record)
        return json.dumps(line, default=str, separators=(",", ":"))

    def _trace(self, record: logging.LogRecord) -> list[str]:
        """Where it happened, without the values: an exception's text may quote what a client sent."""
        frames, trace = [], record.exc_info[2] if record.exc_info else None
        while trace is not None:
            frames.append(f"{trace.tb_frame.f_code.co_filename.rpartition('/identity/')[2]}:{trace.tb_lineno}")
            trace = trace.tb_next
        return frames[-12:]


def configure(settings: Settings) -> None:
    """Send the package's and gunicorn's records to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = JsonLines()
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    for name in ("identity", "gunicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(settings.log_level.upper())
        logger.propagate = False
    # What nothing prints need not be looked up for each record.
    logging.logThreads = logging.logMultiprocessing = False
