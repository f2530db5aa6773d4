"""Why a request was refused, for those who operate the service: what `x-error-id` leads to.

Each refusal is noted in memory and written by a thread of its process a moment later, so that refusing costs no transaction.
What is kept is bounded three times: by client and by process a minute, by age, and by number. A flood of refusals can neither fill the
disk nor push out more than itself: above the bound the most frequent kind of refusal goes first.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Subquery, delete, func, select, type_coerce

from identity import logs, paging
from identity.ambient import Origin, later
from identity.canonical import canonical_id, get_client
from identity.columns import from_micros
from identity.core.keeping import Keeping, delete_batch
from identity.errors import CATALOGUE, NOT_FOUND, VALIDATION, Refused
from identity.instruments.refusals import Refusal
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Unit

MAX_KEPT: Final = 200_000
MOST_COUNTED: Final = 5_000
_MAX_EVIDENCE: Final = 2_000
_PURGE_STEP: Final = 1_000
_MOST_KINDS: Final = 5_000
_HOUR_MICROS: Final = 3_600_000_000
# How long an id that is not there yet is waited for, and how long a writer rests between two transactions.
_PATIENCE_SECONDS: Final = 1.0
_BREATH_SECONDS: Final = 0.2
_log = logging.getLogger("identity.explain")


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
            # Where nothing more is known, the words that the client saw are specific to the check.
            "detail": (refused.detail or refused.problem.message)[:300],
            "evidence": json.dumps(_by_name(refused.evidence), default=_plain)[:_MAX_EVIDENCE],
            "caller": caller,
            "address": origin.address[:64],
            "request_id": origin.request_id,
        }
    )


def get(rt: Runtime, error_id: str) -> Explanation:
    """The explanation of an `x-error-id`. Raises Refused(NOT_FOUND) for one that never was, is too old, or was one of a flood."""
    rt.explanations.flush(rt.database, rt.clock.now())
    canonical = canonical_id(error_id)
    found = find(rt, canonical) if canonical else None
    # Whoever was told an id may ask at once, and another worker may be about to write it.
    deadline = rt.deadline(_PATIENCE_SECONDS)
    while canonical and found is None and rt.deadline(0) < deadline:
        rt.pause(_PATIENCE_SECONDS / 20)
        found = find(rt, canonical)
    if found is None:
        raise Refused(NOT_FOUND, detail="no such refusal: not ours, too old, or one of too many in its minute")
    return found


@dataclass(frozen=True, slots=True)
class Counted:
    """How often one check refused in a time, from how many addresses, and from which most often."""

    error: str
    detail: str
    count: int
    last_at: datetime
    addresses: int
    most_from: str
    most_caller: str


def counted(
    rt: Runtime, *, since: datetime, until: datetime | None = None, error: str | None = None, check: str | None = None
) -> list[Counted]:
    """The refusals of a time by error and check, the most frequent first; of more than MOST_COUNTED the newest."""
    rt.explanations.flush(rt.database, rt.clock.now())
    newest = _newest(since, until)
    kind = (newest.c.error, newest.c.detail, newest.c.caller, newest.c.address)
    query = select(*kind, func.count().label("times"), func.max(newest.c.at).label("last_at")).group_by(*kind)
    for column, value in ((newest.c.error, error), (newest.c.detail, check)):
        if value is not None:
            query = query.where(column == value)
    with rt.database.reading() as session:
        rows = session.execute(query.order_by(func.count().desc()).limit(_MOST_KINDS)).all()
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        found.setdefault((row.error, row.detail), []).append(row)
    told = [
        Counted(
            error=of[0],
            detail=of[1],
            count=sum(row.times for row in same),
            last_at=max(row.last_at for row in same),
            addresses=len({row.address for row in same}),
            # The most frequent come first.
            most_from=same[0].address,
            most_caller=next((row.caller for row in same if row.caller), ""),
        )
        for of, same in found.items()
    ]
    return sorted(told, key=lambda one: one.count, reverse=True)


def count(rt: Runtime, *, address: str, since: datetime, until: datetime) -> int:
    """How many refusals an address had in a time."""
    query = select(func.count()).select_from(Refusal)
    with rt.database.reading() as session:
        return session.scalar(query.where(*_conditions(address=address, since=since, until=until))) or 0


def by_hour(
    rt: Runtime, *, since: datetime, error: str | None = None, check: str | None = None
) -> list[tuple[datetime, int]]:
    """How many refusals there were in each hour that had any, the newest first; of more than MOST_COUNTED the newest."""
    rt.explanations.flush(rt.database, rt.clock.now())
    newest = _newest(since, None)
    hour = type_coerce(newest.c.at, BigInteger) // _HOUR_MICROS
    query = select(hour.label("hour"), func.count().label("times"))
    for column, value in ((newest.c.error, error), (newest.c.detail, check)):
        if value is not None:
            query = query.where(column == value)
    with rt.database.reading() as session:
        rows = session.execute(query.group_by(hour).order_by(hour.desc())).all()
    return [(from_micros(row.hour * _HOUR_MICROS), row.times) for row in rows]


def _newest(since: datetime, until: datetime | None) -> Subquery:
    """The newest refusals of a time, as many as may be counted while somebody waits."""
    columns = (Refusal.at, Refusal.error, Refusal.detail, Refusal.caller, Refusal.address)
    within = select(*columns).where(*_conditions(since=since, until=until))
    return within.order_by(Refusal.at.desc()).limit(MOST_COUNTED).subquery()


def listing(
    rt: Runtime,
    part: Part,
    *,
    caller: str | None = None,
    address: str | None = None,
    error: str | None = None,
    check: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Listed[Explanation]:
    """Refusals, newest first, that fit every filter.

    Raises Refused(VALIDATION) for an error that is not in the catalogue, and for what is no IP address.
    """
    if error is not None and error not in {problem.code for problem, _ in CATALOGUE}:
        raise Refused(VALIDATION.saying("There is no such error; the README has the table"), field="error")
    address = None if address is None else get_client(address)
    rt.explanations.flush(rt.database, rt.clock.now())
    query = select(Refusal).where(
        *_conditions(caller=caller, address=address, error=error, check=check, since=since, until=until)
    )
    with rt.database.reading() as session:
        return paging.read(
            session, query, Refusal.at, Refusal.error_id, part=part, make=_explanation, newest_first=True
        )


def _conditions(
    *, since: datetime | None = None, until: datetime | None = None, **equal: str | None
) -> list[ColumnElement[bool]]:
    columns = {"caller": Refusal.caller, "address": Refusal.address, "error": Refusal.error, "check": Refusal.detail}
    found: list[ColumnElement[bool]] = [columns[name] == value for name, value in equal.items() if value is not None]
    if since is not None:
        found.append(Refusal.at >= since)
    if until is not None:
        found.append(Refusal.at < until)
    return found


def write_until(rt: Runtime, stop: threading.Event) -> None:
    """Write the refusals of this process down as they come, until `stop` is set: some a second, however many there are."""
    while not stop.is_set():
        if not rt.explanations.wait(0.5):
            continue
        try:
            rt.explanations.flush(rt.database, rt.clock.now())
        except Exception as exc:  # noqa: BLE001 -- a database that is down: what waits is kept, and tried again
            if not rt.database.outage.explains(exc):
                logs.event(_log, logging.WARNING, "refusals wait to be written", error=type(exc).__name__)
        stop.wait(_BREATH_SECONDS)


def find(rt: Runtime, error_id: str) -> Explanation | None:
    """The refusal with this canonical id, if it is written and kept."""
    with rt.database.reading() as session:
        row = session.get(Refusal, error_id)
        if row is None:
            return None
        return _explanation(row)


def _explanation(row: Refusal) -> Explanation:
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


def _by_name(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Named tuples, which JSON knows by position only, with their names."""
    return {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in evidence.items()}


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _load(text: str) -> Mapping[str, Any]:
    try:
        loaded: Mapping[str, Any] = json.loads(text)
    except ValueError:
        return {"cut": text}
    return loaded


KEEPING: Final = Keeping((Refusal,), purge=purge)
