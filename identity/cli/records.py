"""What happened, why something was refused, and what waits to be mailed: `identity audit`, `explain`, `mail`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final

import click

from identity.cli import find
from identity.cli.frame import Opened, cli, command, lists, when
from identity.errors import NOT_FOUND, Refused

_POLL_SECONDS: Final = 1.0


@lists(cli, "audit", "events")
@click.option("--since", metavar="T", help="Not before: RFC 3339, a day, or `1h`, `7d` ago.")
@click.option("--until", metavar="T", help="Before.")
@click.option("--action", metavar="A", help="Only this action, for example user.created.")
@click.option("--actor", metavar="WHO", help="Only what this one did: id, alias, address, name.")
@click.option("--target", metavar="WHO", help="Only what was done to this one.")
@click.option("--tenant", metavar="T", help="Only what concerns this tenant.")
@click.option("--key", metavar="ID", help="Only what this key pair did.")
@click.option("--session", metavar="ID", help="Only what this session did.")
@click.option("--secret", metavar="ID", help="Only what tokens of this client secret did.")
@click.option("--address", metavar="IP", help="Only what came from this client address.")
@click.option("--follow", is_flag=True, help="Go on printing events as they happen, one a line.")
def audit(opened: Opened, follow: bool, **given: Any) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List what happened, newest first."""
    kinds = {name: given.pop(name) for name in ("key", "session", "secret")}
    named = [f"{kind}:{value}" for kind, value in kinds.items() if value is not None]
    if len(named) > 1:
        raise click.UsageError("--key, --session and --secret exclude each other")
    query = given | {name: when(given[name], ago=True) for name in ("since", "until")}
    query["credential"] = named[0] if named else None
    if follow:
        _follow(opened, query)
    return ("audit",), query


def _follow(opened: Opened, query: Mapping[str, Any]) -> None:
    """Print events as they come, oldest first, until interrupted."""
    asked = {**query, "limit": 200}
    seen: set[str] = set()
    first = True
    while True:
        events = opened.ask("GET", "audit", query=asked)["events"]
        fresh = [one for one in events if one["eventID"] not in seen]
        for event in reversed(fresh[:10] if first else fresh):
            click.echo(json.dumps(event, ensure_ascii=False))
        seen = {one["eventID"] for one in events} or seen
        if events:
            # Once more from the second of the newest: others of that second may still come.
            asked["since"] = events[0]["at"]
        first = False
        time.sleep(_POLL_SECONDS)


@command(cli, "explain")
@click.argument("error_id", metavar="[X-ERROR-ID]", required=False)
@click.option("--last", is_flag=True, help="The newest refusal.")
@click.option("--app", metavar="APP", help="The newest refusal of this application.")
@click.option("--address", metavar="IP", help="The newest refusal of this client address.")
def explain(opened: Opened, error_id: str | None, last: bool, app: str | None, address: str | None) -> Any:
    """Say why the request that was answered with this x-error-id was refused; or the last one."""
    if (error_id is None) is not (last or app is not None or address is not None):
        raise click.UsageError("Name an x-error-id, or --last, --app or --address")
    if error_id is not None:
        return opened.ask("GET", "error", error_id)
    query = {"caller": app and find.application(opened, app), "address": address, "limit": 1}
    found = opened.ask("GET", "errors", query=query)["errors"]
    if not found:
        raise Refused(NOT_FOUND, detail="no such refusal is kept")
    return found[0]


@lists(cli, "errors", "errors", limit=50)
@click.option("--caller", metavar="WHO", help="Only refusals of this one.")
@click.option("--address", metavar="IP", help="Only those of this client address.")
@click.option("--error", metavar="CODE", help="Only this error, for example INVALID_TOKEN.")
@click.option("--since", metavar="T", help="Not before: RFC 3339, a day, or `1h`, `7d` ago.")
def errors(_opened: Opened, since: str | None, **filters: str | None) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List refusals, newest first, and the check that failed."""
    return ("errors",), {**filters, "since": when(since, ago=True)}


@cli.group("mail")
def mail() -> None:
    """See mail that waits or was given up, and send it again."""


@lists(mail, "list", "mails", limit=50)
@click.option("--state", type=click.Choice(["pending", "sent", "dead", "void"]), help="Only these.")
def list_mails(_opened: Opened, state: str | None) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """List the newest mails; never what they say."""
    return ("mails",), {"state": state}


@command(mail, "retry")
@click.argument("mail_id", metavar="[MAIL_ID]", required=False)
def retry(opened: Opened, mail_id: str | None) -> Any:
    """Send again now what waits or was given up: one mail, or all. The service delivers it."""
    return opened.ask("POST", "mails", "retry", body={} if mail_id is None else {"mailID": mail_id})
