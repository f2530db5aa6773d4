"""Changing who belongs to a tenant, so that tokens that say otherwise are known to (docs/interfaces.md)."""

from __future__ import annotations

from collections.abc import Sequence

from identity.core.people import tenancy
from identity.core.people.accounts import User
from identity.core.people.tenancy import Membership
from identity.core.tokens import status
from identity.runtime import Runtime
from identity.storage import Unit


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
