"""A backup, brought back: on this host or on another one.

Whatever was ended after the backup was taken would live again, so everything that opens a way in is ended first, and only then does
anybody see the database: sessions with their bearers and refresh tokens, tokens (all signing keys go), codes, challenges, mailed links.
Users, memberships, passwords, second factors, key pairs and client secrets are what they were then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import text

from identity import migrations
from identity.ambient import Entropy
from identity.columns import from_micros
from identity.core.admin import backups
from identity.core.admin.by import By
from identity.core.keeping import keepings
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.engines import driver_url, shown
from identity.files import make_folder, sync_folder
from identity.instruments import dumps
from identity.instruments.dumps import Progress
from identity.instruments.sealed_files import BadBackup, Sealed
from identity.instruments.vault import open_vault
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Database

_PATIENT: Final = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0"
_TOLD_AS: Final = {"mail.outbox": "waitingMails", "people.invitations": "links"}


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back, and what was ended of it, by kind."""

    made_at: datetime
    revision: str
    ended: dict[str, int]


@dataclass(frozen=True, slots=True)
class Source:
    """A backup file and what opens it."""

    file: Path
    passphrase: str | None

    @contextlib.contextmanager
    def opened(self, settings: Settings, entropy: Entropy) -> Iterator[tuple[Sealed, Iterator[bytes]]]:
        """The file from its beginning. Raises BadBackup, BadSettings, OSError."""
        with self.file.open("rb") as file:
            sealed = Sealed(file)
            if sealed.needs_passphrase and self.passphrase is None:
                raise BadBackup("was sealed with a passphrase: give it, with --passphrase-stdin")
            vault = None if sealed.needs_passphrase else open_vault(settings, entropy, makes_key=False)
            yield sealed, sealed.parts(vault, self.passphrase)


def restore(
    settings: Settings,
    by: By,
    source: Source,
    *,
    entropy: Entropy,
    open_service: Callable[[Settings], Runtime],
    replaces: bool,
    as_it_was: bool,
    progress: Progress,
) -> Restored:
    """Bring a backup back into the database that the settings name; nobody sees it before it is whole, and what may not live on ended.

    The file is read to its end before anything is touched. Raises BadBackup, BadSettings, OSError; also where the database holds something,
    unless `replaces`, and where anybody has it open. `as_it_was`: nothing is ended.
    """
    with source.opened(settings, entropy) as (sealed, parts):
        about = sealed.about
        kind = (
            backups.SQLITE if driver_url(settings.database_url).get_backend_name() == "sqlite" else backups.POSTGRESQL
        )
        if about["database"] != kind:
            raise BadBackup(f"is of {about['database']}, and IDENTITY_DATABASE_URL names {kind}")
        progress("checks the file")
        contents = _checked(kind, parts)
    into = _into_sqlite if kind == backups.SQLITE else _into_postgresql
    with (
        source.opened(settings, entropy) as (_, parts),
        into(settings, about, contents, parts, replaces=replaces, progress=progress) as prepared,
    ):
        progress("ends what may not live on" if not as_it_was else "opens it")
        rt = open_service(prepared)
        try:
            ended = _reveal(rt, by, about, as_it_was=as_it_was)
        finally:
            rt.close()
    return Restored(from_micros(about["madeAt"] * 1_000_000), about["revision"], ended)


def _checked(kind: str, parts: Iterator[bytes]) -> list[str]:
    if kind == backups.POSTGRESQL:
        return dumps.check_postgresql(parts)
    for _ in parts:
        pass
    return []


def _reveal(rt: Runtime, by: By, about: dict[str, str], *, as_it_was: bool) -> dict[str, int]:
    """End what opens a way in, and show the database, in one transaction."""
    ended = {}
    with by.unit(rt) as unit:
        if not as_it_was:
            for name, keeping in keepings().items():
                if keeping.end is not None:
                    ended[_TOLD_AS.get(name, name.rpartition(".")[2])] = keeping.end(rt, unit)
            doomed = [key.kid for key in rt.ring.list()]
            # The last one leaves a successor that nobody has seen, and that signs at once.
            for kid in doomed:
                rt.ring.revoke(unit, kid)
            ended["signingKeys"] = len(doomed)
        migrations.reveal(unit)
        audit.record(
            rt, unit, Action.BACKUP_RESTORED, actor=by.actor, made=about["madeAt"], as_it_was=as_it_was, ended=ended
        )  # fmt: skip
    return {name: count for name, count in ended.items() if count}


@contextlib.contextmanager
def _into_sqlite(
    settings: Settings,
    about: dict[str, str],
    _contents: list[str],
    parts: Iterator[bytes],
    *,
    replaces: bool,
    progress: Progress,
) -> Iterator[Settings]:
    """A new file beside the one that is wanted, which takes its place when the block has ended well."""
    target = Path(driver_url(settings.database_url).database or "").absolute()
    if target.exists() and target.stat().st_size:
        if not replaces:
            raise BadBackup(f"{target} is not empty: name another database, or give --replace")
        dumps.release_sqlite(target)
    make_folder(target.parent)
    draft = target.with_name(f".{target.name}.restored")
    _remove_sqlite(draft)  # What a killed restore has left.
    try:
        progress("writes the database")
        dumps.write_sqlite(parts, draft)
        url = f"sqlite:///{draft}"
        _prepare(replace(settings, database_url=url), about)
        yield replace(settings, database_url=url)
        dumps.release_sqlite(draft)
        _give_to_its_owner(draft, target)
        if target.exists():
            dumps.release_sqlite(target)  # Again: somebody may have opened it meanwhile.
        draft.replace(target)
        sync_folder(target.parent)
    finally:
        _remove_sqlite(draft)


@contextlib.contextmanager
def _into_postgresql(
    settings: Settings,
    about: dict[str, str],
    contents: list[str],
    parts: Iterator[bytes],
    *,
    replaces: bool,
    progress: Progress,
) -> Iterator[Settings]:
    """The database itself, which passes for an empty one until it is revealed."""
    patient = replace(settings, database_url=_patient_url(settings.database_url))
    database = Database(patient.database_url, pool_size=2, is_pooled=settings.is_pooled)
    try:
        database.ping()
        schema = dumps.schema_of(database)
        if schema != about["schema"]:
            raise BadBackup(
                f"is of the schema {about['schema']}, and the search path of IDENTITY_DATABASE_URL leads to {schema}"
            )
        _make_room(database, schema, shown(driver_url(settings.database_url)), replaces=replaces)
        progress("writes the database")
        dumps.write_postgresql(database, parts, [line for line in contents if _is_wanted(line)], progress)
        _prepare(patient, about)
        yield patient
    finally:
        database.close()


def _prepare(settings: Settings, about: dict[str, str]) -> None:
    database = Database(settings.database_url, pool_size=2, creates=False, is_pooled=settings.is_pooled)
    try:
        migrations.upgrade_unseen(database, about["revision"])
    finally:
        database.close()


def _make_room(database: Database, schema: str, name: str, *, replaces: bool) -> None:
    """See that none of our tables are there, or drop them. Raises BadBackup."""
    ours = set(backups.tables())
    with database.engine.begin() as connection:
        query = text("SELECT tablename FROM pg_tables WHERE schemaname = :schema").bindparams(schema=schema)
        found = sorted(ours & {str(name) for name in connection.execute(query).scalars()})
        if not found:
            return
        if not replaces:
            raise BadBackup(f"the database {name} is not empty: name another, or give --replace")
        others = dumps.wait_for_others(database)
        if others:
            raise BadBackup(f"{others} others are connected to {name}: stop the service first, and its pooler")
        connection.execute(text(f"DROP TABLE {', '.join(found)} CASCADE"))


def _is_wanted(line: str) -> bool:
    """Whether a line of a table of contents names what is to be written: triggers call functions that only the code lays."""
    return " TRIGGER " not in line and f" {dumps.VERSION_TABLE} " not in f"{line} "


def _patient_url(url: str) -> str:
    """The same database for a restore, without the bound on how long a statement may take: there may be millions of sessions to end."""
    parsed = driver_url(url)
    theirs = parsed.query.get("options", ())
    spelled = (theirs,) if isinstance(theirs, str) else theirs
    # By its name we know our own connections from those of a service that still runs.
    ours = {"options": " ".join((*spelled, _PATIENT)), "application_name": f"identity restore {os.getpid()}"}
    return parsed.update_query_dict(ours).render_as_string(hide_password=False)


def _give_to_its_owner(draft: Path, target: Path) -> None:
    """What root restores belongs to whom the old file belonged to, or its folder: to the user of the service."""
    if os.geteuid() == 0:
        owner = (target if target.exists() else target.parent).stat()
        os.chown(draft, owner.st_uid, owner.st_gid)


def _remove_sqlite(path: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
