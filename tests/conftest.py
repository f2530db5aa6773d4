"""Fixtures: one service for each backend, in this process with a clock of ours, or as a real gunicorn behind a socket.

`rt` and `web` are fresh for each test: an own database, an own Flask client, time that moves by `clock.tick`. `live` is one real server
process for each module and backend; tests that need headers, limits or concurrency as users see them talk to it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.routing import Rule

from identity.app import create_app, create_runtime
from identity.runtime import Runtime
from identity.settings import Settings
from tests import servers
from tests.pool import Pool
from tests.vectors import wycheproof_folder
from tests.world import FakeClock, Live, Mailbox, Web, fast_settings, migrated_sqlite, open_guesses, start_live

BACKENDS = ("sqlite", "postgresql")


def _build_nothing(*_given: object) -> str:
    raise AssertionError("a test's application builds no URLs: see tests/conftest.py")


# For each of its 330 rules an application compiles Python that would build URLs of it. Ours builds none, and thousands of tests make an
# application each: 55 of the 75 ms that one takes.
Rule._compile_builder = lambda _self, _append_unknown=True: _build_nothing  # type: ignore[method-assign]


@functools.cache
def the_postgres() -> servers.Postgres:
    """The PostgreSQL server of this test process, with a migrated template database."""
    server = servers.start_postgres()
    atexit.register(server.stop)
    url = server.create_database("template_identity")
    create_runtime(fast_settings(database_url=url)).database.close()
    return server


@functools.cache
def the_valkey() -> servers.Valkey:
    """The Valkey server of this test process."""
    server = servers.start_valkey()
    atexit.register(server.stop)
    return server


@functools.cache
def _databases() -> Pool:
    """The databases of `the_postgres` that tests lend each other."""
    return Pool(the_postgres(), "template_identity")


@functools.cache
def _home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="id-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


_count = iter(range(10**9))


@contextlib.contextmanager
def lent_database(backend: str, folder: Path) -> Iterator[dict[str, str]]:
    """As `fresh_database`, for a test that is done with it in the end: the next one gets it, emptied."""
    if backend == "sqlite":
        yield fresh_database(backend, folder)
        return
    the_valkey().flush()
    name = _databases().take()
    yield {"database_url": the_postgres().url(name), "redis_url": the_valkey().url}
    _databases().give_back(name)


def fresh_database(backend: str, folder: Path) -> dict[str, str]:
    """Settings that name a new, migrated database, and Redis where the backend has it."""
    if backend == "sqlite":
        target = folder / "identity.db"
        shutil.copy(migrated_sqlite(_home()), target)
        return {"database_url": f"sqlite:///{target}"}
    name = f"t{next(_count)}"
    the_valkey().flush()
    return {
        "database_url": the_postgres().create_database(name, template="template_identity"),
        "redis_url": the_valkey().url,
    }


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The database that a test runs on: every test that uses it runs on both."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def clock() -> FakeClock:
    """Time that moves when told to."""
    return FakeClock()


@pytest.fixture
def mailbox() -> Mailbox:
    """Every mail that the service has sent."""
    return Mailbox()


@pytest.fixture
def settings(backend: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a fresh service; override this fixture, or `dataclasses.replace` it, to test another."""
    with lent_database(backend, tmp_path) as database:
        yield fast_settings(keys_dir=tmp_path / "keys", **database)


@pytest.fixture
def rt(request: pytest.FixtureRequest, settings: Settings, clock: FakeClock, mailbox: Mailbox) -> Iterator[Runtime]:
    """A fresh service without its HTTP part. Whatever a test does, it fails if a guess is left without its end."""
    runtime = create_runtime(settings, clock=clock, mailer=mailbox, migrate=False)
    yield runtime
    forgotten = () if request.node.get_closest_marker("leaves_guesses") else open_guesses(runtime)
    runtime.close()
    assert not forgotten, "a path ended, and its guess did not: neither right, nor wrong, nor given back"


@pytest.fixture
def web(rt: Runtime, mailbox: Mailbox, clock: FakeClock) -> Web:
    """A client of the Flask application over `rt`."""
    return Web(create_app(runtime=rt), rt, mailbox, clock)


@pytest.fixture(params=BACKENDS, scope="module")
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A real server process; limits are off unless a module overrides `live_environment`."""
    folder = tmp_path_factory.mktemp("live")
    overrides = getattr(request.module, "LIVE_ENVIRONMENT", {})
    with lent_database(request.param, folder) as database, start_live(folder, database, overrides) as service:
        yield service


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every test that did not run, and why: green must mean that everything ran."""
    for report in terminalreporter.getreports("skipped"):
        terminalreporter.write_line(f"NOT RUN {report.nodeid}: {report.longrepr[2]}")
    if wycheproof_folder() is None:
        terminalreporter.write_line(
            "Without Wycheproof's vectors (WYCHEPROOF_DIR): our own corpus of JOSE cases ran instead."
        )
