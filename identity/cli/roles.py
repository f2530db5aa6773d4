"""`identity role`: which roles there are, and who holds them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from identity.cli.frame import Opened, cli, command, lists
from identity.errors import VALIDATION, Refused

NEW_ROLE_HELP = "It is a role of its own, however like users_admin or owner."
_DECIDING: Final = ("users_admin", "owner")
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
    """Refuse a role that nobody holds and that is nearly one that decides something, unless told that it is new; note other slips."""
    wanted = list(names)
    if new_role or not wanted:
        return
    known = sorted({one["name"] for one in opened.everything("roles", "roles")})
    for name in wanted:
        if name in known:
            continue
        if meant := difflib.get_close_matches(name, _DECIDING, n=1, cutoff=0.8):
            raise Refused(_UNKNOWN, field="roles", detail=f"{name}: did you mean {meant[0]}? --new-role makes it")
        if near := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            opened.tell(f"{name} is a new role; if you meant {near[0]}, take it back")
