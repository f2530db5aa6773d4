"""After a leak: what a credential touched, and that one call ends it with all that it earned, tells its owners and keeps the report."""

from __future__ import annotations

import threading
from typing import Any

import jwt
import pytest
from sqlalchemy import func, select

from identity.core import upkeep
from identity.core.admin import erasure, incidents
from identity.core.admin.by import By
from identity.core.admin.incidents import Kind
from identity.core.clients import issuers, keypairs
from identity.core.record import audit
from identity.instruments import tallies
from identity.instruments.tallies import CredentialUse, Tallies
from tests.builders import Machine, Person, a_session, a_tenant, a_token, a_user, an_application
from tests.issuer_world import ed_key, public_jwk
from tests.oauth_world import as_client, assertion, jwks, rsa_key, with_assertion
from tests.stranger import value_at
from tests.world import ORIGIN, Web

THIEF = {"REMOTE_ADDR": "203.0.113.66"}
HOME = {"REMOTE_ADDR": "192.0.2.10"}


@pytest.fixture
def boss(web: Web) -> str:
    opened = a_session(web.rt, a_user(web.rt, email="boss@acme.example", roles=("users_admin",)))
    assert opened.bearer is not None
    return opened.bearer.reveal()


def earned(web: Web, feed: Machine, *, at: dict[str, str] = HOME) -> str:
    answer = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}, environ_overrides=at)
    assert answer.status_code == 200, answer.json
    token: str = answer.json["data"]["accessToken"]
    return token


def a_pair(web: Web, owner: Person) -> tuple[str, dict[str, str]]:
    with web.rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(web.rt, unit, owner.id, name="ci", days=9, actor="test", verified=True)
    return pair.id, {"api-key": pair.api_key, "api-secret": secret.reveal()}


def pair_of(made: dict[str, Any]) -> dict[str, str]:
    return {"api-key": made["apiKey"], "api-secret": made["apiSecret"]}


def passes(web: Web, token: str) -> bool:
    return web.get("/verify?tenant=optional", bearer=token).status_code == 200


def shown(web: Web, boss: str, query: str) -> dict[str, Any]:
    upkeep.write_tallies(web.rt)
    answer = web.get(f"/admin/incident?{query}", bearer=boss)
    assert answer.status_code == 200, answer.json
    return dict(answer.json)


def contained(web: Web, boss: str, **named: Any) -> dict[str, Any]:
    upkeep.write_tallies(web.rt)
    answer = web.post("/admin/incident", {**named, "contain": True}, bearer=boss)
    assert answer.status_code == 202, answer.json
    return dict(answer.json)


def test_a_leaked_secret_is_contained_in_one_call(web: Web, boss: str) -> None:
    a_tenant(web.rt, "acme")
    a_user(web.rt, email="owner@acme.example", tenants={"acme": ["owner"]})
    # Half past some hour: uses are told by the hour.
    web.clock.tick((1_800 - web.clock.now().timestamp()) % 3_600)
    feed, other = an_application(web.rt, tenant="acme"), an_application(web.rt, name="other")
    tokens = [earned(web, feed), earned(web, feed, at=THIEF)]
    upkeep.write_tallies(web.rt)
    web.clock.tick(3600)
    tokens.append(earned(web, feed, at=THIEF))
    innocent = earned(web, other)
    assert all(passes(web, token) for token in tokens)
    web.post("/oauth/introspect", data={"token": tokens[0]}, headers=as_client(feed), environ_overrides=THIEF)

    before = shown(web, boss, f"secret={feed.secret_id}")
    assert before["contained"] is None
    assert (before["clientId"], before["tenant"], before["lives"]) == (feed.client_id, "acme", True)
    assert [(one["address"], one["tokens"]) for one in before["earned"]] == [
        ("203.0.113.66", 1), ("192.0.2.10", 1), ("203.0.113.66", 1)]  # fmt: skip
    used = {one["route"]: one["uses"] for one in before["routes"]}
    assert used == {"POST /application/token": 3, "GET /verify": 3, "POST /oauth/introspect": 1}
    web.clock.tick(1)
    later = int(web.clock.now().timestamp())
    assert shown(web, boss, f"secret={feed.secret_id}&since={later - 600}")["counts"]["tokens"] == 1, "only since then"

    after = contained(web, boss, secret=feed.secret_id, since=str(later - 86_400))
    assert (after["lives"], after["contained"]["told"], after["contained"]["report"]["counts"]["tokens"]) == (
        False,
        1,
        3,
    )
    assert not any(passes(web, token) for token in tokens), "at the next request"
    assert passes(web, innocent)
    place = web.rt.status_lists.place_of(jwt.decode(tokens[0], options={"verify_signature": False}))
    web.rt.status_lists.refresh()
    web.clock.tick(web.rt.settings.status_ttl_seconds)
    assert place is not None
    listed = jwt.decode(web.get("/.well-known/status-lists/0").text, options={"verify_signature": False})["status_list"]
    assert value_at(listed["lst"], listed["bits"], place) == 1, "within one ttl"
    (mail,) = [one for one in web.mails() if "leak" in one["Subject"]]
    assert mail["To"] == "owner@acme.example"
    assert "3 tokens" in " ".join(mail.get_body(("plain",)).get_content().split())  # type: ignore[union-attr]


def test_containing_again_changes_nothing(web: Web, boss: str) -> None:
    feed = an_application(web.rt)
    earned(web, feed)
    first = contained(web, boss, secret=feed.secret_id)
    mails, events = len(web.mails()), audit.count(web.rt)
    web.clock.tick(60)
    again = contained(web, boss, secret=feed.secret_id)
    assert again["contained"] == first["contained"]
    assert again["clientId"] == feed.client_id, "it is known whose it was"
    assert (len(web.mails()), audit.count(web.rt)) == (mails, events)


def test_two_who_contain_at_once_leave_one_report(web: Web, boss: str) -> None:
    feed = an_application(web.rt)
    earned(web, feed)
    answers: list[int] = []

    def contain() -> None:
        answers.append(
            web.post("/admin/incident", {"secret": feed.secret_id, "contain": True}, bearer=boss).status_code
        )

    threads = [threading.Thread(target=contain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [202] * 4
    assert audit.count(web.rt, action="incident.contained") == 1
    assert len([one for one in web.mails() if "leak" in one["Subject"]]) == 1


def test_a_leaked_key_pair_is_told_with_what_it_opened_and_ended_with_it(web: Web, boss: str) -> None:
    ada = a_user(web.rt, email="ada@acme.example", roles=("users_admin",))
    key_id, pair = a_pair(web, ada)
    traded = web.post("/keypair/token", {}, headers=pair, environ_overrides=THIEF).json["accessToken"]
    made = web.post("/admin/tenant", {"id": "loot", "name": "Loot"}, bearer=traded, environ_overrides=THIEF)
    assert made.status_code == 202
    assert web.get("/keypair", headers=pair).status_code == 200
    found = shown(web, boss, f"key={pair['api-key']}")
    assert (found["id"], found["userID"]) == (key_id, ada.id), "by what stands in a log"
    assert found["counts"] == {"uses": 3, "tokens": 1, "addresses": 2, "sessions": 1, "deeds": found["counts"]["deeds"]}
    assert [one["ip"] for one in found["sessions"]] == ["203.0.113.66"]
    assert "tenant.created" in {one["action"] for one in found["deeds"]}
    after = contained(web, boss, key=key_id)
    assert after["contained"]["report"]["counts"] == found["counts"]
    assert not passes(web, traded)
    assert web.get("/keypair", headers=pair).status_code == 401
    assert {one["To"] for one in web.mails() if "leak" in one["Subject"]} == {"ada@acme.example"}


def test_a_leaked_trust_is_contained(web: Web, boss: str) -> None:
    feed, key = an_application(web.rt), ed_key()
    with web.rt.unit(ORIGIN) as unit:
        trust = issuers.add_trust(
            web.rt, unit, feed.client_id, actor="test", name="ci", issuer="https://ci.example", subject="runner",
            jwks={"keys": [public_jwk(key, "k1")]})  # fmt: skip
    now = int(web.clock.now().timestamp())
    said = {"iss": "https://ci.example", "sub": "runner", "aud": web.rt.settings.issuer, "exp": now + 600}
    form = {
        "grant_type": "client_credentials",
        "client_id": feed.client_id,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": jwt.encode(said, key, "EdDSA", headers={"kid": "k1"}),
    }
    token = web.post("/oauth/token", data=form).json["access_token"]
    assert passes(web, token)
    assert shown(web, boss, f"trust={trust.id}")["counts"]["tokens"] == 1
    by_the_audits_name = shown(web, boss, f"secret={trust.id}")
    assert (by_the_audits_name["kind"], by_the_audits_name["lives"]) == ("trust", True)
    assert contained(web, boss, trust=trust.id)["contained"]["report"]["counts"]["uses"] == 2
    assert not passes(web, token)
    assert web.post("/oauth/token", data=form).status_code == 401


def test_a_leaked_key_set_is_contained_by_the_id_that_the_audit_has(web: Web, boss: str) -> None:
    feed = an_application(web.rt, jwks=jwks(rsa_key()))
    form = {"grant_type": "client_credentials"}
    token = web.post("/oauth/token", data=form | with_assertion(assertion(web.rt, feed.client_id))).json["access_token"]
    assert passes(web, token)
    key_set = jwt.decode(token, options={"verify_signature": False})["jti"].partition(".")[2]
    assert shown(web, boss, f"secret={key_set}")["lives"]
    after = contained(web, boss, secret=key_set)
    assert (after["clientId"], after["lives"], after["contained"]["report"]["counts"]["tokens"]) == (
        feed.client_id,
        False,
        1,
    )
    assert not passes(web, token)
    again = web.post("/oauth/token", data=form | with_assertion(assertion(web.rt, feed.client_id)))
    assert again.status_code == 401
    assert contained(web, boss, secret=key_set)["contained"] == after["contained"]


def test_a_leaked_signing_key_is_told_and_withdrawn(web: Web, boss: str) -> None:
    feed = an_application(web.rt)
    token = earned(web, feed)
    assert passes(web, token)
    kid = jwt.get_unverified_header(token)["kid"]
    found = shown(web, boss, f"kid={kid}")
    assert found["counts"]["tokens"] == 1
    assert {"POST /application/token", "GET /verify"} <= {one["route"] for one in found["routes"]}
    assert web.post("/admin/incident", {"kid": kid, "contain": True}, bearer=boss).status_code == 202
    assert not passes(web, token)
    assert audit.count(web.rt, action="incident.contained") == 1
    assert audit.count(web.rt, action="signing-key.revoked") == 1


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("secret=a&key=b", 400),
        ("secret=000000000000", 404),
        ("secret=%25", 404),
        ("key=00000000-0000-7000-8000-000000000000", 404),
        ("kid=nothing", 404),
        ("secret=000000000000&since=4102444800", 400),
        ("secret=000000000000&since=yesterday", 400),
    ],
)
def test_what_is_asked_must_be_one_credential_of_the_past(web: Web, boss: str, query: str, status: int) -> None:
    assert web.get(f"/admin/incident?{query}", bearer=boss).status_code == status


def test_a_secret_that_is_gone_is_still_answered_for(web: Web, boss: str) -> None:
    feed = an_application(web.rt)
    earned(web, feed)
    assert web.delete(
        f"/admin/application/{feed.client_id}/secret/{feed.secret_id}?force=true", bearer=boss
    ).status_code == 202  # fmt: skip
    found = shown(web, boss, f"secret={feed.secret_id}")
    assert (found["lives"], found["clientId"], found["counts"]["tokens"]) == (False, feed.client_id, 1)


def test_telling_changes_nothing_and_needs_an_administrator(web: Web, boss: str) -> None:
    feed = an_application(web.rt)
    token = earned(web, feed)
    assert web.post("/admin/incident", {"secret": feed.secret_id}, bearer=boss).json["contained"] is None
    assert passes(web, token)
    stranger = a_token(web.rt, a_user(web.rt))
    asked = {"secret": feed.secret_id, "contain": True}
    assert web.post("/admin/incident", asked, bearer=stranger).status_code == 403
    assert passes(web, token)


def test_counts_are_forgotten_after_90_days_and_with_their_person(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    key_id, pair = a_pair(web, ada)
    feed = an_application(web.rt)
    earned(web, feed)
    web.get("/keypair", headers=pair)
    shown(web, boss, f"key={key_id}")
    (use,) = web.get(f"/admin/user/{ada.id}/export", bearer=boss).json["uses"]
    assert (use["credential"], use["route"], use["uses"]) == (f"key:{key_id}", "GET /keypair", 1)
    contained(web, boss, key=key_id)
    _, second = a_pair(web, ada)
    web.get("/keypair", headers=second)
    upkeep.write_tallies(web.rt)
    with web.rt.unit(ORIGIN) as unit:
        erasure.erase(web.rt, unit, ada.id, actor="test")
        assert unit.execute(select(func.count()).select_from(incidents.IncidentReport)).scalar_one() == 0
        left = set(unit.execute(select(CredentialUse.credential)).scalars())
        assert f"secret:{feed.secret_id}" in left
        assert len([one for one in left if one.startswith("key:")]) == 1, "of the pair that was gone before"
    web.clock.tick(89 * 86_400)
    upkeep.sweep(web.rt)
    with web.rt.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(CredentialUse))
    web.clock.tick(2 * 86_400)
    upkeep.sweep(web.rt)
    with web.rt.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(CredentialUse)) == 0


def test_counts_of_several_processes_add_up_and_many_addresses_are_told_as_one(web: Web) -> None:
    rt, now = web.rt, web.clock.now()
    here, there = Tallies(), Tallies()
    for number in range(tallies.MOST_ADDRESSES + 50):
        here.note("secret:a", "GET /verify", 200, f"198.51.100.{number}", issued=False)
    there.note("secret:a", "GET /verify", 200, "198.51.100.1", issued=False)
    for one in (here, there):
        one.flush(rt.database, now, signer="k")
    with rt.database.reading() as session:
        rows = {row.address: row.uses for row in session.scalars(select(CredentialUse))}
    assert len(rows) == tallies.MOST_ADDRESSES + 1
    assert (rows[""], rows["198.51.100.1"], sum(rows.values())) == (50, 2, tallies.MOST_ADDRESSES + 51)


def test_counts_wait_for_a_database_that_is_away(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    rt = web.rt
    rt.tallies.note("secret:a", "GET /verify", 200, "192.0.2.1", issued=False)
    with monkeypatch.context() as broken:
        broken.setattr(tallies, "_add", lambda *_a, **_o: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            upkeep.write_tallies(rt)
    upkeep.write_tallies(rt)
    with rt.database.reading() as session:
        assert [row.uses for row in session.scalars(select(CredentialUse))] == [1]


def test_what_a_leaked_administrator_made_ends_with_it_on_demand(web: Web, boss: str) -> None:
    ada = a_user(web.rt, email="ada@acme.example", roles=("users_admin",))
    innocent = a_user(web.rt, email="innocent@acme.example")
    _, pair = a_pair(web, ada)
    feed, key = an_application(web.rt), ed_key()

    def make(path: str, body: dict[str, Any], **by: Any) -> dict[str, Any]:
        answer = web.post(path, body, environ_overrides=THIEF, **by)
        assert answer.status_code in (200, 201, 202), answer.json
        return dict(answer.json)

    by_pair = {"headers": pair}
    secret = make(f"/admin/application/{feed.client_id}/secret", {}, **by_pair)
    trust = {
        "name": "ci",
        "issuer": "https://ci.example",
        "subject": "runner",
        "jwks": {"keys": [public_jwk(key, "k")]},
    }
    make(f"/admin/application/{feed.client_id}/trust", trust, **by_pair)
    keyed = {"name": "keyed", "scopes": ["read"], "jwks": jwks(rsa_key())}
    make("/admin/application", keyed, **by_pair)
    agent = make("/admin/application", {"name": "agent", "scopes": ["admin"]}, **by_pair)
    # What it made makes another in turn.
    token = web.post("/application/token", {"clientId": agent["clientId"], "secret": agent["secret"]}).json["data"]
    loot = make(f"/admin/user/{innocent.id}/keypair", {"name": "loot", "days": 9}, bearer=token["accessToken"])
    own = {"email": "own@acme.example", "alias": "own", "fullName": "Own"}
    new = make("/admin/user", own, **by_pair)
    assert web.get("/keypair", headers=pair_of(new)).status_code == 200
    loot_pair = pair_of(loot)
    web.put(f"/admin/keypair/{loot['keyID']}/verify", bearer=boss)
    assert web.get("/keypair", headers=loot_pair).status_code == 200

    found = shown(web, boss, f"key={pair['api-key']}")
    sorts = ["key", "key", "keySet", "secret", "secret", "secret", "trust", "user"]
    assert sorted(one["kind"] for one in found["made"]) == sorts
    assert all(one["lives"] for one in found["made"])
    refused = web.post("/admin/incident", {"key": pair["api-key"], "made": True}, bearer=boss)
    assert refused.status_code == 400, "only with contain"
    plain = contained(web, boss, key=found["id"])
    assert all(one["lives"] for one in plain["made"]), "only on demand"
    assert passes(web, token["accessToken"])

    after = contained(web, boss, key=found["id"], made=True)
    assert sorted(one["kind"] for one in after["made"]) == sorts
    assert not any(one["lives"] for one in after["made"])
    assert after["contained"] == plain["contained"]
    assert not passes(web, token["accessToken"])
    assert [web.get("/keypair", headers=one).status_code for one in (loot_pair, pair_of(new))] == [401, 401]
    for client_id, its in ((agent["clientId"], agent["secret"]), (feed.client_id, secret["secret"])):
        assert web.post("/application/token", {"clientId": client_id, "secret": its}).status_code == 401
    assert earned(web, feed), "what was there before goes on"
    events = audit.search(web.rt, action="incident.contained")
    assert sorted(len(event.data["ended"]) for event in events) == [0, 8]
    contained(web, boss, key=found["id"], made=True)
    assert audit.count(web.rt, action="incident.contained") == 2, "again changes nothing"


def test_the_last_administrator_is_left(web: Web) -> None:
    agent = an_application(web.rt, scopes=("admin",))
    token = earned(web, agent)
    own = {"email": "only@acme.example", "alias": "only", "fullName": "O"}
    made = web.post("/admin/user", {**own, "roles": ["users_admin"]}, bearer=token)
    assert made.status_code in (200, 201, 202), made.json
    by = By.command_line()
    found = incidents.contain(web.rt, by, Kind.SECRET, agent.secret_id, ends_made=True)
    assert sorted((str(one.sort), one.lives) for one in found.made) == [("key", False), ("user", True)], (
        "nobody else could come in"
    )
    assert found.containment is not None
    assert not passes(web, token)
