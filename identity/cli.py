"""The command line: provisioning, keys, and looking after a running service (contract section 11).

Every command works on the configured database while the service runs, through the same use cases as group H. `--json` prints one
document with group H's field names. Success is exit 0; a refusal is one line on standard error and exit 1.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from identity import __version__
from identity.errors import Refused
from identity.settings import BadSettings, Settings

if TYPE_CHECKING:
    from identity.runtime import Runtime


class Opened:
    """What a command works with; the runtime is opened when a command first needs it."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    @property
    def rt(self) -> Runtime:
        if self._runtime is None:
            from identity.app import create_runtime  # noqa: PLC0415 -- `identity --help` must not open a database

            self._runtime = create_runtime(Settings.from_env())
        return self._runtime


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="identity")
@click.pass_context
def cli(context: click.Context) -> None:
    """The identity service: sessions, tokens, keys."""
    context.obj = Opened()


def main() -> None:
    """The console script."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except Refused as refused:
        click.echo(f"identity: {refused.problem.message}", err=True)
        sys.exit(1)
    except BadSettings as exc:
        click.echo(f"identity: {exc}", err=True)
        sys.exit(2)


@cli.command()
def serve() -> None:
    """Migrate, make the master key and the first signing key if there are none, and serve."""
    from identity.serve import run  # noqa: PLC0415 -- gunicorn is for this command only

    run(Settings.from_env())


@cli.command()
def migrate() -> None:
    """Bring the database to the current schema."""
    from identity import migrations  # noqa: PLC0415 -- see Opened
    from identity.storage import Database  # noqa: PLC0415 -- likewise

    worked = migrations.migrate(Database(Settings.from_env().database_url))
    click.echo("migrated" if worked else "up to date")
