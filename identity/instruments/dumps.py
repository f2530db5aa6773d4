"""A database as one stream of bytes, consistent as of one moment while it is written to, and back.

SQLite is copied by its own online backup, from a snapshot that no writer disturbs, into a file beside the database (where what is not
sealed lies anyway). PostgreSQL is read by `pg_dump` and written by `pg_restore`, which must be as new as the server. Nothing holds more
than a mebibyte in memory. Callers: `core.admin.backups` and `core.admin.restoring`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from sqlalchemy import text

from identity.engines import BUSY_SECONDS
from identity.files import make_file
from identity.instruments.sealed_files import BadBackup
from identity.storage import Database

Progress = Callable[[str], None]
"""Told in words what was done, often; whoever shows it shows it less often."""

VERSION_TABLE: Final = "alembic_version"
_PART: Final = 1 << 20
_PAGES: Final = 1_024
_LEAVING_SECONDS: Final = 5
_PREFIX: Final = ".identity-backup-"
_DEBIAN: Final = Path("/usr/lib/postgresql")


# SQLite.


@contextlib.contextmanager
def copied_sqlite(database: Database, progress: Progress) -> Iterator[Iterator[bytes]]:
    """The bytes of a copy of the database that was made, and checked, just now. Raises BadBackup, OSError, sqlite3.Error."""
    assert database.file is not None, "only SQLite has a file"
    folder = database.file.parent
    _sweep(folder)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as private:
        holder = os.open(private, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(
                holder, fcntl.LOCK_EX
            )  # Tells that this copy is being made from one that a killed backup has left.
            path = Path(private) / "copy.db"
            make_file(path)
            _copy(database.file, path, progress)
            with path.open("rb") as copy:
                path.unlink()  # From here on a kill leaves nothing.
                yield _read(copy)
        finally:
            os.close(holder)


def _copy(source: Path, target: Path, progress: Progress) -> None:
    def tell(_status: int, left: int, total: int) -> None:
        progress(f"copied {100 * (total - left) // max(total, 1)} %")

    with (
        contextlib.closing(_connect(source)) as reading,
        contextlib.closing(_connect(target)) as writing,
    ):
        writing.execute("PRAGMA journal_mode=OFF").fetchall()
        writing.execute("PRAGMA synchronous=OFF").fetchall()
        # One snapshot for all of it: without, each write of the service would begin the copy anew.
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM sqlite_master").fetchall()
        reading.backup(writing, pages=_PAGES, progress=tell, sleep=0)
        # The copy is one file, whatever the journal of the original is.
        writing.execute("PRAGMA journal_mode=DELETE").fetchall()
        check_sqlite(writing)


def check_sqlite(connection: sqlite3.Connection) -> None:
    """Raise BadBackup unless SQLite finds everything in this database where it should be."""
    found = [row[0] for row in connection.execute("PRAGMA integrity_check(1)").fetchall()]
    if found != ["ok"]:
        raise BadBackup(f"the database is damaged: {found[0]}")


def write_sqlite(parts: Iterable[bytes], path: Path) -> None:
    """Write a database that was streamed into the new file `path` (0600), and check it. Raises BadBackup, OSError, sqlite3.Error."""
    make_file(path)
    with path.open("r+b") as file:
        for part in parts:
            file.write(part)
    with contextlib.closing(_connect(path)) as connection:
        check_sqlite(connection)


def release_sqlite(path: Path) -> None:
    """Make a database that nobody has open one single file. Raises BadBackup where somebody has."""
    with contextlib.closing(_connect(path)) as connection:
        connection.execute("PRAGMA busy_timeout=1000").fetchall()
        try:
            # It takes every lock that there is, so any other connection shows, an idle one too.
            connection.execute("PRAGMA journal_mode=DELETE").fetchall()
        except sqlite3.OperationalError as exc:
            if not str(exc).endswith("is locked"):
                raise
            raise BadBackup(f"{path} is in use: stop the service first") from exc


def _connect(path: Path) -> sqlite3.Connection:
    # `rw`: a path that is mistyped makes no database.
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def _sweep(folder: Path) -> None:
    """Remove the copies that killed backups have left."""
    for left in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # In use, somebody else's, or swept by another at this moment.
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)


# PostgreSQL.


@contextlib.contextmanager
def dumped_postgresql(database: Database, tables: Iterable[str], progress: Progress) -> Iterator[Iterator[bytes]]:
    """The bytes of an archive of these tables, as `pg_dump` writes it. Raises BadBackup, also at the end if it failed."""
    schema = schema_of(database)
    named = [f'--table="{schema}"."{table}"' for table in tables]
    # Compressed by whoever seals it, so that one way of compressing serves both databases.
    command = [
        *(_program("pg_dump"), "--format=custom", "--compress=0", "--no-owner", "--no-privileges", "--no-password"),
        *named,
    ]
    with _running(database, command, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield _counted(_read(process.stdout), progress)


def check_postgresql(parts: Iterable[bytes]) -> list[str]:
    """Read a whole archive with `pg_restore`, which writes it nowhere, and return its table of contents. Raises BadBackup."""
    with tempfile.TemporaryFile() as contents:
        # The list is all of a listing: the rest is read by us, and its every part was sealed.
        _feed(None, [_program("pg_restore"), "--list"], parts, output=contents, reads_all=False)
        contents.seek(0)
        return contents.read().decode().splitlines()


def write_postgresql(database: Database, parts: Iterable[bytes], contents: Iterable[str], progress: Progress) -> None:
    """Write what `contents` lists of an archive into the database, all of it or nothing. Raises BadBackup."""
    schema = schema_of(database)
    with tempfile.NamedTemporaryFile("w", prefix=_PREFIX, suffix=".list") as chosen:
        chosen.writelines(f"{line}\n" for line in contents)
        chosen.flush()
        command = [
            *(_program("pg_restore"), "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"),
            *("--no-password", f"--schema={schema}", f"--use-list={chosen.name}"),
        ]
        _feed(database, command, _counted(iter(parts), progress), output=subprocess.DEVNULL, reads_all=True)


def schema_of(database: Database) -> str:
    """The schema in which our tables lie, or would. Raises BadBackup where the search path leads to none."""
    with database.engine.connect() as connection:
        found = connection.execute(text("SELECT current_schema()")).scalar()
    if found is None:
        raise BadBackup(
            "the database has no schema of its search path: create it, or see `options` in IDENTITY_DATABASE_URL"
        )
    return str(found)


def wait_for_others(database: Database) -> int:
    """How many sessions with another `application_name` have this database open, after a moment for those that are just leaving."""
    until = time.monotonic() + _LEAVING_SECONDS
    while (found := _others(database)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _others(database: Database) -> int:
    with database.engine.connect() as connection:
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name <> current_setting('application_name') AND backend_type = 'client backend'"
        )
        return int(connection.execute(query).scalar_one())


def _feed(
    database: Database | None, command: list[str], parts: Iterable[bytes], *, output: IO[bytes] | int, reads_all: bool
) -> None:
    with _running(database, command, stdin=subprocess.PIPE, output=output) as process:
        assert process.stdin is not None
        is_read = True
        for part in parts:
            try:
                if is_read:
                    process.stdin.write(part)
            except BrokenPipeError:
                is_read = (
                    False  # It has what it wants, or failed, and says why. The rest is still checked by being read.
                )
                if reads_all:
                    break
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


@contextlib.contextmanager
def _running(
    database: Database | None, command: list[str], *, stdin: int, output: IO[bytes] | int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """A client program of PostgreSQL at work; its end is waited for, and a failure is told in its own words."""
    environment = {**os.environ, "PGCONNECT_TIMEOUT": "10"}
    if database is not None:
        environment |= _secret(database)
        command = [command[0], f"--dbname={_address(database)}", *command[1:]]
    with tempfile.TemporaryFile() as words:
        # No shell reads this list, and its first is a program of PostgreSQL's.
        with subprocess.Popen(  # noqa: S603 -- see above
            command, stdin=stdin, stdout=output, stderr=words, env=environment
        ) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            words.seek(0)
            said = [line.strip() for line in words.read().decode(errors="replace").splitlines() if line.strip()]
            raise BadBackup(_explained(Path(command[0]), said))


def _explained(program: Path, said: list[str]) -> str:
    # "server version mismatch" comes in three lines, of which the second has the numbers.
    told = "; ".join(line.split(": ", 1)[-1] for line in said[:3]) or "it said nothing"
    return f"{program} failed: {told[:400]}"


def _program(name: str) -> str:
    """Where a client program of PostgreSQL is: on the PATH, else the newest of those that Debian keeps beside it. Raises BadBackup."""
    found = shutil.which(name)
    if found:
        return found
    kept = [path for path in _DEBIAN.glob(f"*/bin/{name}") if path.parts[-3].isdigit()]
    if kept:
        return str(max(kept, key=lambda path: int(path.parts[-3])))
    raise BadBackup(
        f"{name} is not on the PATH: install PostgreSQL's client programs, as new as the server"
        " (Debian: postgresql-client; Alpine: postgresql18-client; macOS: brew install libpq)"
    )


def _address(database: Database) -> str:
    """The URL as libpq takes it; without the password, which every user of the host could read in the list of processes."""
    bare = database.url._replace(drivername="postgresql", password=None).render_as_string(hide_password=False)
    where, _, parameters = bare.partition("?")
    # libpq reads a plus as a plus.
    return f"{where}?{parameters.replace('+', '%20')}" if parameters else where


def _secret(database: Database) -> Mapping[str, str]:
    password = database.url.password
    return {} if password is None else {"PGPASSWORD": str(password)}


def _counted(parts: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    done = 0
    for part in parts:
        done += len(part)
        progress(f"{done >> 20} MiB")
        yield part


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while part := file.read(_PART):
        yield part
