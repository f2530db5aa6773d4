"""What an operator looks at first: on a service that is well everything is good, and each thing that is not is named with what to do."""

from __future__ import annotations

import json
import os
import resource
import smtplib
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from identity.ambient import SystemClock
from identity.core.admin import doctor
from identity.core.admin.doctor import Finding, State
from identity.core.clients import keypairs
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.instruments import transports
from identity.opening import create_runtime
from identity.runtime import Runtime
from identity.settings import BadSettings, Settings
from identity.storage import Database
from tests.builders import a_user
from tests.conftest import fresh_database
from tests.instruments.test_transports import Sink, listening
from tests.world import ORIGIN, FakeClock, Live, environment_of, free_port, start_live

OTHER_KEY = "b3RoZXIgdGVzdCBtYXN0ZXIga2V5ISEhISAzMmJ5dGU="
PARTS = [
    "database", "migrations", "masterKey", "clock", "issuer", "proxies", "mail", "disk", "descriptors", "signingKey", "secrets", "backlog",
]  # fmt: skip


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, mail_url=f"file:{tmp_path}/mail", issuer=f"http://127.0.0.1:{free_port()}")


def look(settings: Settings, clock: FakeClock, name: str) -> Finding:
    """How the doctor finds one part; whatever is not good says what to do."""
    findings = doctor.examine(settings, clock)
    assert [one.name for one in findings] == PARTS
    assert [one.name for one in findings if (one.state is State.GOOD) == bool(one.to_do)] == []
    return next(one for one in findings if one.name == name)


def run_on(live: Live, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "identity", "doctor", *arguments]
    environment = live.environment | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(
        command, cwd=live.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_service_that_is_well_is_found_well(live: Live) -> None:
    ran = run_on(live, "--json")
    document = json.loads(ran.stdout)
    assert [one["name"] for one in document["checks"]] == PARTS
    assert [one for one in document["checks"] if one["state"] != "good"] == []
    assert (document["status"], ran.returncode, ran.stderr) == ("good", 0, "")
    lines = run_on(live).stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["good", name] for name in PARTS]


def test_a_warning_exits_1_and_says_what_to_do(live: Live) -> None:
    ada = a_user(live.rt)
    with live.rt.unit(ORIGIN) as unit:
        keypairs.create(live.rt, unit, ada.id, name="feed", days=5, actor="test", verified=True)
    ran = run_on(live)
    (line,) = [line for line in ran.stdout.splitlines() if not line.startswith("good")]
    assert line.split()[:2] == ["warning", "secrets"]
    assert "keypair, in 5.0 days -> see `identity expiring`" in line
    assert ran.returncode == 1


@pytest.mark.parametrize("set_wrong", [{}, {"IDENTITY_ISSUER": "nonsense"}])
def test_where_nothing_is_it_makes_nothing_and_exits_2(tmp_path: Path, set_wrong: dict[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IDENTITY_")}
    environment = kept | environment_of({"issuer": f"http://127.0.0.1:{free_port()}"}) | set_wrong
    ran = subprocess.run(
        [sys.executable, "-m", "identity", "doctor", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    document = json.loads(ran.stdout)
    states = {one["name"]: one["state"] for one in document["checks"]}
    assert (document["status"], ran.returncode) == ("broken", 2)
    if set_wrong:
        assert states == {"settings": "broken"}
    else:
        assert {name for name, state in states.items() if state == "broken"} == {"database", "issuer"}
        unknown = {name for name, state in states.items() if state == "unknown"}
        assert unknown == {"migrations", "masterKey", "clock", "signingKey", "secrets", "backlog"}
    assert list(tmp_path.iterdir()) == []


def test_a_schema_that_is_older_is_broken(rt: Runtime, settings: Settings, clock: FakeClock) -> None:
    with rt.database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    found = look(settings, clock, "migrations")
    assert (found.state, found.to_do) == (State.BROKEN, "run `identity migrate`")


def test_another_master_key_is_broken(settings: Settings, clock: FakeClock) -> None:
    assert look(settings, clock, "masterKey").state is State.GOOD
    found = look(replace(settings, master_keys=(OTHER_KEY,)), clock, "masterKey")
    assert found.state is State.BROKEN
    assert "does not open this database" in found.found


def test_a_master_key_that_is_missing_is_not_made(settings: Settings, clock: FakeClock) -> None:
    found = look(replace(settings, master_keys=()), clock, "masterKey")
    assert (found.state, settings.keys_dir.exists()) == (State.BROKEN, False)


def test_a_master_key_that_others_may_read_is_a_warning(settings: Settings, clock: FakeClock) -> None:
    settings.keys_dir.mkdir(mode=0o700)
    path = settings.keys_dir / "master.key"
    path.write_text(settings.master_keys[0])
    for mode, state in ((0o644, State.WARNING), (0o600, State.GOOD)):
        path.chmod(mode)
        assert look(replace(settings, master_keys=()), clock, "masterKey").state is state


@pytest.mark.parametrize(
    ("seconds", "state"),
    [(0, State.GOOD), (-4, State.GOOD), (6, State.WARNING), (-58, State.WARNING), (-62, State.BROKEN), (62, State.BROKEN)],
)  # fmt: skip
def test_clocks_that_are_apart_are_told(settings: Settings, backend: str, seconds: int, state: State) -> None:
    class Ahead(FakeClock):
        def now(self) -> datetime:
            return SystemClock().now() + timedelta(seconds=seconds)

    assert look(settings, Ahead(), "clock").state is (state if backend == "postgresql" else State.GOOD)


def test_an_issuer_that_leads_elsewhere_is_broken(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    database = fresh_database("sqlite", ours)
    with start_live(theirs, fresh_database("sqlite", theirs)) as live:
        own = replace(live.rt.settings, database_url=database["database_url"])
        assert look(live.rt.settings, FakeClock(), "issuer").state is State.GOOD
        # The same address, spelled otherwise than the metadata do.
        aside = replace(live.rt.settings, issuer=live.url.replace("127.0.0.1", "localhost"))
        found = look(aside, FakeClock(), "issuer")
        assert (found.state, found.found) == (State.BROKEN, "the discovery document names another issuer")
        _make_other_keys(own)
        assert "serves other keys" in look(own, FakeClock(), "issuer").found


def _make_other_keys(settings: Settings) -> None:
    """Take the keys of the template away, so that this database makes its own."""
    database = Database(settings.database_url)
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM signing_key"))
        connection.execute(text("DELETE FROM ring_version"))
    database.close()
    create_runtime(settings).close()


def test_a_proxy_that_is_not_trusted_is_a_warning(settings: Settings, clock: FakeClock) -> None:
    secure = replace(settings, issuer="https://auth.example.invalid")
    assert look(secure, clock, "proxies").state is State.WARNING
    assert look(replace(secure, trusted_proxies=("10.0.0.0/8",)), clock, "proxies").state is State.GOOD


def test_mail_that_goes_to_files_is_a_warning_where_people_wait_for_it(
    settings: Settings, clock: FakeClock, tmp_path: Path
) -> None:
    assert look(replace(settings, issuer="https://auth.example.invalid"), clock, "mail").state is State.WARNING
    assert look(settings, clock, "mail").state is State.GOOD
    assert not (tmp_path / "mail").exists()
    (tmp_path / "mail").write_text("no folder")
    assert look(settings, clock, "mail").state is State.BROKEN


def test_the_mail_server_is_greeted_and_given_no_mail(settings: Settings, clock: FakeClock) -> None:
    sink = Sink()
    with listening(sink) as port:
        smtp = replace(settings, mail_url=f"smtp://127.0.0.1:{port}", mail_from="identity@acme.example")
        assert look(smtp, clock, "mail").state is State.GOOD
        assert look(replace(smtp, mail_from="Acme <identity@localhost>"), clock, "mail").state is State.WARNING
    assert (len(sink.greetings), sink.mails) == (2, [])
    assert look(smtp, clock, "mail").state is State.BROKEN


def test_a_password_that_the_mail_server_refuses_is_broken(
    settings: Settings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise smtplib.SMTPAuthenticationError(535, b"no")

    monkeypatch.setattr(transports, "_log_in", refuse)
    with listening(Sink()) as port:
        found = look(replace(settings, mail_url=f"smtp://ada:secret@127.0.0.1:{port}"), clock, "mail")
    assert found.state is State.BROKEN
    assert "secret" not in found.found


@pytest.mark.parametrize(
    ("free", "state"), [(1 << 30, State.GOOD), ((1 << 30) - 1, State.WARNING), ((100 << 20) - 1, State.BROKEN)]
)
def test_a_disk_that_is_nearly_full_is_told(
    settings: Settings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, free: int, state: State
) -> None:
    monkeypatch.setattr(doctor, "_free_bytes", lambda _folder: free)
    assert look(settings, clock, "disk").state is state


@pytest.mark.parametrize(
    ("hard", "state"),
    [(resource.RLIM_INFINITY, State.GOOD), (4096, State.GOOD), (4095, State.WARNING), (1023, State.BROKEN)],
)
def test_a_low_limit_of_open_files_is_told(
    settings: Settings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, hard: int, state: State
) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _which: (256, hard))
    assert look(settings, clock, "descriptors").state is state


@pytest.mark.parametrize(("days", "age", "late"), [(90, 92, False), (90, 93, True), (0, 366, False), (0, 367, True)])
def test_a_signing_key_that_should_have_been_rotated_is_a_warning(
    rt: Runtime, settings: Settings, clock: FakeClock, days: int, age: int, late: bool
) -> None:
    since = rt.ring.list()[0].signs_from
    assert since is not None
    clock.tick(age * 86_400 - (clock.now() - since).total_seconds())
    found = look(replace(settings, key_rotation_days=days), clock, "signingKey")
    assert found.state is (State.WARNING if late else State.GOOD)


@pytest.mark.parametrize(("seconds", "state"), [(299, State.GOOD), (301, State.WARNING), (3_601, State.BROKEN)])
def test_mail_that_waits_is_told(rt: Runtime, settings: Settings, clock: FakeClock, seconds: int, state: State) -> None:
    with rt.unit(ORIGIN) as unit:
        values = {"account": "ada", "key_name": "feed", "until": clock.now()}
        outbox.queue(rt, unit, Template.CREDENTIAL_EXPIRING, to="ada@acme.example", values=values)
    clock.tick(seconds)
    found = look(settings, clock, "backlog")
    assert (found.state, found.found) == (state, f"1 mails wait, the oldest for {seconds} s")


def test_mail_that_was_given_up_is_a_warning(rt: Runtime, settings: Settings, clock: FakeClock) -> None:
    with rt.unit(ORIGIN) as unit:
        values = {"account": "ada", "key_name": "feed", "until": clock.now()}
        outbox.queue(rt, unit, Template.CREDENTIAL_EXPIRING, to="ada@acme.example", values=values)
        unit.execute(text("UPDATE mail SET state = 'dead'"))
    assert look(settings, clock, "backlog").state is State.WARNING


def test_the_settings_may_be_what_is_broken() -> None:
    findings = doctor.bad_settings(BadSettings("IDENTITY_ISSUER: must be a URL"))
    assert doctor.verdict(findings) == 2
    assert doctor.described(findings)["checks"][0]["found"] == "IDENTITY_ISSUER: must be a URL"
