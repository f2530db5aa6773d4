"""`identity testkit`: bad tokens for the conformance run of services that verify ours."""

from __future__ import annotations

import json
from typing import Any

import click

from identity.cli.frame import Opened, cli, command


@command(cli, "testkit", is_local=True)
@click.option("--audience", metavar="A", help="What the service is called in its tokens; default: IDENTITY_AUDIENCE.")
@click.option("--tenant", metavar="T", help="The tenant that the service is asked for; made where it does not exist.")
@click.option("--role", "roles", multiple=True, metavar="R", help="A role that the service demands; may be repeated.")
@click.option("--scope", "scopes", multiple=True, metavar="S", help="A scope that it demands; may be repeated.")
def testkit(
    opened: Opened, audience: str | None, tenant: str | None, roles: tuple[str, ...], scopes: tuple[str, ...]
) -> Any:
    """Print tokens that a service must refuse, really signed by us, and one that it must accept. In development only.

    They go into a file for `python -m identity_verifier.conformance URL --token T --testkit FILE`. Users and applications
    whose names begin with `testkit` are made for them.
    """
    from identity.core.admin import testkit

    wanted = testkit.Wanted(audience or opened.settings.default_audience, tenant, roles, scopes)
    made = testkit.make(opened.rt, opened.by, wanted)
    return made if opened.prints_json else json.dumps(made, indent=2)
