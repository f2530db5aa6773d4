"""Who answers for a credential, and so hears of it: that it ends, that it leaked, that somebody took the bait."""

from __future__ import annotations

from sqlalchemy import select

from identity.core.people import accounts, addresses, tenancy
from identity.core.people.accounts import ADMIN_ROLE, User
from identity.storage import Unit


def who_answers(unit: Unit, *, user: str | None = None, tenant: str | None = None) -> list[tuple[str, str]]:
    """Alias and proven address of each: the user whose it is, else the owners of the tenant whose it is, else the administrators."""
    people = select(User.id, User.alias).where(User.enabled).order_by(User.id)
    if user is not None:
        found = unit.execute(people.where(User.id == user)).all()
    else:
        found = tenancy.owners_of(unit, tenant) if tenant is not None else []
        found = found or unit.execute(people.where(accounts.holds_role(ADMIN_ROLE))).all()
    addressed = [(alias, addresses.preferred_of(unit, user_id)) for user_id, alias in found]
    return [(alias, address) for alias, address in addressed if address]
