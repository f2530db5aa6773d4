"""What a verifier that never asks us hears: within one `ttl` from any host, and the last that was known while the database is away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import jwt
import pytest
from sqlalchemy import make_url

from identity.core.admin import applications as admin_applications
from identity.core.admin import tenants as admin_tenants
from identity.core.admin import users as admin_users
from identity.core.admin.by import By
from identity.core.tokens import sessions
from identity.runtime import Runtime
from tests.builders import a_token, a_user, an_application
from tests.faults.chaos import HEALTHY, REFUSING, SILENT, Fault, Wire
from tests.faults.conftest import Stores
from tests.faults.rig import Heard, Service, serving, until
from tests.stranger import Stranger
from tests.world import ORIGIN

pytestmark = pytest.mark.faults
BY = By("test", ORIGIN)
TTL = 2
LIST = "/.well-known/status-lists/0"


@pytest.fixture
def hosts(backend: str, stores: Stores, tmp_path: Path) -> Iterator[tuple[Service, Service]]:
    """Two services over one database, each with two workers, for one issuer."""
    with two_hosts(stores.fresh(backend, tmp_path), tmp_path) as started:
        yield started


@contextlib.contextmanager
def two_hosts(settings: Mapping[str, object], folder: Path) -> Iterator[tuple[Service, Service]]:
    short = {**settings, "status_ttl_seconds": TTL}
    with serving(folder / "one", short) as one, serving(folder / "other", short | {"issuer": one.url}) as other:
        yield one, other


def a_stranger(issuer: str, service: Service) -> Stranger:
    """One who reaches the issuer through this host."""

    def fetch(url: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        with service.client() as http:
            answer = http.call("GET", url.removeprefix(issuer), headers=headers)
        if answer is None:
            raise OSError
        return answer.status, answer.headers, answer.body

    return Stranger(issuer, fetch, lambda: datetime.now(UTC))


def test_two_hosts_tell_a_stranger_the_same_as_verify(hosts: tuple[Service, Service]) -> None:
    one, other = hosts
    rt = one.runtime()
    feed = an_application(rt, scopes=("read", "write"))
    doomed = an_application(rt, tenant=None)
    people = {name: a_user(rt, roles=("auditor",), tenants={"acme": ("analyst",)}) for name in ("ada", "bob", "cyd")}
    tokens = {name: a_token(rt, person) for name, person in people.items()}
    for name, machine in (("feed", feed), ("doomed", doomed)):
        login = {"clientId": machine.client_id, "secret": machine.secret}
        tokens[name] = one.call("POST", "/application/token", login).json["data"]["accessToken"]
    strangers = [a_stranger(one.url, host) for host in hosts]
    expected = dict.fromkeys(tokens, "valid")

    def verdicts() -> list[dict[str, str]]:
        return [{name: stranger.verdict(token) for name, token in tokens.items()} for stranger in strangers]

    deeds: dict[str, tuple[str, Callable[[Runtime], object]]] = {
        "ada": ("invalid", lambda _: one.call("POST", "/auth/logout", bearer=tokens["ada"])),
        "bob": ("invalid", lambda rt: admin_users.set_enabled(rt, BY, people["bob"].id, enabled=False)),
        "cyd": ("changed", lambda rt: admin_tenants.set_member(rt, BY, "acme", people["cyd"].id, roles=("owner",))),
        "feed": ("changed", lambda rt: admin_applications.change_application(rt, BY, feed.client_id, scopes=("read",))),
        "doomed": ("invalid", lambda rt: admin_applications.delete_application(rt, BY, doomed.client_id)),
    }
    assert verdicts() == [expected] * 2
    for name, (verdict, deed) in deeds.items():
        deed(rt)
        expected[name] = verdict
        # Whoever honours `ttl` hears within two of them: one until it is listed everywhere, one until the copy is old.
        until(lambda: verdicts() == [expected] * 2, seconds=2 * TTL + 0.5)
        asked = {
            name: other.call("GET", "/verify?tenant=optional", bearer=token).status for name, token in tokens.items()
        }
        assert asked == {name: 401 if verdict == "invalid" else 200 for name, verdict in expected.items()}
    assert not one.faults() + other.faults()
    rt.close()


def test_hosts_and_workers_serve_the_same_bytes(hosts: tuple[Service, Service]) -> None:
    rt = hosts[0].runtime()
    gone = a_token(rt, a_user(rt))
    assert hosts[0].call("POST", "/auth/logout", bearer=gone).status == 200
    time.sleep(2 * TTL)
    by_moment: dict[int, set[bytes]] = {}
    tags = set()
    deadline = time.monotonic() + 4 * TTL
    while time.monotonic() < deadline:
        for host in hosts:
            heard = host.call("GET", LIST)
            issued = jwt.decode(heard.body.decode(), options={"verify_signature": False})["iat"]
            by_moment.setdefault(issued, set()).add(heard.body)
            tags.add(heard.headers["etag"])
    assert all(len(bodies) == 1 for bodies in by_moment.values())
    assert 3 <= len(by_moment) <= 6, "signed once in each ttl"
    assert len(tags) <= 2, "what it says is the same all the while, but for the turn of a half hour"
    rt.close()


@pytest.mark.parametrize("fault", [REFUSING, SILENT], ids=["down", "hung"])
def test_without_a_database_the_last_list_is_served_from_memory(stores: Stores, tmp_path: Path, fault: Fault) -> None:
    settings = stores.fresh("postgresql", tmp_path)
    database = make_url(settings["database_url"])
    wire = Wire(f"{database.query['host']}/.s.PGSQL.5432")
    url = f"postgresql+psycopg://postgres@127.0.0.1:{wire.port}/{database.database}"
    with two_hosts(settings | {"database_url": url}, tmp_path) as hosts:
        rt = Service(tmp_path / "direct", settings).runtime(issuer=hosts[0].url)
        good, gone = a_token(rt, a_user(rt)), a_token(rt, a_user(rt))
        strangers = [a_stranger(hosts[0].url, host) for host in hosts]

        def all_say(token: str, verdict: str) -> bool:
            return [who.verdict(token) for who in strangers] == [verdict] * 2

        # 1. One login has ended, and everybody knows.
        assert hosts[0].call("POST", "/auth/logout", bearer=gone).status == 200
        until(lambda: all_say(gone, "invalid"), seconds=2 * TTL + 0.5)
        time.sleep(2 * TTL)  # also the workers that were not asked
        # 2. The database is away: what is known is told, at once, and does not look fresh.
        wire.set(fault)
        deadline = time.monotonic() + 4 * TTL
        slowest, bodies = 0.0, set()
        while time.monotonic() < deadline:
            for host in hosts:
                started = time.monotonic()
                heard: Heard = host.call("GET", LIST)
                slowest = max(slowest, time.monotonic() - started)
                assert heard.status == 200
                bodies.add(heard.body)
            assert all_say(good, "valid")
            assert all_say(gone, "invalid")
        assert slowest < 1, "nobody waits for a database"
        assert len(bodies) <= 3
        assert hosts[0].call("GET", "/.well-known/status-lists").status == 200
        # 3. It is back: what happens is heard as before.
        wire.set(HEALTHY)
        until(lambda: hosts[0].call("GET", "/health/ready").status == 200, seconds=15)
        with rt.unit(ORIGIN) as unit:
            sessions.revoke_all(rt, unit, subject(good), actor="test", reason="test")
        until(lambda: all_say(good, "invalid"), seconds=30)
        rt.close()


def subject(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["sub"])
