"""What is about to end, and telling those who can replace it: 30, 7 and 1 days before.

The owner of a key pair hears of theirs; the owners of a tenant (its members with the role `owner`) of the secrets of its applications, or,
where it has none, the administrators. Each is told once for each of those days: the row remembers which.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from identity.ambient import Origin, later
from identity.core.clients.applications import Application
from identity.core.clients.issuers import ApplicationTrust
from identity.core.clients.keypairs import KeyPair
from identity.core.clients.secrets import ClientSecret
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people.accounts import User
from identity.core.people.answering import who_answers
from identity.core.people.invitations import Invitation, State
from identity.runtime import Runtime
from identity.storage import Database

WARNING_DAYS: Final = (30, 7, 1)
Credential = ClientSecret | KeyPair | ApplicationTrust
_DAY: Final = 86_400


class Ending(NamedTuple):
    """Something that ends by itself, and whose it is."""

    kind: str
    id: str
    name: str
    expires_at: datetime
    user: str | None = None
    application: str | None = None
    tenant: str | None = None


#: Soonest first, and no two alike.
ORDER: Final = attrgetter("expires_at", "kind", "id")


@dataclass(frozen=True, slots=True)
class _Expiring:
    """A credential that stops working within the longest warning."""

    table: type[Credential]
    id: str
    name: str
    created_at: datetime
    expires_at: datetime
    warned_days: int | None
    owner: str | None
    tenant: str | None
    application: str | None = None

    def warning_due(self, now: datetime) -> int | None:
        """The day whose warning is due and was not sent. A credential that never had that long to live is not warned of."""
        remaining = (self.expires_at - now).total_seconds()
        life = (self.expires_at - self.created_at).total_seconds()
        due = [days for days in WARNING_DAYS if remaining <= days * _DAY < life]
        return min(due) if due and (self.warned_days is None or min(due) < self.warned_days) else None


def warn(rt: Runtime) -> int:
    """Queue the warnings that are due; tell how many credentials were warned of. A background job."""
    now = rt.clock.now()
    with rt.database.reading() as session:
        until = later(now, max(WARNING_DAYS) * _DAY)
        found = [*_secrets(session, now, until), *_pairs(session, now, until), *_trusts(session, now, until)]
    return sum(_warn(rt, one, days) for one in found if (days := one.warning_due(now)) is not None)


def endings(rt: Runtime, *, days: int) -> list[Ending]:
    """Everything that ends within so many days, soonest first: secrets, key pairs, trusts, access windows, open invitations."""
    now = rt.clock.now()
    until = later(now, days * _DAY)
    with rt.database.reading() as session:
        kinds = {
            "secret": _secrets(session, now, until),
            "keypair": _pairs(session, now, until),
            "trust": _trusts(session, now, until),
        }
        found = [
            Ending(kind, one.id, one.name, one.expires_at, one.owner, one.application, one.tenant)
            for kind, ones in kinds.items()
            for one in ones
        ]
        windows = select(User.id, User.alias, User.ends_at).where(
            User.enabled, User.ends_at > now, User.ends_at <= until
        )
        found += [
            Ending("access window", user_id, f"access of {alias}", end, user=user_id)
            for user_id, alias, end in session.execute(windows)
            if end is not None
        ]
        invited = select(Invitation).where(
            Invitation.state == State.PENDING, Invitation.expires_at > now, Invitation.expires_at <= until
        )
        found += [
            Ending(
                "invitation", one.id, f"invitation of {one.address}", one.expires_at, one.user_id, None, one.tenant_id
            )
            for one in session.scalars(invited)
        ]
    return sorted(found, key=ORDER)


def soonest(database: Database, now: datetime) -> dict[str, float]:
    """The seconds until the next secret, key pair and trust stop working, where one does within the longest warning."""
    until = later(now, max(WARNING_DAYS) * _DAY)
    with database.reading() as session:
        kinds = {
            "client_secret": _secrets(session, now, until),
            "keypair": _pairs(session, now, until),
            "trust": _trusts(session, now, until),
        }
    return {kind: (found[0].expires_at - now).total_seconds() for kind, found in kinds.items() if found}


def _warn(rt: Runtime, one: _Expiring, days: int) -> bool:
    with rt.unit(Origin.background()) as unit:
        # One row, one warning: of any number of processes that see it, one gets to say it.
        unsaid = or_(one.table.warned_days.is_(None), one.table.warned_days > days)
        if not unit.changed(update(one.table).where(one.table.id == one.id, unsaid).values(warned_days=days)):
            return False
        for alias, address in who_answers(unit, user=one.owner, tenant=one.tenant):
            values: dict[str, str | datetime] = {"account": alias, "key_name": one.name, "until": one.expires_at}
            outbox.queue(rt, unit, Template.CREDENTIAL_EXPIRING, to=address, values=values, expires_at=one.expires_at)
    return True


def _secrets(session: Session, now: datetime, until: datetime) -> list[_Expiring]:
    query = (
        select(ClientSecret, Application.name, Application.tenant_id)
        .join(Application, Application.id == ClientSecret.client_id)
        .where(Application.enabled, *_soon(ClientSecret, now, until))
        .order_by(ClientSecret.expires_at, ClientSecret.id)
    )
    return [
        _expiring(
            row, name=f"client secret {row.id} of the application {name}", tenant=tenant, application=row.client_id
        )
        for row, name, tenant in session.execute(query)
    ]


def _trusts(session: Session, now: datetime, until: datetime) -> list[_Expiring]:
    query = (
        select(ApplicationTrust, Application.name, Application.tenant_id)
        .join(Application, Application.id == ApplicationTrust.client_id)
        .where(Application.enabled, *_soon(ApplicationTrust, now, until))
        .order_by(ApplicationTrust.expires_at, ApplicationTrust.id)
    )
    return [
        _expiring(row, name=f"trust {row.name} of the application {name}", tenant=tenant, application=row.client_id)
        for row, name, tenant in session.execute(query)
    ]


def _pairs(session: Session, now: datetime, until: datetime) -> list[_Expiring]:
    query = (
        select(KeyPair).where(KeyPair.verified, *_soon(KeyPair, now, until)).order_by(KeyPair.expires_at, KeyPair.id)
    )
    return [_expiring(row, name=row.name, owner=row.user_id) for row in session.scalars(query)]


def _expiring(
    row: Credential,
    *,
    name: str,
    owner: str | None = None,
    tenant: str | None = None,
    application: str | None = None,
) -> _Expiring:
    assert row.expires_at is not None, "asked for as a time that is near"
    return _Expiring(
        type(row), row.id, name, row.created_at, row.expires_at, row.warned_days, owner, tenant, application
    )


def _soon(table: type[Credential], now: datetime, until: datetime) -> tuple[ColumnElement[bool], ...]:
    return table.expires_at > now, table.expires_at <= until
