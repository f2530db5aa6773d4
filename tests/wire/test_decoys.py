"""Decoys: refused like a wrong credential wherever they are used, in the same time, and who answers for them hears of it at once."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from werkzeug.test import TestResponse

from identity.core import upkeep
from identity.core.clients import decoys, issuers, keypair_proof, keypairs, registration, secrets
from identity.core.clients.keypairs import KeyPair
from identity.core.clients.secrets import ClientSecret
from identity.core.record import audit
from identity.errors import Refused
from identity.instruments import opaque
from tests.builders import Machine, a_session, a_tenant, a_user, an_application
from tests.issuer_world import ed_key, public_jwk
from tests.oauth_world import as_client, assertion, jwks, rsa_key, with_assertion
from tests.test_timing import ROUNDS, TRIES, USABLE, distance
from tests.world import ORIGIN, Web

THIEF: dict[str, Any] = {"environ_overrides": {"REMOTE_ADDR": "203.0.113.66"}}
AGENT = {"User-Agent": "loot/1.0"}


@pytest.fixture
def boss(web: Web) -> str:
    opened = a_session(web.rt, a_user(web.rt, email="boss@acme.example", roles=("users_admin",)))
    assert opened.bearer is not None
    return opened.bearer.reveal()


@pytest.fixture
def bait(web: Web, boss: str) -> Machine:
    a_tenant(web.rt, "acme")
    a_user(web.rt, email="owner@acme.example", tenants={"acme": ["owner"]})
    made = web.post(
        "/admin/application", {"name": "billing", "scopes": ["read"], "tenant": "acme", "decoy": True}, bearer=boss
    ).json
    return Machine(made["clientId"], made["appId"], made["secret"], made["secretID"])


def a_bait_pair(web: Web, boss: str, user_id: str) -> tuple[str, dict[str, str]]:
    answer = web.post(f"/admin/user/{user_id}/keypair", {"name": "backup", "days": 9, "decoy": True}, bearer=boss)
    assert (answer.status_code, answer.json["verified"], answer.json["verificationCodeID"]) == (202, True, None)
    return answer.json["keyID"], {"api-key": answer.json["apiKey"], "api-secret": answer.json["apiSecret"]}


def ask(web: Web, feed: Machine, secret: str = "") -> TestResponse:
    body = {"clientId": feed.client_id, "secret": secret or feed.secret}
    return web.post("/application/token", body, headers=AGENT, **THIEF)


def face(answer: TestResponse) -> Any:
    """All that a client sees, without what differs for every request."""
    once = {"X-Request-Id", "x-error-id", "Date", "X-RateLimit-Remaining", "X-RateLimit-Reset"}
    return answer.status_code, answer.data, sorted(one for one in answer.headers if one[0] not in once)


def warnings(web: Web) -> list[Any]:
    upkeep.write_notes(web.rt)
    return [one for one in web.mails() if "decoy" in one["Subject"]]


def tries(web: Web) -> list[Any]:
    return audit.search(web.rt, action="decoy.tried", limit=200)


def test_a_decoy_is_refused_like_a_wrong_secret_by_every_door(web: Web, bait: Machine) -> None:
    feed = an_application(web.rt)
    wrong = Machine(feed.client_id, feed.app_id, bait.secret, "")
    assert face(ask(web, bait)) == face(ask(web, wrong))
    grant, token = {"grant_type": "client_credentials"}, {"token": "x"}
    for path, form in (("/oauth/token", grant), ("/oauth/introspect", token), ("/oauth/revoke", token)):
        by_basic = [face(web.post(path, data=form, headers=as_client(one))) for one in (bait, wrong)]
        assert by_basic[0] == by_basic[1]
        posted = [
            face(web.post(path, data=form | {"client_id": one.client_id, "client_secret": one.secret}))
            for one in (bait, wrong)
        ]
        assert posted[0] == posted[1]
        assert (by_basic[0][0], posted[0][0]) == (401, 401)
    of_its_own = web.post("/oauth/token", data=grant | with_assertion(assertion(web.rt, bait.client_id)))
    assert of_its_own.status_code == 401
    platform = grant | {
        "client_id": bait.client_id,
        "client_assertion": assertion(web.rt, "somebody"),
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }
    assert web.post("/oauth/token", data=platform).status_code == 401
    assert len(tries(web)) == 9, "each of them was taken down"


def test_its_owners_and_the_audit_hear_at_once_with_address_and_user_agent(web: Web, bait: Machine) -> None:
    assert ask(web, bait).status_code == 401
    (event,) = tries(web)
    assert (event.target, event.tenant, event.address) == (bait.client_id, "acme", "203.0.113.66")
    assert (event.data["userAgent"], event.data["right"]) == ("loot/1.0", True)
    (mail,) = warnings(web)
    assert mail["To"] == "owner@acme.example"
    text = mail.get_body(("plain",)).get_content()
    assert "203.0.113.66" in text
    assert "loot/1" in text
    assert "billing" in text


def test_an_error_id_explains_that_it_was_a_decoy(web: Web, bait: Machine, boss: str) -> None:
    answer = ask(web, bait)
    told = web.get(f"/admin/error/{answer.headers['x-error-id']}", bearer=boss).json
    assert "decoy" in told["check"]
    assert tries(web)[0].error_id == answer.headers["x-error-id"]


def test_a_guess_at_its_secret_is_a_try_too(web: Web, bait: Machine) -> None:
    ask(web, bait, secret="nothing")
    assert tries(web)[0].data["right"] is False
    assert len(warnings(web)) == 1


def test_any_number_of_tries_is_one_mail_an_hour(web: Web, bait: Machine) -> None:
    for number in range(12):
        ask(web, bait)
        web.clock.tick(1)
        assert len(warnings(web)) == 1, number
    web.clock.tick(decoys.QUIET_SECONDS)
    decoys.tell_left(web.rt)
    assert len(warnings(web)) == 2, "those that came meanwhile"
    assert "11 times" in " ".join(warnings(web)[1].get_body(("plain",)).get_content().split())
    web.clock.tick(decoys.QUIET_SECONDS)
    decoys.tell_left(web.rt)
    assert len(warnings(web)) == 2, "nobody tried it since"


def test_a_try_is_told_by_another_process_when_the_one_that_saw_it_dies(web: Web, bait: Machine) -> None:
    ask(web, bait)
    web.rt.tried_decoys.clear()
    assert warnings(web) == []
    decoys.tell_left(web.rt)
    assert len(warnings(web)) == 1


@pytest.mark.parametrize("role", ["users_admin", "analyst"])
def test_a_key_pair_that_is_a_decoy_passes_nowhere(web: Web, boss: str, role: str) -> None:
    ada = a_user(web.rt, email="ada@acme.example", roles=(role,), tenants={"acme": ["owner"]})
    key_id, pair = a_bait_pair(web, boss, ada.id)
    wrong = pair | {"api-secret": pair["api-secret"][:-1] + ("A" if pair["api-secret"][-1] != "A" else "B")}
    assert web.put(f"/admin/keypair/{key_id}/verify", bearer=boss).status_code == 202
    for path in ("/keypair", "/verify?tenant=optional", "/admin/users", "/tenant/members", f"/user/{ada.id}"):
        assert web.get(path, headers=pair | {"X-Tenant-Id": "acme"}).status_code == 401, path
    assert web.post("/keypair/token", {}, headers=pair).status_code == 401
    assert web.delete("/keypair", headers=pair).status_code == 401
    assert face(web.get("/keypair", headers=pair))[:2] == face(web.get("/keypair", headers=wrong))[:2]
    assert {event.target for event in tries(web)} == {key_id}
    assert [mail["To"] for mail in warnings(web)] == ["ada@acme.example"]


def test_a_decoy_never_becomes_a_real_client(web: Web, bait: Machine, boss: str) -> None:
    rt = web.rt
    again = web.post(f"/admin/application/{bait.client_id}/secret", {}, bearer=boss).json["secret"]
    assert ask(web, bait, secret=again).status_code == 401
    keys = {"jwks": jwks(rsa_key())}
    assert web.patch(f"/admin/application/{bait.client_id}", keys, bearer=boss).status_code == 409
    made = web.post("/admin/application", {"name": "x", "scopes": [], "decoy": True, **keys}, bearer=boss)
    assert made.status_code == 409
    with rt.unit(ORIGIN) as unit, pytest.raises(Refused, match="a trust of a decoy"):
        issuers.add_trust(
            rt, unit, bait.client_id, actor="test", name="ci", issuer="https://ci.example", subject="runner",
            jwks={"keys": [public_jwk(ed_key(), "k1")]})  # fmt: skip
    document = "mutation L($u: String!, $p: String!, $a: Int) { login(username: $u, password: $p, appId: $a) { code } }"
    ada = a_user(rt)
    values = {"u": ada.email, "p": ada.password, "a": bait.app_id}
    answer = web.post("/query", {"query": document, "variables": values}).json
    assert answer["data"]["login"]["code"] == "INVALID_CREDENTIALS"


def test_no_version_can_find_a_decoys_secret_right(web: Web, bait: Machine, boss: str) -> None:
    """An older one knows nothing of decoys, and compares what it always has."""
    _, pair = a_bait_pair(web, boss, a_user(web.rt).id)
    vault = web.rt.ring.vault
    with web.rt.database.reading() as session:
        kept = session.scalars(select(ClientSecret.fingerprint).where(ClientSecret.client_id == bait.client_id)).one()
        kept_of_pair = session.scalars(select(KeyPair.fingerprint).where(KeyPair.api_key == pair["api-key"])).one()
    assert not opaque.matches(kept, opaque.fingerprint(vault.derive("client secrets"), bait.secret))
    assert not opaque.matches(kept_of_pair, opaque.fingerprint(vault.derive("api secrets"), pair["api-secret"]))


def test_administrators_see_which_are_decoys_and_a_plan_leaves_them_out(web: Web, bait: Machine, boss: str) -> None:
    assert web.get(f"/admin/application/{bait.client_id}", bearer=boss).json["decoy"] is True
    assert web.get("/admin/applications?appId=10", bearer=boss).json["applications"][0]["decoy"] is False


def apart(web: Web, decoy: Callable[[], object], wrong: Callable[[], object], code: str) -> float:
    """How far the clock tells the two refusals apart: the least of several tries, as the noise of a busy machine passes."""
    tried, seen = {"decoy": decoy, "wrong": wrong}, float("inf")
    for attempt in range(TRIES + 1):
        spent: dict[str, list[float]] = {name: [] for name in tried}
        gc.disable()
        for number in range(3 if attempt == 0 else ROUNDS):
            for name in sorted(tried, reverse=bool(number % 2)):
                web.clock.tick(400)
                started = time.perf_counter()
                with pytest.raises(Refused, match=code):
                    tried[name]()
                spent[name].append(time.perf_counter() - started)
        gc.enable()
        if attempt > 0:
            seen = min(seen, distance(spent["decoy"], spent["wrong"]))
        if seen < USABLE:
            break
    return seen


def test_the_clock_does_not_tell_a_decoy_from_a_wrong_secret(web: Web) -> None:
    rt = web.rt
    feed = an_application(rt)
    with rt.unit(ORIGIN) as unit:
        info, made = registration.register(rt, unit, name="billing", actor="test", decoy=True)
    secret = made.secret.reveal()
    seen = apart(
        web,
        lambda: secrets.authenticate(rt, ORIGIN, info.id, secret),
        lambda: secrets.authenticate(rt, ORIGIN, feed.client_id, secret),
        "INVALID_CREDENTIALS",
    )
    assert seen < USABLE, "told apart by time"


def test_the_clock_does_not_tell_a_decoy_from_a_pair_with_a_wrong_secret(web: Web, boss: str) -> None:
    rt = web.rt
    owner = a_user(rt)
    _, bait_pair = a_bait_pair(web, boss, owner.id)
    with rt.unit(ORIGIN) as unit:
        real, _ = keypairs.create(rt, unit, owner.id, name="ci", days=9, actor="test", verified=True)
    secret = bait_pair["api-secret"]
    seen = apart(
        web,
        lambda: keypair_proof.authenticate(rt, ORIGIN, bait_pair["api-key"], secret),
        lambda: keypair_proof.authenticate(rt, ORIGIN, real.api_key, secret),
        "INVALID_CREDENTIALS",
    )
    assert seen < USABLE, "told apart by time"
