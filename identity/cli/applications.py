"""`identity application`: machine clients and their secrets."""

from __future__ import annotations

import json
from typing import Any, TextIO

import click

from identity.cli.frame import Opened, cli, command
from identity.cli.roles import NEW_ROLE_HELP, check


@cli.group("application")
def application() -> None:
    """Make and manage applications: machines that get tokens."""


def _key_set(_context: click.Context, _parameter: click.Parameter, file: TextIO | None) -> Any:
    """A JWK set from a file."""
    if file is None:
        return None
    try:
        return json.load(file)
    except ValueError as exc:
        raise click.BadParameter("the file is not JSON") from exc


@command(application, "create")
@click.option("--name", required=True, metavar="N")
@click.option("--scope", "scopes", multiple=True, metavar="S", help="Scope it may ask for; admin administers.")
@click.option("--role", "roles", multiple=True, metavar="R", help="Role that its tokens carry.")
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
@click.option("--tenant", metavar="T", help="Tenant that it belongs to.")
@click.option("--audience", "audiences", multiple=True, metavar="A", help="Resource that its tokens are for.")
@click.option("--token-seconds", type=int, metavar="N", help="Life of its tokens.")
@click.option("--jwks", type=click.File(encoding="utf-8"), callback=_key_set, help="Public keys for private_key_jwt.")
def create(opened: Opened, **options: Any) -> Any:
    """Make an application, and its first secret, which is shown once."""
    from identity import documents
    from identity.core.admin import applications

    check(opened, options["roles"], new_role=options["new_role"])
    return documents.created_application(*applications.create_application(opened.rt, opened.by, **options))


@command(application, "list")
@click.option("--limit", type=click.IntRange(1, 1000), default=200, show_default=True)
@click.option("--page", type=click.IntRange(1), default=1, show_default=True)
def list_applications(opened: Opened, limit: int, page: int) -> Any:
    """List applications by their number."""
    from identity import documents
    from identity.core.clients import applications as clients

    total, found = clients.listing(opened.rt, limit=limit, offset=(page - 1) * limit)
    return documents.page("applications", total, [documents.application(one) for one in found], limit=limit)


@command(application, "show")
@click.argument("client_id", metavar="CLIENT_ID")
def show(opened: Opened, client_id: str) -> Any:
    """Show an application, and when and from where each of its secrets was last used."""
    from identity import documents
    from identity.core.clients import applications, secrets

    found = applications.get(opened.rt, client_id)
    return documents.application(found) | {
        "secrets": [documents.secret(one) for one in secrets.secrets_of(opened.rt, found.id)]
    }


@command(application, "disable")
@click.argument("client_id", metavar="CLIENT_ID")
def disable(opened: Opened, client_id: str) -> Any:
    """Put an application out: its tokens are refused at once."""
    return _set_enabled(opened, client_id, enabled=False)


@command(application, "enable")
@click.argument("client_id", metavar="CLIENT_ID")
def enable(opened: Opened, client_id: str) -> Any:
    """Let an application ask for tokens again."""
    return _set_enabled(opened, client_id, enabled=True)


@command(application, "delete")
@click.argument("client_id", metavar="CLIENT_ID")
def delete(opened: Opened, client_id: str) -> Any:
    """Delete an application; its secrets and tokens end with it."""
    from identity.core.admin import applications
    from identity.core.clients import applications as clients

    found = clients.get(opened.rt, client_id)
    applications.delete_application(opened.rt, opened.by, found.id)
    return {"clientId": found.id, "deleted": True}


@command(application, "rotate-secret")
@click.argument("client_id", metavar="CLIENT_ID")
@click.option(
    "--expires-in",
    type=click.IntRange(0, 315_360_000),
    default=86_400,
    show_default=True,
    metavar="S",
    help="Seconds that the secret before it still works.",
)
@click.option(
    "--retire-old-after-quiet",
    type=click.IntRange(1, 315_360_000),
    metavar="S",
    help="Instead: it works until nobody has used it for so many seconds.",
)
@click.option("--force", is_flag=True, help="Where two live already, end the one used longest ago.")
def rotate_secret(
    opened: Opened, client_id: str, expires_in: int, retire_old_after_quiet: int | None, force: bool
) -> Any:
    """Make a new secret, which is shown once, and let the one before it run out."""
    from identity import documents
    from identity.core.admin import applications
    from identity.core.clients import applications as clients

    client = clients.get(opened.rt, client_id).id
    if retire_old_after_quiet is None:
        made = applications.rotate_secret(opened.rt, opened.by, client, expires_in=expires_in, force=force)
    else:
        made = applications.add_secret(
            opened.rt, opened.by, client, retire_old_after_quiet=retire_old_after_quiet, force=force
        )
    return {"clientId": client} | documents.created_secret(made)


@command(application, "secrets")
@click.argument("client_id", metavar="CLIENT_ID")
def list_secrets(opened: Opened, client_id: str) -> Any:
    """List the secrets of an application, and who used each in the last 24 hours."""
    from identity import documents
    from identity.core.clients import secrets

    found = [documents.secret(one) for one in secrets.secrets_of(opened.rt, client_id)]
    return documents.page("secrets", len(found), found, limit=len(found) or 1)


@command(application, "end-secret")
@click.argument("client_id", metavar="CLIENT_ID")
@click.argument("secret_id", metavar="SECRET_ID")
@click.option("--force", is_flag=True, help="Also one that was used in the last 24 hours.")
def end_secret(opened: Opened, client_id: str, secret_id: str, force: bool) -> Any:
    """End a secret and every token that it earned."""
    from identity.core.admin import applications

    applications.delete_secret(opened.rt, opened.by, client_id, secret_id, force=force)
    return {"clientId": client_id, "secretID": secret_id, "ended": True}


def _set_enabled(opened: Opened, client_id: str, *, enabled: bool) -> Any:
    from identity import documents
    from identity.core.admin import applications

    return documents.application(applications.change_application(opened.rt, opened.by, client_id, enabled=enabled))
