"""What the world gives us: time, chance, the way out by mail, and where a request came from.

Tests replace these, and nothing else in the package may reach for them.
"""

from __future__ import annotations

import os
import secrets
import threading
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """The present, aware, in UTC."""
        ...


class Entropy(Protocol):
    """Gives chance that nobody can guess."""

    def bytes(self, count: int) -> bytes:
        """`count` bytes from the operating system's generator."""
        ...


class Mailer(Protocol):
    """Takes a finished mail away."""

    def send(self, message: EmailMessage) -> None:
        """Hand `message` to the next hop, or raise OSError or smtplib.SMTPException; a return means that it was accepted."""
        ...


class SystemClock:
    """The host's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class SystemEntropy:
    """The operating system's generator, asked for a few thousand bytes at a time; no byte is given out twice, across forks neither."""

    _POOL = 4096

    def __init__(self) -> None:
        self._pool = b""
        self._taking = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def bytes(self, count: int) -> bytes:
        with self._taking:
            if len(self._pool) < count:
                self._pool = secrets.token_bytes(max(self._POOL, count))
            taken, self._pool = self._pool[:count], self._pool[count:]
        return taken

    def _forget(self) -> None:
        self._pool = b""
        self._taking = threading.Lock()


class Origin(NamedTuple):
    """Where a request came from, as far as it can be known: for sessions, audit and mails, never for authorization."""

    address: str = ""
    user_agent: str = ""
    request_id: str = ""
    error_id: str = ""
    #: What proved whoever asks, by kind and id: `session:...`, `key:...` or `secret:...`. For the audit.
    credential: str = ""

    def proven_by(self, credential: str) -> Origin:
        """The same, of a caller whom this credential proved. Spelled out: `_replace` costs five times as much."""
        return Origin(self.address, self.user_agent, self.request_id, self.error_id, credential)

    @classmethod
    def command_line(cls) -> Origin:
        return cls(address="command line")

    @classmethod
    def background(cls) -> Origin:
        return cls(address="background")


def later(moment: datetime, seconds: float) -> datetime:
    """`moment` plus `seconds`."""
    return moment + timedelta(seconds=seconds)
