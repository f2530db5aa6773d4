"""The schema's history: it ends in what the code declares, on both databases, however many processes run it at once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import DeadlockDetected
from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.exc import OperationalError

from identity import migrations
from identity.app import create_runtime
from identity.errors import Refused
from identity.instruments import epochs
from identity.storage import Database
from tests.builders import a_user
from tests.conftest import the_postgres
from tests.world import environment_of, fast_settings

_names = iter(range(10**9))


@pytest.fixture
def empty(backend: str, tmp_path: Path) -> str:
    """The URL of a database without a table."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/empty.db"
    return the_postgres().create_database(f"empty{next(_names)}")


def tables(database: Database) -> set[str]:
    with database.engine.connect() as connection:
        return set(inspect(connection).get_table_names())


def test_the_steps_lead_to_what_the_code_declares(empty: str) -> None:
    database = Database(empty)
    assert migrations.migrate(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, migrations.schema()) == []
    assert tables(database) == set(migrations.schema().tables) | {"alembic_version"}
    database.close()


def test_a_start_that_has_nothing_to_do_takes_no_lock(empty: str) -> None:
    create_runtime(fast_settings(database_url=empty)).database.close()
    holder, database = Database(empty), Database(empty)
    with holder.engine.connect() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
        assert not migrations.migrate(database)
        create_runtime(fast_settings(database_url=empty)).database.close()
        connection.rollback()
    holder.close()
    database.close()


def test_partial_unique_indexes_are_really_partial_and_unique(empty: str) -> None:
    # Alembic does not compare the condition of an index: two users may claim an address, one may have it verified.
    settings = fast_settings(database_url=empty)
    rt = create_runtime(settings)
    first = a_user(rt, email="one@acme.example", verified=False)
    a_user(rt, email="one@acme.example", verified=False)
    a_user(rt, email="one@acme.example", verified=True)
    with pytest.raises(Refused, match="CONFLICT"):
        a_user(rt, email="one@acme.example", verified=True)
    assert first
    rt.database.close()


def test_a_database_that_is_up_to_date_costs_no_step(empty: str) -> None:
    database = Database(empty)
    assert migrations.current(database) is None
    assert migrations.migrate(database)
    assert migrations.current(database) == migrations.HEAD
    assert not migrations.migrate(database)
    database.close()


def test_a_newer_database_keeps_the_triggers_of_its_version(empty: str) -> None:
    database = Database(empty)
    migrations.migrate(database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.MonkeyPatch.context() as older:
        older.delitem(epochs.WATCHED, "tenant")
        assert not migrations.migrate(database)
    assert epochs.lay_triggers(database) == 0
    database.close()


def test_head_is_the_newest_step_and_the_history_is_one_line(empty: str) -> None:
    database = Database(empty)
    with database.engine.connect() as connection:
        script = ScriptDirectory.from_config(migrations._config(connection))
    assert script.get_heads() == [migrations.HEAD]
    assert [step.revision for step in script.walk_revisions()] == [
        f"{number:04d}" for number in range(int(migrations.HEAD), 0, -1)
    ]
    database.close()


def test_each_step_can_be_taken_back(empty: str) -> None:
    database = Database(empty)
    migrations.migrate(database)
    with database.engine.begin() as connection:
        command.downgrade(migrations._config(connection), "base")
    assert tables(database) <= {"alembic_version"}
    assert migrations.migrate(database)
    database.close()


def test_an_upgrade_from_the_first_schema_keeps_every_row(empty: str) -> None:
    # SQLite makes a table again where it cannot change it, and what refers to the old one must not go with it.
    database = Database(empty)
    with database.engine.begin() as connection:
        command.upgrade(migrations._config(connection), "0001")
        fill(connection)
        before = counts(connection)
    assert migrations.migrate(database)
    with database.engine.connect() as connection:
        assert counts(connection).items() >= before.items()
    database.close()


def fill(connection: Connection) -> None:
    """One row in each table, each of which refers to those before it."""
    metadata = MetaData()
    metadata.reflect(connection)
    rows: dict[str, dict[str, Any]] = {}
    samples = {"LargeBinary": b"x", "BLOB": b"x", "BYTEA": b"x", "BOOLEAN": True}
    for table in (one for one in metadata.sorted_tables if one.name != "alembic_version"):
        row = rows[table.name] = {}
        for column in table.columns:
            reference = next(iter(column.foreign_keys), None)
            kind = type(column.type).__name__
            usual = "1" if kind in ("VARCHAR", "TEXT") else 1
            row[column.name] = (
                rows[reference.column.table.name][reference.column.name] if reference else samples.get(kind, usual)
            )
        connection.execute(table.insert().values(**row))


def counts(connection: Connection) -> dict[str, int]:
    names = set(inspect(connection).get_table_names()) - {"alembic_version"}
    return {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in names}


def test_a_step_that_fails_leaves_nothing_and_is_taken_again(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(empty)
    upgrade = command.upgrade

    def dies_at_the_end(*arguments: object) -> None:
        upgrade(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "upgrade", dies_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        migrations.migrate(database)
    assert tables(database) == set()
    monkeypatch.undo()
    assert migrations.migrate(database)
    database.close()


def test_steps_that_lost_a_deadlock_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    url = the_postgres().create_database(f"empty{next(_names)}")
    database = Database(url)
    upgrade = command.upgrade
    lost: list[str] = []

    def meets_a_request(*arguments: object) -> None:
        upgrade(*arguments)  # type: ignore[arg-type]
        if not lost:
            lost.append("once")
            raise OperationalError("ALTER TABLE", {}, DeadlockDetected())

    monkeypatch.setattr(command, "upgrade", meets_a_request)
    assert migrations.migrate(database)
    assert lost == ["once"]
    assert migrations.current(database) == migrations.HEAD
    database.close()


def test_a_step_needs_no_code_of_the_present() -> None:
    # A step of the past must run when today's models have moved on.
    folder = Path(migrations.__file__).parent / "versions"
    steps = list(folder.glob("[0-9]*.py"))
    assert len(steps) == int(migrations.HEAD)
    for step in steps:
        assert "identity" not in step.read_text().replace("identity_", ""), step.name


def test_threads_that_open_an_empty_database_at_once_agree(empty: str) -> None:
    settings = fast_settings(database_url=empty)
    with ThreadPoolExecutor(8) as pool:
        runtimes = list(pool.map(lambda _: create_runtime(settings), range(8)))
    secrets = {rt.ring.vault.derive("test") for rt in runtimes}
    made_once(empty)
    assert len(secrets) == 1
    for rt in runtimes:
        rt.database.close()


BOOT = """
import os, sys
import alembic.command
from identity.app import create_runtime
from identity.settings import Settings

settings = Settings.from_env()
gate, opening = os.pipe()
children = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        os.close(opening)
        os.read(gate, 1)
        runtime = create_runtime(settings)
        print(runtime.ring.vault.derive("test").hex(), flush=True)
        runtime.database.close()
        os._exit(0)
    children.append(child)
os.close(opening)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)
"""


def test_twenty_processes_that_boot_at_once_make_one_of_everything(empty: str, tmp_path: Path) -> None:
    environment = environment_of({"database_url": empty, "keys_dir": tmp_path / "keys", "argon2_memory_kib": 8})
    booted = subprocess.run(
        [sys.executable, "-c", BOOT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # On a busy machine some wait for so long that they say it.
    said = [line for line in booted.stderr.splitlines() if "waits for its turn" not in line]
    assert (booted.returncode, said) == (0, [])
    roots = booted.stdout.split()
    assert len(roots) == 20
    assert len(set(roots)) == 1, "one master key, one root"
    assert (tmp_path / "keys" / "master.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["master.key"]
    made_once(empty)


def test_a_first_start_waits_for_whoever_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/empty.db"
    database = Database(url, creates=True)
    migrations.migrate(database)
    monkeypatch.setattr("identity.engines.BUSY_SECONDS", 0)  # a request's patience; a start must not depend on it
    writer = database.engine.raw_connection()
    writer.cursor().execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor() as pool:
        start = pool.submit(create_runtime, fast_settings(database_url=url, keys_dir=tmp_path / "keys"))
        with pytest.raises(TimeoutError):
            start.result(timeout=0.7)
        writer.rollback()
        start.result(timeout=20).close()
    writer.close()
    database.close()
    made_once(url)


def made_once(url: str) -> None:
    """One key signs, at most one stands by; there is one root and one application."""
    database = Database(url)
    with database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM signing_key")) in (1, 2)
        assert session.scalar(text("SELECT count(*) FROM signing_key WHERE is_standby IS NULL OR is_standby = 0")) == 1
        assert session.scalar(text("SELECT count(*) FROM application")) == 1
        assert session.scalar(text("SELECT count(*) FROM server_secret")) == 1
    database.close()
