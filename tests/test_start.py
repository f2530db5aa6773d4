"""How the service starts on a fresh machine, and what it says when it cannot: real processes, one line, nothing left behind."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
import requests
from sqlalchemy import text

from identity import logs
from identity.settings import Settings
from identity.storage import Prepared
from tests.conftest import fresh_database, the_postgres
from tests.faults.rig import Service, children_of, is_alive, serving, until
from tests.world import MASTER_KEY, environment_of, free_port, launch, stop, wait_until_ready

ROOT = Path(__file__).parent.parent
QUICK = {"argon2_memory_kib": 8, "argon2_time_cost": 1, "workers": 1}


def environment(**settings: object) -> dict[str, str]:
    """A shell's environment with these settings, and no others of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")}
    return {**kept, **environment_of(settings), "PYTHONPATH": str(ROOT)}


def identity(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `serve` must be one that cannot start."""
    return subprocess.run(
        [sys.executable, "-m", "identity", *arguments],
        cwd=cwd, env=env or environment(), capture_output=True, text=True, check=False, timeout=60, **options,
    )  # fmt: skip


def one_line(ran: subprocess.CompletedProcess[str]) -> str:
    """What a failed command said: one line, and nothing of Python's."""
    assert ran.returncode in (1, 2), ran.stderr
    assert ran.stdout == ""
    said = [line for line in ran.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1, ran.stderr
    assert said[0].startswith("identity: ")
    return said[0].removeprefix("identity: ")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# What others may read.


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_everything_that_is_made_is_its_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    port = free_port()
    env = environment(bind=f"127.0.0.1:{port}", issuer=f"http://127.0.0.1:{port}", limit_auth="10/minute", **QUICK)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "identity", "serve"],
            cwd=tmp_path, env=env, stdout=output, stderr=output, umask=umask, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        letter = {"email": "ada@acme.example", "alias": "ada", "fullName": "Ada Lovelace"}
        assert requests.post(f"http://127.0.0.1:{port}/user", json=letter, timeout=10).status_code < 300
        until(lambda: bool(list((tmp_path / "var" / "mail").glob("*.eml"))), seconds=10)
        made = [path for folder in ("var", "keys") for path in (tmp_path / folder, *(tmp_path / folder).rglob("*"))]
        names = {path.name for path in made}
        assert names >= {
            "var",
            "keys",
            "master.key",
            "identity.db",
            "identity.db-wal",
            "identity.db-shm",
            "limits",
            "mail",
        }
        assert any(path.parent.name == "limits" for path in made)
        loose = {str(path): oct(mode_of(path)) for path in made if mode_of(path) != (0o700 if path.is_dir() else 0o600)}
        assert loose == {}
        assert "others" not in log.read_text(), "what we made ourselves needed no tightening"
    finally:
        stop(process)


def test_what_others_could_read_is_tightened_and_said_once(tmp_path: Path) -> None:
    assert identity("migrate", cwd=tmp_path).returncode == 0
    mail = tmp_path / "var" / "mail"
    mail.mkdir()
    (mail / "1.eml").write_text("a code")
    (tmp_path / "keys" / "old.pem").write_text("a key")
    shared = tmp_path / "elsewhere"
    shared.mkdir(mode=0o755)
    loose = [
        tmp_path / "var", tmp_path / "var" / "identity.db", mail, mail / "1.eml",
        tmp_path / "keys", tmp_path / "keys" / "master.key", tmp_path / "keys" / "old.pem",
    ]  # fmt: skip
    for path in loose:
        path.chmod(0o755 if path.is_dir() else 0o644)
    port = free_port()
    env = environment(bind=f"127.0.0.1:{port}", issuer=f"http://127.0.0.1:{port}", **QUICK)

    def events() -> list[dict[str, object]]:
        process = launch(tmp_path, env, tmp_path / "log")
        wait_until_ready(f"http://127.0.0.1:{port}", process, tmp_path / "log")
        stop(process)
        lines = (tmp_path / "log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and "identity.files" in line]

    (said,) = events()
    assert said["count"] == len(loose)
    assert {str(shown).rpartition(" (")[0] for shown in said["paths"]} == {str(path) for path in loose}
    assert [oct(mode_of(path)) for path in loose if mode_of(path) & 0o077] == []
    assert mode_of(shared) == 0o755
    assert mode_of(tmp_path) == tmp_path.stat().st_mode & 0o7777
    assert len(events()) == 1, "the second start has nothing to say"


# Who makes a database or a key.


COMMANDS = [("user", "list"), ("keys", "list"), ("audit",), ("worker",), ("application", "create", "--name", "feed")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_only_serve_and_migrate_make_a_database_or_a_key(tmp_path: Path, command: tuple[str, ...]) -> None:
    said = one_line(identity(*command, cwd=tmp_path))
    assert str(tmp_path / "var" / "identity.db") in said
    assert "IDENTITY_DATABASE_URL" in said
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_path_is_named_whole_and_made_by_nobody(tmp_path: Path) -> None:
    assert identity("migrate", cwd=tmp_path).returncode == 0
    before = sorted(tmp_path.rglob("*"))
    said = one_line(identity("user", "list", cwd=tmp_path, env=environment(database_url="sqlite:///var/identty.db")))
    assert str(tmp_path / "var" / "identty.db") in said
    assert sorted(tmp_path.rglob("*")) == before
    assert identity("user", "list", cwd=tmp_path).stdout == "none\n"


def test_an_empty_postgresql_is_named_and_left_empty(tmp_path: Path) -> None:
    url = the_postgres().create_database("nobodys")
    said = one_line(identity("user", "list", cwd=tmp_path, env=environment(database_url=url)))
    assert "/nobodys" in said
    assert "identity migrate" in said
    assert list(tmp_path.iterdir()) == []
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        assert connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)


def test_an_older_schema_is_told_and_a_newer_one_is_fine(tmp_path: Path) -> None:
    import sqlite3

    assert identity("migrate", cwd=tmp_path).returncode == 0
    for revision, works in (("0000", False), ("9999", True)):
        with contextlib.closing(sqlite3.connect(tmp_path / "var" / "identity.db")) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
        ran = identity("user", "list", cwd=tmp_path)
        assert (ran.returncode == 0) is works, ran.stderr
        if not works:
            assert "run `identity migrate`" in one_line(ran)


def test_migrate_prepares_all_that_a_command_needs(tmp_path: Path) -> None:
    assert json.loads(identity("migrate", "--json", cwd=tmp_path).stdout)["migrated"] is True
    key = (tmp_path / "keys" / "master.key").read_bytes()
    assert json.loads(identity("application", "create", "--name", "feed", "--json", cwd=tmp_path).stdout)["secret"]
    # Again, and without the key: the schema needs none, and where there is a root no key is made.
    (tmp_path / "keys" / "master.key").unlink()
    assert json.loads(identity("migrate", "--json", cwd=tmp_path).stdout)["migrated"] is False
    assert not (tmp_path / "keys" / "master.key").exists()
    said = one_line(identity("user", "list", cwd=tmp_path))
    assert f"{tmp_path}/keys/master.key is missing" in said
    assert "IDENTITY_KEYS_DIR" in said
    said = one_line(identity("serve", cwd=tmp_path, env=environment(bind=f"127.0.0.1:{free_port()}")))
    assert "is missing" in said
    assert not (tmp_path / "keys" / "master.key").exists()
    (tmp_path / "keys" / "master.key").write_bytes(key)
    assert identity("user", "list", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("loss", ["gone", "another"])
def test_a_worker_that_cannot_boot_tries_again_while_the_others_serve(tmp_path: Path, loss: str) -> None:
    settings = {**fresh_database("sqlite", tmp_path), "keys_dir": tmp_path / "keys", "master_keys": ()}
    (tmp_path / "keys").mkdir()
    key = tmp_path / "keys" / "master.key"
    key.write_text(MASTER_KEY + "\n")
    with serving(tmp_path, settings) as service:
        victim, other = service.workers()
        if loss == "gone":
            key.unlink()
        else:
            key.write_text(base64.b64encode(b"x" * 32).decode())
        os.kill(victim, signal.SIGKILL)
        until(lambda: "a worker cannot start" in service.log.read_text(), seconds=10)
        time.sleep(1.5)  # long enough for a second try
        assert service.process.poll() is None
        assert other in service.workers()
        assert service.call("GET", "/health/ready").status == 200
        assert not key.exists() if loss == "gone" else key.read_text() != MASTER_KEY
        key.write_text(MASTER_KEY + "\n")
        tried = service.log.read_text().count("a worker cannot start")
        until(lambda: len(service.workers()) == 2, seconds=10)
        time.sleep(2.5)
        assert len(service.workers()) == 2
        assert service.log.read_text().count("a worker cannot start") <= tried + 1


# What it says when it cannot start.


def test_an_address_in_use_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = one_line(identity("serve", cwd=tmp_path, env=environment(bind=address)))
        assert said.startswith(f"IDENTITY_BIND: {address} is in use")
        free = f"127.0.0.1:{free_port()}"
        said = one_line(identity("serve", cwd=tmp_path, env=environment(bind=free, metrics_bind=address)))
        assert said.startswith(f"IDENTITY_METRICS_BIND: {address} is in use")
    assert list(tmp_path.iterdir()) == [], "it was noticed before anything was made"


def test_a_socket_in_use_is_not_taken_from_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "s"
    env = environment(bind=f"unix:{path}", trusted_proxies="unix")
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        assert "is in use" in one_line(identity("serve", cwd=tmp_path, env=env))
        assert path.is_socket()


SETTINGS_THAT_CANNOT_SERVE = {
    "a file that is no database": ({"database_url": "sqlite:///bad.db"}, ["bad.db", "no SQLite database", "IDENTITY_DATABASE_URL"]),
    "a database in memory": ({"database_url": "sqlite://"}, ["IDENTITY_DATABASE_URL", "sqlite:///var/identity.db"]),
    "a folder that cannot be": ({"database_url": "sqlite:////proc/none/i.db"}, ["/proc/none/i.db", "IDENTITY_DATABASE_URL"]),
    "a database that is down": (
        {"database_url": "postgresql://ada:hunter2@127.0.0.1:1/none"},
        ["127.0.0.1", "refused", "IDENTITY_DATABASE_URL"],
    ),
    "no threads": ({"threads": 0}, ["IDENTITY_THREADS", "from 1 to"]),
    "an address without brackets": ({"bind": "::1:8000"}, ["IDENTITY_BIND", "[::1]:8000"]),
    "a foreign address": ({"bind": "192.0.2.1:8000"}, ["IDENTITY_BIND", "192.0.2.1:8000", "annot assign"]),
    "a socket in no folder": ({"bind": "unix:none/s", "trusted_proxies": "unix"}, ["IDENTITY_BIND", "none/s", "folder"]),
    "a socket that nobody vouches for": ({"bind": "unix:s"}, ["IDENTITY_BIND", "`unix`", "IDENTITY_TRUSTED_PROXIES"]),
    "days without end": ({"audit_days": 9_999_999_999}, ["IDENTITY_AUDIT_DAYS", "from 1 to"]),
    "an issuer with a path": ({"issuer": "https://auth.example/id"}, ["IDENTITY_ISSUER", "no path"]),
    "a user without password": ({"mail_url": "smtp://ada@mail.example"}, ["IDENTITY_MAIL_URL", "password"]),
    "sentinels": ({"redis_url": "redis+sentinel://a:26379/x"}, ["IDENTITY_REDIS_URL", "sentinel"]),
    "a Redis that has no number": ({"redis_url": "redis://a/first"}, ["IDENTITY_REDIS_URL", "redis://host:port/0"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS_THAT_CANNOT_SERVE)
def test_a_start_that_fails_says_in_one_line_what_was_tried_and_what_to_set(tmp_path: Path, case: str) -> None:
    settings, expected = SETTINGS_THAT_CANNOT_SERVE[case]
    (tmp_path / "bad.db").write_text("no database at all, but long enough to be looked at")
    ran = identity("serve", cwd=tmp_path, env=environment(**{"bind": f"127.0.0.1:{free_port()}", **settings}))
    said = one_line(ran)
    assert [text for text in expected if text not in said] == [], said
    assert "hunter2" not in said


def test_a_master_key_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "master.key").write_bytes(bytes(range(200, 232)))
    said = one_line(identity("serve", cwd=tmp_path, env=environment(bind=f"127.0.0.1:{free_port()}")))
    assert f"{tmp_path}/keys/master.key is not text" in said


def test_a_full_disk_is_called_one(tmp_path: Path) -> None:
    assert identity("migrate", cwd=tmp_path).returncode == 0

    def no_more_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (36_000, 36_000))

    # The limit of a file's size ends writes as a full disk does, with another number.
    said = one_line(
        identity("user", "create", "--email", "a@b.example", "--alias", "ada", "--full-name", "Ada",
                 cwd=tmp_path, preexec_fn=no_more_room)
    )  # fmt: skip
    assert str(tmp_path / "var" / "identity.db") in said
    assert "the disk" in said
    assert "IDENTITY_DATABASE_URL" in said


def test_what_a_pooler_refuses_is_said_in_its_own_words(tmp_path: Path) -> None:
    def pooler(server: socket.socket) -> None:
        # As PgBouncer answers a start with options that it does not let through.
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                client.recv(4096)
                message = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
                client.sendall(b"E" + (len(message) + 4).to_bytes(4) + message)
                client.close()

    import threading

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        threading.Thread(target=pooler, args=[server], daemon=True).start()
        url = f"postgresql://ada:hunter2@127.0.0.1:{server.getsockname()[1]}/x?sslmode=disable&gssencmode=disable"
        env = environment(bind=f"127.0.0.1:{free_port()}", database_url=url)
        said = one_line(identity("serve", cwd=tmp_path, env=env))
    assert "unsupported startup parameter: options" in said
    assert "IDENTITY_DATABASE_URL" in said
    assert "hunter2" not in said


# What the settings may say.


def test_the_options_of_a_database_url_are_kept_beside_ours(tmp_path: Path) -> None:
    url = the_postgres().create_database("schemed")
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA auth")
    spelled = url.replace("postgresql+psycopg://", "postgres://") + "&options=-csearch_path%3Dauth"
    with serving(tmp_path, {"database_url": spelled}) as service:
        assert service.call("GET", "/health/ready").status == 200
        runtime = service.runtime()
        with runtime.database.reading() as session:
            assert session.connection().exec_driver_sql("SHOW search_path").scalar() == "auth"
            assert session.connection().exec_driver_sql("SHOW statement_timeout").scalar() == "10s"
        kept = Prepared(text("SELECT current_setting('search_path'), current_setting('statement_timeout')"))
        assert runtime.database.row(kept) == ("auth", "10s")
        runtime.close()
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        ours = "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname IN ('auth', 'public')"
        found = connection.execute(ours).fetchall()
    assert found == [("auth",)]


def test_an_environment_with_service_links_and_secrets_in_files_serves(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(MASTER_KEY + "\n")
    file = tmp_path / "identity.env"
    file.write_text(f"# ours\nIDENTITY_DATABASE_URL='sqlite:///{tmp_path}/i.db'\nexport IDENTITY_BIND=127.0.0.1:1\n")
    port = free_port()
    env = environment(bind=f"127.0.0.1:{port}", issuer=f"http://127.0.0.1:{port}", env_file=file, **QUICK) | {
        "IDENTITY_MASTER_KEYS_FILE": str(key),
        "IDENTITY_SERVICE_HOST": "10.0.0.1",
        "IDENTITY_SERVICE_PORT": "8000",
        "IDENTITY_SERVICE_PORT_HTTP": "8000",
        "IDENTITY_PORT": "tcp://10.0.0.1:8000",
        "IDENTITY_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "IDENTITY_PORT_8000_TCP_PROTO": "tcp",
        "IDENTITY_PORT_8000_TCP_PORT": "8000",
        "IDENTITY_PORT_8000_TCP_ADDR": "10.0.0.1",
        "IDENTITY_DB_PORT_5432_TCP_ADDR": "10.0.0.2",
    }
    process = launch(tmp_path, env, tmp_path / "log")
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, tmp_path / "log")
    finally:
        stop(process)
    assert (tmp_path / "i.db").exists()
    assert not (tmp_path / "keys").exists()


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    port = free_port()
    env = environment(bind=f"127.0.0.1:{port}", issuer=f"http://127.0.0.1:{port}", **QUICK)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", 'ulimit -Sn 256; ulimit -Hn 2048; exec "$0" -m identity serve', sys.executable],
            cwd=tmp_path, env=env, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        for pid in (process.pid, *children_of(process.pid)):
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (2048, 2048)
    finally:
        stop(process)


# A unix socket.


def ask_by_socket(path: Path, target: str, *headers: str) -> bytes:
    """What the service behind a unix socket answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        lines = (f"GET {target} HTTP/1.1", "Host: auth.example", "Connection: close", *headers)
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
        return received


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for that of a socket."""
    folder = Path(tempfile.mkdtemp(prefix="id-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("mode", ["", "0600"])
def test_a_unix_socket_has_the_mode_of_its_setting_and_its_peer_is_one_hop(short: Path, mode: str) -> None:
    path, log = short / "s", short / "log"
    settings = {
        "bind": f"unix:{path}",
        "trusted_proxies": "unix,10.0.0.0/8",
        **QUICK,
        **({"socket_mode": mode} if mode else {}),
    }
    process = launch(short, environment(**settings), log)
    try:
        until(lambda: path.is_socket() and process.poll() is None, seconds=20)
        until(lambda: b" 200 " in ask_by_socket(path, "/health/ready")[:20], seconds=20)
        assert mode_of(path) == int(mode or "0660", 8)
        told = {
            "203.0.113.9": "203.0.113.9",
            "1.1.1.1, 203.0.113.9": "203.0.113.9",
            "1.1.1.1, 203.0.113.9, 10.0.0.7": "203.0.113.9",
            "203.0.113.9, 192.0.2.7": "192.0.2.7",
            "x": "",
        }
        for number, hops in enumerate(told):
            ask_by_socket(path, "/nowhere", f"X-Request-Id: hop{number}", f"X-Forwarded-For: {hops}")
        until(lambda: f"hop{len(told) - 1}" in log.read_text(), seconds=10)
        seen = {
            line["requestID"]: line["address"]
            for line in map(json.loads, filter(lambda line: '"hop' in line, log.read_text().splitlines()))
        }
        assert [seen[f"hop{number}"] for number in range(len(told))] == list(told.values())
    finally:
        stop(process)


# Metrics.


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, Callable[[], list[Path]]]]:
    """A service of two workers that shows metrics, and the folders in which such services count."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    settings = {**fresh_database("sqlite", tmp_path), "metrics_bind": f"127.0.0.1:{free_port()}"}
    with serving(tmp_path / "run", settings) as service:
        yield service, lambda: sorted(scratch.glob("identity-metrics-*"))


def counted(service: Service) -> float:
    text = requests.get(f"http://{service.settings['metrics_bind']}/metrics", timeout=10).text
    found = re.search(
        r'^identity_requests_total\{route="ANY \(no route\)",status="404"\} ([0-9.]+)$', text, re.MULTILINE
    )
    return float(found[1]) if found else 0.0


def ask(service: Service, times: int) -> None:
    for _ in range(times):
        assert service.call("GET", "/no/such/path").status == 404
    time.sleep(2 * logs.FLUSH_SECONDS)  # Workers hand on what they counted as often as their log lines.


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_one_worker_takes_no_metric_from_the_others(
    measured: tuple[Service, Callable[[], list[Path]]], how: signal.Signals
) -> None:
    service, folders = measured
    ask(service, 10)
    before = folders()
    assert len(before) == 1
    victim, _ = service.workers()
    os.kill(victim, how)
    until(lambda: not is_alive(victim) and len(service.workers()) == 2, seconds=20)
    assert folders() == before
    ask(service, 10)
    until(lambda: counted(service) == 20, seconds=10)
    assert service.faults() == []


def test_a_master_that_is_told_to_reload_goes_on_counting(measured: tuple[Service, Callable[[], list[Path]]]) -> None:
    service, folders = measured
    ask(service, 10)
    old = set(service.workers())
    service.process.send_signal(signal.SIGHUP)
    until(lambda: len(service.workers()) == 2 and not old & set(service.workers()), seconds=20)
    wait_until_ready(service.url, service.process, service.log)
    ask(service, 10)
    until(lambda: counted(service) == 20, seconds=10)
    assert len(folders()) == 1
    assert service.faults() == []


def test_a_metric_that_cannot_be_written_fails_no_request(measured: tuple[Service, Callable[[], list[Path]]]) -> None:
    service, folders = measured
    shutil.rmtree(folders()[0])
    os.kill(service.workers()[0], signal.SIGKILL)
    os.kill(service.workers()[-1], signal.SIGKILL)
    until(lambda: len(service.workers()) == 2, seconds=20)
    ask(service, 20)
    lost = [line for line in service.logged() if line["event"] == "metrics cannot be written"]
    assert 1 <= len(lost) <= 2, "once for each process, and not for each request"


def test_what_a_killed_master_left_is_swept_and_what_is_in_use_is_not(
    measured: tuple[Service, Callable[[], list[Path]]], tmp_path: Path
) -> None:
    service, folders = measured
    left = folders()
    service.kill_all()
    assert folders() == left
    service.start()
    (mine,) = folders()
    assert mine not in left
    settings = {**fresh_database("sqlite", tmp_path / "run"), "metrics_bind": f"127.0.0.1:{free_port()}"}
    with serving(tmp_path / "second", settings):
        assert mine in folders()
        assert len(folders()) == 2
    service.stop()
    assert folders() == []


def test_the_settings_of_the_suite_are_no_service_links() -> None:
    from dataclasses import fields

    from identity.environment import is_setting

    assert all(is_setting(f"IDENTITY_{one.name.upper()}", "x") for one in fields(Settings))
    assert not is_setting("IDENTITY_PORT", "tcp://10.0.0.1:8000")
    assert is_setting("IDENTITY_PORT", "8000"), "somebody means IDENTITY_BIND, and must hear of it"
    assert is_setting("IDENTITY_PORTS", "tcp://10.0.0.1:8000")
