"""Changing who belongs to a tenant, and what holds for all who do, so that tokens that say otherwise are known to (docs/interfaces.md)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

from sqlalchemy import select, update

from identity.ambient import Origin
from identity.core.people import tenancy
from identity.core.people.accounts import User
from identity.core.people.tenancy import Membership, Tenant
from identity.core.tokens import status
from identity.errors import Refused
from identity.runtime import Runtime
from identity.storage import Contention, Unit

_AT_ONCE: Final = 2_000


def put(rt: Runtime, unit: Unit, tenant_id: str, user_id: str, *, roles: Sequence[str], actor: str) -> tuple[str, ...]:
    """Make a user a member with exactly these roles; see `tenancy.set_member`."""
    held = unit.session.get(Membership, (user_id, tenant_id))
    before = held and held.roles
    after = tenancy.set_member(rt, unit, tenant_id, user_id, roles=roles, actor=actor)
    if after != before:
        status.change_subjects(rt, unit, User.id == user_id)
    return after


def end(rt: Runtime, unit: Unit, tenant_id: str, user_id: str, *, actor: str) -> None:
    """End a membership. Raises Refused(NOT_FOUND) where there is none."""
    tenancy.remove_member(rt, unit, tenant_id, user_id, actor=actor)
    status.change_subjects(rt, unit, User.id == user_id)


def change_all(rt: Runtime, unit: Unit, tenant_id: str) -> None:
    """Note, in the unit of a change that concerns every member of a tenant, that the status lists have to say so.

    They do right after it, by `tell`, part by part: twenty thousand members in one transaction would hold back their logins, and on SQLite
    everybody's, for as long as that takes. Whoever asks us needs no word of it, and should whoever began to tell die, a job goes on.
    """
    unit.changed(update(Tenant).where(Tenant.id == tenant_id).values(members_untold_since=unit.now))
    unit.after_commit(lambda: _tell_now(rt, tenant_id))


def tell_untold(rt: Runtime) -> None:
    """Tell of the members of every tenant that waits for it. A background job. Raises Refused(UNAVAILABLE) or Contention."""
    with rt.database.reading() as session:
        waiting = session.scalars(select(Tenant.id).where(Tenant.members_untold_since.is_not(None))).all()
    for tenant_id in waiting:
        _tell(rt, tenant_id)


def _tell_now(rt: Runtime, tenant_id: str) -> None:
    with suppress(Refused, Contention):  # The change stands, whatever the database does now; the job goes on.
        _tell(rt, tenant_id)


def _tell(rt: Runtime, tenant_id: str) -> None:
    """Tell of all members of a tenant, each part in a unit of its own; told twice is the same."""
    since = _untold_since(rt, tenant_id)
    last = ""
    while since is not None:
        rest = Membership.tenant_id == tenant_id, Membership.user_id > last
        with rt.unit(Origin.background()) as unit:
            ordered = select(Membership.user_id).where(*rest).order_by(Membership.user_id)
            part = unit.execute(ordered.limit(_AT_ONCE)).scalars().all()
            if part:
                members = select(Membership.user_id).where(*rest, Membership.user_id <= part[-1])
                status.change_subjects(rt, unit, User.id.in_(members))
                last = part[-1]
                continue
            # Whoever became a member meanwhile knows already. A change since then has its own telling.
            told = Tenant.id == tenant_id, Tenant.members_untold_since == since
            unit.changed(update(Tenant).where(*told).values(members_untold_since=None))
            return


def _untold_since(rt: Runtime, tenant_id: str) -> datetime | None:
    with rt.database.reading() as session:
        return session.scalar(select(Tenant.members_untold_since).where(Tenant.id == tenant_id))
