"""`identity user`: people, their roles and when they may come in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from identity.cli import find
from identity.cli.frame import Opened, a_line, cli, command, lists, when
from identity.cli.roles import NEW_ROLE_HELP, check


@cli.group("user")
def user() -> None:
    """Make and manage users. USER is an id, an address or an alias."""


@command(user, "create")
@click.option("--email", required=True, metavar="E", help="Address; you vouch that it is the user's.")
@click.option("--alias", required=True, metavar="A", help="Short name to sign in with.")
@click.option("--full-name", required=True, metavar="N")
@click.option("--password-stdin", "password", is_flag=True, callback=a_line, help="Read a password, one line.")
@click.option(
    "--password-hash-stdin",
    "password_hash",
    is_flag=True,
    callback=a_line,
    help="Read the hash that an older system kept; the first login upgrades it.",
)
@click.option("--role", "roles", multiple=True, metavar="R", help="Global role; users_admin administers.")
@click.option("--group", "groups", multiple=True, metavar="G")
@click.option(
    "--tenant", "tenants", multiple=True, metavar="T:role,role", help="Tenant to belong to; also T=role,role."
)
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
@click.option("--notify", is_flag=True, help="Mail an invitation instead of making a key pair.")
@click.option("--portal-url", metavar="URL", help="Link in the invitation; see IDENTITY_PORTAL_URLS.")
def create(opened: Opened, **options: Any) -> Any:
    """Make a user with a verified address, and a key pair whose secret is shown once."""
    return _create(opened, **options)


@command(user, "invite")
@click.argument("email", metavar="ADDRESS")
@click.option("--alias", required=True, metavar="A", help="Short name to sign in with.")
@click.option("--full-name", required=True, metavar="N")
@click.option("--role", "roles", multiple=True, metavar="R", help="Global role; users_admin administers.")
@click.option(
    "--tenant", "tenants", multiple=True, metavar="T:role,role", help="Tenant to belong to; also T=role,role."
)
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
@click.option("--portal-url", metavar="URL", help="Link in the invitation; see IDENTITY_PORTAL_URLS.")
def invite(opened: Opened, **options: Any) -> Any:
    """Make a user who is mailed an invitation and chooses a password."""
    return _create(opened, notify=True, **options)


def _create(opened: Opened, *, tenants: tuple[str, ...], new_role: bool, **options: Any) -> Any:
    held = find.memberships(opened, tenants)
    check(opened, [*options["roles"], *(role for roles in held.values() for role in roles)], new_role=new_role)
    names = {"full_name": "fullName", "portal_url": "portalURL", "password_hash": "passwordHash"}
    body = {names.get(name, name): _plain(value) for name, value in options.items() if value not in (None, False, ())}
    return opened.ask("POST", "user", body=body | ({"tenants": held} if held else {}) | _new(new_role))


@lists(user, "list", "users")
@click.option("--enabled/--disabled", default=None, help="Only these.")
@click.option("--role", metavar="R", help="Only who holds this global role.")
@click.option("--tenant", metavar="T", help="Only its members.")
@click.option("--email", metavar="E", help="Only whose address this is.")
@click.option("--alias", metavar="A", help="Only who is called so.")
@click.option("-q", "--search", "q", metavar="TEXT", help="How a name, alias, address or id begins.")
def list_users(_opened: Opened, **filters: Any) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List users in the order in which they were made."""
    return ("users",), filters


@command(user, "show")
@click.argument("identifier", metavar="USER")
def show(opened: Opened, identifier: str) -> Any:
    """Show a user."""
    return _shown(opened, find.user(opened, identifier))


@command(user, "update")
@click.argument("identifier", metavar="USER")
@click.option("--full-name", "fullName", metavar="N")
@click.option("--alias", metavar="A")
@click.option("--group", "groups", multiple=True, metavar="G", help="The groups: exactly these.")
@click.option("--no-groups", is_flag=True, help="No group.")
def update(opened: Opened, identifier: str, groups: tuple[str, ...], no_groups: bool, **changes: Any) -> Any:
    """Change a user's name, alias or groups."""
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if groups or no_groups:
        given["groups"] = list(groups)
    if not given:
        raise click.UsageError("Name something to change")
    return opened.ask("PATCH", "user", find.user(opened, identifier), body=given)


@command(user, "roles")
@click.argument("identifier", metavar="USER")
@click.option("--add", "added", multiple=True, metavar="R", help="Give this global role.")
@click.option("--remove", "removed", multiple=True, metavar="R", help="Take this global role.")
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
def roles(opened: Opened, identifier: str, added: tuple[str, ...], removed: tuple[str, ...], new_role: bool) -> Any:
    """Show, give and take the global roles of a user."""
    check(opened, added, new_role=new_role)
    found = find.user(opened, identifier)
    for role in added:
        opened.ask("POST", "user", found, "roles", body={"role": role} | _new(new_role))
    for role in removed:
        opened.ask("DELETE", "user", found, "roles", role)
    return {"userID": found} | opened.ask("GET", "user", found, "roles")


@command(user, "disable", asks="Disable {identifier}? Every session of theirs ends, and none comes back.")
@click.argument("identifier", metavar="USER")
def disable(opened: Opened, identifier: str) -> Any:
    """Put a user out: every session ends at once."""
    return _put(opened, identifier, "disable")


@command(user, "enable")
@click.argument("identifier", metavar="USER")
def enable(opened: Opened, identifier: str) -> Any:
    """Let a user in again; sessions that were ended stay ended."""
    return _put(opened, identifier, "enable")


@command(user, "delete", asks="Erase {identifier} and everything that names them?")
@click.argument("identifier", metavar="USER")
def delete(opened: Opened, identifier: str) -> Any:
    """Erase a user and everything that names them; the audit keeps the id."""
    found = find.user(opened, identifier)
    opened.ask("DELETE", "user", found)
    return {"userID": found, "deleted": True}


@command(user, "access-window")
@click.argument("identifier", metavar="USER")
@click.option("--starts", metavar="T", help="RFC 3339, a day, or `7d` from now; `none` for no bound.")
@click.option("--ends", metavar="T", help="RFC 3339, a day, or `7d` from now; `none` for no bound.")
def access_window(opened: Opened, identifier: str, starts: str | None, ends: str | None) -> Any:
    """Set when a user may come in; without options, show it."""
    given = {"startsAt": starts, "endsAt": ends}
    bounds = {
        name: None if text == "none" else when(text, ago=False) for name, text in given.items() if text is not None
    }
    found = find.user(opened, identifier)
    return opened.ask("PUT", "user", found, "access-window", body=bounds) if bounds else _shown(opened, found)


@command(user, "fixed-otp")
@click.argument("identifier", metavar="USER")
@click.option("--stdin", "otp", is_flag=True, callback=a_line, help="Read the one-time code, one line.")
@click.option("--clear", is_flag=True, help="Forget it.")
def fixed_otp(opened: Opened, identifier: str, otp: str | None, clear: bool) -> Any:
    """Fix a one-time code for a user (needs IDENTITY_FIXED_OTP=1); without options, show whether there is one."""
    if otp is not None and clear:
        raise click.UsageError("--stdin and --clear exclude each other")
    found = find.user(opened, identifier)
    if otp is not None:
        opened.ask("PUT", "user", found, "fixed-otp", body={"otp": otp})
    elif clear:
        opened.ask("DELETE", "user", found, "fixed-otp")
    return _shown(opened, found)


@command(user, "password-reset")
@click.argument("identifier", metavar="USER")
def password_reset(opened: Opened, identifier: str) -> Any:
    """Mail a user a code to choose a new password with."""
    found = find.user(opened, identifier)
    return {"userID": found} | opened.ask("PUT", "user", found, "password-reset")


@command(user, "reset-mfa", asks="Take the authenticator and the recovery codes of {identifier}?")
@click.argument("identifier", metavar="USER")
def reset_mfa(opened: Opened, identifier: str) -> Any:
    """Take the authenticator and the recovery codes of a user who has lost them."""
    found = find.user(opened, identifier)
    opened.ask("DELETE", "user", found, "mfa")
    return _shown(opened, found)


@command(user, "unlock")
@click.argument("identifier", metavar="USER")
def unlock(opened: Opened, identifier: str) -> Any:
    """Forget the failed attempts at an account, so that its owner can sign in at once."""
    found = find.user(opened, identifier)
    return {"userID": found} | opened.ask("PUT", "user", found, "unlock")


@lists(user, "sessions", "sessions")
@click.argument("identifier", metavar="USER")
def sessions(opened: Opened, identifier: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List the living sessions of a user, newest first."""
    return ("sessions",), {"user": find.user(opened, identifier)}


@command(user, "logout", asks="End every session of {identifier}?")
@click.argument("identifier", metavar="USER")
def logout(opened: Opened, identifier: str) -> Any:
    """End every session of a user; they can sign in again."""
    found = find.user(opened, identifier)
    return {"userID": found} | opened.desk.ask("DELETE", "/admin/sessions", query={"user": found})


@command(user, "export")
@click.argument("identifier", metavar="[USER]", required=False)
@click.option("--all", "everybody", is_flag=True, help="Everybody, a line each, as `user import` reads it.")
@click.option("--with-hashes", is_flag=True, help="With --all: the password hashes too. On the database only.")
def export(opened: Opened, identifier: str | None, everybody: bool, with_hashes: bool) -> Any:
    """Print everything that is held about a person; or everybody, for another system."""
    if (identifier is None) is not everybody or (with_hashes and not everybody):
        raise click.UsageError("Name a user, or --all")
    if identifier is not None:
        opened.prints_json = True
        return opened.ask("GET", "user", find.user(opened, identifier), "export")
    hashes = _hashes(opened) if with_hashes else {}
    for one in opened.everything("users", "users"):
        row = {name: one[name] for name in ("email", "alias", "fullName", "roles", "groups", "tenants")}
        row["externalID"] = one["externalID"] or one["userID"]
        if hashes.get(one["userID"]):
            row["passwordHash"] = hashes[one["userID"]]
        click.echo(json.dumps(row, ensure_ascii=False))
    return None


def _hashes(opened: Opened) -> dict[str, str]:
    """The password hash of everybody: no route ever tells one."""
    from identity.core.people import accounts

    return accounts.password_hashes(opened.rt)


def _shown(opened: Opened, user_id: str) -> Any:
    return opened.ask("GET", "user", user_id)


def _put(opened: Opened, identifier: str, deed: str) -> Any:
    found = find.user(opened, identifier)
    opened.ask("PUT", "user", found, deed)
    return _shown(opened, found)


def _new(new_role: bool) -> dict[str, bool]:
    return {"newRole": True} if new_role else {}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
