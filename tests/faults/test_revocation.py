"""Invariant I4: what is revoked on one process is refused by the next request of any other, with Redis or without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from identity.core.tokens import sessions
from identity.runtime import Runtime
from tests.builders import a_session, a_token, a_user, an_application
from tests.faults.chaos import REFUSING, SILENT, Fault, Wire
from tests.faults.conftest import Stores
from tests.faults.rig import Client, Service, rounds
from tests.world import ORIGIN

pytestmark = pytest.mark.faults
WIDE = {f"limit_{policy}": "1000000/minute" for policy in ("auth", "application", "standard")}


@pytest.fixture
def hosts(backend: str, stores: Stores, tmp_path: Path) -> Iterator[tuple[Service, Service]]:
    """Two services over one database."""
    settings = stores.fresh(backend, tmp_path) | {"workers": 1}
    one = Service(tmp_path / "one", settings)
    one.start()
    other = Service(tmp_path / "other", settings | {"issuer": one.url})
    other.start()
    yield one, other
    one.stop()
    other.stop()


def test_the_next_request_anywhere_sees_a_revocation(hosts: tuple[Service, Service]) -> None:
    one, other = hosts
    rt = one.runtime()
    admin = a_token(rt, a_user(rt, roles=["users_admin"]))
    with one.client() as here, other.client() as there:

        def status(method: str, path: str, body: object = None, *, on: Client = there, bearer: str = "") -> int:
            answer = on.call(method, path, body, bearer=bearer)
            assert answer is not None
            return answer.status

        for _ in range(rounds(10)):
            # A session, as a bearer and as a token; the other process has just vouched for it.
            person = a_user(rt)
            opened = a_session(rt, person)
            assert opened.bearer is not None
            bearer = opened.bearer.reveal()
            token = sessions.token_for(rt, sessions.find_live(rt, opened.session.id), seconds=3600).text
            for held in (bearer, token):
                assert status("GET", "/session", bearer=held) == 200
                assert status("GET", "/verify?tenant=optional", bearer=held) == 200
            assert status("DELETE", f"/session/{opened.session.id}", on=here, bearer=bearer) == 202
            for held in (bearer, token):
                assert status("GET", "/session", bearer=held) == 401
                assert status("GET", "/verify?tenant=optional", bearer=held) == 401
            # A user.
            token = a_token(rt, person)
            assert status("GET", "/auth/me", bearer=token) == 200
            assert status("PUT", f"/admin/user/{person.id}/disable", on=here, bearer=admin) == 202
            assert status("GET", "/auth/me", bearer=token) == 401
            assert status("POST", "/user/token", {"email": person.email, "password": person.password}) == 401
            # An application's token and its secret.
            machine = an_application(rt)
            login = {"clientId": machine.client_id, "secret": machine.secret}
            granted = there.call("POST", "/application/token", login)
            assert granted is not None
            token = granted.json["data"]["accessToken"]
            assert status("GET", "/verify?tenant=optional", bearer=token) == 200
            assert status("DELETE", f"/admin/application/{machine.client_id}", on=here, bearer=admin) == 202
            assert status("GET", "/verify?tenant=optional", bearer=token) == 401
            assert status("POST", "/application/token", login) == 401
    rt.close()


@pytest.mark.parametrize("fault", [REFUSING, SILENT], ids=["down", "hung"])
def test_without_redis_a_revoked_session_is_refused_all_the_same(stores: Stores, tmp_path: Path, fault: Fault) -> None:
    settings = stores.fresh("postgresql", tmp_path)
    with Wire(settings["redis_url"].removeprefix("unix://")) as redis:
        service = Service(tmp_path / "service", settings | WIDE | {"redis_url": f"redis://127.0.0.1:{redis.port}/0"})
        service.start()
        rt: Runtime = service.runtime()
        opened = a_session(rt, a_user(rt))
        kept = a_session(rt, a_user(rt))
        assert opened.bearer is not None
        assert kept.bearer is not None
        try:
            assert service.call("GET", "/session", bearer=opened.bearer.reveal()).status == 200
            redis.set(fault)
            with rt.unit(ORIGIN) as unit:
                sessions.revoke(rt, unit, opened.session.id, actor="test", reason="test")
            for path in ("/session", "/verify?tenant=optional"):
                assert service.call("GET", path, bearer=opened.bearer.reveal()).status == 401
                # The good one waits: what cannot be counted is not waved through.
                answer = service.call("GET", path, bearer=kept.bearer.reveal())
                assert (answer.status, answer.json["error"]) == (503, "UNAVAILABLE")
                assert int(answer.headers["retry-after"]) >= 1
        finally:
            rt.close()
            service.stop()
