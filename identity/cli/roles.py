"""`identity role`: which roles there are, and who holds them."""

from __future__ import annotations

from typing import Any

import click

from identity.cli.frame import Opened, cli, command

NEW_ROLE_HELP = "Give a role that nobody holds yet."


@cli.group("role")
def role() -> None:
    """List and declare roles. Any role may be given to anybody; a declared one is known before anybody holds it."""


@command(role, "list")
@click.option("--limit", type=click.IntRange(1, 1000), default=200, show_default=True)
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
def list_roles(opened: Opened, limit: int, page: int) -> Any:
    """List the roles that are declared or held, with those who hold them."""
    from identity import documents
    from identity.core.admin import roles

    total, found = roles.listing(opened.rt, limit=limit, offset=(page - 1) * limit)
    return documents.page("roles", total, [documents.role(one) for one in found], limit=limit)


@command(role, "create")
@click.argument("name", metavar="ROLE")
@click.option("--description", required=True, metavar="TEXT")
@click.option("--tenant", metavar="T", help="Only in this tenant.")
def create(opened: Opened, **options: Any) -> Any:
    """Declare a role, everywhere or in one tenant."""
    from identity import documents
    from identity.core.admin import roles

    return documents.role(roles.declare(opened.rt, opened.by, **options))


@command(role, "delete")
@click.argument("name", metavar="ROLE")
@click.option("--tenant", metavar="T", help="The one of this tenant.")
def delete(opened: Opened, name: str, tenant: str | None) -> Any:
    """Take a declaration back; whoever holds the role keeps it."""
    from identity.core.admin import roles

    roles.withdraw(opened.rt, opened.by, name=name, tenant=tenant)
    return {"name": name, "tenant": tenant, "deleted": True}


def check(opened: Opened, names: Any, *, new_role: bool) -> None:
    """Refuse a role that nobody holds or has declared, unless told that it is a new one: on a command line most such are slips."""
    from identity.core.admin import roles

    if not new_role:
        roles.require_known(opened.rt, names)
