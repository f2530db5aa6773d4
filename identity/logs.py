"""Structured logs: one JSON object a line on standard error, event names constant, data as fields, never a credential.

Lines are gathered and written a few hundred at a time, at the latest after half a second, and at once from a warning on: a system call
for each request would cost more than most requests.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from identity.settings import Settings

FLUSH_SECONDS: Final = 0.5
_GATHERED: Final = 256
_encode: Final = json.JSONEncoder(separators=(",", ":"), default=str).encode


def event(
    logger: logging.Logger, level: int, name: str, *, exc_info: BaseException | None = None, **fields: Any
) -> None:
    """Log that something happened: a constant name, and data as fields, never a credential. The one way to write a line with data."""
    logger.log(level, name, exc_info=exc_info, extra={"fields": fields})


@contextmanager
def if_slow(logger: logging.Logger, seconds: float, name: str, **fields: Any) -> Iterator[None]:
    """Log an event, once, if what is inside is not over after so many seconds: for whoever wonders what a start is waiting for."""
    timer = threading.Timer(seconds, event, (logger, logging.WARNING, name), fields)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class JsonLines(logging.Formatter):
    """A record as one line of JSON; its data comes in `extra={"fields": {...}}`."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._spelled = ""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": self._time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
            line["trace"] = _trace(record)
        return _encode(line)

    def request(self, moment: float, fields: str) -> str:
        """The line of an answered request."""
        at = self._time(moment)
        return f'{{"at":"{at}","level":"info","logger":"identity.request","event":"request",{fields}}}'

    def _time(self, moment: float) -> str:
        second = int(moment)
        if second != self._second:
            self._second, self._spelled = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._spelled}.{int((moment - second) * 1000):03d}Z"


class _Requests:
    """The request lines of this process that wait to be written."""

    def __init__(self) -> None:
        self.enabled = False
        self.waiting: list[tuple[float, str]] = []


_requests: Final = _Requests()


class Gathered(logging.handlers.MemoryHandler):
    """Holds records back and writes them in one piece."""

    def __init__(self, target: logging.StreamHandler[Any]) -> None:
        super().__init__(_GATHERED, logging.WARNING, target)

    def flush(self) -> None:
        """Write what was gathered."""
        target = self.target
        self.acquire()
        try:
            records, self.buffer = self.buffer, []
            if records and isinstance(target, logging.StreamHandler):
                target.stream.write("".join(_line(target.format, record) for record in records))
                target.flush()
        finally:
            self.release()


def configure(settings: Settings) -> None:
    """Send the package's and gunicorn's records to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    gathered = Gathered(handler)
    for name in ("identity", "gunicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [gathered]
        logger.setLevel(settings.log_level.upper())
        logger.propagate = False
    os.register_at_fork(before=flush)  # What a child inherits unwritten would be written twice.
    _requests.enabled = settings.log_level in ("debug", "info")
    # What nothing prints need not be looked up for each record: the caller's frame, the thread.
    logging._srcfile = None  # noqa: SLF001 -- the switch that the logging HOWTO names
    logging.logThreads = logging.logMultiprocessing = False


def members(fields: dict[str, Any]) -> str:
    """Fields as the members of a JSON object, without its braces."""
    return _encode(fields)[1:-1]


def request(fields: str) -> None:
    """Log one answered request, whose fields are spelled as `members` does: a line without what logging does for each record."""
    if _requests.enabled:
        _requests.waiting.append((time.time(), fields))  # noqa: TID251 -- when a line was logged, as logging itself takes it
        if len(_requests.waiting) >= _GATHERED:
            flush()


def flush() -> None:
    """Write what was gathered; called every FLUSH_SECONDS by the background loop."""
    waiting, _requests.waiting = _requests.waiting, []
    if waiting:
        lines = JsonLines()
        sys.stderr.write("".join(_line(lines.request, moment, fields) for moment, fields in waiting))
        sys.stderr.flush()
    for handler in logging.getLogger("identity").handlers:
        handler.flush()


def _line(spell: Callable[..., str], *of: Any) -> str:
    """One record as a line. One that cannot be spelled says so, and takes none of its neighbours with it."""
    try:
        return f"{spell(*of)}\n"
    except Exception as exc:  # noqa: BLE001 -- whatever it is, the other records are still to be written
        return (
            json.dumps({"level": "error", "event": "a record could not be written", "error": type(exc).__name__}) + "\n"
        )


def _trace(record: logging.LogRecord) -> list[str]:
    """Where it happened, without the values: an exception's text may quote what a client sent."""
    frames, trace = [], record.exc_info[2] if record.exc_info else None
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_filename.rpartition('/identity/')[2]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return frames[-12:]
