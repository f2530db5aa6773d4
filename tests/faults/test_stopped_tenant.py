"""A tenant of twenty thousand members is stopped under load: refused by the next request on every process, and no login waits for it."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from sqlalchemy import insert

from identity.core.people.accounts import User
from identity.core.people.tenancy import Membership
from identity.core.tokens.session_rows import UserSession
from identity.runtime import Runtime
from tests.builders import PASSWORD, Person, a_session, a_tenant, a_token, a_user, an_application
from tests.faults.conftest import Stores
from tests.faults.rig import Service
from tests.faults.test_status_lists import TTL, a_stranger, two_hosts
from tests.world import ORIGIN

pytestmark = pytest.mark.faults
MEMBERS = 20_000
ACME = {"X-Tenant-Id": "acme-bank"}


@pytest.fixture
def hosts(backend: str, stores: Stores, tmp_path: Path) -> Iterator[tuple[Service, Service]]:
    with two_hosts(stores.fresh(backend, tmp_path) | {"hash_wait_seconds": 30}, tmp_path) as started:
        yield started


def fill(rt: Runtime, like: Person) -> None:
    """Twenty thousand members with a session each, by three statements."""
    session = a_session(rt, like).session.id
    with rt.unit(ORIGIN) as unit:
        rows = [unit.session.get_one(User, like.id), unit.session.get_one(UserSession, session)]
        user, login = ({column.key: getattr(row, column.key) for column in row.__table__.columns} for row in rows)
        ids = [rt.new_id() for _ in range(MEMBERS)]
        places = rt.status_lists.lease(unit, MEMBERS)
        unit.session.execute(
            insert(User.__table__), [user | {"id": one, "alias": f"m{at}"} for at, one in enumerate(ids)]
        )
        unit.session.execute(
            insert(Membership.__table__), [{"user_id": one, "tenant_id": "acme-bank", "roles": ()} for one in ids]
        )
        unit.session.execute(
            insert(UserSession.__table__),
            [
                login | {"id": rt.new_id(), "bearer": None, "user_id": one, "place": place}
                for one, place in zip(ids, places, strict=True)
            ],
        )


class Load:
    """Requests from several threads to every process in turn, each noted with when it was sent, when answered, and how."""

    def __init__(self, hosts: tuple[Service, ...], tokens: list[str], person: Person) -> None:
        self.seen: list[tuple[float, float, int]] = []
        self.logins: list[tuple[float, int]] = []
        self._stop = threading.Event()
        asking = [(self._ask, host, token) for token in tokens for host in hosts]
        entering = [(self._enter, host, person.email) for host in hosts]
        self._threads = [threading.Thread(target=run, args=(host, of)) for run, host, of in (*asking, *entering)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, host: Service, token: str) -> None:
        while not self._stop.is_set():
            with host.client() as http:  # A connection of its own: any worker may take it.
                sent = time.monotonic()
                answer = http.call("GET", "/verify", bearer=token, headers=ACME)
                self.seen.append((sent, time.monotonic(), answer.status if answer else 0))

    def _enter(self, host: Service, email: str) -> None:
        while not self._stop.is_set():
            with host.client() as http:
                sent = time.monotonic()
                answer = http.call("POST", "/user/token", {"email": email, "password": PASSWORD})
                self.logins.append((time.monotonic() - sent, answer.status if answer else 0))


def test_twenty_thousand_members_are_stopped_at_once(hosts: tuple[Service, Service]) -> None:
    rt = hosts[0].runtime()
    a_tenant(rt, "acme-bank")
    people = [a_user(rt, tenants={"acme-bank": ("analyst",)}) for _ in range(3)]
    boss = a_token(rt, a_user(rt, roles=("users_admin",)))
    feed = an_application(rt, tenant="acme-bank")
    fill(rt, people[0])
    tokens = [a_token(rt, person) for person in people]
    strangers = [a_stranger(hosts[0].url, host) for host in hosts]
    with hosts[0].client() as http:
        earned = http.call("POST", "/application/token", {"clientId": feed.client_id, "secret": feed.secret})
        assert earned is not None
        machine = earned.json["data"]["accessToken"]
        assert {one.verdict(token) for one, token in itertools.product(strangers, [*tokens, machine])} == {"valid"}
        with Load(hosts, tokens, people[0]) as load:
            time.sleep(1)
            sent = time.monotonic()
            answer = http.call("PUT", "/admin/tenant/acme-bank/disable", bearer=boss)
            told = time.monotonic()
            time.sleep(0.5)
        assert answer is not None
        assert answer.status == 202

        # From the first refusal on, whoever asks is refused, whichever process it is.
        assert {status for _, _, status in load.seen} == {200, 403}
        refused = min(end for _, end, status in load.seen if status == 403)
        assert not [start for start, _, status in load.seen if status == 200 and start > refused]
        assert {status for _, status in load.logins} == {200}
        longest = max(seconds for seconds, _ in load.logins)
        print(
            f"refused {refused - sent:.2f} s after it was asked, told within {told - sent:.2f} s, longest login {longest:.2f} s"
        )
        assert refused < told, "nobody waits until all members are told of"

        # Who never asks hears of it within one ttl, and what has ended stays ended.
        time.sleep(TTL)
        expected = [*["changed"] * len(tokens), "invalid"]
        assert [[one.verdict(token) for token in (*tokens, machine)] for one in strangers] == [expected] * 2
        http.call("PUT", "/admin/tenant/acme-bank/enable", bearer=boss)
        passes = [http.call("GET", "/verify", bearer=token, headers=ACME) for token in (tokens[0], machine)]
        assert [one.status if one else 0 for one in passes] == [200, 401]
        time.sleep(TTL)
        assert [[one.verdict(token) for token in (*tokens, machine)] for one in strangers] == [expected] * 2
    rt.close()
