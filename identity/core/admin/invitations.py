"""Inviting people into a tenant, and what becomes of the invitations; for owners and administrators alike."""

from __future__ import annotations

from collections.abc import Sequence

from identity.canonical import get_address, get_names
from identity.core.admin import roles as named
from identity.core.admin.by import By
from identity.core.admin.portal import check_portal
from identity.core.admin.tenants import refuse_global_role
from identity.core.people import invitations, tenancy
from identity.core.people.invitations import LIFE_SECONDS, InvitationInfo
from identity.paging import Listed, Part
from identity.runtime import Runtime


def invite(
    rt: Runtime,
    by: By,
    *,
    email: str,
    roles: Sequence[str],
    expires_in: int = LIFE_SECONDS,
    portal_url: str | None = None,
    new_role: bool = False,
) -> InvitationInfo:
    """Mail an invitation to an address; it says and costs the same whether or not anybody has it.

    Raises Refused(VALIDATION), Refused(NOT_FOUND) for a tenant that does not exist.
    """
    address, held = get_address(email), get_names(tuple(roles), field="roles")
    refuse_global_role(held)
    if portal_url is not None:
        check_portal(rt, portal_url)
    with by.unit_within(rt) as unit:
        tenancy.get(unit.session, by.where)
        named.check(unit, held, insists=new_role)
        return invitations.issue(
            rt,
            unit,
            address=address,
            actor=by.actor,
            tenant=by.where,
            roles=held,
            portal_url=portal_url,
            seconds=expires_in,
        )


def resend(rt: Runtime, by: By, invitation_id: str) -> InvitationInfo:
    """Mail a new link; the one before is dead. Raises Refused(NOT_FOUND) for an invitation that is over or another tenant's."""
    with by.unit_within(rt) as unit:
        return invitations.resend(rt, unit, invitation_id, tenant=by.where, actor=by.actor)


def withdraw(rt: Runtime, by: By, invitation_id: str) -> None:
    """End an invitation. Raises Refused(NOT_FOUND) for one that is over or another tenant's."""
    with by.unit_within(rt) as unit:
        invitations.withdraw(rt, unit, invitation_id, tenant=by.where, actor=by.actor)


def listing(rt: Runtime, by: By, part: Part) -> Listed[InvitationInfo]:
    """The invitations of the tenant that wait, newest first."""
    return invitations.listing(rt, by.where, part)
