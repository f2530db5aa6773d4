"""`identity session` and `identity keypair`: the logins and the keys of people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from identity.cli import find
from identity.cli.frame import Duration, Opened, cli, command, lists


@cli.group("session")
def session() -> None:
    """List and end sessions: every login is one."""


@lists(session, "list", "sessions")
@click.option("--user", metavar="USER", help="Only those of this user.")
@click.option("--tenant", metavar="T", help="Only those of its members.")
@click.option("--application", metavar="APP", help="Only those that it asked for.")
def list_sessions(opened: Opened, **owners: str | None) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List living sessions, newest first."""
    return ("sessions",), _owners(opened, **owners)


@command(session, "revoke", asks="End these sessions? None comes back.")
@click.argument("session_id", metavar="[SESSION]", required=False)
@click.option("--user", metavar="USER", help="Every session of this user.")
@click.option("--tenant", metavar="T", help="Every session of its members.")
@click.option("--application", metavar="APP", help="Every session that it asked for.")
@click.option("--all", "everybody", is_flag=True, help="Every session of everybody.")
def revoke(opened: Opened, session_id: str | None, everybody: bool, **owners: str | None) -> Any:
    """End one session, or those of a user, a tenant, an application, or everybody."""
    named = {name: value for name, value in owners.items() if value is not None}
    if sum((session_id is not None, everybody, len(named))) != 1:
        raise click.UsageError("Name one session, or one of --user, --tenant, --application, --all")
    if session_id is not None:
        opened.ask("DELETE", "session", session_id)
        return {"ended": 1}
    query = {"all": True} if everybody else _owners(opened, **named)
    return opened.ask("DELETE", "sessions", query=query)


@cli.group("keypair")
def keypair() -> None:
    """Make, list and delete API key pairs of users."""


@command(keypair, "create")
@click.argument("identifier", metavar="USER")
@click.option("--name", required=True, metavar="N")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True)
@click.option("--verified", is_flag=True, help="Good at once: you vouch for it instead of a mailed code.")
@click.option("--role", "roles", multiple=True, metavar="R", help="Only this of the user's roles, in tenants too.")
@click.option("--tenant", "tenants", multiple=True, metavar="T", help="Only this of the user's tenants.")
@click.option("--cidr", "cidrs", multiple=True, metavar="NETWORK", help="Only from this network.")
@click.option(
    "--decoy", is_flag=True, help="Looks like any other, is always refused, and tells its owner who tried it."
)
def create(
    opened: Opened, identifier: str, *, name: str, days: int, verified: bool, decoy: bool, **named: tuple[str, ...]
) -> Any:
    """Make a key pair of a user; the secret is shown once. It waits for the code that is mailed to them."""
    body = {"name": name, "days": days} | {field: list(values) for field, values in named.items() if values}
    body |= {"decoy": True} if decoy else {}
    made = opened.ask("POST", "user", find.user(opened, identifier), "keypair", body=body)
    if verified and not decoy:
        opened.ask("PUT", "keypair", made["keyID"], "verify")
        made["verified"] = True
    return made


@lists(keypair, "list", "keypairs")
@click.option("--user", metavar="USER", help="Only those of this user.")
def list_keypairs(opened: Opened, user: str | None) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List key pairs, oldest first."""
    return ("keypairs",), {"user": user and find.user(opened, user)}


@command(keypair, "rotate")
@click.argument("key_id", metavar="KEY_ID")
@click.option("--grace", type=Duration(), default=0, metavar="S", help="How long the present secret still works.")
def rotate_keypair(opened: Opened, key_id: str, grace: int) -> Any:
    """Give a key pair a new secret, which is shown once; identifier, end and rights stay."""
    return opened.ask("POST", "keypair", key_id, "rotate", body={"graceSeconds": grace})


@command(keypair, "revoke", asks="Delete the key pair {key_id} and end what it has opened?")
@click.argument("key_id", metavar="KEY_ID")
def revoke_keypair(opened: Opened, key_id: str) -> Any:
    """Delete a key pair, and end what it has opened."""
    opened.ask("DELETE", "keypair", key_id)
    return {"keyID": key_id, "revoked": True}


def _owners(
    opened: Opened, user: str | None = None, tenant: str | None = None, application: str | None = None
) -> dict[str, str | None]:
    return {
        "user": user and find.user(opened, user),
        "tenant": tenant,
        "application": application and find.application(opened, application),
    }
