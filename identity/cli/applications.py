"""`identity application`: machine clients and their secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

import click

from identity.cli import find
from identity.cli.frame import Duration, Opened, cli, command, lists
from identity.cli.roles import NEW_ROLE_HELP, check


@cli.group("application")
def application() -> None:
    """Make and manage applications: machines that get tokens. CLIENT_ID is also their number or name."""


def key_set(_context: click.Context, _parameter: click.Parameter, file: TextIO | None) -> Any:
    """A JWK set from a file."""
    if file is None:
        return None
    try:
        return json.load(file)
    except ValueError as exc:
        raise click.BadParameter("the file is not JSON") from exc


_reuse = click.option(
    "--token-reuse-seconds",
    type=Duration(),
    metavar="S",
    help="So long who asks again gets the same token; 0: never. At most half its life.",
)
_per_day = click.option(
    "--tokens-per-day", type=click.IntRange(0, 1_000_000), metavar="N", help="New tokens in 24 hours; 0: any number."
)


@command(application, "create")
@click.option("--name", required=True, metavar="N")
@click.option("--scope", "scopes", multiple=True, metavar="S", help="Scope it may ask for; admin administers.")
@click.option("--role", "roles", multiple=True, metavar="R", help="Role that its tokens carry.")
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
@click.option("--tenant", metavar="T", help="Tenant that it belongs to.")
@click.option("--audience", "audiences", multiple=True, metavar="A", help="Resource that its tokens are for.")
@click.option("--token-seconds", type=Duration(), metavar="S", help="Life of its tokens.")
@_reuse
@_per_day
@click.option("--jwks", type=click.File(encoding="utf-8"), callback=key_set, help="Public keys for private_key_jwt.")
@click.option(
    "--decoy", is_flag=True, help="Looks like any other, is always refused, and tells its owners who tried it."
)
def create(opened: Opened, new_role: bool, decoy: bool, **options: Any) -> Any:
    """Make an application, and its first secret, which is shown once."""
    check(opened, options["roles"], new_role=new_role)
    body = {"scopes": list(options.pop("scopes"))} | _given(options) | ({"newRole": True} if new_role else {})
    if decoy:
        body["decoy"] = True
    if body.get("tokensPerDay", 0) is None:
        del body["tokensPerDay"]
    return opened.ask("POST", "application", body=body)


@lists(application, "list", "applications")
@click.option("--tenant", metavar="T", help="Only those of this tenant.")
@click.option("-q", "--search", "q", metavar="TEXT", help="How a name or client id begins.")
def list_applications(_opened: Opened, **filters: Any) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List applications by their number."""
    return ("applications",), filters


@command(application, "show")
@click.argument("client_id", metavar="CLIENT_ID")
def show(opened: Opened, client_id: str) -> Any:
    """Show an application, and when and from where each of its secrets was last used."""
    found = find.application(opened, client_id)
    secrets = opened.ask("GET", "application", found, "secrets", query={"limit": 200})["secrets"]
    return opened.ask("GET", "application", found) | {"secrets": secrets}


@command(application, "update")
@click.argument("client_id", metavar="CLIENT_ID")
@click.option("--name", metavar="N")
@click.option("--scope", "scopes", multiple=True, metavar="S", help="The scopes: exactly these.")
@click.option("--role", "roles", multiple=True, metavar="R", help="The roles: exactly these.")
@click.option("--new-role", is_flag=True, help=NEW_ROLE_HELP)
@click.option("--audience", "audiences", multiple=True, metavar="A", help="The audiences, the first is the default.")
@click.option("--token-seconds", type=Duration(), metavar="S", help="Life of its tokens.")
@_reuse
@_per_day
@click.option("--jwks", type=click.File(encoding="utf-8"), callback=key_set, help="Public keys for private_key_jwt.")
def update(opened: Opened, client_id: str, new_role: bool, **options: Any) -> Any:
    """Change an application; what is not named stays."""
    changes = _given(options)
    if not changes:
        raise click.UsageError("Name something to change")
    check(opened, options["roles"], new_role=new_role)
    found = find.application(opened, client_id)
    return opened.ask("PATCH", "application", found, body=changes | ({"newRole": True} if new_role else {}))


@command(application, "disable", asks="Disable {client_id}? Its tokens end at once, and none comes back.")
@click.argument("client_id", metavar="CLIENT_ID")
def disable(opened: Opened, client_id: str) -> Any:
    """Put an application out: its tokens are refused at once."""
    return opened.ask("PATCH", "application", find.application(opened, client_id), body={"enabled": False})


@command(application, "enable")
@click.argument("client_id", metavar="CLIENT_ID")
def enable(opened: Opened, client_id: str) -> Any:
    """Let an application ask for tokens again."""
    return opened.ask("PATCH", "application", find.application(opened, client_id), body={"enabled": True})


@command(application, "delete", asks="Delete {client_id} with its secrets and tokens?")
@click.argument("client_id", metavar="CLIENT_ID")
def delete(opened: Opened, client_id: str) -> Any:
    """Delete an application; its secrets and tokens end with it."""
    found = find.application(opened, client_id)
    opened.ask("DELETE", "application", found)
    return {"clientId": found, "deleted": True}


@command(application, "rotate-secret")
@click.argument("client_id", metavar="CLIENT_ID")
@click.option(
    "--expires-in",
    type=Duration(),
    default=86_400,
    show_default=True,
    metavar="S",
    help="Seconds that the secret before it still works.",
)
@click.option(
    "--retire-old-after-quiet",
    type=Duration(),
    metavar="S",
    help="Instead: it works until nobody has used it for so many seconds.",
)
@click.option("--force", is_flag=True, help="Where two live already, end the one used longest ago.")
def rotate_secret(
    opened: Opened, client_id: str, expires_in: int, retire_old_after_quiet: int | None, force: bool
) -> Any:
    """Make a new secret, which is shown once, and let the one before it run out."""
    client = find.application(opened, client_id)
    quiet = retire_old_after_quiet
    body = {"oldExpiresIn": expires_in} if quiet is None else {"retireOldAfterQuiet": quiet}
    made = opened.ask("POST", "application", client, "secret", query={"force": force or None}, body=body)
    return {"clientId": client} | made


@lists(application, "secrets", "secrets")
@click.argument("client_id", metavar="CLIENT_ID")
def list_secrets(opened: Opened, client_id: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List the secrets of an application, and who used each in the last 24 hours."""
    return ("application", find.application(opened, client_id), "secrets"), {}


@command(application, "end-secret", asks="End the secret {secret_id} and every token that it earned?")
@click.argument("client_id", metavar="CLIENT_ID")
@click.argument("secret_id", metavar="SECRET_ID")
@click.option("--force", is_flag=True, help="Also one that was used in the last 24 hours.")
def end_secret(opened: Opened, client_id: str, secret_id: str, force: bool) -> Any:
    """End a secret and every token that it earned."""
    found = find.application(opened, client_id)
    opened.ask("DELETE", "application", found, "secret", secret_id, query={"force": force})
    return {"clientId": found, "secretID": secret_id, "ended": True}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as the routes call them."""
    names = {
        "token_seconds": "tokenSeconds",
        "token_reuse_seconds": "tokenReuseSeconds",
        "tokens_per_day": "tokensPerDay",
    }
    given = {
        names.get(name, name): list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value not in (None, ())
    }
    if given.get("tokensPerDay") == 0:
        given["tokensPerDay"] = None
    return given
