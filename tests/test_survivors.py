"""Rules that could once be broken without a test noticing: each breakage was tried, and each has its test here."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest
from sqlalchemy import func, select

from identity import logs
from identity.ambient import Origin
from identity.core import upkeep
from identity.core.clients import keypair_proof, keypairs
from identity.core.people.ownership import ANYONE
from identity.core.proofs.attempts import Meter
from identity.core.proofs.codes import Code
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens.sessions import UserSession
from identity.errors import UNAVAILABLE, Refused
from identity.instruments.keyring import Keyring
from identity.runtime import Runtime
from tests.builders import a_session, a_tenant, a_token, a_user, an_application
from tests.oauth_world import asking, basic
from tests.world import ORIGIN, FakeClock, Web

YEAR = 366 * 86_400


def down(*_: object, **__: object) -> None:
    raise Refused(UNAVAILABLE, detail="broken on purpose")


def form(web: Web, path: str, values: dict[str, str], client: tuple[str, str]) -> tuple[int, dict[str, object]]:
    answer = web.call("POST", path, data=values, headers=basic(*client))
    return answer.status_code, answer.json or {}


def test_a_tenant_shows_its_own_members_only(web: Web) -> None:
    boss = a_token(web.rt, a_user(web.rt, roles=("users_admin",)))
    ada = a_user(web.rt, tenants={"acme-bank": ["analyst"]})
    a_user(web.rt, tenants={"globex": ["lead"]})
    a_tenant(web.rt, "acme-bank")
    shown = web.get("/admin/tenant/acme-bank/members", bearer=boss).json
    assert shown["items"] == 1
    assert [member["userID"] for member in shown["members"]] == [ada.id]


def test_the_sweep_purges(web: Web, clock: FakeClock) -> None:
    ada = a_user(web.rt)
    a_session(web.rt, ada)
    web.post("/session", {"email": ada.email})
    web.post("/user/token", {"email": ada.email, "password": "wrong"})
    clock.tick(YEAR)
    upkeep.sweep(web.rt)
    with web.rt.database.reading() as session:
        left = {
            table.__tablename__: session.scalar(select(func.count()).select_from(table))
            for table in (UserSession, Code, Meter)
        }
    assert set(left.values()) == {0}, left


def test_a_revocation_that_was_not_written_is_not_acknowledged(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = an_application(web.rt)
    client = (feed.client_id, feed.secret)
    token = str(form(web, "/oauth/token", dict(asking()), client)[1]["access_token"])
    with monkeypatch.context() as broken:
        broken.setattr(Runtime, "unit", down)
        assert form(web, "/oauth/revoke", {"token": token}, client)[0] == 503
    assert form(web, "/oauth/introspect", {"token": token}, client)[1]["active"] is True
    assert form(web, "/oauth/revoke", {"token": token}, client)[0] == 200
    assert form(web, "/oauth/introspect", {"token": token}, client)[1] == {"active": False}


def test_a_wrong_mailed_code_is_in_the_audit(web: Web) -> None:
    ada = a_user(web.rt)
    opened = web.post("/session", {"email": ada.email}).json
    wrong = "000000" if web.last_code() != "000000" else "111111"
    body = {"verificationCodeID": opened["verificationCodeID"], "code": wrong}
    assert web.put("/session/verification", body).status_code == 401
    (event,) = audit.search(web.rt, action=Action.CODE_REFUSED)
    assert (event.actor, event.target) == (ada.id, opened["verificationCodeID"])


def test_a_key_pair_that_is_being_revoked_earns_no_token(rt: Runtime) -> None:
    ada = a_user(rt)
    with rt.unit(ORIGIN) as unit:
        info, secret = keypairs.create(rt, unit, ada.id, name="feed", days=5, actor="test", verified=True)
    key = keypair_proof.authenticate(rt, ORIGIN, info.api_key, secret.reveal())
    ended: list[str] = []

    def trade() -> None:
        try:
            keypair_proof.trade(rt, ORIGIN, key, resource=rt.settings.default_audience)
        except Refused as refused:
            ended.append(refused.problem.code)
        else:
            ended.append("traded")

    racing = threading.Thread(target=trade)
    with rt.unit(Origin.command_line()) as unit:
        keypairs.revoke(rt, unit, info.id, actor="test", of=ANYONE)
        racing.start()
        racing.join(0.5)
        assert ended == [], "it waits to see what becomes of the pair"
    racing.join()
    assert ended == ["INVALID_CREDENTIALS"]


@pytest.mark.parametrize("path", ["/.well-known/jwks.json", "/.well-known/openid-configuration"])
def test_a_refusal_of_a_cacheable_route_is_not_cached(web: Web, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    assert "public" in web.get(path).headers["Cache-Control"]
    monkeypatch.setattr(Keyring, "jwks", down)
    monkeypatch.setattr("identity.wire.dialects.public._metadata", down)
    answer = web.get(path)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (503, "no-store")


def test_a_key_retires_from_its_own_successor_on(rt: Runtime, clock: FakeClock) -> None:
    first = rt.ring.active_kid(clock.now())
    longest = rt.settings.longest_token_seconds
    for _ in range(2):
        rt.ring.ensure_standby()
        clock.tick(rt.settings.jwks_max_age_seconds + 60)
        with rt.unit(ORIGIN) as unit:
            rt.ring.rotate(unit)
        clock.tick(longest / 2 + 120)
    # The first key's successor signs since long enough; the successor of that one does not.
    with rt.unit(ORIGIN) as unit:
        assert rt.ring.drop_spent(unit) == 1
    rt.ring.load()
    assert first not in {key.kid for key in rt.ring.list()}
    assert len([key for key in rt.ring.list() if key.state == "retired"]) == 1


def test_a_record_that_cannot_be_written_takes_no_other_with_it() -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("cannot be spelled")

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    gathered = logs.Gathered(handler)
    for message in ("before", Odd(), "after"):
        gathered.buffer.append(logging.LogRecord("identity", logging.INFO, "", 0, message, (), None))
    gathered.flush()
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["before", "a record could not be written", "after"]
