"""PostgreSQL databases for tests, each used many times: making one costs 150 ms and 10 MB of disk, emptying it a few milliseconds.

A database that comes back is as the template was: same rows, same schema, nobody connected. One whose schema a test has changed is dropped.
"""

from __future__ import annotations

import functools
from typing import Any

import psycopg
import sqlalchemy
from psycopg import sql

from tests.servers import Postgres

# Every part of the schema, by the transaction that wrote it: whatever a test creates, alters or truncates changes the sum.
_FINGERPRINT = """
    SELECT sum(hashtext(part)::bigint) FROM (
        SELECT 'class' || oid || xmin::text FROM pg_class WHERE oid >= 16384
        UNION ALL SELECT 'column' || attrelid || attname || xmin::text FROM pg_attribute WHERE attrelid >= 16384
        UNION ALL SELECT 'trigger' || oid || xmin::text FROM pg_trigger
        UNION ALL SELECT 'constraint' || oid || xmin::text FROM pg_constraint WHERE oid >= 16384
        UNION ALL SELECT 'function' || oid || xmin::text FROM pg_proc WHERE oid >= 16384
        UNION ALL SELECT 'setting' || setconfig::text FROM pg_db_role_setting
            WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AS parts(part)
"""
_OTHERS = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


class Pool:
    """The databases of one server that are free, and the template that they are copies of."""

    def __init__(self, server: Postgres, template: str) -> None:
        self._server = server
        self._template = template
        self._free: list[str] = []
        self._made = 0

    def take(self) -> str:
        """The name of a database that holds what the template holds."""
        if self._free:
            return self._free.pop()
        _ = self._picture  # Before the first copy: the template must not be in use while it is copied.
        self._made += 1
        name = f"pool{self._made}"
        self._server.create_database(name, template=self._template)
        return name

    def give_back(self, name: str) -> None:
        """Make the database what the template is, for the next test; whoever is still connected is cut off."""
        fingerprint, tables, sequences = self._picture
        with _connect(self._server.url(name)) as connection:
            connection.execute(_OTHERS)
            unchanged = connection.execute(_FINGERPRINT).fetchone() == fingerprint
            if unchanged:
                # Triggers and foreign keys would run for every row, and refuse one order or the other.
                connection.execute("SET LOCAL session_replication_role = replica")
                connection.execute(
                    sql.SQL(";").join(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)) for table in tables)
                )
                for table, rows in tables.items():
                    if rows:
                        with connection.cursor().copy(
                            sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table))
                        ) as copy:
                            copy.write(rows)
                for sequence, value, called in sequences:
                    connection.execute("SELECT setval(%s, %s, %s)", (sequence, value, called))
        if unchanged:
            self._free.append(name)
        else:
            self._server.drop_database(name)

    @functools.cached_property
    def _picture(self) -> tuple[Any, dict[str, bytes], list[tuple[str, int, bool]]]:
        """What the template holds: its fingerprint, each table's rows, each sequence's place."""
        with _connect(self._server.url(self._template)) as connection:
            fingerprint = connection.execute(_FINGERPRINT).fetchone()
            names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            tables = {}
            for (name,) in names:
                with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(name))) as copy:
                    tables[name] = b"".join(bytes(part) for part in copy)
            sequences = []
            for (name,) in connection.execute(
                "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'"
            ).fetchall():
                row = connection.execute(
                    sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(name))
                ).fetchone()
                assert row is not None
                sequences.append((name, *row))
        return fingerprint, tables, sequences


def _connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(sqlalchemy.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))
