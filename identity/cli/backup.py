"""`identity backup` and `identity restore`: everything in one sealed file, and back."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from identity.cli.frame import Opened, a_line, cli, command

_EVERY_SECONDS: Final = 2.0
_KEPT: Final = (
    "users, memberships, passwords, second factors, key pairs and client secrets are as they were at {}: "
    "what was changed, disabled or removed since is to be done again"
)


class _Progress:
    """Tells what is done: a new kind of step at once, its course every few seconds."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._said_at = time.monotonic()

    def __call__(self, words: str) -> None:
        is_course = any(character.isdigit() for character in words)
        if is_course and time.monotonic() - self._said_at < _EVERY_SECONDS:
            return
        self._said_at = time.monotonic()
        self._opened.tell(words)


def _twice(context: click.Context, parameter: click.Parameter, wanted: bool) -> str | None:
    """A passphrase; whoever types it does so twice, as nobody could open a backup with a slip in it."""
    given = a_line(context, parameter, wanted)
    if given is not None and sys.stdin is not None and sys.stdin.isatty():
        again: str = click.prompt("The same again", hide_input=True, err=True)
        if again != given:
            raise click.UsageError("The two passphrases differ", context)
    return given


@command(cli, "backup", is_local=True)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--passphrase-stdin",
    "passphrase",
    is_flag=True,
    callback=_twice,
    help="Seal it with a passphrase, not with the master key.",
)
@click.option("--overwrite", is_flag=True, help="FILE may be there already; it is replaced when the new one is whole.")
def backup(opened: Opened, file: Path, passphrase: str | None, overwrite: bool) -> Any:
    """Write everything that the database holds into FILE, sealed, while the service goes on; then read it back.

    It opens with the master key that this service has now, or with a passphrase. The master key is not in it: keep that elsewhere, as a
    restored service needs it in either case. PostgreSQL is read by pg_dump, which must be installed here.
    """
    from identity.core.admin import backups
    from identity.instruments.sealed_files import BadBackup

    try:
        made = backups.back_up(
            opened.rt, opened.by, file, passphrase=passphrase, overwrite=overwrite, progress=_Progress(opened)
        )
    except BadBackup as exc:
        raise click.ClickException(str(exc)) from exc
    return {
        "file": str(made.file),
        "madeAt": int(made.made_at.timestamp()),
        "database": made.database,
        "revision": made.revision,
        "sealedBy": made.sealed_by,
        "bytes": made.size_bytes,
        "contentBytes": made.content_bytes,
    }


@command(cli, "restore", is_local=True, asks="Restore {file} into the database of these settings?")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--passphrase-stdin", "passphrase", is_flag=True, callback=a_line, help="The passphrase that it was sealed with."
)
@click.option("--replace", "replaces", is_flag=True, help="The database holds something: that is gone then, for good.")
@click.option(
    "--as-it-was", is_flag=True, help="End nothing: what was signed out or withdrawn after the backup lives again."
)
def restore(opened: Opened, file: Path, passphrase: str | None, replaces: bool, as_it_was: bool) -> Any:
    """Bring a backup back into the database that IDENTITY_DATABASE_URL names, on this host or another; stop the service first.

    Every session, refresh token, token, code and mailed link from before the backup is ended, and the signing keys are new, because
    some may have been ended after it. The master key of the service that was backed up must be configured. PostgreSQL is written by
    pg_restore.
    """
    from identity import logs
    from identity.ambient import SystemEntropy
    from identity.core.admin import restoring
    from identity.instruments.sealed_files import BadBackup
    from identity.opening import create_runtime

    logs.configure(opened.settings)
    try:
        restored = restoring.restore(
            opened.settings,
            opened.by,
            restoring.Source(file, passphrase),
            entropy=SystemEntropy(),
            open_service=lambda settings: create_runtime(settings, migrate=False, unseen=True),
            replaces=replaces,
            as_it_was=as_it_was,
            progress=_Progress(opened),
        )
    except BadBackup as exc:
        raise click.ClickException(f"{file}: {exc}") from exc
    opened.tell(_KEPT.format(restored.made_at.isoformat()))
    return {
        "restored": str(file),
        "madeAt": int(restored.made_at.timestamp()),
        "revision": restored.revision,
        "ended": restored.ended,
    }
