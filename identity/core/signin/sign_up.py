"""How users come by themselves, and how they go: registration and erasure."""

from __future__ import annotations

from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import aliased

from identity.ambient import Origin, later
from identity.canonical import get_address
from identity.core.clients import keypairs
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people import accounts, tenancy
from identity.core.people.accounts import ADMIN_ROLE, Email, User
from identity.core.proofs import codes
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import by_code
from identity.core.signin.by_code import Waiting
from identity.core.tokens import sessions
from identity.errors import REGISTRATION_DISABLED, Refused
from identity.runtime import Runtime
from identity.storage import Unit

CONFIRM_SECONDS: Final = 86_400


def register(rt: Runtime, origin: Origin, *, email: str, full_name: str, alias: str) -> Waiting:
    """A user who still has to prove their address, and a session that waits for the same code.

    For an address that somebody has verified the answer and the rows are the same, but that user can never come in; the owner gets a
    letter. What is not confirmed within a day is forgotten. Raises Refused(REGISTRATION_DISABLED), Refused(VALIDATION),
    Refused(CONFLICT) for an alias in use.
    """
    if not rt.settings.registration:
        raise Refused(REGISTRATION_DISABLED)
    address = get_address(email)
    with rt.unit(origin) as unit:
        user_id = accounts.create(
            rt,
            unit,
            email=address,
            full_name=full_name,
            alias=alias,
            verified=False,
            unconfirmed_until=later(unit.now, CONFIRM_SECONDS),
        )
        owner = unit.execute(select(Email.user_id).where(Email.address == address, Email.verified)).first()
        return by_code.open_waiting(
            rt,
            unit,
            accounts.recheck(unit, user_id),
            address,
            resource=rt.settings.default_audience,
            instead=Template.ADDRESS_IN_USE if owner else None,
        )


def erase(rt: Runtime, unit: Unit, user_id: str, *, actor: str) -> None:
    """Delete a user and all that is personal: addresses, mails, codes, sessions, key pairs, memberships, factors.

    What stays is the audit, which names ids only. Raises Refused(NOT_FOUND), Refused(CONFLICT) for the last administrator.
    """
    row = accounts.get_row(unit.session, user_id)
    was_admin = row.enabled and ADMIN_ROLE in row.roles
    for address in _only_theirs(unit, user_id):
        outbox.forget(unit, address)
    codes.forget(unit, user_id)
    sessions.forget_user(unit, user_id)
    keypairs.forget_user(unit, user_id)
    tenancy.forget_user(unit, user_id)
    # Second factors and pending challenges go with the row.
    accounts.erase_row(unit, user_id)
    if was_admin:
        accounts.guard_last_admin(unit, user_id)
    audit.record(rt, unit, Action.USER_ERASED, actor=actor, target=user_id)


def purge(unit: Unit) -> int:
    """Forget registrations that were never confirmed; for the janitor."""
    return unit.changed(delete(User).where(User.unconfirmed_until < unit.now))


def _only_theirs(unit: Unit, user_id: str) -> list[str]:
    """The addresses of a user that no other user has verified: mails to those are the other's."""
    other = aliased(Email)
    taken = select(other.id).where(other.address == Email.address, other.user_id != user_id, other.verified).exists()
    return list(unit.execute(select(Email.address).where(Email.user_id == user_id, ~taken)).scalars())
