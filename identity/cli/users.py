"""`identity user`: people, their roles and when they may come in."""

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from identity.cli.frame import Opened, cli, command
from identity.cli.roles import NEW_ROLE_HELP, check

if TYPE_CHECKING:
    from identity.core.people.accounts import UserInfo


@cli.group("user")
def user() -> None:
    """Make and manage users. USER is an id, an address or an alias."""


def _a_line(context: click.Context, parameter: click.Parameter, wanted: bool) -> str | None:
    """One line from standard input, without its end; typed unseen where a person types it."""
    if not wanted:
        return None
    what = (parameter.name or "").capitalize().replace("_", " ")
    if sys.stdin is not None and sys.stdin.isatty():
        answer: str = click.prompt(what, hide_input=True, err=True)
        return answer
    line = first_line(what.lower(), context)
    if not line:
        raise click.UsageError(f"No {what.lower()} on standard input", context)
    return line


_LINE_MAX: Final = 65_536


def first_line(what: str, context: click.Context | None = None) -> str:
    """The first line of standard input, in UTF-8 whatever the locale says; a byte order mark of whoever pipes is dropped."""
    # With descriptor 0 closed, Python has no standard input at all.
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    given: bytes | str = stream.readline(_LINE_MAX) if stream is not None else b""
    raw = given.encode() if isinstance(given, str) else given
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise click.UsageError(f"The {what} on standard input is UTF-16; send it as UTF-8", context)
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode().rstrip("\r\n")
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"The {what} on standard input is not UTF-8", context) from exc


def _memberships(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, list[str]]:
    """`TENANT:role,role` as roles by tenant."""
    held: dict[str, list[str]] = {}
    for text in given:
        tenant, _, roles = text.partition(":")
        held.setdefault(tenant, []).extend(role.strip() for role in roles.split(",") if role.strip())
    return held


def _find(opened: Opened, identifier: str) -> UserInfo:
    from identity.core.admin import users

    return users.find_user(opened.rt, identifier)


def _shown(opened: Opened, user_id: str) -> Any:
    from identity import documents
    from identity.core.admin import users

    return documents.user(users.describe_user(opened.rt, user_id))


@command(user, "create")
@click.option("--email", required=True, metavar="E", help="Address; you vouch that it is the user's.")
@click.option("--alias", required=True, metavar="A", help="Short name to sign in with.")
@click.option("--full-name", required=True, metavar="N")
@click.option("--password-stdin", "password", is_flag=True, callback=_a_line, help="Read a password, one line.")
@click.option(
    "--password-hash-stdin",
    "password_hash",
    is_flag=True,
    callback=_a_line,
    help="Read the bcrypt or Argon2id hash that an older system kept; the first login upgrades it.",
)
@click.option("--role", "roles", multiple=True, metavar="R", help="Global role; users_admin administers.")
@click.option("--group", "groups", multiple=True, metavar="G")
@click.option(
    "--tenant", "tenants", multiple=True, metavar="T:role,role", callback=_memberships, help="Tenant to belong to."
)
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
@click.option("--notify", is_flag=True, help="Mail an invitation instead of making a key pair.")
@click.option("--portal-url", metavar="URL", help="Link in the invitation; see IDENTITY_PORTAL_URLS.")
def create(opened: Opened, **options: Any) -> Any:
    """Make a user with a verified address, and a key pair whose secret is shown once."""
    from identity import documents
    from identity.core.admin import users

    named = [*options["roles"], *(role for held in options["tenants"].values() for role in held)]
    check(opened, named, new_role=options["new_role"])
    return documents.created_user(users.create_user(opened.rt, opened.by, **options))


@command(user, "list")
@click.option("--enabled/--disabled", default=None, help="Only these.")
@click.option("--role", metavar="R", help="Only who holds this global role.")
@click.option("--tenant", metavar="T", help="Only its members.")
@click.option("--email", metavar="E", help="Only whose address this is.")
@click.option("--limit", type=click.IntRange(1, 1000), default=200, show_default=True)
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
def list_users(opened: Opened, limit: int, page: int, **filters: Any) -> Any:
    """List users in the order in which they were made."""
    from identity import documents
    from identity.core.admin import users

    total, found = users.list_users(opened.rt, limit=limit, offset=(page - 1) * limit, **filters)
    return documents.page("users", total, [documents.user(one) for one in found], limit=limit)


@command(user, "show")
@click.argument("identifier", metavar="USER")
def show(opened: Opened, identifier: str) -> Any:
    """Show a user."""
    return _shown(opened, _find(opened, identifier).id)


@command(user, "disable")
@click.argument("identifier", metavar="USER")
def disable(opened: Opened, identifier: str) -> Any:
    """Put a user out: every session ends at once."""
    return _set_enabled(opened, identifier, enabled=False)


@command(user, "enable")
@click.argument("identifier", metavar="USER")
def enable(opened: Opened, identifier: str) -> Any:
    """Let a user in again; sessions that were ended stay ended."""
    return _set_enabled(opened, identifier, enabled=True)


@command(user, "delete")
@click.argument("identifier", metavar="USER")
def delete(opened: Opened, identifier: str) -> Any:
    """Erase a user and everything that names them; the audit keeps the id."""
    from identity.core.admin import users

    found = _find(opened, identifier)
    users.erase_user(opened.rt, opened.by, found.id)
    return {"userID": found.id, "deleted": True}


@command(user, "access-window")
@click.argument("identifier", metavar="USER")
@click.option("--starts", metavar="T", help="RFC 3339, or `none`.")
@click.option("--ends", metavar="T", help="RFC 3339, or `none`.")
def access_window(opened: Opened, identifier: str, starts: str | None, ends: str | None) -> Any:
    """Set when a user may come in; without options, show it."""
    from identity import documents
    from identity.core.admin import users

    given = {"starts_at": starts, "ends_at": ends}
    bounds = {
        name: None if text == "none" else documents.moment(text, field=name.partition("_")[0])
        for name, text in given.items()
        if text is not None
    }
    found = _find(opened, identifier)
    if not bounds:
        return _shown(opened, found.id)
    return documents.user(users.set_access_window(opened.rt, opened.by, found.id, **bounds))


@command(user, "fixed-otp")
@click.argument("identifier", metavar="USER")
@click.option("--stdin", "otp", is_flag=True, callback=_a_line, help="Read the one-time code, one line.")
@click.option("--clear", is_flag=True, help="Forget it.")
def fixed_otp(opened: Opened, identifier: str, otp: str | None, clear: bool) -> Any:
    """Fix a one-time code for a user (needs IDENTITY_FIXED_OTP=1); without options, show whether there is one."""
    from identity.core.admin import on_behalf

    if otp is not None and clear:
        raise click.UsageError("--stdin and --clear exclude each other")
    found = _find(opened, identifier)
    if otp is not None:
        on_behalf.fix_otp(opened.rt, opened.by, found.id, otp)
    elif clear:
        on_behalf.clear_otp(opened.rt, opened.by, found.id)
    return _shown(opened, found.id)


@command(user, "password-reset")
@click.argument("identifier", metavar="USER")
def password_reset(opened: Opened, identifier: str) -> Any:
    """Mail a user a code to choose a new password with."""
    from identity.core.admin import on_behalf

    found = _find(opened, identifier)
    verification_id = on_behalf.send_password_reset(opened.rt, opened.by, found.id)
    return {"userID": found.id, "verificationCodeID": verification_id}


def _set_enabled(opened: Opened, identifier: str, *, enabled: bool) -> Any:
    from identity.core.admin import users

    found = _find(opened, identifier)
    users.set_enabled(opened.rt, opened.by, found.id, enabled=enabled)
    return _shown(opened, found.id)
