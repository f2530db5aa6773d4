"""Servers that are made to be broken: durable, and of this folder alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from identity.app import create_runtime
from tests import servers
from tests.faults.rig import ROUNDS, Service
from tests.world import fast_settings, migrated_sqlite

_TEMPLATE = "template_identity"
# `make faults` alone: they need programs that no wheel carries, or minutes.
collect_ignore = (
    []
    if ROUNDS
    else [
        "test_attackers.py",
        "test_growth.py",
        "test_locks_and_disks.py",
        "test_machines.py",
        "test_patroni.py",
        "test_pgbouncer.py",
        "test_stopped_tenant.py",
    ]
)


class Stores:
    """New databases on servers that a test may kill."""

    def __init__(self, postgres: servers.Postgres, valkey: servers.Valkey, home: Path) -> None:
        self.postgres = postgres
        self.valkey = valkey
        self._home = home
        self._count = 0

    def fresh(self, backend: str, folder: Path) -> dict[str, Any]:
        """Settings that name a new, migrated database, and Redis where the backend has it."""
        folder.mkdir(parents=True, exist_ok=True)
        if backend == "sqlite":
            shutil.copy(migrated_sqlite(self._home), folder / "identity.db")
            return {"database_url": f"sqlite:///{folder}/identity.db"}
        self._count += 1
        self.postgres.restart() if self.postgres.pid is None else None
        self.valkey.start()
        url = self.postgres.create_database(f"f{self._count}", template=_TEMPLATE)
        return {"database_url": url, "redis_url": self.valkey.url}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """A PostgreSQL that keeps what it acknowledged, and a Valkey, for one module."""
    with servers.start_postgres(durable=True) as postgres, servers.start_valkey() as valkey:
        url = postgres.create_database(_TEMPLATE)
        create_runtime(fast_settings(database_url=url)).database.close()
        yield Stores(postgres, valkey, tmp_path_factory.mktemp("template"))


@pytest.fixture
def service(backend: str, stores: Stores, tmp_path: Path) -> Iterator[Service]:
    """Two workers on a fresh database of the backend."""
    service = Service(tmp_path / "service", stores.fresh(backend, tmp_path))
    service.start()
    yield service
    service.stop()
