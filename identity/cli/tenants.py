"""`identity tenant`: organisations and who belongs to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from identity.cli import find
from identity.cli.frame import Opened, cli, command, lists
from identity.cli.roles import NEW_ROLE_HELP, check


@cli.group("tenant")
def tenant() -> None:
    """Make and manage tenants. ID is what callers send as X-Tenant-Id."""


def _limits(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """`TIER=N/PERIOD` as budgets by tier."""
    return {tier.strip(): budget.strip() for tier, _, budget in (text.partition("=") for text in given)}


def _an_object(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
    """A JSON object, or None."""
    try:
        value = None if text is None else json.loads(text)
    except ValueError as exc:
        raise click.BadParameter("that is not JSON") from exc
    if value is not None and not isinstance(value, dict):
        raise click.BadParameter("that is no JSON object")
    return value


@command(tenant, "create")
@click.argument("tenant_id", metavar="ID")
@click.option("--name", required=True, metavar="N")
def create(opened: Opened, tenant_id: str, name: str) -> Any:
    """Make a tenant."""
    return opened.ask("POST", "tenant", body={"id": tenant_id, "name": name})


@lists(tenant, "list", "tenants")
@click.option("-q", "--search", "q", metavar="TEXT", help="How an id or a name begins.")
def list_tenants(_opened: Opened, q: str | None) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List tenants by id."""
    return ("tenants",), {"q": q}


@command(tenant, "show")
@click.argument("tenant_id", metavar="ID")
@click.option("--all", "whole", is_flag=True, help="Every member, however many.")
def show(opened: Opened, tenant_id: str, whole: bool) -> Any:
    """Show a tenant and its members."""
    found = opened.ask("GET", "tenant", tenant_id)
    if whole:
        return found | {"members": list(opened.everything("members", "tenant", tenant_id, "members"))}
    part = opened.ask("GET", "tenant", tenant_id, "members", query={"limit": 200})
    if "next" in part:
        opened.tell(f"{len(part['members'])} of {part['items']} members; --all shows every one")
    return found | {"members": part["members"]}


@lists(tenant, "members", "members")
@click.argument("tenant_id", metavar="ID")
def members(_opened: Opened, tenant_id: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List the members of a tenant and their roles in it."""
    return ("tenant", tenant_id, "members"), {}


@command(tenant, "update")
@click.argument("tenant_id", metavar="ID")
@click.option("--name", metavar="N")
@click.option(
    "--limit", "limits", multiple=True, metavar="TIER=N/PERIOD", callback=_limits, help="Its own budget; the rest stay."
)
@click.option("--scope", "scopes", multiple=True, metavar="S", help="Scopes that its owners may give; all of them.")
@click.option("--policy", metavar="JSON", callback=_an_object, help='Like {"requireSecondFactor": true}; {} for none.')
@click.option("--attributes", metavar="JSON", callback=_an_object, help='Like {"plan": "gold"}; replaces all.')
def update(opened: Opened, tenant_id: str, name: str | None, scopes: tuple[str, ...], **options: Any) -> Any:
    """Change a tenant: name, budgets (by tier; an empty one takes it away), policy, attributes, owners' scopes."""
    limits: dict[str, str] = options.pop("limits")
    changes: dict[str, Any] = {} if name is None else {"name": name}
    if limits:
        both = {**opened.ask("GET", "tenant", tenant_id)["limits"], **limits}
        changes["limits"] = {tier: budget for tier, budget in both.items() if budget}
    changes |= {field: value for field, value in options.items() if value is not None}
    if scopes:
        changes["scopes"] = [scope for scope in scopes if scope]
    if not changes:
        raise click.UsageError("Name something to change")
    return opened.ask("PATCH", "tenant", tenant_id, body=changes)


@command(tenant, "invite")
@click.argument("tenant_id", metavar="ID")
@click.option("--email", required=True, metavar="E")
@click.option("--role", "roles", multiple=True, metavar="R", help="Role in this tenant; owner administers it.")
@click.option("--expires-in", "expiresIn", type=click.IntRange(60, 2_592_000), metavar="S", help="A week without it.")
@click.option("--portal-url", "portalURL", metavar="URL", help="Where the link leads; see IDENTITY_PORTAL_URLS.")
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
def invite(opened: Opened, tenant_id: str, roles: tuple[str, ...], new_role: bool, **options: Any) -> Any:
    """Mail an invitation into a tenant; whoever has the address accepts it once."""
    check(opened, roles, new_role=new_role)
    given = {name: value for name, value in options.items() if value is not None}
    body = {"roles": list(roles), **given} | ({"newRole": True} if new_role else {})
    return opened.ask("POST", "tenant", tenant_id, "invitations", body=body)


@lists(tenant, "invitations", "invitations")
@click.argument("tenant_id", metavar="ID")
def list_invitations(_opened: Opened, tenant_id: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List the invitations of a tenant that wait to be accepted."""
    return ("tenant", tenant_id, "invitations"), {}


@command(tenant, "resend-invitation")
@click.argument("tenant_id", metavar="ID")
@click.argument("invitation_id", metavar="INVITATION")
def resend_invitation(opened: Opened, tenant_id: str, invitation_id: str) -> Any:
    """Mail a new link for an invitation; the link before is dead."""
    return opened.ask("POST", "tenant", tenant_id, "invitation", invitation_id, "resend")


@command(tenant, "withdraw-invitation")
@click.argument("tenant_id", metavar="ID")
@click.argument("invitation_id", metavar="INVITATION")
def withdraw_invitation(opened: Opened, tenant_id: str, invitation_id: str) -> Any:
    """Withdraw an invitation: its link is dead."""
    opened.ask("DELETE", "tenant", tenant_id, "invitation", invitation_id)
    return {"invitationID": invitation_id, "withdrawn": True}


@command(tenant, "disable", asks="Stop the tenant {tenant_id} at once?")
@click.argument("tenant_id", metavar="ID")
def disable(opened: Opened, tenant_id: str) -> Any:
    """Stop a tenant at once; its members and applications stay, and its owners hear of it."""
    opened.ask("PUT", "tenant", tenant_id, "disable")
    return opened.ask("GET", "tenant", tenant_id)


@command(tenant, "enable")
@click.argument("tenant_id", metavar="ID")
def enable(opened: Opened, tenant_id: str) -> Any:
    """Let a tenant go on; tokens that were ended stay ended."""
    opened.ask("PUT", "tenant", tenant_id, "enable")
    return opened.ask("GET", "tenant", tenant_id)


@command(tenant, "delete", asks="Delete the tenant {tenant_id} with its memberships and applications?")
@click.argument("tenant_id", metavar="ID")
def delete(opened: Opened, tenant_id: str) -> Any:
    """Delete a tenant with its memberships and its applications."""
    opened.ask("DELETE", "tenant", tenant_id)
    return {"id": tenant_id, "deleted": True}


@command(tenant, "add-member")
@click.argument("tenant_id", metavar="ID")
@click.option("--user", "identifier", required=True, metavar="USER", help="Id, address or alias.")
@click.option("--role", "roles", multiple=True, metavar="R", help="Role in this tenant.")
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
def add_member(opened: Opened, tenant_id: str, identifier: str, roles: tuple[str, ...], new_role: bool) -> Any:
    """Make a user a member with exactly these roles."""
    check(opened, roles, new_role=new_role)
    body = {"roles": list(roles)} | ({"newRole": True} if new_role else {})
    return opened.ask("PUT", "tenant", tenant_id, "member", find.user(opened, identifier), body=body)


@command(tenant, "remove-member")
@click.argument("tenant_id", metavar="ID")
@click.option("--user", "identifier", required=True, metavar="USER", help="Id, address or alias.")
def remove_member(opened: Opened, tenant_id: str, identifier: str) -> Any:
    """End a membership."""
    found = find.user(opened, identifier)
    opened.ask("DELETE", "tenant", tenant_id, "member", found)
    return {"id": tenant_id, "userID": found, "removed": True}
