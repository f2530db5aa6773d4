"""The refusals of this process, on their way to the table that explains them.

Each is noted in memory and written by the background loop a moment later, so that refusing costs no transaction. What is kept is
bounded by client and by process a minute, so that a flood cannot fill the disk.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from identity import logs
from identity.ambient import Origin
from identity.columns import Instant
from identity.errors import Refused
from identity.instruments.limits import address_key
from identity.storage import Base, Contention, Database

CLIENTS_WORTH: Final = 4
_MAX_WAITING: Final = 2_000
_log = logging.getLogger("identity.explain")


class Refusal(Base):
    """A refusal that was answered."""

    __tablename__ = "refusal"
    __table_args__ = (Index("ix_refusal_caller", "caller", "at"), Index("ix_refusal_address", "address", "at"))

    error_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant, index=True)
    route: Mapped[str] = mapped_column(String(200))
    status: Mapped[int] = mapped_column(BigInteger)
    error: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(String(300))
    field: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str] = mapped_column(String(300))
    evidence: Mapped[str] = mapped_column(Text)
    caller: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    request_id: Mapped[str] = mapped_column(String(128))


class Explanations:
    """The refusals of this process that are not written yet, and how many it may still note in this minute."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_MAX_WAITING)
        self._flushing = threading.Lock()
        self._added = threading.Event()
        self._minute = -1
        self._noted: dict[str, int] = {}
        self._total = 0
        self._left_out = 0

    def has_room(self, now: datetime, address: str, *, limit: int) -> bool:
        """Whether one more refusal of this client is kept, of `limit` a minute; counts it if so."""
        minute = int(now.timestamp()) // 60
        if minute != self._minute:
            self._minute, self._noted, self._total = minute, {}, 0
        client = address_key(address)
        noted = self._noted.get(client, 0)
        if noted >= limit or self._total >= limit * CLIENTS_WORTH:
            self._left_out += 1
            return False
        self._noted[client] = noted + 1
        self._total += 1
        return True

    def add(self, values: dict[str, Any]) -> None:
        """Have a refusal written soon."""
        self._waiting.append(values)
        self._added.set()

    def wait(self, seconds: float) -> bool:
        """Sleep until there is something to write, at most so long; tell whether there is."""
        waited = self._added.wait(seconds)
        self._added.clear()
        return waited

    def flush(self, database: Database, now: datetime) -> int:
        """Write what waits; tell how many rows. What could not be written because the database is away waits on."""
        with self._flushing:
            if self._left_out:
                logs.event(_log, logging.WARNING, "refusals not kept", count=self._left_out)
                self._left_out = 0
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not batch:
                return 0
            try:
                with database.unit(now, Origin.background()) as unit:
                    unit.session.add_all(Refusal(**values) for values in batch)
            except (Refused, Contention):
                self._waiting.extendleft(reversed(batch[: _MAX_WAITING - len(self._waiting)]))
                raise
            return len(batch)
