"""`identity tenant`: organisations and who belongs to them."""

from __future__ import annotations

from typing import Any

import click

from identity.cli.frame import Opened, cli, command
from identity.cli.roles import NEW_ROLE_HELP, check


@cli.group("tenant")
def tenant() -> None:
    """Make and manage tenants. ID is what callers send as X-Tenant-Id."""


def _limits(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """`TIER=N/PERIOD` as budgets by tier."""
    return {tier.strip(): budget.strip() for tier, _, budget in (text.partition("=") for text in given)}


@command(tenant, "create")
@click.argument("tenant_id", metavar="ID")
@click.option("--name", required=True, metavar="N")
def create(opened: Opened, tenant_id: str, name: str) -> Any:
    """Make a tenant."""
    from identity import documents
    from identity.core.admin import tenants

    return documents.tenant(tenants.create_tenant(opened.rt, opened.by, tenant_id=tenant_id, name=name))


@command(tenant, "list")
@click.option("--limit", type=click.IntRange(1, 1000), default=200, show_default=True)
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
def list_tenants(opened: Opened, limit: int, page: int) -> Any:
    """List tenants by id."""
    from identity import documents
    from identity.core.people import tenancy

    total, found = tenancy.listing(opened.rt, limit=limit, offset=(page - 1) * limit)
    return documents.page("tenants", total, [documents.tenant(one) for one in found], limit=limit)


@command(tenant, "show")
@click.argument("tenant_id", metavar="ID")
def show(opened: Opened, tenant_id: str) -> Any:
    """Show a tenant and its first 200 members."""
    from identity import documents
    from identity.core.admin import tenants
    from identity.core.people import tenancy

    found = documents.tenant(tenancy.describe(opened.rt, tenant_id))
    _, members = tenants.list_members(opened.rt, tenant_id, limit=200, offset=0)
    return found | {"members": [documents.member(one) for one in members]}


@command(tenant, "update")
@click.argument("tenant_id", metavar="ID")
@click.option("--name", metavar="N")
@click.option(
    "--limit", "limits", multiple=True, metavar="TIER=N/PERIOD", callback=_limits, help="Its own budget; the rest stay."
)
def update(opened: Opened, tenant_id: str, name: str | None, limits: dict[str, str]) -> Any:
    """Change a tenant's name or its own budgets: standard, ai-assisted, bulk-upload; an empty one takes it away."""
    from identity import documents
    from identity.core.admin import tenants
    from identity.core.people import tenancy

    changes: dict[str, Any] = {} if name is None else {"name": name}
    if limits:
        both = {**tenancy.describe(opened.rt, tenant_id).limits, **limits}
        changes["limits"] = {tier: budget for tier, budget in both.items() if budget}
    if not changes:
        raise click.UsageError("Name something to change")
    return documents.tenant(tenants.change_tenant(opened.rt, opened.by, tenant_id, **changes))


@command(tenant, "disable")
@click.argument("tenant_id", metavar="ID")
def disable(opened: Opened, tenant_id: str) -> Any:
    """Stop a tenant at once; its members and applications stay, and its owners hear of it."""
    return _set_enabled(opened, tenant_id, enabled=False)


@command(tenant, "enable")
@click.argument("tenant_id", metavar="ID")
def enable(opened: Opened, tenant_id: str) -> Any:
    """Let a tenant go on; tokens that were ended stay ended."""
    return _set_enabled(opened, tenant_id, enabled=True)


@command(tenant, "delete")
@click.argument("tenant_id", metavar="ID")
def delete(opened: Opened, tenant_id: str) -> Any:
    """Delete a tenant with its memberships and its applications."""
    from identity.core.admin import tenants

    tenants.delete_tenant(opened.rt, opened.by, tenant_id)
    return {"id": tenant_id, "deleted": True}


@command(tenant, "add-member")
@click.argument("tenant_id", metavar="ID")
@click.option("--user", "identifier", required=True, metavar="USER", help="Id, address or alias.")
@click.option("--role", "roles", multiple=True, metavar="R", help="Role in this tenant.")
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
def add_member(opened: Opened, tenant_id: str, identifier: str, roles: tuple[str, ...], new_role: bool) -> Any:
    """Make a user a member with exactly these roles."""
    from identity import documents
    from identity.core.admin import tenants, users

    check(opened, roles, new_role=new_role)
    user = users.find_user(opened.rt, identifier)
    made = tenants.set_member(opened.rt, opened.by, tenant_id, user.id, roles=roles, new_role=new_role)
    return documents.member(made)


@command(tenant, "remove-member")
@click.argument("tenant_id", metavar="ID")
@click.option("--user", "identifier", required=True, metavar="USER", help="Id, address or alias.")
def remove_member(opened: Opened, tenant_id: str, identifier: str) -> Any:
    """End a membership."""
    from identity.core.admin import tenants, users

    user = users.find_user(opened.rt, identifier)
    tenants.remove_member(opened.rt, opened.by, tenant_id, user.id)
    return {"id": tenant_id, "userID": user.id, "removed": True}


def _set_enabled(opened: Opened, tenant_id: str, *, enabled: bool) -> Any:
    from identity import documents
    from identity.core.admin import tenants

    return documents.tenant(tenants.set_tenant_enabled(opened.rt, opened.by, tenant_id, enabled=enabled))
