"""Group H: tenants, their members and invitations, and roles."""

from __future__ import annotations

from identity import documents
from identity.core.admin import invitations, roles, tenants
from identity.core.admin.by import By
from identity.core.people import tenancy
from identity.errors import NOT_FOUND
from identity.wire.dialects import tenant_schemas
from identity.wire.dialects.admin_dialect import ACKNOWLEDGED, by_of, deed, listing, show
from identity.wire.dialects.lists import changes_of, one, page, renamed, seen_versions, tagged
from identity.wire.endpoint import Call, Reply

# Tenants.


@deed("POST", "/admin/tenant", body=tenant_schemas.NewTenant, answer=tenant_schemas.TenantAnswer)
def create_tenant(call: Call) -> Reply:
    """Make a tenant; its id is what callers send as `X-Tenant-Id`."""
    return _tenant(tenants.create_tenant(call.rt, by_of(call), tenant_id=call.body["id"], name=call.body["name"]))


@listing("/admin/tenants", "tenants", tenant_schemas.TenantAnswer, filters=("q",))
def list_tenants(call: Call) -> Reply:
    """List tenants by id."""
    return page(call, "tenants", documents.tenant, lambda part: tenancy.listing(call.rt, part, q=one(call, "q")))


@show("/admin/tenant/{id}", tenant_schemas.TenantAnswer)
def show_tenant(call: Call) -> Reply:
    """Show a tenant; the `ETag` guards a change of it."""
    return _tenant(tenancy.describe(call.rt, call.params["id"]))


@deed("PATCH", "/admin/tenant/{id}", body=tenant_schemas.TenantChange, answer=tenant_schemas.TenantAnswer)
def change_tenant(call: Call) -> Reply:
    """Rename a tenant or give it budgets of its own; `If-Match` guards against a change in between."""
    versions = seen_versions(call)
    return _tenant(
        tenants.change_tenant(call.rt, by_of(call), call.params["id"], versions=versions, **changes_of(call))
    )


@deed("PUT", "/admin/tenant/{id}/disable", answer=tenant_schemas.TenantAnswer)
def disable_tenant(call: Call) -> Reply:
    """Stop a tenant at once: nobody acts in it, its applications' tokens end, and its owners hear of it."""
    return _tenant(tenants.set_tenant_enabled(call.rt, by_of(call), call.params["id"], enabled=False))


@deed("PUT", "/admin/tenant/{id}/enable", answer=tenant_schemas.TenantAnswer)
def enable_tenant(call: Call) -> Reply:
    """Let a tenant go on, with its members and applications; tokens that were ended stay ended."""
    return _tenant(tenants.set_tenant_enabled(call.rt, by_of(call), call.params["id"], enabled=True))


@deed("DELETE", "/admin/tenant/{id}")
def delete_tenant(call: Call) -> Reply:
    """Delete a tenant with its memberships and its applications."""
    tenants.delete_tenant(call.rt, by_of(call), call.params["id"])
    return Reply(ACKNOWLEDGED)


@deed("PUT", "/admin/tenant/{id}/member/{userID}", body=tenant_schemas.MemberBody, answer=tenant_schemas.MemberAnswer)
def set_member(call: Call) -> Reply:
    """Make a user a member with exactly these roles."""
    options = renamed(call.body, newRole="new_role")
    made = tenants.set_member(call.rt, by_of(call), call.params["id"], call.params["userID"], **options)
    return Reply(documents.member(made))


@deed("DELETE", "/admin/tenant/{id}/member/{userID}")
def remove_member(call: Call) -> Reply:
    """End a membership."""
    tenants.remove_member(call.rt, by_of(call), call.params["id"], call.params["userID"])
    return Reply(ACKNOWLEDGED)


@listing("/admin/tenant/{id}/members", "members", tenant_schemas.MemberAnswer, refusals=(NOT_FOUND,))
def list_members(call: Call) -> Reply:
    """List the members of a tenant and their roles in it."""
    return page(
        call,
        "members",
        documents.member,
        lambda part: tenants.list_members(call.rt, call.params["id"], part),
    )


@listing("/admin/tenant/{id}/invitations", "invitations", tenant_schemas.InvitationAnswer, refusals=(NOT_FOUND,))
def list_invitations(call: Call) -> Reply:
    """List the invitations of a tenant that wait to be accepted, newest first."""
    by = _within(call)
    return page(call, "invitations", documents.invitation, lambda part: invitations.listing(call.rt, by, part))


@deed(
    "POST", "/admin/tenant/{id}/invitations", body=tenant_schemas.InvitationBody, answer=tenant_schemas.InvitationAnswer
)
def invite(call: Call) -> Reply:
    """Mail an invitation into a tenant; the answer is the same whether or not anybody has the address."""
    options = renamed(call.body, expiresIn="expires_in", portalURL="portal_url", newRole="new_role")
    return Reply(documents.invitation(invitations.invite(call.rt, _within(call), **options)))


@deed("POST", "/admin/tenant/{id}/invitation/{invitationID}/resend", answer=tenant_schemas.InvitationAnswer)
def resend_invitation(call: Call) -> Reply:
    """Mail a new link for an invitation; the link before is dead."""
    return Reply(documents.invitation(invitations.resend(call.rt, _within(call), call.params["invitationID"])))


@deed("DELETE", "/admin/tenant/{id}/invitation/{invitationID}")
def withdraw_invitation(call: Call) -> Reply:
    """Withdraw an invitation: its link is dead."""
    invitations.withdraw(call.rt, _within(call), call.params["invitationID"])
    return Reply(ACKNOWLEDGED)


# Roles.


@listing("/admin/roles", "roles", tenant_schemas.RoleAnswer)
def list_roles(call: Call) -> Reply:
    """List the roles that are declared or held, with those who hold them."""
    return page(call, "roles", documents.role, lambda part: roles.listing(call.rt, part))


@deed("POST", "/admin/role", body=tenant_schemas.NewRole, answer=tenant_schemas.RoleAnswer)
def declare_role(call: Call) -> Reply:
    """Declare a role, everywhere or in one tenant, so that it is known before anybody holds it."""
    return Reply(documents.role(roles.declare(call.rt, by_of(call), **call.body)))


@deed("DELETE", "/admin/role/{name}", query=("tenant",))
def withdraw_role(call: Call) -> Reply:
    """Take a declaration back, of everywhere or of one tenant; whoever holds the role keeps it."""
    roles.withdraw(call.rt, by_of(call), name=call.params["name"], tenant=one(call, "tenant"))
    return Reply(ACKNOWLEDGED)


def _within(call: Call) -> By:
    """An administrator's rights, narrowed to the tenant of the path. Raises Refused(NOT_FOUND)."""
    tenancy.describe(call.rt, call.params["id"])
    return by_of(call).within(call.params["id"])


def _tenant(info: tenancy.TenantInfo) -> Reply:
    return tagged(documents.tenant(info), info.version)
