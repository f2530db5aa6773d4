"""Backups: one sealed file with everything that the database holds, made while the service goes on.

What is here makes the file, reads it back, and tells how old the newest one is. `restoring` brings it back.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from sqlalchemy import func, literal_column, select

from identity import migrations
from identity.core.admin.by import By
from identity.core.record import audit
from identity.core.record.audit import Action, AuditEvent
from identity.files import FILE_MODE, sync_folder
from identity.instruments import dumps
from identity.instruments.dumps import Progress
from identity.instruments.sealed_files import PASSPHRASE_MIN_CHARACTERS, BadBackup, Sealed, Sealer
from identity.runtime import Runtime
from identity.storage import Database, Prepared

SQLITE: Final = "sqlite"
POSTGRESQL: Final = "postgresql"


class _LastRow(NamedTuple):
    at: datetime | None


# Spelled out: with a parameter PostgreSQL plans for any action, and looks for a rare one through every event that there is.
_LAST: Final = Prepared(
    select(func.max(AuditEvent.at)).where(AuditEvent.action == literal_column(f"'{Action.BACKUP_MADE}'")), into=_LastRow
)


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """A backup that was made and read back."""

    file: Path
    made_at: datetime
    database: str
    revision: str
    sealed_by: str
    size_bytes: int
    content_bytes: int


def back_up(
    rt: Runtime, by: By, file: Path, *, passphrase: str | None, overwrite: bool, progress: Progress
) -> BackupInfo:
    """Write everything into `file` (0600), sealed under the master key or under a passphrase, and read it back.

    The file is there whole or not at all. What it holds is the database as of one moment, whatever is written meanwhile. Raises
    BadBackup, OSError.
    """
    if passphrase is not None and len(passphrase) < PASSPHRASE_MIN_CHARACTERS:
        raise BadBackup(f"a passphrase has {PASSPHRASE_MIN_CHARACTERS} characters at least: it is guessed at offline")
    if file.exists() and not overwrite:
        raise BadBackup(f"{file} is there already: name another, or give --overwrite")
    revision = migrations.current(rt.database) or ""
    if revision > migrations.HEAD:
        raise BadBackup(
            f"the database is at {revision}, and this program knows {migrations.HEAD}: use the one that serves it"
        )
    made_at = rt.clock.now()
    kind = SQLITE if rt.database.is_sqlite else POSTGRESQL
    about = {
        "database": kind,
        "madeAt": int(made_at.timestamp()),
        "revision": revision,
        "schema": "" if rt.database.is_sqlite else dumps.schema_of(rt.database),
    }
    with _draft(file) as (draft, path):
        sealer = Sealer(draft, about, vault=rt.ring.vault, entropy=rt.entropy, passphrase=passphrase)
        written, size = hashlib.sha256(), 0
        with _dumped(rt.database, progress) as parts:
            for part in parts:
                written.update(part)
                size += len(part)
                sealer.write(part)
        sealer.finish()
        draft.flush()
        os.fsync(draft.fileno())
        progress("reads it back")
        _read_back(rt, draft, written.digest(), passphrase)
        sealed_bytes = draft.tell()
        path.replace(file)
    sync_folder(file.parent)
    made = BackupInfo(
        file.absolute(), made_at, kind, revision, "passphrase" if passphrase else "master key", sealed_bytes, size
    )  # fmt: skip
    with by.unit(rt) as unit:
        audit.record(
            rt, unit, Action.BACKUP_MADE, actor=by.actor, bytes=made.size_bytes, sealed=made.sealed_by, revision=revision
        )  # fmt: skip
    return made


def seconds_since_last(database: Database, now: datetime) -> float:
    """How old the newest backup is that this program made of this database; infinite where it made none, or forgot it since."""
    row = database.row(_LAST)
    last = row.at if row else None
    return math.inf if last is None else max(0.0, (now - last).total_seconds())


def _dumped(database: Database, progress: Progress) -> AbstractContextManager[Iterator[bytes]]:
    if database.is_sqlite:
        return dumps.copied_sqlite(database, progress)
    return dumps.dumped_postgresql(database, tables(), progress)


def tables() -> list[str]:
    """Every table of ours, that of the schema's age among them."""
    return sorted([*migrations.schema().tables, dumps.VERSION_TABLE])


def _read_back(rt: Runtime, draft: BinaryIO, expected: bytes, passphrase: str | None) -> None:
    draft.seek(0)
    sealed = Sealed(draft)
    found = hashlib.sha256()

    def parts() -> Iterator[bytes]:
        for part in sealed.parts(rt.ring.vault, passphrase):
            found.update(part)
            yield part

    if sealed.about["database"] == POSTGRESQL:
        dumps.check_postgresql(parts())
    else:
        for _ in parts():
            pass
    if found.digest() != expected:
        raise BadBackup("what was read back is not what was written: try another disk")


@contextlib.contextmanager
def _draft(file: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file beside `file` that is ours alone while it is written; one that a killed backup has left is taken over."""
    path = file.with_name(f".{file.name}.part")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two lines another backup may have finished: then this is its file, under its real name.
            if path.exists() and path.samefile(f"/dev/fd/{descriptor}"):
                break
        except BlockingIOError as exc:
            os.close(descriptor)
            raise BadBackup(f"another backup is writing {file}") from exc
        os.close(descriptor)
    os.fchmod(descriptor, FILE_MODE)
    os.ftruncate(descriptor, 0)
    with os.fdopen(descriptor, "r+b") as draft:
        try:
            yield draft, path
        except BaseException:
            path.unlink(missing_ok=True)
            raise
