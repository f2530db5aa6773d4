"""An upgrade as it rolls: the version before serves, the new one migrates the database under it, both serve, and the new one goes again.

The old version is taken from the history of this repository: by itself the one before the newest step of the schema, or the commit that
IDENTITY_TEST_UPGRADE_FROM names. Whatever was acknowledged by either must be there in the end, and neither may answer 5xx.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from identity import migrations
from identity.app import create_runtime
from identity.settings import Settings
from identity.storage import Database
from tests import servers
from tests.faults.rig import ROUNDS
from tests.world import MASTER_KEY, environment_of, free_port, launch, stop, wait_until_ready

ROOT = Path(__file__).parents[2]
SECONDS = 20 if ROUNDS else 1
PASSWORD = "correct horse battery staple"


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    assert done.returncode == 0, (
        f"the version before comes from git's history, which is not whole here: {done.stderr.decode()}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the version before."""
    commit = os.environ.get("IDENTITY_TEST_UPGRADE_FROM", "")
    if not commit:
        steps = (
            git("log", "-1", "--format=%H", "-G^HEAD: Final", "--", "identity/migrations/__init__.py").decode().strip()
        )
        assert steps, (
            "git knows no commit that added a step of the schema: the history is not whole here (a shallow clone?)"
        )
        commit = f"{steps}^"
    folder = tmp_path_factory.mktemp("old")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=git("archive", commit, "identity"), check=True)
    return folder


@dataclass
class World:
    """One database, and whoever serves it."""

    folder: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def serve(self, code: Path) -> str:
        """Start `identity serve` of this code; its URL once it is ready."""
        port = free_port()
        environment = self.environment | {"IDENTITY_BIND": f"127.0.0.1:{port}"}
        log = self.folder / f"log-{port}"
        process = launch(self.folder, environment, log, code=code)
        self.processes.append(process)
        wait_until_ready(f"http://127.0.0.1:{port}", process, log, seconds=90)
        return f"http://127.0.0.1:{port}"

    def run(self, code: Path, *arguments: str, stdin: str = "") -> str:
        environment = self.environment | {"PYTHONPATH": str(code)}
        command = [sys.executable, "-m", "identity", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


# The short form has one: there a step waits for locks that the load holds.
@pytest.fixture(params=("sqlite", "postgresql") if ROUNDS else ("postgresql",))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    off = {f"limit_{policy}": "off" for policy in ("auth", "application", "standard", "ai_assisted", "bulk_upload")}
    chosen: dict[str, Any] = {
        "issuer": "https://auth.test",
        "mail_url": f"file:{tmp_path}/mail",
        "workers": 1,
        "argon2_memory_kib": 8,
        "argon2_time_cost": 1,
        "master_keys": (MASTER_KEY,),
        **off,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")}
    with servers.start_postgres() if request.param == "postgresql" else contextlib.nullcontext() as postgres:
        url = f"sqlite:///{tmp_path}/identity.db"
        if isinstance(postgres, servers.Postgres):
            url = postgres.create_database("rolling")
        made = World(tmp_path, inherited | environment_of({**chosen, "database_url": url}))
        yield made
        for process in made.processes:
            stop(process)


@dataclass
class Load:
    """Clients that ask both versions in turn, and remember what they were told."""

    urls: list[str]
    headers: dict[str, str]
    statuses: dict[str, int] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._live, args=(number,)) for number in range(3)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _live(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            try:
                self._round(f"u{number}x{count}", self.urls[count % len(self.urls)])
            except (AssertionError, requests.RequestException, KeyError) as exc:
                self.failures.append(exc)
                return

    def _round(self, name: str, url: str) -> None:
        """Make somebody, sign in as the administrator, look at a token, end it: by one version; what came of it counts for both."""
        body = {"email": f"{name}@acme.example", "fullName": name, "alias": name, "roles": ["analyst"]}
        made = self._ask("POST", f"{url}/admin/user", json=body, headers=self.headers)
        if made.status_code == 202:
            self.users.append(name)
        login = self._ask("POST", f"{url}/user/token", json={"email": "boss@acme.example", "password": PASSWORD})
        assert login.status_code == 200, login.text
        token = login.json()["data"]["accessToken"]
        for other in tuple(self.urls):
            seen = self._ask("GET", f"{other}/verify?tenant=optional", headers={"Authorization": f"Bearer {token}"})
            assert seen.status_code == 200, seen.text
        gone = self._ask("POST", f"{url}/auth/logout", headers={"Authorization": f"Bearer {token}"})
        assert gone.status_code == 200, gone.text
        self.ended.append(token)
        for other in tuple(self.urls):
            seen = self._ask("GET", f"{other}/verify?tenant=optional", headers={"Authorization": f"Bearer {token}"})
            assert seen.status_code == 401, "what one version ended lives on at the other"

    def _ask(self, method: str, url: str, **options: Any) -> requests.Response:
        answer = requests.request(method, url, timeout=30, **options)
        kind = f"{method} {answer.status_code}"
        self.statuses[kind] = self.statuses.get(kind, 0) + 1
        if answer.status_code >= 500:
            self.statuses.setdefault(f"5xx {url} {answer.text[:200]}", 1)
        return answer


def test_both_versions_serve_one_database_while_it_is_migrated_and_nothing_is_lost(world: World, old: Path) -> None:
    # 1. The version before, with people in its database.
    first = world.serve(old)
    arguments = ("--email", "boss@acme.example", "--alias", "boss", "--full-name", "Boss", "--role", "users_admin")
    world.run(old, "user", "create", *arguments, "--password-stdin", "--json", stdin=PASSWORD)
    boss = requests.post(f"{first}/user/token", json={"email": "boss@acme.example", "password": PASSWORD}, timeout=30)
    headers = {"Authorization": f"Bearer {boss.json()['data']['accessToken']}"}
    load = Load([first], headers)
    with load:
        wait(lambda: len(load.users) >= 3)
        # 2. The new one starts beside it: it migrates, and both serve.
        second = world.serve(ROOT)
        load.urls.append(second)
        before = len(load.users)
        wait(lambda: len(load.users) >= before + 6)
        time.sleep(SECONDS)
        # 3. And back: the new one is stopped, the old one goes on with the newer schema.
        load.urls.remove(second)
        time.sleep(0.5)  # Whoever is in a round with it finishes.
        wait_until_idle(load)
        stop(world.processes[1])
        before = len(load.users)
        wait(lambda: len(load.users) >= before + 3)
        # 4. Forward again, for good.
        third = world.serve(ROOT)
        load.urls[:] = [third]
        before = len(load.users)
        wait(lambda: len(load.users) >= before + 3)
    assert load.failures == []
    assert [kind for kind in load.statuses if kind.startswith("5xx")] == []
    # Every deed that was acknowledged is there, whoever did it; and what was ended stays so.
    settings = Settings.from_env(world.environment)
    rt = create_runtime(settings, migrate=False)
    try:
        assert migrations.current(rt.database) == migrations.HEAD
    finally:
        rt.close()
    listed = {user["alias"] for user in everybody(third, headers)}
    assert set(load.users) <= listed
    for token in load.ended[-5:]:
        seen = requests.get(f"{third}/verify?tenant=optional", headers={"Authorization": f"Bearer {token}"}, timeout=30)
        assert seen.status_code == 401


def test_a_version_starts_on_a_schema_that_is_newer_than_its_own(settings: Settings) -> None:
    database = Database(settings.database_url)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert migrations.migrate(database) is False
    assert migrations.current(database) == "9999"
    database.close()
    create_runtime(settings).close()


def everybody(url: str, headers: dict[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        part = requests.get(f"{url}/admin/users?limit=200{after}", headers=headers, timeout=30).json()
        found += part["users"]
        if "next" not in part:
            return found
        after = f"&after={part['next']}"


def wait(condition: Callable[[], bool], *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the load does not go on"
        time.sleep(0.05)


def wait_until_idle(load: Load) -> None:
    """Until each client has begun a round since."""
    before = len(load.ended)
    wait(lambda: len(load.ended) >= before + 4)
