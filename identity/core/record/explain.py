"""Why a request was refused, for those who operate the service: what `x-error-id` leads to.

Each refusal is noted in memory and written by the background loop a moment later, so that refusing costs no transaction. What is kept is
bounded three times: by client and by process a minute, by age, and by number. A flood of refusals can neither fill the disk nor push out
more than itself: above the bound the most frequent kind of refusal goes first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, func, select

from identity.ambient import Origin, later
from identity.canonical import canonical_id
from identity.core.keeping import Keeping, delete_batch
from identity.errors import NOT_FOUND, Refused
from identity.instruments.refusals import Refusal
from identity.runtime import Runtime
from identity.storage import Unit

MAX_KEPT: Final = 200_000
_MAX_EVIDENCE: Final = 2_000
_PURGE_STEP: Final = 1_000


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
    rt.explanations.flush(rt.database, rt.clock.now())
    with rt.database.reading() as session:
        row = session.get(Refusal, error_id) if canonical_id(error_id) else None
        if row is None:
            raise Refused(NOT_FOUND, detail="no such refusal: not ours, too old, or one of too many in its minute")
        values = {column.key: getattr(row, column.key) for column in Refusal.__table__.columns}
    return Explanation(**{**values, "evidence": _load(values["evidence"])})


def purge(rt: Runtime, unit: Unit) -> int:
    """Forget refusals that are too old and, where there are too many, the oldest of the most frequent kind."""
    gone = delete_batch(unit, Refusal, Refusal.at < later(unit.now, -86_400 * rt.settings.explain_days))
    excess = None if gone else _excess(unit)
    if excess is None:
        return gone
    (route, error), count = excess
    oldest = select(Refusal.error_id).where(Refusal.route == route, Refusal.error == error).order_by(Refusal.at)
    return unit.changed(delete(Refusal).where(Refusal.error_id.in_(oldest.limit(count).scalar_subquery())))


def _excess(unit: Unit) -> tuple[tuple[str, str], int] | None:
    """The most frequent kind of refusal and how many of it should go next, where more are kept than should be."""
    counted = select(Refusal.route, Refusal.error, func.count().label("count")).group_by(Refusal.route, Refusal.error)
    total = unit.execute(select(func.count()).select_from(Refusal)).scalar_one()
    if total <= MAX_KEPT:
        return None
    route, error, _ = unit.execute(counted.order_by(func.count().desc()).limit(1)).one()
    return (route, error), min(total - MAX_KEPT, _PURGE_STEP)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _load(text: str) -> Mapping[str, Any]:
    try:
        loaded: Mapping[str, Any] = json.loads(text)
    except ValueError:
        return {"cut": text}
    return loaded


KEEPING: Final = Keeping((Refusal,), purge=purge)
