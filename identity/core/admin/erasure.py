"""Forgetting a person: everything that names them goes; the audit keeps only the id."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import aliased

from identity.ambient import Origin
from identity.core.keeping import keepings
from identity.core.mail import outbox
from identity.core.people import accounts, invitations, tenancy
from identity.core.people.accounts import ADMIN_ROLE, Email
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import status
from identity.core.tokens.session_rows import UserSession
from identity.runtime import Runtime
from identity.storage import Unit


def erase_own(rt: Runtime, origin: Origin, user_id: str) -> None:
    """Erase a user who asks for it themselves; see `erase`. Raises Refused(CONFLICT) also for the last owner of a tenant.

    Administrators may erase that one: they can give the tenant another owner, or stop it.
    """
    with rt.unit(origin) as unit:
        for tenant_id in tenancy.lock_owned(unit, user_id):
            tenancy.guard_last_owner(unit, tenant_id, leaving=user_id)
        erase(rt, unit, user_id, actor=user_id)


def erase(rt: Runtime, unit: Unit, user_id: str, *, actor: str) -> None:
    """Delete a user and all that is personal: addresses, mails, codes, sessions, key pairs, memberships, factors.

    What stays is the audit, which names ids only. Raises Refused(NOT_FOUND), Refused(CONFLICT) for the last administrator.
    """
    # Locked first: a session that is being opened is either seen below, or finds nobody. Else its tokens would outlive it offline.
    row = accounts.get_row(unit.session, user_id, for_update=True)
    was_admin = row.enabled and ADMIN_ROLE in row.roles
    for address in _only_theirs(unit, user_id):
        outbox.forget(unit, address)
        invitations.forget_address(unit, address)
    status.end_sessions(rt, unit, UserSession.user_id == user_id)
    for keeping in keepings().values():
        if keeping.forget is not None:
            keeping.forget(unit, user_id)
    accounts.erase_row(unit, user_id)
    if was_admin:
        accounts.guard_last_admin(unit, user_id)
    audit.record(rt, unit, Action.USER_ERASED, actor=actor, target=user_id)


def _only_theirs(unit: Unit, user_id: str) -> list[str]:
    """The addresses of a user that no other user has verified: mails to those are the other's."""
    other = aliased(Email)
    taken = select(other.id).where(other.address == Email.address, other.user_id != user_id, other.verified).exists()
    return list(unit.execute(select(Email.address).where(Email.user_id == user_id, ~taken)).scalars())
