"""A backup of a service under load, brought back elsewhere: everything is there, and nothing that could have been ended lives on."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import func, select

from identity.ambient import SystemClock, SystemEntropy, later
from identity.app import create_app, create_runtime
from identity.core.admin import backups, restoring
from identity.core.admin.by import By
from identity.core.people.accounts import User
from identity.core.tokens import sessions
from identity.core.tokens.session_rows import UserSession
from identity.instruments import dumps
from identity.instruments.sealed_files import BadBackup
from identity.runtime import Runtime
from identity.settings import Settings
from tests import servers
from tests.builders import Authenticator, Machine, Person, a_session, a_user, an_application, an_authenticator
from tests.cli_world import Ran
from tests.conftest import fresh_database, the_postgres
from tests.world import MASTER_KEY, ORIGIN, FakeClock, Live, Mailbox, Web, environment_of, fast_settings

ROOT = Path(__file__).parent.parent
LIVE_ENVIRONMENT = {"totp_drift_steps": 1}


def identity(environment: Mapping[str, str], folder: Path, *arguments: str, stdin: str = "") -> Ran:
    """`identity ...`, with PostgreSQL's programs on the PATH."""
    done = subprocess.run(
        [sys.executable, "-m", "identity", *arguments],
        cwd=folder,
        env={**environment, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def brought_back(
    environment: Mapping[str, str],
    file: Path,
    *,
    replaces: bool = False,
    as_it_was: bool = False,
    passphrase: str | None = None,
) -> restoring.Restored:
    return restoring.restore(
        Settings.from_env(environment),
        By.command_line(),
        restoring.Source(file, passphrase),
        entropy=SystemEntropy(),
        open_service=lambda settings: create_runtime(settings, migrate=False, unseen=True),
        replaces=replaces,
        as_it_was=as_it_was,
        progress=lambda _words: None,
    )


@dataclass
class Before:
    """What was given out before the backup."""

    ada: Person
    app: Authenticator
    machine: Machine
    bearer: str
    user_token: str
    session: sessions.Opened
    refresh: str
    application_token: str
    challenge: str
    verification_id: str
    eve: Person
    its_app: Authenticator


def given_out(live: Live) -> Before:
    rt = live.rt
    ada = a_user(rt, tenants={"acme": ("analyst",)}, roles=("users_admin",))
    app = an_authenticator(rt, ada)
    eve = a_user(rt)
    its_app = an_authenticator(rt, eve)
    machine = an_application(rt, name="feed")
    opened = a_session(rt, ada, amr=("pwd", "otp"))
    assert opened.bearer is not None
    token = sessions.token_for(rt, sessions.find_live(rt, opened.session.id), seconds=3600).text
    body = {"clientId": machine.client_id, "secret": machine.secret}
    earned = live.post("/application/token", body).json()["data"]["accessToken"]
    login = {"email": ada.email, "password": ada.password}
    challenge = live.post("/auth/login", login).json()["mfaChallengeToken"]
    answered = live.post(
        "/auth/mfa/challenge",
        {
            "mfaChallengeToken": live.post("/auth/login", login).json()["mfaChallengeToken"],
            "totpCode": app.at(later(rt.clock.now(), 30)),
        },
    )
    code = live.post("/auth/password/forgot", {"email": ada.email}).json()["verificationCodeID"]
    return Before(
        ada, app, machine, opened.bearer.reveal(), token, opened, answered.json()["refreshToken"], earned, challenge, code,
        eve, its_app
    )  # fmt: skip


@dataclass
class Load:
    """People who sign up while the backup is made."""

    live: Live
    answers: list[int] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._sign_up, args=(number,)) for number in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _sign_up(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            body = {"email": f"load-{number}-{count}@acme.example", "fullName": "L", "alias": f"load-{number}-{count}"}
            self.answers.append(self.live.post("/user", body).status_code)


def elsewhere(live: Live, folder: Path) -> dict[str, str]:
    """The settings of another host: the same master key, an empty database."""
    if live.rt.database.is_sqlite:
        chosen = {"database_url": f"sqlite:///{folder}/elsewhere/identity.db"}
    else:
        chosen = {"database_url": the_postgres().create_database(f"elsewhere{os.urandom(4).hex()}")}
    kept_here = {name: value for name, value in live.environment.items() if not name.startswith("IDENTITY_REDIS")}
    return kept_here | environment_of(chosen)


@pytest.fixture
def restored(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Before, Web, Ran, dict[str, str]]]:
    monkeypatch.setenv("PATH", f"{servers.postgres_programs()}{os.pathsep}{os.environ['PATH']}")
    before = given_out(live)
    with Load(live) as load:
        made = identity(live.environment, live.folder, "backup", str(tmp_path / "b.sealed"), "--json")
        assert made.json["sealedBy"] == "master key"
    assert set(load.answers) == {202}
    # After the backup: what an administrator would not want to come back.
    assert live.call("POST", "/auth/logout", bearer=before.user_token).status_code == 200
    there = elsewhere(live, tmp_path)
    ran = identity(there, tmp_path, "restore", str(tmp_path / "b.sealed"), "--json")
    assert ran.status == 0, ran.err
    rt = create_runtime(Settings.from_env(there), mailer=(mailbox := Mailbox()), migrate=False)
    yield before, Web(create_app(runtime=rt), rt, mailbox, FakeClock()), ran, there
    rt.close()


def test_a_backup_under_load_comes_back_whole_and_nothing_from_before_lives_on(
    live: Live, restored: tuple[Before, Web, Ran, dict[str, str]], tmp_path: Path
) -> None:
    before, web, ran, there = restored
    ada, rt = before.ada, web.rt
    # 1. It is one sealed file that shows nothing, and only its owner may read it.
    file = tmp_path / "b.sealed"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ada.email.encode() not in file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".db") in (
        ["b.sealed"],
        ["b.sealed", "elsewhere"],
    )
    # 2. Whose it was is told; and what was ended.
    assert "are as they were at" in ran.err
    ended = json.loads(ran.out)["ended"]
    assert ended["sessions"] >= 2
    assert ended["codes"] >= 1
    assert ended["challenges"] == 1
    with rt.database.reading() as session:
        living = select(func.count()).select_from(UserSession).where(UserSession.revoked_at.is_(None))
        assert session.scalar(living.where(UserSession.expires_at > rt.clock.now())) == 0
        assert session.scalar(select(func.count()).select_from(User)) >= 1
    # 3. Passwords, second factors and secrets work.
    challenge = web.post("/auth/login", {"email": ada.email, "password": ada.password}).get_json()["mfaChallengeToken"]
    code = {"mfaChallengeToken": challenge, "recoveryCode": before.app.recovery_codes[0]}
    assert web.post("/auth/mfa/challenge", code).status_code == 200
    login = {"email": before.eve.email, "password": before.eve.password}
    code = {
        "mfaChallengeToken": web.post("/auth/login", login).get_json()["mfaChallengeToken"],
        "totpCode": before.its_app.at(later(rt.clock.now(), 30)),
    }
    assert web.post("/auth/mfa/challenge", code).status_code == 200, "its seed was opened by the key of this host"
    secret = {"clientId": before.machine.client_id, "secret": before.machine.secret}
    fresh = web.post("/application/token", secret).get_json()["data"]["accessToken"]
    assert web.get("/verify?tenant=optional", bearer=fresh).status_code == 200
    # 4. Nothing from before does.
    for bearer in (before.bearer, before.user_token, before.application_token):
        assert web.get("/verify?tenant=optional", bearer=bearer).status_code == 401
    assert web.post("/auth/refresh", {"refreshToken": before.refresh}).status_code == 401
    old = {"mfaChallengeToken": before.challenge, "recoveryCode": before.app.recovery_codes[1]}
    assert web.post("/auth/mfa/challenge", old).status_code == 401
    assert web.mails() == []
    kids = {key["kid"] for key in web.get("/.well-known/jwks.json").get_json()["keys"]}
    assert not kids & {key["kid"] for key in live.get("/.well-known/jwks.json").json()["keys"]}
    # 5. A place in the status lists that was in use after the backup is never given to anybody else.
    with rt.unit(ORIGIN) as unit:
        assert rt.status_lists.take(unit) > before.session.session.place + 50 * 2**20  # type: ignore[operator] -- it has one
    # 6. The age of the newest backup is known where it was made.
    assert backups.seconds_since_last(live.rt.database, SystemClock().now()) < 600
    # 7. What holds something is not written over by mistake; nor is what others have open.
    with pytest.raises(BadBackup, match="is not empty"):
        brought_back(there, file)
    assert web.get("/verify?tenant=optional", bearer=fresh).status_code == 200
    with pytest.raises(BadBackup, match="stop the service first"):
        brought_back(there, file, replaces=True)
    assert web.get("/verify?tenant=optional", bearer=fresh).status_code == 200
    rt.close()
    # 8. As it was, on demand: then what was ended after the backup lives again.
    assert brought_back(there, file, replaces=True, as_it_was=True).ended == {}
    rt = create_runtime(Settings.from_env(there), mailer=Mailbox(), migrate=False)
    app = Web(create_app(runtime=rt), rt, Mailbox(), FakeClock())
    assert app.get("/verify?tenant=optional", bearer=before.user_token).status_code == 200
    rt.close()


# What is wrong with a file is found before anything is touched.


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """One database is enough for what is about the file."""
    return fast_settings(keys_dir=tmp_path / "keys", **fresh_database("sqlite", tmp_path))


def backed_up(rt: Runtime, file: Path, **options: Any) -> backups.BackupInfo:
    chosen = {"passphrase": None, "overwrite": False, "progress": lambda _words: None} | options
    return backups.back_up(rt, By.command_line(), file, **chosen)


def test_a_passphrase_opens_it_where_no_master_key_is(rt: Runtime, tmp_path: Path) -> None:
    file = tmp_path / "b.sealed"
    with pytest.raises(BadBackup, match="12 characters"):
        backed_up(rt, file, passphrase="short")
    backed_up(rt, file, passphrase="long enough to keep")
    there = {"IDENTITY_DATABASE_URL": f"sqlite:///{tmp_path}/other.db", "IDENTITY_MASTER_KEYS": MASTER_KEY}
    for wrong in (None, "long enough to lose"):
        with pytest.raises(BadBackup, match="passphrase"):
            brought_back(there, file, passphrase=wrong)
    brought_back(there, file, passphrase="long enough to keep")
    with pytest.raises(BadBackup, match="is there already"):
        backed_up(rt, file)
    backed_up(rt, file, overwrite=True)
    other_key = there | {"IDENTITY_MASTER_KEYS": MASTER_KEY.replace("a", "b", 1)}
    with pytest.raises(BadBackup, match="another master key"):
        brought_back(other_key, file, replaces=True)


@pytest.mark.parametrize("damage", ["cut", "changed", "longer", "other file"])
def test_a_damaged_file_touches_nothing(rt: Runtime, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "b.sealed"
    backed_up(rt, file)
    raw = bytearray(file.read_bytes())
    match damage:
        case "cut":
            del raw[-100:]
        case "changed":
            raw[len(raw) // 2] ^= 1
        case "longer":
            raw += b"x"
        case _:
            raw[:4] = b"PK12"
    file.write_bytes(raw)
    there = {"IDENTITY_DATABASE_URL": f"sqlite:///{tmp_path}/other/x.db", "IDENTITY_MASTER_KEYS": MASTER_KEY}
    with pytest.raises(BadBackup, match=r"is damaged|is no backup"):
        brought_back(there, file)
    assert not (tmp_path / "other").exists()


def test_a_backup_that_fails_leaves_no_file_and_what_a_killed_one_left_is_taken_over(
    rt: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "b.sealed"
    (tmp_path / ".b.sealed.part").write_bytes(b"left by a killed backup" * 100_000)
    left = tmp_path / ".identity-backup-killed"
    left.mkdir()
    (left / "copy.db").write_bytes(b"not sealed")
    monkeypatch.setattr(backups, "_read_back", lambda *_: (_ for _ in ()).throw(BadBackup("not what was written")))
    with pytest.raises(BadBackup, match="not what was written"):
        backed_up(rt, file)
    assert [path.name for path in tmp_path.iterdir() if "b.sealed" in path.name] == []
    assert not left.exists()
    monkeypatch.undo()
    backed_up(rt, file)
    assert file.exists()


def test_a_missing_client_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(dumps, "_DEBIAN", tmp_path)
    with pytest.raises(BadBackup, match="pg_dump is not on the PATH: install"):
        dumps._program("pg_dump")
    (tmp_path / "17" / "bin").mkdir(parents=True)
    for version in ("9", "17"):
        (tmp_path / version / "bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / version / "bin" / "pg_dump").touch()
    assert dumps._program("pg_dump") == str(tmp_path / "17" / "bin" / "pg_dump")
