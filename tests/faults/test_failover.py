"""A server's name leads to another: the service writes again within seconds, and goes on reading nothing that is no primary."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import make_url

from identity.app import create_runtime
from identity.core.admin import users
from identity.core.admin.by import By
from tests import servers
from tests.builders import PASSWORD, a_token, a_user, an_application
from tests.faults.chaos import Wire
from tests.faults.rig import ROUNDS, Service, children_of, serving, until
from tests.world import fast_settings

pytestmark = pytest.mark.faults
SECONDS = 10


class Pair:
    """A primary and its standby behind one name."""

    def __init__(self) -> None:
        self.primary = servers.start_postgres(durable=True)
        url = self.primary.create_database("identity")
        create_runtime(fast_settings(database_url=url)).database.close()
        self.standby = self.primary.standby()
        self.name = Wire(self.primary.socket)
        self.url = f"postgresql://postgres@127.0.0.1:{self.name.port}/identity"

    def wait_until_followed(self) -> None:
        """Until the standby has everything that the primary has acknowledged."""
        with (
            psycopg.connect(self._plain(self.primary)) as primary,
            psycopg.connect(self._plain(self.standby)) as standby,
        ):
            (sent,) = primary.execute("SELECT pg_current_wal_flush_lsn()").fetchone() or ("",)
            until(
                lambda: (standby.execute("SELECT pg_last_wal_replay_lsn() >= %s", (sent,)).fetchone() or (False,))[0],
                seconds=10,
            )

    def disable_on_the_new_primary(self, user_id: str) -> None:
        rt = create_runtime(fast_settings(database_url=self.standby.url("identity")), migrate=False)
        with contextlib.closing(rt):
            users.set_enabled(rt, By.command_line(), user_id, enabled=False)

    @staticmethod
    def _plain(server: servers.Postgres) -> str:
        url = make_url(server.url("identity")).set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    def stop(self) -> None:
        self.standby.stop()
        self.primary.stop()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.stop()


def end(server: servers.Postgres, how: str) -> None:
    """The primary dies, hangs, or lives on for itself."""
    if how == "killed":
        server.kill()
    elif how == "paused":
        signal_all(server, signal.SIGSTOP)


def signal_all(server: servers.Postgres, which: signal.Signals) -> None:
    pid = server.pid
    assert pid is not None
    for each in [*_descendants(pid), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, which)


def _descendants(pid: int) -> list[int]:
    return [one for child in children_of(pid) for one in (child, *_descendants(child))]


@pytest.mark.parametrize("how", ["killed", "paused", "alive"] if ROUNDS else ["killed"])
def test_the_service_follows_the_database(pair: Pair, tmp_path: Path, how: str) -> None:
    with serving(tmp_path / "service", {"database_url": pair.url}) as service:
        rt = service.runtime(database_url=pair.primary.url("identity"))
        ada, eve, feed = a_user(rt), a_user(rt), an_application(rt)
        tokens = {person.id: a_token(rt, person) for person in (ada, eve)}
        assert all(seen(service, token) == 200 for token in tokens.values() for _ in range(8))
        time.sleep(3.5)  # Its loop has seen the primary.
        pair.wait_until_followed()
        rt.close()
        # 1. The failover.
        end(pair.primary, how)
        began = time.monotonic()
        pair.name.lead_to(pair.standby.socket)
        pair.standby.promote()
        pair.disable_on_the_new_primary(eve.id)
        # 2. It writes again, there, and refuses whom the new primary does not know any more.
        until(lambda: logs_in(service, ada.email), seconds=SECONDS)
        until(lambda: {seen(service, tokens[eve.id]) for _ in range(20)} == {401}, seconds=SECONDS)
        took = time.monotonic() - began
        assert took < SECONDS + 2
        # 3. Every worker and thread of it.
        assert {seen(service, tokens[ada.id]) for _ in range(30)} == {200}
        good = {"clientId": feed.client_id, "secret": feed.secret}
        assert service.call("POST", "/application/token", good).status == 200
        assert service.call("GET", "/health/ready").status == 200
        if how == "paused":
            signal_all(pair.primary, signal.SIGCONT)
        assert service.faults() == []
        print(f"{how}: followed in {took:.1f} s")


def seen(service: Service, token: str) -> int:
    with service.client(timeout=15) as http:
        heard = http.call("GET", "/verify?tenant=optional", bearer=token)
    return heard.status if heard else 0


def logs_in(service: Service, email: str) -> bool:
    with service.client(timeout=15) as http:
        heard = http.call("POST", "/user/token", {"email": email, "password": PASSWORD})
    return heard is not None and heard.status == 200


def test_a_primary_that_became_read_only_is_not_ready_and_not_read(pair: Pair, tmp_path: Path) -> None:
    with serving(tmp_path / "service", {"database_url": pair.url}) as service:
        rt = service.runtime(database_url=pair.primary.url("identity"))
        token = a_token(rt, a_user(rt))
        rt.close()
        assert seen(service, token) == 200
        time.sleep(3.5)
        set_read_only(pair.primary, is_on=True)
        until(lambda: service.call("GET", "/health/ready").status == 503, seconds=SECONDS)
        until(lambda: {seen(service, token) for _ in range(10)} == {503}, seconds=SECONDS)
        set_read_only(pair.primary, is_on=False)
        until(lambda: service.call("GET", "/health/ready").status == 200, seconds=SECONDS)
        until(lambda: {seen(service, token) for _ in range(10)} == {200}, seconds=SECONDS)
        assert service.faults() == []


def set_read_only(server: servers.Postgres, *, is_on: bool) -> None:
    with psycopg.connect(Pair._plain(server), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if is_on else 'off'}")
        connection.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("how", ["demoted", "alive"] if ROUNDS else ["demoted"])
def test_the_service_follows_redis(tmp_path: Path, how: str) -> None:
    with servers.start_valkey() as one, servers.start_valkey() as other:
        name = Wire(one.url.removeprefix("unix://"))
        settings = {
            "database_url": f"sqlite:///{tmp_path}/i.db",
            "redis_url": f"valkey://127.0.0.1:{name.port}/0",
            "limit_application": "1000/minute",
        }
        with serving(tmp_path / "service", settings) as service, contextlib.ExitStack() as stack:
            first, second = (stack.enter_context(redis.Redis.from_url(server.url)) for server in (one, other))
            rt = service.runtime()
            feed = an_application(rt)
            rt.close()
            good = {"clientId": feed.client_id, "secret": feed.secret}
            assert service.call("POST", "/application/token", good).status == 200
            time.sleep(3.5)
            if how == "demoted":
                first.execute_command("REPLICAOF", "192.0.2.1", "6379")
                until(lambda: service.call("GET", "/health/ready").status == 503, seconds=3)
                assert service.call("POST", "/application/token", good).status == 503
            name.lead_to(other.url.removeprefix("unix://"))
            until(lambda: counted(service, good, second), seconds=SECONDS)
            before = len(first.keys("*"))
            assert {service.call("POST", "/application/token", good).status for _ in range(20)} == {200}
            assert len(first.keys("*")) <= before
            until(lambda: service.call("GET", "/health/ready").status == 200, seconds=2)
            assert service.faults() == []


def counted(service: Service, good: dict[str, str], server: redis.Redis) -> bool:
    heard = service.call("POST", "/application/token", good)
    return heard.status == 200 and any(b"application" in key for key in server.keys("*"))
