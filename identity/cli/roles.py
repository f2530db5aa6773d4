"""`identity role`: which roles there are, and who holds them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from identity.cli.frame import Opened, cli, command, lists
from identity.errors import VALIDATION, Refused

NEW_ROLE_HELP = "Give a role that nobody holds yet."
_UNKNOWN: Final = VALIDATION.saying("There is no such role yet")


@cli.group("role")
def role() -> None:
    """List and declare roles. Any role may be given to anybody; a declared one is known before anybody holds it."""


@lists(role, "list", "roles")
def list_roles(_opened: Opened) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List the roles that are declared or held, with those who hold them."""
    return ("roles",), {}


@command(role, "create")
@click.argument("name", metavar="ROLE")
@click.option("--description", required=True, metavar="TEXT")
@click.option("--tenant", metavar="T", help="Only in this tenant.")
def create(opened: Opened, **options: Any) -> Any:
    """Declare a role, everywhere or in one tenant."""
    return opened.ask("POST", "role", body={name: value for name, value in options.items() if value is not None})


@command(role, "delete")
@click.argument("name", metavar="ROLE")
@click.option("--tenant", metavar="T", help="The one of this tenant.")
def delete(opened: Opened, name: str, tenant: str | None) -> Any:
    """Take a declaration back; whoever holds the role keeps it."""
    opened.ask("DELETE", "role", name, query={"tenant": tenant})
    return {"name": name, "tenant": tenant, "deleted": True}


def check(opened: Opened, names: Iterable[str], *, new_role: bool) -> None:
    """Refuse a role that nobody holds or has declared, unless told that it is a new one: on a command line most such are slips."""
    wanted = list(names)
    if new_role or not wanted:
        return
    known = sorted({one["name"] for one in opened.everything("roles", "roles")})
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise Refused(_UNKNOWN, field="roles", detail=f"{name}: {hint}--new-role makes it")
