"""What a leaked credential has made that proves somebody in turn: found by the audit, ended in the unit of whoever contains the leak.

Key pairs (also those whose secret it changed), secrets, trusts and key sets of applications, invitations, accounts and imported signing
keys; and what those have made since. Its other deeds, as a role that it gave, are told by the report and left as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, literal, or_, select
from sqlalchemy.orm import Session

from identity.core.admin import users
from identity.core.admin.by import By
from identity.core.clients import issuers, keypairs, registration, secrets
from identity.core.clients.applications import Application
from identity.core.clients.issuers import ApplicationTrust
from identity.core.clients.keypairs import KeyPair
from identity.core.clients.secrets import ClientSecret
from identity.core.people import invitations
from identity.core.people.accounts import User
from identity.core.people.invitations import Invitation
from identity.core.people.ownership import ANYONE
from identity.core.record import audit
from identity.core.record.audit import Action, AuditEvent
from identity.core.tokens.session_rows import UserSession
from identity.errors import NOT_FOUND, Refused
from identity.runtime import Runtime
from identity.storage import Unit


class Sort(StrEnum):
    """What can be made. An account ends by being disabled."""

    KEY = "key"
    SECRET = "secret"
    TRUST = "trust"
    KEY_SET = "keySet"
    INVITATION = "invitation"
    USER = "user"
    KID = "kid"


class Made(NamedTuple):
    """One credential that was made: `of` is the application or tenant of it, empty where it has none."""

    sort: Sort
    id: str
    of: str
    lives: bool


#: The events that tell of one, and how each names it.
_NAMED: Final[dict[str, tuple[Sort, str]]] = {
    Action.KEYPAIR_CREATED: (Sort.KEY, ""),
    Action.KEYPAIR_ROTATED: (Sort.KEY, ""),
    Action.SECRET_CREATED: (Sort.SECRET, "secret"),
    Action.TRUST_CREATED: (Sort.TRUST, "trust"),
    Action.APPLICATION_CREATED: (Sort.KEY_SET, ""),
    Action.APPLICATION_CHANGED: (Sort.KEY_SET, ""),
    Action.INVITATION_SENT: (Sort.INVITATION, ""),
    Action.USER_CREATED: (Sort.USER, ""),
    Action.KEY_IMPORTED: (Sort.KID, ""),
}


def find(rt: Runtime, session: Session, credential: str, since: datetime) -> list[Made]:
    """All that a credential (`key:ID`, `secret:ID`) has made since a moment, and what that has made, oldest first; whether each lives."""
    found: dict[tuple[Sort, str], str] = {}
    asked = [_by_credential(credential)]
    while asked:
        fresh = [one for one in _made_by(session, asked.pop(), since) if one[:2] not in found]
        for sort, name, of in fresh:
            found[sort, name] = of
            asked += _of_its_own(sort, name)
    living = _living(rt, session, found)
    return [Made(sort, name, of, (sort, name) in living) for (sort, name), of in found.items()]


def end(rt: Runtime, unit: Unit, by: By, made: Sequence[Made]) -> list[Made]:
    """End those that live, in this unit; tell which were ended. The last administrator, and whoever asks, are left."""
    return [one for one in made if one.lives and one.id != by.actor and _has_ended(rt, unit, by, one)]


def _has_ended(rt: Runtime, unit: Unit, by: By, one: Made) -> bool:
    try:
        with unit.session.begin_nested():
            _ENDINGS[one.sort](rt, unit, by, one)
    except Refused as refused:
        # Gone meanwhile, or the last administrator: there the report says that it lives.
        if refused.problem.code not in (NOT_FOUND.code, "CONFLICT"):
            raise
        return False
    return True


_ENDINGS: Final[dict[Sort, Callable[[Runtime, Unit, By, Made], object]]] = {
    Sort.KEY: lambda rt, unit, by, one: keypairs.revoke(rt, unit, one.id, actor=by.actor, of=ANYONE),
    Sort.SECRET: lambda rt, unit, by, one: secrets.remove_secret(rt, unit, one.of, one.id, actor=by.actor, force=True),
    Sort.TRUST: lambda rt, unit, by, one: issuers.remove_trust(rt, unit, one.of, one.id, actor=by.actor),
    Sort.KEY_SET: lambda rt, unit, by, one: registration.change(rt, unit, one.of, actor=by.actor, jwks=None),
    Sort.INVITATION: lambda rt, unit, by, one: invitations.withdraw(
        rt, unit, one.id, tenant=one.of or None, actor=by.actor
    ),
    Sort.USER: lambda rt, unit, by, one: users.set_enabled_within(rt, unit, by, one.id, enabled=False),
    Sort.KID: lambda rt, unit, by, one: _withdraw(rt, unit, by, one.id),
}


def _withdraw(rt: Runtime, unit: Unit, by: By, kid: str) -> None:
    rt.ring.revoke(unit, kid)
    audit.record(rt, unit, Action.KEY_REVOKED, actor=by.actor, target=kid)


# Who made what.


def _by_credential(credential: str) -> ColumnElement[bool]:
    """The events that it proved the actor of; for a key pair also by a session that it opened."""
    kind, _, name = credential.partition(":")
    its = AuditEvent.credential == credential
    if kind != Sort.KEY:
        return its
    opened = select(literal("session:") + UserSession.id).where(UserSession.keypair_id == name)
    return or_(its, AuditEvent.credential.in_(opened))


def _of_its_own(sort: Sort, name: str) -> list[ColumnElement[bool]]:
    """How the audit names the deeds of what was made. What an application proves itself by has one spelling there."""
    match sort:
        case Sort.KEY:
            return [_by_credential(f"key:{name}")]
        case Sort.SECRET | Sort.TRUST | Sort.KEY_SET:
            return [_by_credential(f"secret:{name}")]
        case Sort.USER:
            return [AuditEvent.actor == name]
        case Sort.INVITATION | Sort.KID:
            return []


def _made_by(session: Session, proof: ColumnElement[bool], since: datetime) -> Iterator[tuple[Sort, str, str]]:
    query = (
        select(AuditEvent.action, AuditEvent.target, AuditEvent.tenant, AuditEvent.data)
        .where(proof, AuditEvent.action.in_(_NAMED), AuditEvent.at >= since)
        .order_by(AuditEvent.at, AuditEvent.id)
    )
    for row in session.execute(query).all():
        sort, named = _NAMED[row.action]
        data = json.loads(row.data)
        if sort is Sort.KEY_SET:
            if "keySet" in data:
                yield sort, f"key-{data['keySet']}", row.target
        elif named:
            yield sort, str(data[named]), row.target
        else:
            yield sort, row.target, row.tenant if sort is Sort.INVITATION else ""


def _living(rt: Runtime, session: Session, found: Collection[tuple[Sort, str]]) -> set[tuple[Sort, str]]:
    """Which of them prove somebody still."""
    now = rt.clock.now()
    queries: dict[Sort, Any] = {
        Sort.KEY: select(KeyPair.id).where(KeyPair.expires_at > now),
        Sort.SECRET: select(ClientSecret.id).where(
            or_(ClientSecret.expires_at.is_(None), ClientSecret.expires_at > now)
        ),
        Sort.TRUST: select(ApplicationTrust.id).where(
            or_(ApplicationTrust.expires_at.is_(None), ApplicationTrust.expires_at > now)
        ),
        Sort.KEY_SET: select(literal("key-") + Application.key_set_id).where(Application.jwks.is_not(None)),
        Sort.INVITATION: select(Invitation.id).where(
            Invitation.state == invitations.State.PENDING, Invitation.expires_at > now
        ),
        Sort.USER: select(User.id).where(User.enabled),
    }
    known = {key.kid for key in rt.ring.list()}
    living = {one for one in found if one[0] is Sort.KID and one[1] in known}
    for sort, query in queries.items():
        names = [name for kind, name in found if kind is sort]
        column = query.selected_columns[0]
        for start in range(0, len(names), 500):
            part = query.where(column.in_(names[start : start + 500]))
            living |= {(sort, name) for name in session.scalars(part)}
    return living
