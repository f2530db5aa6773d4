"""Decoys: credentials that look like any other and prove nothing, so that whoever uses one has found where it lies.

What a decoy keeps of its secret is a hash of another kind than any credential's: no path that proves somebody, in this version or an older
one, can ever find it right. It is refused where a wrong secret is, by the same steps; the audit takes down the try in place of an ordinary
refusal, and the mail to who answers for it is written a moment later, so that the refusal takes no longer than another.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import func, or_, select, update

from identity.ambient import Origin, later
from identity.core.clients.applications import Application
from identity.core.clients.keypairs import KeyPair
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people.answering import who_answers
from identity.core.record import audit
from identity.core.record.audit import Action, AuditEvent
from identity.runtime import Runtime
from identity.storage import Unit

#: After a mail about a decoy the next one waits so long, however often it is tried meanwhile.
QUIET_SECONDS: Final = 3_600
_LOOKED_BACK_SECONDS: Final = 86_400
_UNKNOWN_AGENT: Final = "an unnamed program"

_KINDS: Final[dict[str, Any]] = {"application": Application, "keypair": KeyPair}


def record_try(
    rt: Runtime, unit: Unit, kind: str, decoy_id: str, *, is_right: bool, tenant: str | None = None, user: str = ""
) -> None:
    """Take down that a decoy was tried, in place of the event of an ordinary refusal. `is_right`: with its own secret."""
    audit.record(
        rt,
        unit,
        Action.DECOY_TRIED,
        actor=user or decoy_id,
        target=decoy_id,
        tenant=tenant,
        kind=kind,
        right=is_right,
        userAgent=unit.origin.user_agent[:200] or _UNKNOWN_AGENT,
    )


def note_try(rt: Runtime, kind: str, decoy_id: str) -> None:
    """Have who answers for a decoy told of a try that was recorded; a background job does it at once."""
    rt.tried_decoys[kind, decoy_id] = None


def tell(rt: Runtime) -> int:
    """Write to who answers for the decoys that were tried at this process; tell of how many. A background job."""
    told = 0
    for kind, decoy_id in list(rt.tried_decoys):
        told += _tell(rt, kind, decoy_id)
        rt.tried_decoys.pop((kind, decoy_id), None)
    return told


def tell_left(rt: Runtime) -> int:
    """Write of tries that nobody heard of yet: their process died, or a mail had just gone out. A background job."""
    tried = (
        select(AuditEvent.target)
        .where(AuditEvent.action == Action.DECOY_TRIED, AuditEvent.at > later(rt.clock.now(), -_LOOKED_BACK_SECONDS))
        .distinct()
        .limit(1_000)
    )
    with rt.database.reading() as session:
        found = session.scalars(tried).all()
        named = [
            (kind, one)
            for kind, table in _KINDS.items()
            for one in session.scalars(select(table.id).where(table.decoy, table.id.in_(found)))
        ]
    return sum(_tell(rt, kind, one) for kind, one in named)


def _tell(rt: Runtime, kind: str, decoy_id: str) -> bool:
    table = _KINDS[kind]
    newest = _newest_try(rt, decoy_id)
    if newest is None:
        return False
    at, address, agent = newest
    # The mail says from where and with what, as every mail says of the request that it is about.
    with rt.unit(Origin(address=address, user_agent=agent)) as unit:
        row = unit.session.get(table, decoy_id)
        before = None if row is None else row.decoy_told_at
        quiet = or_(table.decoy_told_at.is_(None), table.decoy_told_at <= later(unit.now, -QUIET_SECONDS))
        unheard = or_(table.decoy_told_at.is_(None), table.decoy_told_at < at)
        mine = (table.id == decoy_id, table.decoy, quiet, unheard)
        # One row, one mail: of any number of processes that hear of tries, one gets to say it.
        if row is None or not unit.changed(update(table).where(*mine).values(decoy_told_at=at)):
            return False
        since = (AuditEvent.at > before,) if before is not None else ()
        its = (AuditEvent.action == Action.DECOY_TRIED, AuditEvent.target == decoy_id, *since)
        count = unit.execute(select(func.count(AuditEvent.id)).where(*its)).scalar_one()
        owner = row.user_id if isinstance(row, KeyPair) else None
        tenant = row.tenant_id if isinstance(row, Application) else None
        for alias, to in who_answers(unit, user=owner, tenant=tenant):
            values: dict[str, str | datetime] = {
                "account": alias,
                "key_name": row.name,
                "found": "once" if count == 1 else f"{count} times",
            }
            outbox.queue(rt, unit, Template.DECOY_TRIED, to=to, values=values)
    return True


def _newest_try(rt: Runtime, decoy_id: str) -> tuple[datetime, str, str] | None:
    found = audit.search(rt, action=Action.DECOY_TRIED, target=decoy_id, limit=1)
    return (found[0].at, found[0].address, str(found[0].data.get("userAgent", ""))) if found else None
