"""What needs a person now, for the first page that an administrator or an owner sees; and nothing else.

Each need is true at the moment it is read: whoever has dealt with it finds it gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import select

from identity.ambient import later
from identity.columns import holds
from identity.core.admin import backups
from identity.core.admin.by import By
from identity.core.clients import expiry
from identity.core.mail import outbox
from identity.core.people.accounts import ADMIN_ROLE, User, holds_role, window_is_open
from identity.core.people.tenancy import OWNER_ROLE, Membership, Tenant
from identity.core.record import explain
from identity.runtime import Runtime

EXPIRING_DAYS: Final = 30
LATE_MAIL_SECONDS: Final = 300
BACKUP_DAYS: Final = 7
_MOST: Final = 20
_DAY: Final = 86_400
# Refusals rise where an hour has so many, and so many times as many as the hours of the day before it.
_RISING_COUNT: Final = 20
_RISING_TIMES: Final = 3
_HOUR: Final = timedelta(hours=1)


class Need(NamedTuple):
    """What is so, when it bites, and what to look at: a kind of page and the id of what it shows, or a page alone."""

    text: str
    at: datetime | None
    kind: str
    id: str


def of_service(rt: Runtime) -> list[Need]:
    """What needs an administrator."""
    return [*_administrators(rt), *_ownerless(rt), *_mails(rt), *_backup(rt), *_refusals(rt), *_endings(rt, None)]


def of_tenant(rt: Runtime, by: By) -> list[Need]:
    """What needs an owner of the tenant."""
    return [*_owners(rt, by.where), *_endings(rt, by.where)]


def _administrators(rt: Runtime) -> Iterator[Need]:
    with rt.database.reading() as session:
        usable = (User.enabled, holds_role(ADMIN_ROLE), window_is_open(rt.clock.now()))
        found = session.execute(select(User.id, User.alias).where(*usable).limit(2)).all()
    if len(found) == 1:
        yield Need(
            f"Only {found[0][1]} administers the service: nobody could take their place", None, "user", found[0][0]
        )


def _ownerless(rt: Runtime) -> Iterator[Need]:
    """Tenants that have an owner who is disabled, and none who can come in. Whoever is disabled is one of few."""
    owning = select(Membership.tenant_id).join(User, User.id == Membership.user_id)
    owning = owning.where(holds(Membership.roles, OWNER_ROLE))
    with rt.database.reading() as session:
        # From the few to the many: a join would let SQLite begin with every membership there is.
        disabled = Membership.user_id.in_(select(User.id).where(~User.enabled))
        suspects = select(Membership.tenant_id).where(disabled, holds(Membership.roles, OWNER_ROLE))
        suspects = suspects.join(Tenant, Tenant.id == Membership.tenant_id).where(Tenant.enabled)
        for tenant in sorted(session.scalars(suspects.distinct().limit(_MOST))):
            usable = owning.where(Membership.tenant_id == tenant, User.enabled, window_is_open(rt.clock.now()))
            if session.scalar(usable.limit(1)) is None:
                yield Need(f"No owner of {tenant} can sign in", None, "tenant", tenant)


def _owners(rt: Runtime, tenant: str) -> Iterator[Need]:
    usable = (User.enabled, window_is_open(rt.clock.now()), holds(Membership.roles, OWNER_ROLE))
    query = select(User.id, User.alias).join(Membership, Membership.user_id == User.id)
    with rt.database.reading() as session:
        found = session.execute(query.where(Membership.tenant_id == tenant, *usable).limit(2)).all()
    if len(found) == 1:
        yield Need(f"Only {found[0][1]} owns {tenant}: nobody could take their place", None, "user", found[0][0])


def _mails(rt: Runtime) -> Iterator[Need]:
    standing = outbox.standing_of(rt.database, rt.clock.now())
    if standing.given_up:
        are = "mail was" if standing.given_up == 1 else "mails were"
        yield Need(f"{standing.given_up} {are} given up: nobody got what was in them", None, "", "/console/system")
    if standing.oldest_seconds > LATE_MAIL_SECONDS:
        since = later(rt.clock.now(), -int(standing.oldest_seconds))
        yield Need(f"Mail waits: {standing.waiting} in all, the oldest since", since, "", "/console/system")


def _backup(rt: Runtime) -> Iterator[Need]:
    age = backups.seconds_since_last(rt.database, rt.clock.now())
    if math.isinf(age):
        yield Need(
            "There is no backup, and no second place for the keys: identity backup makes one file of both",
            None,
            "",
            "/console/system",
        )
    elif age > BACKUP_DAYS * _DAY:
        yield Need("The newest backup is old; it was made", later(rt.clock.now(), -int(age)), "", "/console/system")


def _refusals(rt: Runtime) -> Iterator[Need]:
    now = rt.clock.now()
    hour = {(one.error, one.detail): one.count for one in explain.counted(rt, since=now - _HOUR)}
    many = {kind: count for kind, count in hour.items() if count >= _RISING_COUNT}
    if not many:
        return
    day = explain.counted(rt, since=now - 25 * _HOUR, until=now - _HOUR)
    usual = {(one.error, one.detail): one.count / 24 for one in day}
    for kind, count in sorted(many.items(), key=lambda one: -one[1])[:_MOST]:
        if count > _RISING_TIMES * usual.get(kind, 0):
            yield Need(f"{count} refusals in an hour, {kind[0]}: {kind[1]}", now, "", "/console/why")


def _soon(rt: Runtime, tenant: str | None) -> list[expiry.Ending]:
    found = expiry.endings(rt, days=EXPIRING_DAYS)
    return [one for one in found if one.kind != "invitation" and (tenant is None or one.tenant == tenant)]


def _endings(rt: Runtime, tenant: str | None) -> Iterator[Need]:
    for one in _soon(rt, tenant)[:_MOST]:
        what = {"keypair": f"Key pair {one.name}"}.get(one.kind, one.name[:1].upper() + one.name[1:])
        kind = "application" if one.application else "user"
        yield Need(f"{what} ends", one.expires_at, kind, one.application or one.user or "")
