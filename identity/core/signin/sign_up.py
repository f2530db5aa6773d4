"""How users come by themselves, and how they go: registration and erasure."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select

from identity.ambient import Origin, later
from identity.canonical import get_address
from identity.core.keeping import Keeping, delete_batch
from identity.core.mail.letters import Template
from identity.core.people import accounts
from identity.core.people.accounts import Email, User
from identity.core.signin import by_code
from identity.core.signin.by_code import Waiting
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
        raise Refused(REGISTRATION_DISABLED, detail="IDENTITY_REGISTRATION is off")
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


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget registrations that were never confirmed."""
    return delete_batch(unit, User, User.unconfirmed_until < unit.now)


# The users themselves are `accounts`' to keep: here only those go who never were one.
KEEPING: Final = Keeping((), purge=purge)
