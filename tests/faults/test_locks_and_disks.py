"""A database that somebody else holds, and a disk that is full: reads are answered, writes say 503 soon, and nothing is half done."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from tests.builders import PASSWORD, a_token, a_user, an_application
from tests.faults.conftest import Stores
from tests.faults.rig import Client, Service, serving, until

pytestmark = pytest.mark.faults
PATIENCE_SECONDS = 5
DISK_BYTES = 24 * 1024 * 1024
LEFT_BYTES = 256 * 1024


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Another program has the write lock, and keeps it."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


def identity(service: Service, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "identity", *arguments],
        cwd=service.folder,
        env=service.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(service: Service, name: str) -> list[dict[str, object]]:
    return [line for line in service.logged() if line["event"] == name]


def test_a_held_database_is_read_and_its_writers_hear_so_soon(stores: Stores, tmp_path: Path) -> None:
    settings = stores.fresh("sqlite", tmp_path) | {"workers": 1}
    with serving(tmp_path / "service", settings) as service:
        rt = service.runtime()
        ada, feed = a_user(rt), an_application(rt)
        token, admin = a_token(rt, ada), a_token(rt, a_user(rt, roles=["users_admin"]))
        rt.close()
        reads = (
            ("GET", "/verify?tenant=optional", None, token),
            ("GET", "/session", None, token),
            ("GET", "/auth/me", None, token),
            ("GET", "/admin/users", None, admin),
            ("GET", "/admin/audit", None, admin),
            ("GET", "/.well-known/jwks.json", None, ""),
            ("GET", "/health/live", None, ""),
            ("POST", "/application/token", {"clientId": feed.client_id, "secret": feed.secret}, ""),
        )
        login = {"email": ada.email, "password": PASSWORD}

        def ask(number: int) -> tuple[int, float]:
            started = time.monotonic()
            with service.client() as http:
                if number % 4:
                    heard = http.call("POST", "/user/token", login)
                else:
                    method, path, body, bearer = reads[number // 4 % len(reads)]
                    heard = http.call(method, path, body, bearer=bearer)
            assert heard is not None, http.error
            assert heard.status == (503 if number % 4 else 200), (number, heard.body)
            if number % 4:
                assert int(heard.headers["retry-after"]) >= 1
                assert heard.json["error"] == "UNAVAILABLE"
            return number % 4, time.monotonic() - started

        with held(tmp_path / "identity.db"):
            for method, path, body, bearer in reads:
                started = time.monotonic()
                assert service.call(method, path, body, bearer=bearer).status == 200
                assert time.monotonic() - started < 1
            # More writers than there are threads.
            with ThreadPoolExecutor(80) as pool:
                took = list(pool.map(ask, range(80)))
            assert max(seconds for _, seconds in took) < PATIENCE_SECONDS + 4
            # Once it is known, nobody waits for long: neither a writer nor a reader behind it.
            with ThreadPoolExecutor(80) as pool:
                again = list(pool.map(ask, range(80)))
            assert max(seconds for _, seconds in again) < 3
            # Commands read; those that write say why they cannot, in a line.
            listed = identity(service, "user", "list", "--json")
            assert ada.email in listed.communicate(timeout=30)[0]
            migrated = identity(service, "migrate", "--json")
            assert '"migrated": false' in migrated.communicate(timeout=30)[0]
            # One that starts now has nothing to write yet.
            second = Service(tmp_path / "second", settings)
            second.launch()
            try:
                until(lambda: is_answered(second, "/.well-known/jwks.json"), seconds=20)
            finally:
                second.stop()
            until(lambda: len(events(service, "the database does not serve")) == 1, seconds=PATIENCE_SECONDS)
            time.sleep(10)
        # The lock is given back: at once all is well again, and the log has one line for it, not one for every try.
        until(lambda: service.call("POST", "/user/token", login).status == 200, seconds=1)
        until(lambda: len(events(service, "the database serves again")) == 1, seconds=5)
        warnings = [line for line in service.logged() if line["level"] in ("warning", "error")]
        assert [line["event"] for line in warnings] == ["the database does not serve", "the database serves again"]
        slowest, again_slowest = max(seconds for _, seconds in took), max(seconds for _, seconds in again)
        print(f"held: the slowest of 80 waited {slowest:.1f} s, of the next 80 {again_slowest:.1f} s")


def is_answered(service: Service, path: str) -> bool:
    with service.client() as http:
        heard = http.call("GET", path)
    return heard is not None and heard.status == 200


def wait_until_ready_is(service: Service, status: int, *, seconds: float) -> float:
    return until(lambda: service.call("GET", "/health/ready").status == status, seconds=seconds)


def test_a_start_waits_for_its_turn_and_says_so(tmp_path: Path) -> None:
    service = Service(tmp_path / "service", {"database_url": f"sqlite:///{tmp_path}/new.db"})
    with held(tmp_path / "new.db"):
        waiting = [identity(service, "migrate", "--json") for _ in range(2)]
        time.sleep(PATIENCE_SECONDS + 10)
        assert [one.poll() for one in waiting] == [None, None]
    said = [one.communicate(timeout=60) for one in waiting]
    assert [one.returncode for one in waiting] == [0, 0]
    assert all(errors.count("waits for its turn") == 1 for _, errors in said), said
    assert all('"revision"' in answer for answer, _ in said)
    service.start()
    service.stop()


def test_two_first_starts_at_once_both_serve(backend: str, stores: Stores, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    if backend == "postgresql":
        url = stores.postgres.create_database("two_starts")
    services = [Service(tmp_path / name, {"database_url": url, "workers": 1}) for name in ("one", "other")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Service.start, services))
    sets = [service.call("GET", "/.well-known/jwks.json").json["keys"][0]["kid"] for service in services]
    assert sets[0] == sets[1]
    for service in services:
        assert service.faults() == []
        service.stop()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own with few bytes; for root, or whoever is root of a namespace: `unshare -rm make faults`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0777", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes what room there is, but for a little."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(file.tell() - LEFT_BYTES)
    return ballast


def test_a_full_disk_ends_nothing_and_leaves_nothing_half_done(backend: str, stores: Stores, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk"))
        settings = stores.fresh(backend, disk if backend == "sqlite" else tmp_path)
        if backend == "postgresql":
            move_to(disk, settings["database_url"], stores)
        service = stack.enter_context(serving(tmp_path / "service", settings))
        rt = service.runtime()
        stack.callback(rt.close)
        ada = a_user(rt)
        token, admin = a_token(rt, ada), a_token(rt, a_user(rt, roles=["users_admin"]))
        login = {"email": ada.email, "password": PASSWORD}

        def create(http: Client, number: int) -> int:
            person = {
                "email": f"full{number}@acme.example",
                "alias": f"full{number}",
                "fullName": "Full " * 40,
                "roles": ["user"],
            }
            heard = http.call("POST", "/admin/user", person, bearer=admin)
            assert heard is not None, http.error
            return heard.status

        # 1. The disk fills up under its writers.
        ballast = fill(disk)
        with service.client() as http:
            ends = []
            while ends.count(503) < 40:
                ends.append(create(http, len(ends)))
                assert len(ends) < 10_000
            assert set(ends) == {202, 503}
            if backend == "sqlite":  # PostgreSQL still has room for a write that needs no new page.
                until(lambda: service.call("GET", "/health/ready").status == 503, seconds=15)
            for path, bearer in (("/verify?tenant=optional", token), ("/auth/me", token), ("/admin/users", admin)):
                assert service.call("GET", path, bearer=bearer).status == 200, path
            assert service.call("POST", "/user/token", login).status == 503
        # 2. There is room again: without a restart everything works, and what was refused never was.
        workers = service.workers()
        ballast.unlink()
        took = wait_until_ready_is(service, 200, seconds=10)
        until(lambda: service.call("POST", "/user/token", login).status == 200, seconds=10)
        assert service.workers() == workers
        for number, status in enumerate(ends):
            found = service.call("GET", f"/admin/users?email=full{number}@acme.example", bearer=admin).json["items"]
            assert found == (0 if status == 503 else 1), (number, status)
        with service.client() as http:
            assert create(http, len(ends)) == 202
        assert service.faults() == []
        if backend == "sqlite":
            with contextlib.closing(sqlite3.connect(disk / "identity.db")) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        print(f"{backend}: {len(ends)} writes, {ends.count(503)} refused; ready {took:.1f} s after there was room")


def move_to(disk: Path, url: str, stores: Stores) -> None:
    """Let the tables of a database lie on that disk; its log stays where it was."""
    place = disk / "tables"
    place.mkdir(mode=0o700)
    name = make_url(url).database
    with psycopg.connect(
        make_url(stores.postgres.url("postgres")).set(drivername="postgresql").render_as_string(), autocommit=True
    ) as connection:
        connection.execute(f"CREATE TABLESPACE small_{os.getpid()} LOCATION '{place}'")
        connection.execute(f"ALTER DATABASE {name} SET TABLESPACE small_{os.getpid()}")
