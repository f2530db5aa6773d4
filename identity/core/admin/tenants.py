"""What administrators do with tenants and memberships."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select

from identity import paging
from identity.canonical import canonical_id
from identity.core.admin import roles as named
from identity.core.admin.by import By
from identity.core.clients import registration
from identity.core.clients.applications import ADMIN_SCOPE, INTROSPECT_SCOPE
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people import accounts, addresses, policy, tenancy
from identity.core.people.accounts import ADMIN_ROLE, User, clean_name
from identity.core.people.tenancy import Membership, TenantInfo
from identity.core.tokens import belonging
from identity.errors import NOT_FOUND, VALIDATION, Refused
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Unit

NEVER_AN_OWNERS: Final = frozenset({ADMIN_SCOPE, INTROSPECT_SCOPE})


@dataclass(frozen=True, slots=True)
class Member:
    """A user in a tenant."""

    user_id: str
    alias: str
    roles: tuple[str, ...]


def create_tenant(rt: Runtime, by: By, *, tenant_id: str, name: str) -> TenantInfo:
    """Make a tenant. Raises Refused(VALIDATION) or Refused(CONFLICT)."""
    with by.unit(rt) as unit:
        return tenancy.create(rt, unit, tenant_id=tenant_id, name=clean_name(name, field="name"), actor=by.actor)


def change_tenant(
    rt: Runtime, by: By, tenant_id: str, *, versions: Collection[int] | None = None, **changes: Any
) -> TenantInfo:
    """Change a tenant; see `tenancy.change`. Scopes that reach beyond a tenant are never its owners' to give: Refused(VALIDATION)."""
    if not NEVER_AN_OWNERS.isdisjoint(changes.get("scopes") or ()):
        raise Refused(VALIDATION.saying("The scopes admin and introspect are never a tenant's to give"), field="scopes")
    if "name" in changes:
        changes["name"] = clean_name(changes["name"], field="name")
    if "policy" in changes:
        changes["policy"] = policy.checked(changes["policy"])
    with by.unit(rt) as unit:
        info = tenancy.change(rt, unit, tenant_id, actor=by.actor, versions=versions, **changes)
        if not {"attributes", "policy"}.isdisjoint(changes):
            registration.change_rights_of_tenant(rt, unit, tenant_id)
        return info


def set_tenant_enabled(rt: Runtime, by: By, tenant_id: str, *, enabled: bool) -> TenantInfo:
    """Stop a tenant at once, or let it go on, and tell its owners by mail; doing it twice is the same. See `tenancy.set_enabled`."""
    with by.unit(rt) as unit:
        if tenancy.set_enabled(rt, unit, tenant_id, enabled=enabled, actor=by.actor):
            if not enabled:
                registration.stop_tenant(rt, unit, tenant_id)
            _tell_owners(rt, unit, tenant_id, Template.TENANT_ENABLED if enabled else Template.TENANT_DISABLED)
        return tenancy.info_of(tenancy.get(unit.session, tenant_id))


def delete_tenant(rt: Runtime, by: By, tenant_id: str) -> None:
    """Delete a tenant with its memberships and its applications."""
    with by.unit(rt) as unit:
        registration.forget_tenant(rt, unit, tenant_id)
        tenancy.remove(rt, unit, tenant_id, actor=by.actor)


def set_member(
    rt: Runtime, by: By, tenant_id: str, user_id: str, *, roles: Sequence[str], new_role: bool = False
) -> Member:
    """Make a user a member with exactly these roles. `new_role`: see `roles.check`."""
    by.require_other(user_id)
    with by.unit(rt) as unit:
        named.check(unit, roles, insists=new_role)
        user = accounts.get_row(unit.session, user_id)
        return Member(user.id, user.alias, put_member(rt, unit, tenant_id, user.id, roles=roles, actor=by.actor))


def remove_member(rt: Runtime, by: By, tenant_id: str, user_id: str) -> None:
    """End a membership. Raises Refused(NOT_FOUND) where there is none."""
    by.require_other(user_id)
    with by.unit(rt) as unit:
        if not canonical_id(user_id):
            raise Refused(NOT_FOUND, detail="no such membership")
        belonging.end(rt, unit, tenant_id, user_id, actor=by.actor)


def list_members(rt: Runtime, tenant_id: str, part: Part) -> Listed[Member]:
    """The members of a tenant, in the order in which their accounts were made. Raises Refused(NOT_FOUND)."""
    query = select(User.id, User.alias, Membership.roles).join(User, User.id == Membership.user_id)
    with rt.database.reading() as session:
        tenancy.get(session, tenant_id)
        return paging.read(
            session, query.where(Membership.tenant_id == tenant_id), Membership.user_id, part=part, make=Member
        )


def _tell_owners(rt: Runtime, unit: Unit, tenant_id: str, template: Template) -> None:
    name = tenancy.get(unit.session, tenant_id).name
    for user_id, alias in tenancy.owners_of(unit, tenant_id):
        if address := addresses.preferred_of(unit, user_id):
            outbox.queue(rt, unit, template, to=address, values={"account": alias, "tenant": name})


def put_member(
    rt: Runtime, unit: Unit, tenant_id: str, user_id: str, *, roles: Sequence[str], actor: str
) -> tuple[str, ...]:
    """Make a user a member with exactly these roles, in the caller's unit. Raises Refused(VALIDATION) for a role that only users hold."""
    refuse_global_role(roles)
    return belonging.put(rt, unit, tenant_id, user_id, roles=roles, actor=actor)


def refuse_global_role(roles: Sequence[str]) -> None:
    """Refuse (VALIDATION) the role that no membership holds."""
    if ADMIN_ROLE in roles:
        raise Refused(
            VALIDATION.saying("A membership cannot hold the role users_admin, which is global"), field="roles"
        )
