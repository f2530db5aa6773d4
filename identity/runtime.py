"""Time, chance and the way out by mail: what tests replace and nothing else in the package may reach for.

`Runtime` bundles them with the opened database, the key ring and the limiter. It is built by `app.create_runtime` and
handed down; the domain never finds it in a global.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from typing import TYPE_CHECKING, Protocol

from identity.settings import Settings

if TYPE_CHECKING:
    from identity.core.credentials import Passwords
    from identity.core.explain import Explanations
    from identity.core.keyring import Keyring
    from identity.core.limits import Limiter
    from identity.core.usage import Usage
    from identity.storage import Database, Unit


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


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as far as it can be known: for sessions, audit and mails, never for authorization."""

    address: str = ""
    user_agent: str = ""
    request_id: str = ""
    error_id: str = ""

    @classmethod
    def command_line(cls) -> Origin:
        return cls(address="command line")

    @classmethod
    def background(cls) -> Origin:
        return cls(address="background")


@dataclass(slots=True)
class Runtime:
    """One opened service: its settings and the parts that they describe."""

    settings: Settings
    clock: Clock
    entropy: Entropy
    database: Database
    mailer: Mailer
    ring: Keyring
    passwords: Passwords
    limiter: Limiter
    usage: Usage
    explanations: Explanations

    def unit(self, origin: Origin, *, lasting: bool = True) -> Unit:
        """One write transaction; `lasting` False: a crash of host or database server may undo it, no death of ours. See `storage.Unit`."""
        return self.database.unit(self.clock.now(), origin, lasting=lasting)

    def close(self) -> None:
        """Give every connection and file back."""
        self.database.close()
        self.limiter.close()

    def new_id(self) -> str:
        """A fresh UUIDv7 (RFC 9562 section 5.7): ordered by time, so that indexes grow at their end; 74 random bits."""
        millis = int(self.clock.now().timestamp() * 1000)
        tail = int.from_bytes(self.entropy.bytes(10)) & ((1 << 80) - 1)
        value = (millis & ((1 << 48) - 1)) << 80 | tail
        value = value & ~(0xF << 76) | 0x7 << 76
        value = value & ~(0x3 << 62) | 0x2 << 62
        return str(uuid.UUID(int=value))

    def deadline(self, seconds: float) -> float:
        """A point `seconds` ahead on the monotonic clock, which no operator can turn back."""
        return time.monotonic() + seconds

    def pause(self, seconds: float) -> None:
        """Let others go first."""
        time.sleep(seconds)


def later(moment: datetime, seconds: float) -> datetime:
    """`moment` plus `seconds`."""
    return moment + timedelta(seconds=seconds)
