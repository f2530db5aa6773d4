"""`identity console`: the way into the console for whoever holds the host."""

from __future__ import annotations

from typing import Any

import click

from identity.cli.frame import Opened, cli, command


@cli.group("console")
def console() -> None:
    """The pages for administrators and owners, at /console."""


@command(console, "link", is_local=True)
@click.argument("identifier", metavar="[USER]", required=False)
def link(opened: Opened, identifier: str | None) -> Any:
    """Print a link that signs USER, or the only administrator, in to the console: once, within ten minutes."""
    from identity.core.admin import console as visiting
    from identity.core.signin.console import LINK_SECONDS

    user, token = visiting.link(opened.rt, opened.by, identifier)
    settings = opened.settings
    if settings.console == "off":
        opened.tell("IDENTITY_CONSOLE is off: nobody gets the console")
    elif settings.console == "local":
        opened.tell("open it on this machine: IDENTITY_CONSOLE is local")
    url = f"{settings.issuer}/console/link/{token.reveal()}"
    if not opened.prints_json:
        return url
    ends = opened.rt.clock.now().timestamp() + LINK_SECONDS
    return {"url": url, "userID": user.id, "alias": user.alias, "expireAt": int(ends)}
