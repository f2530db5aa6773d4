"""Why a request was refused, for those who operate the service: what `x-error-id` leads to.

Each refusal is noted in memory and written by the background loop a moment later, so that refusing costs no transaction. What is kept is
bounded twice, a batch at a time and by age: a flood of refusals can neither fill the disk nor push out more than itself.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, String, Text, delete, func, select
from sqlalchemy.orm import Mapped, mapped_column

from identity.core.addresses import canonical_id
from identity.errors import NOT_FOUND, Refused
from identity.runtime import Origin, Runtime, later
from identity.storage import Base, Instant

_MAX_WAITING: Final = 2_000
_MAX_KEPT: Final = 1_000_000
_MAX_EVIDENCE: Final = 2_000


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
    """The refusals of this process that are not written yet."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_MAX_WAITING)
        self._flushing = threading.Lock()

    def add(self, values: dict[str, Any]) -> None:
        self._waiting.append(values)

    def flush(self, rt: Runtime) -> int:
        """Write what waits; tell how many rows."""
        with self._flushing:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not batch:
                return 0
            with rt.unit(Origin.background()) as unit:
                unit.session.add_all(Refusal(**values) for values in batch)
            return len(batch)


def note(rt: Runtime, origin: Origin, route: str, status: int, refused: Refused, caller: str) -> None:
    """Remember why this request was refused."""
    rt.explanations.add(
        {
            "error_id": origin.error_id,
            "at": rt.clock.now(),
            "route": route,
            "status": status,
            "error": refused.problem.code,
            "message": refused.problem.message,
            "field": refused.field,
            "detail": refused.detail[:300],
            "evidence": json.dumps(refused.evidence, default=_plain)[:_MAX_EVIDENCE],
            "caller": caller,
            "address": origin.address[:64],
            "request_id": origin.request_id,
        }
    )


def get(rt: Runtime, error_id: str) -> Explanation:
    """The explanation of an `x-error-id`. Raises Refused(NOT_FOUND) for one that never was, or is too old."""
    rt.explanations.flush(rt)
    with rt.database.reading() as session:
        row = session.get(Refusal, error_id) if canonical_id(error_id) else None
        if row is None:
            raise Refused(NOT_FOUND, detail="no such refusal")
        values = {column.key: getattr(row, column.key) for column in Refusal.__table__.columns}
    return Explanation(**{**values, "evidence": _load(values["evidence"])})


def purge(rt: Runtime) -> int:
    """Forget refusals that are too old, and the oldest where there are too many; for the janitor."""
    with rt.unit(Origin.background()) as unit:
        gone = unit.changed(delete(Refusal).where(Refusal.at < later(unit.now, -86_400 * rt.settings.explain_days)))
        excess = unit.execute(select(func.count()).select_from(Refusal)).scalar_one() - _MAX_KEPT
        if excess > 0:
            oldest = select(Refusal.error_id).order_by(Refusal.at).limit(excess).scalar_subquery()
            gone += unit.changed(delete(Refusal).where(Refusal.error_id.in_(oldest)))
        return gone


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _load(text: str) -> Mapping[str, Any]:
    try:
        loaded: Mapping[str, Any] = json.loads(text)
    except ValueError:
        return {"cut": text}
    return loaded
