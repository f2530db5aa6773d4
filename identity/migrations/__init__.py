"""The schema's history. Each step is safe before, during and after a rolling deploy.

Alembic is imported only when a step must run: a database that is up to date costs one read.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, MetaData, text
from sqlalchemy.exc import DBAPIError

from identity import logs
from identity.engines import BUSY_SECONDS
from identity.instruments import epochs
from identity.settings import BadSettings
from identity.storage import Base, Database, Unit

if TYPE_CHECKING:
    from alembic.config import Config

_log: Final = logging.getLogger("identity.migrations")
HEAD: Final = "0019"
_LOCK: Final = 0x1DE27177
_PATIENCE_SECONDS: Final = 300
_DEADLOCK: Final = "40P01"
_TRIES: Final = 5
_POSTGRESQL_PATIENCE: Final = (
    f"SELECT set_config('lock_timeout', '{_PATIENCE_SECONDS}s', false), set_config('statement_timeout', '0', false)"
)


def schema() -> MetaData:
    """The tables as the code declares them."""
    for house in ("identity.instruments", "identity.core"):
        for module in pkgutil.walk_packages(importlib.import_module(house).__path__, f"{house}."):
            importlib.import_module(module.name)
    return Base.metadata


def current(database: Database) -> str | None:
    """The revision that the database is at, or None for an empty one. Asks without a write lock."""
    try:
        with database.engine.execution_options(identity_reading=True).connect() as connection:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except DBAPIError:
        return None


def migrate(database: Database) -> bool:
    """Bring the database to HEAD; of many processes that try at once, one works and the others wait. Tells whether there was work."""
    # A newer schema is left as it is: steps are safe for the version before them, which may have to start again beside the new one.
    found = current(database) or ""
    if found > HEAD:
        # So are its triggers: to lay ours would take away those of tables and columns that this version does not know.
        return False
    upgraded = found < HEAD and _upgrade(database)
    # Also where nothing was to do: a process that died between the two left the steps without the triggers.
    return bool(epochs.lay_triggers(database)) or upgraded


def _upgrade(database: Database) -> bool:
    """Take the steps; again where PostgreSQL took them back, because they and a request of the version before waited for each other."""
    for _ in range(_TRIES - 1):
        try:
            return _take_steps(database)
        except DBAPIError as exc:
            if getattr(exc.orig, "sqlstate", None) != _DEADLOCK:
                raise
    return _take_steps(database)


def _take_steps(database: Database) -> bool:
    from alembic import command  # noqa: PLC0415 -- a quarter of a second that a start without work does not pay

    with database.engine.connect() as connection:
        _wait_for_others(connection, database)
        waiting = "another process has the database, this one waits for its turn"
        with contextlib.ExitStack() as transaction:
            with logs.if_slow(_log, BUSY_SECONDS, waiting, database=database.shown, seconds_at_most=_PATIENCE_SECONDS):
                transaction.enter_context(connection.begin())
                if not database.is_sqlite:
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            command.upgrade(_config(connection), "head")
            _refuse_orphans(connection, database)
    return True


def upgrade_unseen(database: Database, revision: str) -> None:
    """Bring tables that were written back from a backup of `revision` to HEAD; until `reveal` the database passes for an empty one.

    So nobody serves what it holds before it was made fit to be served. Raises BadSettings for a revision that is not known here.
    """
    from alembic import command  # noqa: PLC0415 -- see migrate

    if not "0001" <= revision <= HEAD:
        raise BadSettings(f"the backup is of a database at {revision}, and this program knows {HEAD}: take a newer one")
    with database.engine.connect() as connection:
        _wait_for_others(connection, database)
        with connection.begin():
            connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
            config = _config(connection)
            command.stamp(config, revision)
            command.upgrade(config, "head")
            _refuse_orphans(connection, database)
            connection.execute(text("DELETE FROM alembic_version"))
    epochs.lay_triggers(database)


def reveal(unit: Unit) -> None:
    """In this transaction: from its end on the database is one at HEAD."""
    unit.execute(text("INSERT INTO alembic_version (version_num) VALUES (:head)").bindparams(head=HEAD))


def require(database: Database) -> None:
    """Raise BadSettings unless this database can be worked with as it is, and Refused(UNAVAILABLE) if it cannot be asked.

    A newer schema is fine: steps are safe for the version before them.
    """
    database.ping()
    revision = current(database)
    if revision is None:
        raise BadSettings(
            f"IDENTITY_DATABASE_URL: the database {database.shown} is empty; `identity serve` or `identity migrate` prepares it"
        )
    if revision < HEAD:
        raise BadSettings(
            f"IDENTITY_DATABASE_URL: the database {database.shown} is at {revision} and not at {HEAD}; run `identity migrate`"
        )


def _wait_for_others(connection: Connection, database: Database) -> None:
    """Let this connection, and no other, wait as long as a step of another process may take."""
    driver: Any = connection.connection.driver_connection
    connection.detach()
    if database.is_sqlite:
        driver.execute(f"PRAGMA busy_timeout={_PATIENCE_SECONDS * 1000}")
        # A step may make a table again under its old name. To drop the old one deletes its rows, and with them whatever refers to those
        # with ON DELETE CASCADE. It has to be said outside of a transaction.
        driver.execute("PRAGMA foreign_keys=OFF")
    else:
        driver.execute(_POSTGRESQL_PATIENCE)
        driver.commit()


def _refuse_orphans(connection: Connection, database: Database) -> None:
    """Take the steps back that left a reference to a row that is not there: SQLite was told not to look."""
    if database.is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
        raise BadSettings(
            f"IDENTITY_DATABASE_URL: in {database.shown} rows refer to rows that are not there; restore a backup"
        )


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415 -- see migrate

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def draft(database: Database, message: str) -> None:
    """Write the step that brings the database to what the code declares; for `make migration`."""
    from alembic import command  # noqa: PLC0415 -- see migrate

    with database.engine.begin() as connection:
        command.revision(_config(connection), message=message, autogenerate=True, rev_id=f"{int(HEAD) + 1:04d}")
