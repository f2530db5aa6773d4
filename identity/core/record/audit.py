"""What happened, for ever: one row for each deed, written in the transaction of the deed.

Rows name ids, never addresses or secrets, so that erasing a user leaves the record pseudonymous. Each row carries a keyed hash of its
content: an edited row shows.
"""

from __future__ import annotations

import difflib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Index, LargeBinary, ScalarSelect, String, Text, func, literal_column, select, text
from sqlalchemy.orm import InstrumentedAttribute, Mapped, Session, mapped_column

from identity import paging
from identity.ambient import Origin, later
from identity.canonical import get_client
from identity.columns import Instant, to_micros
from identity.core.keeping import Keeping, delete_batch
from identity.errors import VALIDATION, Refused
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Base, Contention, Unit


class Action(StrEnum):
    """The event catalogue."""

    LOGIN_SUCCEEDED = "login.succeeded"
    LOGIN_FAILED = "login.failed"
    LOGIN_CHALLENGED = "login.challenged"
    CODE_REFUSED = "code.refused"
    SESSION_CREATED = "session.created"
    SESSION_VERIFIED = "session.verified"
    SESSION_EXTENDED = "session.extended"
    SESSION_REVOKED = "session.revoked"
    REFRESH_REUSED = "refresh.reused"
    TOKEN_REVOKED = "token.revoked"
    PASSWORD_CHANGED = "password.changed"
    PASSWORD_RESET_ASKED = "password.reset-asked"
    FACTOR_ENROLLED = "factor.enrolled"
    FACTOR_REMOVED = "factor.removed"
    RECOVERY_CODES_MADE = "factor.recovery-codes-made"
    RECOVERY_CODE_USED = "factor.recovery-code-used"
    FIXED_OTP_CHANGED = "factor.fixed-otp-changed"
    EMAIL_ADDED = "email.added"
    EMAIL_VERIFIED = "email.verified"
    EMAIL_PREFERRED = "email.preferred"
    EMAIL_REMOVED = "email.removed"
    KEYPAIR_CREATED = "keypair.created"
    KEYPAIR_VERIFIED = "keypair.verified"
    KEYPAIR_ROTATED = "keypair.rotated"
    KEYPAIR_REVOKED = "keypair.revoked"
    USER_CREATED = "user.created"
    USER_CHANGED = "user.changed"
    USER_ENABLED = "user.enabled"
    USER_DISABLED = "user.disabled"
    USER_UNLOCKED = "user.unlocked"
    USER_ERASED = "user.erased"
    APPLICATION_CREATED = "application.created"
    APPLICATION_CHANGED = "application.changed"
    APPLICATION_DELETED = "application.deleted"
    APPLICATION_REFUSED = "application.refused"
    DECOY_TRIED = "decoy.tried"
    APPLICATION_ASKS_TOO_OFTEN = "application.asks-too-often"
    SECRET_CREATED = "secret.created"
    SECRET_RETIRED = "secret.retired"
    SECRET_REVOKED = "secret.revoked"
    TRUST_CREATED = "trust.created"
    TRUST_REMOVED = "trust.removed"
    TENANT_CREATED = "tenant.created"
    TENANT_CHANGED = "tenant.changed"
    TENANT_DELETED = "tenant.deleted"
    TENANT_ENABLED = "tenant.enabled"
    TENANT_DISABLED = "tenant.disabled"
    INVITATION_SENT = "invitation.sent"
    INVITATION_WITHDRAWN = "invitation.withdrawn"
    INVITATION_ACCEPTED = "invitation.accepted"
    ROLE_DECLARED = "role.declared"
    ROLE_WITHDRAWN = "role.withdrawn"
    MEMBER_SET = "tenant.member-set"
    MEMBER_REMOVED = "tenant.member-removed"
    KEY_ROTATED = "signing-key.rotated"
    KEY_REVOKED = "signing-key.revoked"
    KEY_IMPORTED = "signing-key.imported"
    MASTER_KEY_CHANGED = "master-key.changed"
    BACKUP_MADE = "backup.made"
    BACKUP_RESTORED = "backup.restored"
    INCIDENT_CONTAINED = "incident.contained"


_NO_ACTION: Final = VALIDATION.saying("There is no such action; the catalogue is in the documentation")
#: What a refused request leaves behind. Only these carry the `x-error-id` that their client was told.
REFUSALS: Final = frozenset(
    {Action.LOGIN_FAILED, Action.CODE_REFUSED, Action.REFRESH_REUSED, Action.APPLICATION_REFUSED, Action.DECOY_TRIED}
)


# Events whose target is a tenant.
_OF_TENANTS: Final = frozenset(
    {
        Action.TENANT_CREATED,
        Action.TENANT_CHANGED,
        Action.TENANT_DELETED,
        Action.TENANT_ENABLED,
        Action.TENANT_DISABLED,
    }
)


class AuditEvent(Base):
    """One event."""

    __tablename__ = "audit_event"
    __table_args__ = (
        # With the time: the newest of a few are read without sorting all.
        Index("ix_audit_event_actor_at", "actor", "at"),
        Index("ix_audit_event_target_at", "target", "at"),
        Index("ix_audit_event_action_at", "action", "at"),
        Index("ix_audit_event_credential", "credential", "at"),
        Index("ix_audit_event_tenant", "tenant", "at"),
        Index("ix_audit_event_address", "address", "at"),
        Index(
            "ix_audit_event_login",
            "actor",
            "at",
            sqlite_where=text("action = 'login.succeeded'"),
            postgresql_where=text("action = 'login.succeeded'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant, index=True)
    action: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    request_id: Mapped[str] = mapped_column(String(128))
    error_id: Mapped[str] = mapped_column(String(36))
    # What proved the actor, and whose affair it was; empty for events of versions that did not know.
    credential: Mapped[str] = mapped_column(String(64), server_default="")
    tenant: Mapped[str] = mapped_column(String(64), server_default="")
    data: Mapped[str] = mapped_column(Text)
    mac: Mapped[bytes] = mapped_column(LargeBinary(32))


@dataclass(frozen=True, slots=True)
class Event:
    """An event as administrators read it. `genuine` is False when the row was changed after it was written.

    `credential` is what proved the actor (`session:ID`, `key:ID`, `secret:ID`); empty for the command line and the background.
    """

    id: str
    at: datetime
    action: str
    actor: str
    target: str
    address: str
    request_id: str
    error_id: str
    credential: str
    tenant: str
    data: Mapping[str, Any]
    genuine: bool


def record_strangers(rt: Runtime) -> None:
    """Write what was refused of unknown names since the last time: one event for each client address, however many there were."""
    sums = rt.strangers.take()
    try:
        while sums:
            action, reason, address, count = sums[-1]
            with rt.unit(Origin(address=address or "many")) as unit:
                record(rt, unit, Action(action), actor="", reason=reason, refusals=count)
            sums.pop()
    except (Refused, Contention):
        rt.strangers.give_back(sums)
        raise


def record(
    rt: Runtime, unit: Unit, action: Action, *, actor: str, target: str = "", credential: str = "", **data: Any
) -> None:
    """Write an event into `unit`. `actor` and `target` are ids; `data` is JSON without secrets or addresses.

    `credential`: what was presented, where it is not what proved the caller (a refused key pair). A `tenant` in `data` makes it an
    event of that tenant, as does a tenant that is the target.
    """
    is_of_tenant = action in _OF_TENANTS
    values = {
        "id": rt.new_id(),
        "at": unit.now,
        "action": action,
        "actor": actor,
        "target": target or actor,
        "address": unit.origin.address[:64],
        "request_id": unit.origin.request_id[:128],
        "error_id": unit.origin.error_id if action in REFUSALS else "",
        "credential": credential or unit.origin.credential,
        "tenant": target if is_of_tenant else str(data.get("tenant") or ""),
        "data": json.dumps(data, sort_keys=True, default=str),
    }
    unit.insert(AuditEvent, **values, mac=_mac(rt, values))


def is_recorded(unit: Unit, action: Action, *, target: str, since: datetime) -> bool:
    """Whether there is an event of this kind about `target` after `since`."""
    like = (AuditEvent.action == action, AuditEvent.target == target, AuditEvent.at > since)
    return unit.execute(select(AuditEvent.id).where(*like).limit(1)).first() is not None


def search(
    rt: Runtime,
    *,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    tenant: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 50,
    offset: int = 0,
) -> list[Event]:
    """Events, newest first."""
    query = select(AuditEvent).order_by(AuditEvent.at.desc(), AuditEvent.id.desc()).limit(limit).offset(offset)
    given = {"actor": actor, "action": action, "target": target, "tenant": tenant, "since": since, "until": until}
    for condition in _conditions(given):
        query = query.where(condition)
    with rt.database.reading() as session:
        return [_event(rt, row) for row in session.scalars(query)]


def listing(
    rt: Runtime,
    part: Part,
    *,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    tenant: str | None = None,
    credential: str | None = None,
    address: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Listed[Event]:
    """Events, newest first, that fit every filter. `credential` is an id, or an id with its kind (`key:ID`).

    Raises Refused(VALIDATION) for an action that is not in the catalogue, and for what is no IP address.
    """
    if action is not None and action not in set(Action):
        near = difflib.get_close_matches(action, list(Action), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Refused(_NO_ACTION, field="action", detail=f"no such action{hint}")
    given = {"actor": actor, "action": action, "target": target, "tenant": tenant, "since": since, "until": until}
    query = select(AuditEvent).where(*_conditions(given))
    if credential is not None:
        kinds = ("",) if ":" in credential else ("session:", "key:", "secret:")
        query = query.where(AuditEvent.credential.in_([f"{kind}{credential}" for kind in kinds]))
    if address is not None:
        query = query.where(AuditEvent.address == get_client(address))
    with rt.database.reading() as session:
        return paging.read(
            session,
            query,
            AuditEvent.at,
            AuditEvent.id,
            part=part,
            make=lambda row: _event(rt, row),
            newest_first=True,
        )


def about(rt: Runtime, subject: str, *, limit: int, tenant: str | None = None) -> list[Event]:
    """The newest events that this one did or that were done to it; `tenant`: only those of that tenant."""
    found: dict[str, Event] = {}
    with rt.database.reading() as session:
        # One query for each column: an index serves each, and none serves both.
        for column in (AuditEvent.actor, AuditEvent.target):
            query = select(AuditEvent).where(column == subject, *_conditions({"tenant": tenant}))
            newest = query.order_by(AuditEvent.at.desc(), AuditEvent.id.desc()).limit(limit)
            found |= {row.id: _event(rt, row) for row in session.scalars(newest)}
    return sorted(found.values(), key=lambda event: (event.at, event.id), reverse=True)[:limit]


def knows(rt: Runtime, name: str) -> bool:
    """Whether any event names this one as its actor or target: for names of what exists no more."""
    with rt.database.reading() as session:
        return any(
            session.scalar(select(AuditEvent.id).where(column == name).limit(1)) is not None
            for column in (AuditEvent.actor, AuditEvent.target)
        )


def last_logins(session: Session, user_id: InstrumentedAttribute[str], user_ids: Sequence[str]) -> dict[str, datetime]:
    """When each of these users last signed in, as far back as the audit goes; `user_id` is the column that has their ids."""
    # A look for each: for all at once a database reads every login that there was.
    its = (AuditEvent.action == literal_column("'login.succeeded'"), AuditEvent.actor == user_id)
    newest: ScalarSelect[Any] = select(func.max(AuditEvent.at)).where(*its).correlate(user_id.class_).scalar_subquery()
    rows = session.execute(select(user_id.label("user"), newest.label("at")).where(user_id.in_(user_ids)))
    return {row.user: row.at for row in rows if row.at is not None}


def count(rt: Runtime, **filters: Any) -> int:
    """How many events `search` would find without its limit."""
    query = select(func.count()).select_from(AuditEvent)
    for condition in _conditions(filters):
        query = query.where(condition)
    with rt.database.reading() as session:
        return session.scalar(query) or 0


def purge(rt: Runtime, unit: Unit) -> int:
    """Forget events older than the audit is kept."""
    return delete_batch(unit, AuditEvent, AuditEvent.at < later(unit.now, -86_400 * rt.settings.audit_days))


_EQUAL: Final = ("actor", "action", "target", "tenant")


def _conditions(filters: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    conditions = [getattr(AuditEvent, name) == filters[name] for name in _EQUAL if filters.get(name) is not None]
    if filters.get("since") is not None:
        conditions.append(AuditEvent.at >= filters["since"])
    if filters.get("until") is not None:
        conditions.append(AuditEvent.at < filters["until"])
    return conditions


def _event(rt: Runtime, row: AuditEvent) -> Event:
    genuine = hmac.compare_digest(row.mac, _mac(rt, vars(row)))
    return Event(
        row.id,
        row.at,
        row.action,
        row.actor,
        row.target,
        row.address,
        row.request_id,
        row.error_id,
        row.credential,
        row.tenant,
        json.loads(row.data),
        genuine,
    )


def _mac(rt: Runtime, values: Mapping[str, Any]) -> bytes:
    names = ("id", "at", "action", "actor", "target", "address", "request_id", "error_id", "data")
    parts = [str(to_micros(values[name]) if name == "at" else values[name]) for name in names]
    # Added later, and not to the hashes of the events before: each by its name, so that none passes for another.
    parts += [f"{name} {values[name]}" for name in ("credential", "tenant") if values[name]]
    return hmac.digest(rt.ring.vault.derive("audit"), "\0".join(parts).encode(), "sha256")


KEEPING: Final = Keeping((AuditEvent,), purge=purge)
