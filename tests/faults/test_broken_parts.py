"""Invariants I10, I11 and I12: with a part broken nothing is waved through and nothing is a 500; with the part back, service is back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from identity.core.tokens import sessions
from identity.instruments.keyring import RingVersion, SigningKey
from tests.builders import PASSWORD, Machine, Person, a_session, a_token, a_user, an_application
from tests.faults.chaos import HEALTHY, REFUSING, RESETTING, SILENT, Fault, Wire
from tests.faults.conftest import Stores
from tests.faults.rig import Heard, Service, children_of, until
from tests.oauth_world import basic
from tests.world import ORIGIN

pytestmark = pytest.mark.faults
RECOVERY_SECONDS = 5
WIDE = {
    f"limit_{policy}": "1000000/minute" for policy in ("auth", "application", "standard", "ai_assisted", "bulk_upload")
}


@dataclass(frozen=True)
class Asked:
    """A request, and whether the healthy service grants it."""

    name: str
    method: str
    path: str
    body: object = None
    bearer: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    is_good: bool = False


class Rig:
    """A service whose database, Redis and mail server are behind wires, and requests of every group, good and bad."""

    def __init__(self, stores: Stores, folder: Path) -> None:
        settings = stores.fresh("postgresql", folder)
        database = make_url(settings["database_url"])
        self.database = Wire(f"{database.query['host']}/.s.PGSQL.5432")
        self.redis = Wire(settings["redis_url"].removeprefix("unix://"))
        self.mail = Wire(("127.0.0.1", 9))  # The discard port: nobody takes mail.
        self.direct = Service(folder / "direct", settings)
        self.service = Service(
            folder / "service",
            WIDE
            | {
                "database_url": f"postgresql+psycopg://postgres@127.0.0.1:{self.database.port}/{database.database}",
                "redis_url": f"redis://127.0.0.1:{self.redis.port}/0",
                "mail_url": f"smtp://127.0.0.1:{self.mail.port}",
                "refresh_grace_seconds": 3600,  # Every fault asks with the same refresh token.
            },
        )
        self.service.start()
        self.rt = self.direct.runtime(issuer=self.service.url)
        self.person: Person = a_user(self.rt)
        self.machine: Machine = an_application(self.rt)
        self.opened = a_session(self.rt, self.person)
        ended = a_session(self.rt, self.person)
        self.ended = ended.bearer.reveal() if ended.bearer else ""
        with self.rt.unit(ORIGIN) as unit:
            sessions.revoke(self.rt, unit, ended.session.id, actor="test", reason="test")
        # Wrong guesses are made at these, so that no lockout meets the good ones.
        self.guessed, self.guessed_machine = a_user(self.rt), an_application(self.rt)
        self.outsider = a_token(self.rt, a_user(self.rt))
        self.admin = a_token(self.rt, a_user(self.rt, roles=["users_admin"]))

    def close(self) -> None:
        for wire in (self.database, self.redis, self.mail):
            wire.set(HEALTHY)
        self.rt.close()
        self.service.stop()
        for wire in (self.database, self.redis, self.mail):
            wire.set(REFUSING)

    def requests(self) -> list[Asked]:
        """One good and one bad request of each kind."""
        assert self.opened.bearer is not None
        assert self.opened.refresh is not None
        bearer, person, machine = self.opened.bearer.reveal(), self.person, self.machine
        forged = self.outsider[:-8] + "AAAAAAAA"
        found = []
        for method, path in (
            ("GET", "/session"),
            ("GET", "/sessions"),
            ("GET", "/emails"),
            ("GET", "/keypairs"),
            ("GET", "/auth/me"),
            ("GET", "/verify?tenant=optional"),
            ("POST", "/session/token"),
            ("PUT", "/session/extend"),
        ):
            found.append(Asked(f"{method} {path}", method, path, bearer=bearer, is_good=True))
            found.append(Asked(f"{method} {path}, revoked", method, path, bearer=self.ended))
            found.append(Asked(f"{method} {path}, forged", method, path, bearer=forged))
        for path in ("/admin/users", "/admin/audit", "/admin/signing-keys"):
            found.append(Asked(f"GET {path}", "GET", path, bearer=self.admin, is_good=True))
            found.append(Asked(f"GET {path}, no admin", "GET", path, bearer=self.outsider))
        refresh, wrong = self.opened.refresh.reveal(), self.guessed_machine.secret[:-3] + "xyz"
        for path, good, bad in (
            (
                "/user/token",
                {"email": person.email, "password": PASSWORD},
                {"email": self.guessed.email, "password": "x"},
            ),
            (
                "/auth/login",
                {"email": person.email, "password": PASSWORD},
                {"email": self.guessed.email, "password": "x"},
            ),
            (
                "/application/token",
                {"clientId": machine.client_id, "secret": machine.secret},
                {"clientId": self.guessed_machine.client_id, "secret": wrong},
            ),
            ("/auth/refresh", {"refreshToken": refresh}, {"refreshToken": refresh[:-3] + "xyz"}),
        ):
            found.append(Asked(f"POST {path}", "POST", path, good, is_good=True))
            found.append(Asked(f"POST {path}, wrong", "POST", path, bad))
        form = "grant_type=client_credentials"
        for name, client, secret in (
            ("", machine, machine.secret),
            (", wrong", self.guessed_machine, wrong),
        ):
            headers = tuple(basic(client.client_id, secret).items())
            found.append(
                Asked(f"POST /oauth/token{name}", "POST", "/oauth/token", form, headers=headers, is_good=not name)
            )
            asked = f"token={self.outsider}"
            found.append(Asked(f"POST /oauth/introspect{name}", "POST", "/oauth/introspect", asked, headers=headers,
                               is_good=not name))  # fmt: skip
        key = (("api-key", "idk_nobody"), ("api-secret", "idx_nothing"))
        found.append(Asked("GET /keypair, unknown", "GET", "/keypair", headers=key))
        code = {"verificationCodeID": "01890000-0000-7000-8000-000000000000", "code": "000000"}
        found.append(Asked("PUT /session/verification, unknown", "PUT", "/session/verification", code))
        return found

    def ask_all(self) -> list[tuple[Asked, Heard]]:
        """The answers, all asked at once."""

        def ask(asked: Asked) -> tuple[Asked, Heard]:
            with self.service.client(source="127.0.0.1" if asked.is_good else "127.0.0.2") as http:
                heard = http.call(
                    asked.method, asked.path, asked.body, bearer=asked.bearer, headers=dict(asked.headers)
                )
            assert heard is not None, f"{asked.name}: {http.error}"
            return asked, heard

        asking = self.requests()
        with ThreadPoolExecutor(len(asking)) as pool:
            return list(pool.map(ask, asking))


@pytest.fixture(scope="module")
def rig(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One service for the whole module: it must come through every fault without being started again."""
    rig = Rig(stores, tmp_path_factory.mktemp("rig"))
    yield rig
    rig.close()


def granted(rig: Rig) -> None:
    """Everything is as it should be: good requests are granted and bad ones refused. Raises until they are."""
    for asked, heard in rig.ask_all():
        assert (heard.status < 300) == asked.is_good, f"{asked.name}: {heard.status} {heard.body[:200]!r}"


def is_granting(rig: Rig) -> bool:
    try:
        granted(rig)
    except AssertionError:
        return False
    return True


FAULTS = {"down": REFUSING, "resetting": RESETTING, "hung": SILENT, "cut": Fault(cut_after=40)}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("part", ["database", "redis", "mail"])
def test_a_broken_part_refuses_and_comes_back(rig: Rig, part: str, fault: Fault) -> None:
    granted(rig)
    workers = rig.service.workers()
    wire: Wire = getattr(rig, part)
    wire.set(fault)
    started = time.monotonic()
    answers = rig.ask_all()
    took = time.monotonic() - started
    # Read from memory: what verifiers need of us has no part that could break.
    before = time.monotonic()
    assert rig.service.call("GET", "/.well-known/jwks.json").status == 200
    assert rig.service.call("GET", "/health/live").status == 200
    memory_took = time.monotonic() - before
    wire.set(HEALTHY)
    recovery = until(lambda: is_granting(rig), seconds=RECOVERY_SECONDS * 2)
    print(f"{part} {fault}: asked in {took:.1f} s, key set in {memory_took:.2f} s, back in {recovery:.1f} s")
    for asked, heard in answers:
        seen = f"{asked.name}: {heard.status} {heard.body[:200]!r}"
        assert heard.status != 500, seen
        assert asked.is_good or heard.status >= 400, f"failed open: {seen}"
        if heard.status == 503:
            assert int(heard.headers["retry-after"]) >= 1, seen
            assert heard.headers["x-error-id"], seen
            assert heard.json["error"] in ("UNAVAILABLE", "temporarily_unavailable"), seen
        elif asked.is_good:
            assert heard.status < 300, f"a good credential was called bad: {seen}"
    if part == "mail":
        assert all(heard.status != 503 for _, heard in answers)
    elif not fault.cut_after:
        assert any(heard.status == 503 for _, heard in answers)
    assert memory_took < 1
    assert recovery < RECOVERY_SECONDS
    assert rig.service.workers() == workers
    assert rig.service.faults() == []


def test_a_key_store_that_does_not_open_refuses_and_comes_back(rig: Rig) -> None:
    granted(rig)
    with rig.rt.database.engine.begin() as connection:
        kept = connection.execute(SigningKey.__table__.select()).all()
        connection.execute(text("UPDATE signing_key SET sealed = 'garbage', kid = 'x' || kid"))
        connection.execute(RingVersion.__table__.update().values(version=RingVersion.version + 1))
    time.sleep(2.5)  # Until the background loop of both workers has met it.
    answers = rig.ask_all()
    with rig.rt.database.engine.begin() as connection:
        connection.execute(SigningKey.__table__.delete())
        connection.execute(SigningKey.__table__.insert(), [row._asdict() for row in kept])
        connection.execute(RingVersion.__table__.update().values(version=RingVersion.version + 1))
    recovery = until(lambda: is_granting(rig), seconds=RECOVERY_SECONDS)
    print(f"key store: back in {recovery:.1f} s")
    for asked, heard in answers:
        seen = f"{asked.name}: {heard.status} {heard.body[:200]!r}"
        assert heard.status != 500, seen
        assert asked.is_good or heard.status >= 400, f"failed open: {seen}"
    assert rig.service.faults() == []


def test_a_worker_that_starts_without_a_database_waits_for_it(rig: Rig) -> None:
    granted(rig)
    rig.database.set(REFUSING)
    for pid in rig.service.workers():
        os.kill(pid, signal.SIGKILL)
    time.sleep(3)
    assert rig.service.process.poll() is None, "the master gave up"
    rig.database.set(HEALTHY)

    recovery = until(lambda: is_granting(rig), seconds=RECOVERY_SECONDS)
    print(f"workers without a database: back in {recovery:.1f} s")


@pytest.mark.parametrize("part", ["postgresql", "valkey"])
def test_servers_that_are_killed_and_started_under_load_are_used_again(
    stores: Stores, tmp_path: Path, part: str
) -> None:
    service = Service(tmp_path / "service", stores.fresh("postgresql", tmp_path) | WIDE)
    service.start()
    rt = service.runtime()
    opened = a_session(rt, a_user(rt))
    machine = an_application(rt)
    rt.close()
    assert opened.bearer is not None
    bearer = opened.bearer.reveal()
    halted = threading.Event()
    seen: list[tuple[float, int]] = []

    def load() -> None:
        with service.client() as http:
            while not halted.is_set():
                heard = (
                    http.call("GET", "/session", bearer=bearer),
                    http.call("POST", "/application/token", {"clientId": machine.client_id, "secret": machine.secret}),
                    http.call("PUT", "/session/extend", bearer=bearer),
                )
                seen.extend((time.monotonic(), one.status if one else 0) for one in heard)

    threads = [threading.Thread(target=load, daemon=True) for _ in range(6)]
    try:
        workers = children_of(service.process.pid)
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        server = stores.postgres if part == "postgresql" else stores.valkey
        server.kill()
        time.sleep(1)
        stores.postgres.restart() if part == "postgresql" else stores.valkey.start()
        back = time.monotonic()
        time.sleep(3)
        halted.set()
        for thread in threads:
            thread.join(60)
        statuses = {status for _, status in seen}
        last_bad = max((at for at, status in seen if status not in (200, 202)), default=back)
        print(f"{part}: {len(seen)} requests, {statuses}, last refusal {last_bad - back:.2f} s after it was back")
        assert statuses <= {200, 202, 503}
        assert last_bad - back < RECOVERY_SECONDS
        assert seen[-1][1] in (200, 202)
        assert children_of(service.process.pid) == workers
        assert service.faults() == []
    finally:
        halted.set()
        service.stop()
