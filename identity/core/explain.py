"""Why a request was refused, for those who operate the service: what `x-error-id` leads to.

Each refusal is noted in memory and written by the background loop a moment later, so that refusing costs no transaction. What is kept is
bounded three times: by client and by process a minute, by age, and by number. A flood of refusals can neither fill the disk nor push out
more than itself: above the bound the most frequent kind of refusal goes first.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, String, Text, delete, func, select
from sqlalchemy.orm import Mapped, mapped_column

from identity.core.addresses import canonical_id
from identity.core.limits import address_key
from identity.errors import NOT_FOUND, Refused
from identity.runtime import Origin, Runtime, later
from identity.storage import Base, Contention, Instant

CLIENTS_WORTH: Final = 4
MAX_KEPT: Final = 200_000
_MAX_WAITING: Final = 2_000
_MAX_EVIDENCE: Final = 2_000
_PURGE_STEP: Final = 1_000
_log = logging.getLogger("identity.explain")


class Refusal(Base):
    """A refusal that was answered."""

    __tablename__ = "refusal"

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


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of one refusal."""

    error_id: str
    at: datetime
    route: str
    status: int
    error: str
    message: str
    field: str | None
    detail: str
    evidence: Mapping[str, Any]
    caller: str
    address: str
    request_id: str


class Explanations:
    """The refusals of this process that are not written yet, and how many it may still note in this minute."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_MAX_WAITING)
        self._flushing = threading.Lock()
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

    def flush(self, rt: Runtime) -> int:
        """Write what waits; tell how many rows. What could not be written because the database is away waits on."""
        with self._flushing:
            if self._left_out:
                _log.warning("refusals not kept", extra={"fields": {"count": self._left_out}})
                self._left_out = 0
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not batch:
                return 0
            try:
                with rt.unit(Origin.background()) as unit:
                    unit.session.add_all(Refusal(**values) for values in batch)
            except (Refused, Contention):
                self._waiting.extendleft(reversed(batch[: _MAX_WAITING - len(self._waiting)]))
                raise
            return len(batch)


def note(rt: Runtime, origin: Origin, route: str, status: int, refused: Refused, *, caller: str) -> None:
    """Remember why this request was refused, unless this client or this process has had too many in this minute."""
    now = rt.clock.now()
    if not rt.explanations.has_room(now, origin.address, limit=rt.settings.explain_per_minute):
        return
    rt.explanations.add(
        {
            "error_id": origin.error_id,
            "at": now,
            "route": route[:200],
            "status": status,
            "error": refused.problem.code,
            "message": refused.problem.message[:300],
            "field": refused.field,
            "detail": refused.detail[:300],
            "evidence": json.dumps(refused.evidence, default=_plain)[:_MAX_EVIDENCE],
            "caller": caller,
            "address": origin.address[:64],
            "request_id": origin.request_id,
        }
    )


def get(rt: Runtime, error_id: str) -> Explanation:
    """The explanation of an `x-error-id`. Raises Refused(NOT_FOUND) for one that never was, is too old, or was one of a flood."""
    rt.explanations.flush(rt)
    with rt.database.reading() as session:
        row = session.get(Refusal, error_id) if canonical_id(error_id) else None
        if row is None:
            raise Refused(NOT_FOUND, detail="no such refusal: not ours, too old, or one of too many in its minute")
        values = {column.key: getattr(row, column.key) for column in Refusal.__table__.columns}
    return Explanation(**{**values, "evidence": _load(values["evidence"])})


def purge(rt: Runtime) -> int:
    """Forget refusals that are too old and, where there are too many, the oldest of the most frequent kind; for the janitor."""
    with rt.unit(Origin.background()) as unit:
        gone = unit.changed(delete(Refusal).where(Refusal.at < later(unit.now, -86_400 * rt.settings.explain_days)))
    while excess := _excess(rt):
        kind, count = excess
        oldest = select(Refusal.error_id).where(Refusal.route == kind[0], Refusal.error == kind[1]).order_by(Refusal.at)
        with rt.unit(Origin.background()) as unit:
            taken = unit.changed(delete(Refusal).where(Refusal.error_id.in_(oldest.limit(count).scalar_subquery())))
        if not taken:
            break  # Another janitor was faster.
        gone += taken
    return gone


def _excess(rt: Runtime) -> tuple[tuple[str, str], int] | None:
    """The most frequent kind of refusal and how many of it should go next, where more are kept than should be."""
    counted = select(Refusal.route, Refusal.error, func.count().label("count")).group_by(Refusal.route, Refusal.error)
    with rt.database.reading() as session:
        total = session.scalar(select(func.count()).select_from(Refusal)) or 0
        if total <= MAX_KEPT:
            return None
        route, error, _ = session.execute(counted.order_by(func.count().desc()).limit(1)).one()
    return (route, error), min(total - MAX_KEPT, _PURGE_STEP)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _load(text: str) -> Mapping[str, Any]:
    try:
        loaded: Mapping[str, Any] = json.loads(text)
    except ValueError:
        return {"cut": text}
    return loaded
