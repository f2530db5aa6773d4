"""What a tenant's owners do in their own tenant, and nothing else: members, roles, applications, events.

Each use case is about the one tenant that its `By` carries. An owner sees of a member what they are in this tenant, never what they have
elsewhere; gives to an application only the scopes that an administrator allowed the tenant; and never leaves the tenant without an owner.
Administrators use the same functions, with a `By` narrowed to the tenant.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, func, select

from identity import paging
from identity.canonical import canonical_id
from identity.core.admin import roles as named
from identity.core.admin import users
from identity.core.admin.by import By
from identity.core.admin.tenants import NEVER_AN_OWNERS, put_member
from identity.core.clients import applications, issuers, registration, secrets
from identity.core.clients.applications import Application, ApplicationInfo
from identity.core.clients.issuers import TrustInfo
from identity.core.clients.secrets import MadeSecret, SecretInfo
from identity.core.people import tenancy
from identity.core.people.accounts import Email, User, clean_name
from identity.core.people.tenancy import OWNER_ROLE, Membership, Tenant
from identity.core.tokens import belonging
from identity.errors import FORBIDDEN, NOT_FOUND, VALIDATION, Refused
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Unit

_KEPT: Final = FORBIDDEN.saying("This application holds scopes or roles that only an administrator gives")


@dataclass(frozen=True, slots=True)
class TenantMember:
    """A member as the tenant's owners see one: nothing of what they have elsewhere."""

    user_id: str
    alias: str
    full_name: str
    email: str
    roles: tuple[str, ...]


# Members.


def list_members(rt: Runtime, by: By, part: Part, *, q: str | None = None) -> Listed[TenantMember]:
    """The members of the tenant, in the order in which their accounts were made; `q`: how a name, alias, address or id begins."""
    query = _members(by)
    if q is not None:
        query = query.where(users.begins(rt, q))
    with rt.database.reading() as session:
        return paging.read(session, query, Membership.user_id, part=part, make=TenantMember)


def describe_member(rt: Runtime, by: By, user_id: str) -> TenantMember:
    """A member of the tenant. Raises Refused(NOT_FOUND) for everybody else."""
    with rt.database.reading() as session:
        row = session.execute(_members(by).where(User.id == (canonical_id(user_id) or ""))).one_or_none()
    if row is None:
        raise Refused(NOT_FOUND, detail="no such member of this tenant")
    return TenantMember(*row)


def _members(by: By) -> Select[*tuple[Any, ...]]:
    preferred = select(Email.address).where(Email.user_id == User.id, Email.preferred).correlate(User).scalar_subquery()
    columns = (User.id, User.alias, User.full_name, func.coalesce(preferred, ""), Membership.roles)
    return select(*columns).join(Membership, Membership.user_id == User.id).where(Membership.tenant_id == by.where)


def set_roles(rt: Runtime, by: By, user_id: str, *, roles: Sequence[str], new_role: bool = False) -> TenantMember:
    """Give a member of the tenant exactly these roles.

    Raises Refused(NOT_FOUND) for who is no member (they are invited), Refused(CONFLICT) for the last owner, Refused(VALIDATION).
    """
    with by.unit_within(rt) as unit:
        before = _lock_member(unit, by.where, user_id)
        named.check(unit, roles, insists=new_role)
        held = put_member(rt, unit, by.where, user_id, roles=roles, actor=by.actor)
        if OWNER_ROLE in before and OWNER_ROLE not in held:
            tenancy.guard_last_owner(unit, by.where)
        user = unit.session.get_one(User, user_id)
        address = unit.execute(
            select(Email.address).where(Email.user_id == user_id, Email.preferred)
        ).scalar_one_or_none()
        return TenantMember(user.id, user.alias, user.full_name, address or "", held)


def end_membership(rt: Runtime, by: By, user_id: str) -> None:
    """End a membership; the user is never touched. Raises Refused(NOT_FOUND), Refused(CONFLICT) for the last owner."""
    with by.unit_within(rt) as unit:
        before = _lock_member(unit, by.where, user_id)
        belonging.end(rt, unit, by.where, user_id, actor=by.actor)
        if OWNER_ROLE in before:
            tenancy.guard_last_owner(unit, by.where)


# Applications.


def list_applications(rt: Runtime, by: By, part: Part) -> Listed[ApplicationInfo]:
    """The applications of the tenant, by number."""
    query = select(Application).where(Application.tenant_id == by.where)
    with rt.database.reading() as session:
        return paging.read(session, query, Application.app_id, part=part, make=applications.from_row)


def create_application(
    rt: Runtime, by: By, *, name: str, scopes: Sequence[str] = (), **options: Any
) -> tuple[ApplicationInfo, MadeSecret]:
    """Make an application of the tenant and its first secret, which is shown once. It has no roles: those reach beyond the tenant.

    Raises Refused(VALIDATION) for scopes that the tenant may not give and audiences that no token may be for.
    """
    with by.unit_within(rt) as unit:
        _check_scopes(unit, by.where, scopes)
        _check_audiences(rt, options.get("audiences", ()))
        called = clean_name(name, field="name")
        return registration.register(rt, unit, name=called, actor=by.actor, tenant=by.where, scopes=scopes, **options)


def change_application(
    rt: Runtime, by: By, client_id: str, *, versions: Collection[int] | None = None, **changes: Any
) -> ApplicationInfo:
    """Change an application of the tenant. Raises as `create_application`, and Refused(NOT_FOUND) for one of another tenant."""
    with by.unit_within(rt) as unit:
        _require_theirs_to_give(unit, by.where, client_id)
        if "name" in changes:
            changes["name"] = clean_name(changes["name"], field="name")
        _check_scopes(unit, by.where, changes.get("scopes", ()))
        _check_audiences(rt, changes.get("audiences", ()))
        return registration.change(rt, unit, client_id, actor=by.actor, versions=versions, **changes)


def delete_application(rt: Runtime, by: By, client_id: str) -> None:
    """Delete an application of the tenant; its secrets and tokens end with it."""
    with by.unit_within(rt) as unit:
        _get_application(unit, by.where, client_id)
        registration.remove(rt, unit, client_id, actor=by.actor)


def add_secret(rt: Runtime, by: By, client_id: str, **options: Any) -> MadeSecret:
    """A further secret of an application of the tenant, which is shown once. See `secrets.add_secret` for `options`."""
    with by.unit_within(rt) as unit:
        _require_theirs_to_give(unit, by.where, client_id)
        return secrets.add_secret(rt, unit, client_id, actor=by.actor, **options)


def list_secrets(rt: Runtime, by: By, client_id: str) -> list[SecretInfo]:
    """The secrets of an application of the tenant, oldest first."""
    app = applications.find(rt, client_id)
    if app is None or app.tenant != by.where:
        raise Refused(NOT_FOUND, detail="no such application of this tenant")
    return secrets.secrets_of(rt, app.id)


def delete_secret(rt: Runtime, by: By, client_id: str, secret_id: str, *, force: bool = False) -> None:
    """End a secret of an application of the tenant, and every token that it earned. See `secrets.remove_secret`."""
    with by.unit_within(rt) as unit:
        _get_application(unit, by.where, client_id)
        secrets.remove_secret(rt, unit, client_id, secret_id, actor=by.actor, force=force)


def add_trust(rt: Runtime, by: By, client_id: str, *, name: str, **options: Any) -> TrustInfo:
    """Let an application of the tenant prove itself with the tokens of a platform. See `issuers.add_trust` for `options`."""
    with by.unit_within(rt) as unit:
        _require_theirs_to_give(unit, by.where, client_id)
        return issuers.add_trust(rt, unit, client_id, actor=by.actor, name=clean_name(name, field="name"), **options)


def list_trusts(rt: Runtime, by: By, client_id: str) -> list[TrustInfo]:
    """The trusts of an application of the tenant, oldest first."""
    app = applications.find(rt, client_id)
    if app is None or app.tenant != by.where:
        raise Refused(NOT_FOUND, detail="no such application of this tenant")
    return issuers.trusts_of(rt, app.id)


def remove_trust(rt: Runtime, by: By, client_id: str, trust_id: str) -> None:
    """End a trust of an application of the tenant, and every token that it earned."""
    with by.unit_within(rt) as unit:
        _get_application(unit, by.where, client_id)
        issuers.remove_trust(rt, unit, client_id, trust_id, actor=by.actor)


def _lock_member(unit: Unit, tenant_id: str, user_id: str) -> tuple[str, ...]:
    """The roles of a member, whom nobody else changes until the unit ends, nor any other of the tenant."""
    unit.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update())
    row = unit.session.get(Membership, (canonical_id(user_id) or "", tenant_id))
    if row is None:
        raise Refused(NOT_FOUND, detail="no such member of this tenant")
    return row.roles


def _get_application(unit: Unit, tenant_id: str, client_id: str) -> Application:
    row = applications.get_row(unit.session, client_id)
    if row.tenant_id != tenant_id:
        raise Refused(NOT_FOUND, detail="an application of another tenant")
    return row


def _require_theirs_to_give(unit: Unit, tenant_id: str, client_id: str) -> None:
    """Refuse (FORBIDDEN) to hand out, by a new secret or key, what an administrator gave beyond what the tenant may give."""
    row = _get_application(unit, tenant_id, client_id)
    if row.roles or not set(row.scopes) <= _allowed(unit, tenant_id):
        raise Refused(_KEPT, evidence={"seen": {"scopes": row.scopes, "roles": row.roles}})


def _check_scopes(unit: Unit, tenant_id: str, scopes: Sequence[str]) -> None:
    beyond = set(scopes) - _allowed(unit, tenant_id)
    if beyond:
        raise Refused(
            VALIDATION.saying("Those scopes are not this tenant's to give"),
            field="scopes",
            evidence={"expected": sorted(_allowed(unit, tenant_id)), "seen": sorted(scopes)},
        )


def _allowed(unit: Unit, tenant_id: str) -> set[str]:
    return set(tenancy.get(unit.session, tenant_id).scopes) - NEVER_AN_OWNERS


def _check_audiences(rt: Runtime, audiences: Sequence[str]) -> None:
    """Where tokens are for certain origins only, an owner may name no others."""
    allowed = {*rt.settings.origins, rt.settings.default_audience}
    if rt.settings.origins and not set(audiences) <= allowed:
        raise Refused(VALIDATION.saying("Tokens are not issued for that audience"), field="audiences")
