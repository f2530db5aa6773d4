"""Invitations: a row for each, good for one acceptance by whoever holds the mailed link and the invited address.

What is stored of the link's token is a keyed hash. An invitation is to a tenant with roles, or to an account that an administrator has made
and that waits for its first password. Who may invite is decided in `admin`, how an invitation is accepted in `signin`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String, Text, delete, select, update
from sqlalchemy.orm import Mapped, mapped_column

from identity import paging
from identity.ambient import later
from identity.canonical import canonical_id
from identity.columns import Instant, Names
from identity.core.keeping import Keeping, delete_batch
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.mail.links import link
from identity.core.people.accounts import User
from identity.core.people.tenancy import Tenant
from identity.core.proofs.codes import CLIENTS_AT_ONCE
from identity.core.record import audit
from identity.core.record.audit import Action, AuditEvent
from identity.errors import INVALID_CODE, MAIL_LIMITED, NOT_FOUND, Refused
from identity.instruments import opaque
from identity.instruments.limits import address_key, budget_of
from identity.instruments.opaque import Kind, Secret
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Base, Unit

LIFE_SECONDS: Final = 7 * 86_400
KEEP_SECONDS: Final = 30 * 86_400
ADMINISTRATOR: Final = "an administrator"


class State(StrEnum):
    """What became of an invitation. Expiry is no state: it is checked at use."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    WITHDRAWN = "withdrawn"


class Invitation(Base):
    """One invitation; `user_id` is set where an account waits for its first password."""

    __tablename__ = "invitation"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), index=True)
    user_id: Mapped[str | None] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), index=True)
    address: Mapped[str] = mapped_column(String(254), index=True)
    roles: Mapped[tuple[str, ...]] = mapped_column(Names)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    portal_url: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(12))
    invited_by: Mapped[str] = mapped_column(String(64))
    seconds: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


@dataclass(frozen=True, slots=True)
class InvitationInfo:
    """An invitation as whoever invites sees it, never its token; nor whether anybody has the address."""

    id: str
    tenant: str | None
    address: str
    roles: tuple[str, ...]
    state: str
    invited_by: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Open:
    """An invitation that can be accepted now: what its reader may know of it."""

    id: str
    tenant: str | None
    tenant_name: str
    address: str
    roles: tuple[str, ...]
    inviter: str
    user_id: str | None
    expires_at: datetime


def issue(
    rt: Runtime,
    unit: Unit,
    *,
    address: str,
    actor: str,
    tenant: str | None = None,
    roles: Sequence[str] = (),
    user_id: str | None = None,
    portal_url: str | None = None,
    seconds: int = LIFE_SECONDS,
) -> InvitationInfo:
    """Invite whoever has `address`, a canonical one; the link goes there and nowhere else.

    Nobody is looked up: it costs and says the same for an address that somebody has and for one that nobody has. An earlier invitation of
    the same address to the same place is withdrawn. Raises Refused(MAIL_LIMITED) beyond `IDENTITY_LIMIT_MAIL`.
    """
    _check_budget(rt, unit, address)
    same = Invitation.tenant_id == tenant if tenant else Invitation.user_id == user_id
    replaced = update(Invitation).where(same, Invitation.address == address, Invitation.state == State.PENDING)
    unit.execute(replaced.values(state=State.WITHDRAWN).execution_options(synchronize_session=False))
    token = opaque.mint(Kind.INVITATION, rt.entropy)
    row = Invitation(
        id=rt.new_id(),
        tenant_id=tenant,
        user_id=user_id,
        address=address,
        roles=tuple(roles),
        fingerprint=_fingerprint(rt, token.reveal()),
        portal_url=portal_url or "",
        state=State.PENDING,
        invited_by=actor,
        seconds=seconds,
        created_at=unit.now,
        expires_at=later(unit.now, seconds),
    )
    unit.add(row)
    audit.record(rt, unit, Action.INVITATION_SENT, actor=actor, target=row.id, tenant=tenant, roles=list(row.roles))
    _send(rt, unit, row, token)
    return _info(row)


def resend(rt: Runtime, unit: Unit, invitation_id: str, *, tenant: str | None, actor: str) -> InvitationInfo:
    """Mail a new link, which lives as long as the first did; the old one is dead. Raises Refused(NOT_FOUND) for one that is over."""
    row = _get(unit, invitation_id, tenant)
    _check_budget(rt, unit, row.address)
    token = opaque.mint(Kind.INVITATION, rt.entropy)
    row.fingerprint, row.expires_at = _fingerprint(rt, token.reveal()), later(unit.now, row.seconds)
    unit.session.flush()
    audit.record(rt, unit, Action.INVITATION_SENT, actor=actor, target=row.id, tenant=tenant, again=True)
    _send(rt, unit, row, token)
    return _info(row)


def withdraw(rt: Runtime, unit: Unit, invitation_id: str, *, tenant: str | None, actor: str) -> None:
    """End an invitation: its link is dead. Raises Refused(NOT_FOUND) for one that is over."""
    row = _get(unit, invitation_id, tenant)
    row.state = State.WITHDRAWN
    unit.session.flush()
    audit.record(rt, unit, Action.INVITATION_WITHDRAWN, actor=actor, target=row.id, tenant=tenant)


def listing(rt: Runtime, tenant: str, part: Part) -> Listed[InvitationInfo]:
    """The invitations of a tenant that wait to be accepted, newest first."""
    waiting = (
        Invitation.tenant_id == tenant,
        Invitation.state == State.PENDING,
        Invitation.expires_at > rt.clock.now(),
    )
    with rt.database.reading() as session:
        query = select(Invitation).where(*waiting)
        return paging.read(
            session, query, Invitation.created_at, Invitation.id, part=part, make=_info, newest_first=True
        )


def find_open(rt: Runtime, token: str) -> Open | None:
    """The invitation behind a token, if it can be accepted now; or None. Only reads: who looks at a link uses nothing up."""
    if not opaque.is_well_formed(Kind.INVITATION, token):
        return None
    living = (
        Invitation.fingerprint == _fingerprint(rt, token),
        Invitation.state == State.PENDING,
        Invitation.expires_at > rt.clock.now(),
    )
    query = (
        select(Invitation, Tenant.name, Tenant.enabled, User.full_name)
        .outerjoin(Tenant, Tenant.id == Invitation.tenant_id)
        .outerjoin(User, User.id == Invitation.invited_by)
    )
    with rt.database.reading() as session:
        found = session.execute(query.where(*living)).one_or_none()
    if found is None or found[2] is False:
        return None
    row, tenant_name, _, inviter = found
    return Open(
        row.id,
        row.tenant_id,
        tenant_name or "",
        row.address,
        row.roles,
        inviter or ADMINISTRATOR,
        row.user_id,
        row.expires_at,
    )


def spend(rt: Runtime, unit: Unit, opened: Open, *, actor: str) -> None:
    """Accept: of any number who try at once exactly one succeeds, and only while the tenant is enabled. Raises Refused(INVALID_CODE)."""
    # The tenant first: a refusal that keeps what was written must not keep a used-up invitation.
    if opened.tenant is not None:
        enabled = select(Tenant.enabled).where(Tenant.id == opened.tenant).with_for_update(read=True)
        if not unit.execute(enabled).scalar_one_or_none():
            raise Refused(INVALID_CODE, detail="the tenant was disabled or deleted meanwhile")
    spent = update(Invitation).where(
        Invitation.id == opened.id, Invitation.state == State.PENDING, Invitation.expires_at > unit.now
    )
    if not unit.changed(spent.values(state=State.ACCEPTED).execution_options(synchronize_session=False)):
        raise Refused(INVALID_CODE, detail="the invitation was accepted or withdrawn meanwhile, or has expired")
    audit.record(rt, unit, Action.INVITATION_ACCEPTED, actor=actor, target=opened.id, tenant=opened.tenant)


def forget(unit: Unit, user_id: str) -> None:
    """Delete the invitation to the account of a user who is erased; see `forget_address` for those to an address of theirs."""
    unit.execute(delete(Invitation).where(Invitation.user_id == user_id).execution_options(synchronize_session=False))


def forget_address(unit: Unit, address: str) -> None:
    """Delete every invitation to an address whose owner is erased."""
    unit.execute(delete(Invitation).where(Invitation.address == address).execution_options(synchronize_session=False))


def purge(_rt: Runtime, unit: Unit) -> int:
    """Delete invitations that were over 30 days ago."""
    return delete_batch(unit, Invitation, Invitation.expires_at < later(unit.now, -KEEP_SECONDS))


def end(rt: Runtime, unit: Unit) -> int:
    """Make every link that was mailed a dead one; tell how many. The invitations still wait: sent again, they get new links."""
    waiting = select(Invitation).where(Invitation.state == State.PENDING, Invitation.expires_at > unit.now)
    rows = unit.execute(waiting).scalars().all()
    for row in rows:
        row.fingerprint = rt.entropy.bytes(32)
    unit.session.flush()
    return len(rows)


def _check_budget(rt: Runtime, unit: Unit, address: str) -> None:
    """Raise Refused(MAIL_LIMITED) where this client, or all of them together, have invited the address as often as they may."""
    budget = budget_of(rt.settings.limit_mail)
    if budget is None or not unit.origin.address:
        return  # The command line is no client.
    amount, seconds = budget
    sent = (
        select(AuditEvent.at, AuditEvent.address)
        .join(Invitation, Invitation.id == AuditEvent.target)
        .where(
            Invitation.address == address,
            AuditEvent.action == Action.INVITATION_SENT,
            AuditEvent.at > later(unit.now, -seconds),
        )
        .order_by(AuditEvent.at.desc())
        .limit(amount * CLIENTS_AT_ONCE)
    )
    found = unit.execute(sent).all()
    mine = address_key(unit.origin.address)
    own = [at for at, client in found if address_key(client) == mine]
    if len(own) < amount and len(found) < amount * CLIENTS_AT_ONCE:
        return
    frees = own[amount - 1] if len(own) >= amount else found[-1].at
    wait = math.ceil((later(frees, seconds) - unit.now).total_seconds())
    evidence = {"expected": rt.settings.limit_mail, "seen": {"own": len(own), "all": len(found)}}
    raise Refused(
        MAIL_LIMITED, detail="too many invitations to one address", evidence=evidence, retry_after_seconds=max(1, wait)
    )


def _send(rt: Runtime, unit: Unit, row: Invitation, token: Secret) -> None:
    inviter = unit.session.get(User, row.invited_by) if canonical_id(row.invited_by) else None
    values: dict[str, Any] = {
        "by": inviter.full_name if inviter is not None else ADMINISTRATOR,
        "url": link(rt, "invitation", token, portal_url=row.portal_url),
        "until": row.expires_at,
    }
    if row.user_id is not None:
        values["account"] = unit.session.get_one(User, row.user_id).alias
    template = Template.INVITATION
    if row.tenant_id is not None:
        template = Template.TENANT_INVITATION
        values["tenant"] = unit.execute(select(Tenant.name).where(Tenant.id == row.tenant_id)).scalar_one()
    outbox.queue(rt, unit, template, to=row.address, values=values, expires_at=row.expires_at)


def _get(unit: Unit, invitation_id: str, tenant: str | None) -> Invitation:
    canonical = canonical_id(invitation_id)
    row = unit.session.get(Invitation, canonical, with_for_update=True) if canonical else None
    if row is None or row.tenant_id != tenant or row.state != State.PENDING:
        raise Refused(NOT_FOUND, detail="no such invitation")
    return row


def _fingerprint(rt: Runtime, token: str) -> bytes:
    return opaque.fingerprint(rt.ring.vault.derive("invitations"), token)


def _info(row: Invitation) -> InvitationInfo:
    return InvitationInfo(
        row.id, row.tenant_id, row.address, row.roles, row.state, row.invited_by, row.created_at, row.expires_at
    )


KEEPING: Final = Keeping((Invitation,), purge=purge, forget=forget, end=end)
