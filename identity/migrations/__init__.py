"""The schema's history. Each step is safe before, during and after a rolling deploy.

Alembic is imported only when a step must run: a database that is up to date costs one read.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, MetaData, text
from sqlalchemy.exc import DBAPIError

from identity.storage import Base, Database

if TYPE_CHECKING:
    from alembic.config import Config

HEAD: Final = "0001"
_LOCK: Final = 0x1DE27177


def schema() -> MetaData:
    """The tables as the code declares them."""
    core = importlib.import_module("identity.core")
    for module in pkgutil.iter_modules(core.__path__):
        importlib.import_module(f"identity.core.{module.name}")
    return Base.metadata


def current(database: Database) -> str | None:
    """The revision that the database is at, or None for an empty one."""
    try:
        with database.engine.connect() as connection:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except DBAPIError:
        return None


def migrate(database: Database) -> bool:
    """Bring the database to HEAD; of many processes that try at once, one works and the others wait. Tells whether there was work."""
    if current(database) == HEAD:
        return False
    from alembic import command  # noqa: PLC0415 -- a quarter of a second that a start without work does not pay

    with database.engine.begin() as connection:
        if not database.is_sqlite:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        command.upgrade(_config(connection), "head")
    return True


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
