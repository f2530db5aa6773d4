"""The console's tenants: a list, a page for each with its members, invitations and applications, and what can be done about them.

An owner sees the page of their own tenant, by the use cases of owners; what only administrators may change is not on it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from identity.core.admin import invitations, naming, owners, roles, tenants, users
from identity.core.people import tenancy
from identity.core.people.tenancy import OWNER_ROLE, TenantInfo
from identity.errors import NOT_FOUND, Refused
from identity.paging import Part
from identity.wire.dialects.console_dialect import (
    Deed,
    Visit,
    fault_of,
    perform,
    redirect,
    said,
    visited,
    visited_by_admins,
)
from identity.wire.dialects.console_forms import (
    is_stale,
    json_of,
    number,
    spelled,
    table,
    typed_again,
    version,
    words,
)
from identity.wire.endpoint import Reply
from identity.wire.pages import Again

_FIRST: Final = Part(limit=20)
_MOST: Final = Part(limit=200)


# The list.


@visited
def show_tenants(visit: Visit) -> Reply:
    """List tenants; an owner goes to the page of their own."""
    if visit.by.tenant is not None:
        return redirect(visit.page_of("tenant", visit.by.tenant))
    q = visit.asked("q")
    listed = tenancy.listing(visit.rt, visit.part(), q=q or None)
    return visit.show("tenants.html", q=q, listed=listed, more=visit.more(listed, q=q), done=said(visit, DEEDS))


@visited_by_admins
def show_new_tenant(visit: Visit) -> Reply:
    """Show the form that makes a tenant."""
    return visit.show("new_tenant.html", filled=defaultdict(str))


@visited_by_admins
def make_tenant(visit: Visit) -> Reply:
    """Make a tenant, and invite its first owner if an address is there."""
    filled = {name: visit.typed(name) for name in ("id", "name", "email")}
    try:
        made = tenants.create_tenant(visit.rt, visit.by, tenant_id=filled["id"], name=filled["name"])
    except Refused as refused:
        page = visit.rendered("new_tenant.html", filled=filled, fault=fault_of(visit, refused))
        raise Again(refused, page) from refused
    done = "made"
    if filled["email"]:
        try:
            invitations.invite(visit.rt, visit.by.within(made.id), email=filled["email"], roles=[OWNER_ROLE])
        except Refused as refused:
            # The tenant stands by now: its own page asks for the address again.
            raise Again(refused, _rendered(visit, made.id, fault=fault_of(visit, refused))) from refused
        done = "invite"
    return visit.goes_on(f"/console/tenant/{made.id}", done=done)


# One of them.


@visited
def show_tenant(visit: Visit) -> Reply:
    """Show a tenant."""
    return visit.reply(_rendered(visit, visit.call.params["id"]))


@visited
def change_tenant(visit: Visit) -> Reply:
    """Do what the form asks for."""
    info = _found(visit, visit.call.params["id"])
    return perform(visit, DEEDS, info.id, called=info.name, show=lambda **values: _rendered(visit, info.id, **values))


def _found(visit: Visit, tenant_id: str) -> TenantInfo:
    """The tenant, if it is the visitor's to see. Raises Refused(NOT_FOUND)."""
    if visit.by.tenant not in (None, tenant_id):
        raise Refused(NOT_FOUND, detail="another owner's tenant")
    return tenancy.describe(visit.rt, tenant_id)


def _rendered(visit: Visit, tenant_id: str, *, fault: dict[str, Any] | None = None) -> str:
    rt, info = visit.rt, _found(visit, tenant_id)
    within = visit.by.within(info.id)
    members = owners.list_members(rt, within, _FIRST)
    machines = owners.list_applications(rt, within, _FIRST)
    waiting = invitations.listing(rt, within, _MOST)
    return visit.rendered(
        "tenant.html",
        info=info,
        here=f"/console/tenant/{info.id}",
        is_admin=visit.by.tenant is None,
        has_owner=tenancy.is_owned(rt, info.id),
        policy=defaultdict(str, info.policy),
        members=members,
        waiting=waiting,
        machines=machines,
        roles=roles.of_tenant(rt, info.id),
        attributes=spelled(info.attributes),
        limits="\n".join(f"{tier}={budget}" for tier, budget in sorted(info.limits.items())),
        events=naming.newest(rt, within, info.id),
        typed=typed_again(visit, fault),
        stale=is_stale(fault),
        fault=fault,
        done=said(visit, DEEDS) if not fault else "",
    )


# What can be done.


def _disable(visit: Visit, tenant_id: str) -> None:
    tenants.set_tenant_enabled(visit.rt, visit.by, tenant_id, enabled=False)


def _enable(visit: Visit, tenant_id: str) -> None:
    tenants.set_tenant_enabled(visit.rt, visit.by, tenant_id, enabled=True)


def _delete(visit: Visit, tenant_id: str) -> Reply:
    tenants.delete_tenant(visit.rt, visit.by, tenant_id)
    return visit.goes_on("/console/tenants", done="delete")


def _edit(visit: Visit, tenant_id: str) -> None:
    tenants.change_tenant(
        visit.rt,
        visit.by,
        tenant_id,
        versions=version(visit),
        name=visit.typed("name"),
        scopes=words(visit, "scopes"),
        limits=table(visit, "limits"),
        attributes=json_of(visit, "attributes") or {},
    )


def _set_policy(visit: Visit, tenant_id: str) -> None:
    demanded: dict[str, Any] = {
        "requireSecondFactor": visit.typed("requireSecondFactor") == "yes",
        "tokenSeconds": number(visit, "tokenSeconds"),
        "sessionSeconds": number(visit, "sessionSeconds"),
        "emailDomains": list(words(visit, "emailDomains")),
        "networks": list(words(visit, "networks")),
    }
    policy = {name: value for name, value in demanded.items() if value}
    tenants.change_tenant(visit.rt, visit.by, tenant_id, versions=version(visit), policy=policy)


def _invite(visit: Visit, tenant_id: str) -> None:
    invitations.invite(
        visit.rt,
        visit.by.within(tenant_id),
        email=visit.typed("email"),
        roles=words(visit, "roles"),
        new_role=visit.typed("newRole") == "yes",
    )


def _resend(visit: Visit, tenant_id: str) -> None:
    invitations.resend(visit.rt, visit.by.within(tenant_id), visit.typed("invitation", most=64))


def _withdraw(visit: Visit, tenant_id: str) -> None:
    invitations.withdraw(visit.rt, visit.by.within(tenant_id), visit.typed("invitation", most=64))


def _set_member(visit: Visit, tenant_id: str) -> None:
    user = users.find_user(visit.rt, visit.typed("user"))
    tenants.set_member(
        visit.rt,
        visit.by,
        tenant_id,
        user.id,
        roles=words(visit, "memberRoles"),
        new_role=visit.typed("newRole") == "yes",
    )


def _end_membership(visit: Visit, tenant_id: str) -> None:
    user_id = visit.typed("user", most=64)
    if visit.by.tenant is None:
        tenants.remove_member(visit.rt, visit.by, tenant_id, user_id)
    else:
        owners.end_membership(visit.rt, visit.by, user_id)


def _declare(visit: Visit, tenant_id: str) -> None:
    roles.declare(
        visit.rt, visit.by, name=visit.typed("role"), description=visit.typed("description"), tenant=tenant_id
    )


DEEDS: Final = {
    "made": Deed(lambda _visit, _tenant: None, "The tenant is made. Invite somebody who owns it."),
    "edit": Deed(_edit, "Saved.", recent=True),
    "policy": Deed(_set_policy, "The policy holds from now on.", recent=True),
    "enable": Deed(
        _enable, "The tenant goes on, with its members and applications. Tokens that were ended stay ended."
    ),
    "disable": Deed(
        _disable,
        "The tenant is stopped: nobody acts in it, and its applications' tokens have ended. Its owners are told by mail.",
        asks="Disable {called}? Nobody acts in it from this moment on, and its applications' tokens end.",
        button="Disable",
        recent=True,
    ),
    "delete": Deed(
        _delete,
        "The tenant is gone, with its memberships and applications.",
        asks="Delete {called} with its memberships and its applications? This cannot be undone.",
        button="Delete",
        recent=True,
    ),
    "invite": Deed(_invite, "An invitation is on its way.", recent=True, for_owners=True),
    "resend": Deed(_resend, "A new link is on its way; the one before it is dead.", for_owners=True),
    "withdraw": Deed(_withdraw, "The invitation is withdrawn: its link is dead.", for_owners=True),
    "member": Deed(_set_member, "Saved; the roles hold at once.", recent=True),
    "end-membership": Deed(
        _end_membership,
        "The membership has ended; the account stays.",
        asks="End this membership of {called}? The person's account stays.",
        button="End the membership",
        recent=True,
        for_owners=True,
    ),
    "declare": Deed(_declare, "The role is known now.", recent=True),
}
