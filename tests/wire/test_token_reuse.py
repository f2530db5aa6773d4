"""Tokens that are asked for too often: the same one again while nothing has changed, so many new ones a day, and a warning."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest
from werkzeug.test import TestResponse

from identity.app import create_app, create_runtime, endpoints
from identity.core.clients import machine_tokens, registration, secrets
from identity.core.people import tenancy
from identity.core.record import audit, explain
from identity.wire.mounts.fastlane import FastLane
from tests.builders import Machine, a_tenant, a_token, a_user, an_application
from tests.oauth_world import as_client
from tests.wire.test_two_mounts import Sent, through_flask, through_lane
from tests.world import ORIGIN, Web

Door = Any


def by_s7risk(web: Web, feed: Machine, scope: str = "") -> TestResponse:
    body = {"clientId": feed.client_id, "secret": feed.secret}
    return web.post("/application/token", body | ({"scope": scope} if scope else {}))


def by_oauth(web: Web, feed: Machine, scope: str = "", **form: str) -> TestResponse:
    asked = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {}) | form
    return web.post("/oauth/token", data=asked, headers=as_client(feed))


def seen(answer: TestResponse) -> tuple[str, int, bool]:
    """The token, the seconds that it has to live, and whether it is said to be given again."""
    assert answer.status_code == 200, answer.json
    said = answer.headers.get("X-Token-Reused")
    assert said in (None, "1")
    data = answer.json.get("data", answer.json)
    return (*(data.get(one, data.get(other)) for one, other in
              (("accessToken", "access_token"), ("expiresIn", "expires_in"))), said == "1")  # type: ignore[return-value]  # fmt: skip


@pytest.fixture(params=[by_s7risk, by_oauth])
def ask(request: pytest.FixtureRequest) -> Door:
    return request.param


@pytest.fixture
def boss(web: Web) -> str:
    return a_token(web.rt, a_user(web.rt, roles=("users_admin",)))


def test_nothing_is_given_again_unless_the_application_says_so(web: Web, ask: Door) -> None:
    feed = an_application(web.rt)
    first, second = seen(ask(web, feed)), seen(ask(web, feed))
    assert first[0] != second[0]
    assert (first[2], second[2]) == (False, False)


def test_the_same_living_token_is_given_again_until_the_window_ends(web: Web, ask: Door) -> None:
    feed = an_application(web.rt, token_seconds=600, token_reuse_seconds=300)
    token, life, is_reused = seen(ask(web, feed))
    assert (life, is_reused) == (600, False)
    assert seen(ask(web, feed)) == (token, 600, True)
    web.clock.tick(299)
    assert seen(ask(web, feed)) == (token, 301, True), "what is left"
    web.clock.tick(1)
    fresh = seen(ask(web, feed))
    assert (fresh[0] != token, fresh[1:]) == (True, (600, False)), "at the end, not after it"
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 200, "the old one lives on"


def test_both_doors_give_the_same_token(web: Web) -> None:
    feed = an_application(web.rt, token_reuse_seconds=300)
    token = seen(by_s7risk(web, feed))[0]
    assert seen(by_oauth(web, feed))[::2] == (token, True)


def test_another_scope_audience_or_secret_gets_another_token(web: Web, ask: Door, boss: str) -> None:
    feed = an_application(
        web.rt, scopes=("read", "write"), audiences=("https://a.example", "https://b.example"), token_reuse_seconds=300
    )
    all_of_it, read = seen(ask(web, feed)), seen(ask(web, feed, "read"))
    assert all_of_it[0] != read[0]
    assert seen(ask(web, feed, "write read"))[::2] == (all_of_it[0], True), "in any order"
    assert seen(ask(web, feed, "read"))[::2] == (read[0], True)
    elsewhere = seen(by_oauth(web, feed, resource="https://b.example"))
    assert (elsewhere[0] not in (all_of_it[0], read[0]), elsewhere[2]) == (True, False)
    made = web.post(f"/admin/application/{feed.client_id}/secret", {}, bearer=boss).json
    assert seen(ask(web, replace(feed, secret=made["secret"], secret_id=made["secretID"])))[2] is False


def test_a_revoked_token_is_never_given_again(web: Web, ask: Door) -> None:
    feed = an_application(web.rt, token_reuse_seconds=300)
    token = seen(ask(web, feed))[0]
    assert seen(ask(web, feed))[2] is True
    assert web.post("/oauth/revoke", data={"token": token}, headers=as_client(feed)).status_code == 200
    fresh = seen(ask(web, feed))
    assert (fresh[0] != token, fresh[2]) == (True, False)
    assert web.get("/verify?tenant=optional", bearer=fresh[0]).status_code == 200
    assert seen(ask(web, feed))[::2] == (fresh[0], True)


def change(web: Web, feed: Machine, **changes: Any) -> None:
    with web.rt.unit(ORIGIN) as unit:
        registration.change(web.rt, unit, feed.client_id, actor="test", **changes)


def withdraw_key(web: Web) -> None:
    kid = jwt.get_unverified_header(a_token(web.rt, a_user(web.rt)))["kid"]
    with web.rt.unit(ORIGIN) as unit:
        web.rt.ring.revoke(unit, kid)


def restart_tenant(web: Web) -> None:
    for enabled in (False, True):
        with web.rt.unit(ORIGIN) as unit:
            tenancy.set_enabled(web.rt, unit, "acme-bank", enabled=enabled, actor="test")
        web.clock.tick()


CHANGES: dict[str, Any] = {
    "scopes": lambda web, feed: change(web, feed, scopes=("write",)),
    "roles": lambda web, feed: change(web, feed, roles=("auditor",)),
    "audiences": lambda web, feed: change(web, feed, audiences=("https://b.example",)),
    "life": lambda web, feed: change(web, feed, token_seconds=700),
    "the window": lambda web, feed: change(web, feed, token_reuse_seconds=0),
    "claims": lambda web, feed: change(
        web, feed, attributes={"plan": "gold"}, token_claims={"plan": "application.plan"}
    ),
    "off and on": lambda web, feed: (
        change(web, feed, enabled=False),
        web.clock.tick(),
        change(web, feed, enabled=True),
    ),
    "the tenant": lambda web, _feed: restart_tenant(web),
    "the key": lambda web, _feed: withdraw_key(web),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_never_told_by_a_token_of_before(web: Web, ask: Door, what: str) -> None:
    a_tenant(web.rt, "acme-bank")
    feed = an_application(
        web.rt, tenant="acme-bank", scopes=("read",), audiences=("https://a.example",), token_reuse_seconds=300
    )
    token = seen(ask(web, feed))[0]
    assert seen(ask(web, feed))[2] is True
    CHANGES[what](web, feed)
    web.clock.tick()
    fresh = seen(ask(web, feed))
    assert (fresh[0] != token, fresh[2]) == (True, False)
    if what == "the key":
        assert (
            web.get("/verify?tenant=optional", bearer=fresh[0], headers={"X-Tenant-Id": "acme-bank"}).status_code == 200
        )


def test_nothing_signed_by_a_key_that_another_process_withdrew_is_given_again(web: Web, ask: Door) -> None:
    feed = an_application(web.rt, token_reuse_seconds=300)
    before = seen(ask(web, feed))[0]
    kid = jwt.get_unverified_header(before)["kid"]
    other = create_runtime(web.rt.settings, clock=web.clock, migrate=False)
    with other.unit(ORIGIN) as unit:
        other.ring.revoke(unit, kid)
    after, _, is_reused = seen(ask(web, feed))
    assert (jwt.get_unverified_header(after)["kid"] != kid, is_reused) == (True, False)
    other.close()


def test_claims_that_another_application_adds_are_as_of_now(web: Web, ask: Door) -> None:
    api = an_application(web.rt, name="api", audiences=("https://a.example",))
    feed = an_application(web.rt, audiences=("https://a.example",), token_reuse_seconds=300)
    before = seen(ask(web, feed))
    change(web, api, token_claims={"tier": "=gold"})
    after = seen(ask(web, feed))
    assert (after[0] != before[0], after[2]) == (True, False)
    assert jwt.decode(after[0], options={"verify_signature": False})["tier"] == "gold"
    assert seen(ask(web, feed))[::2] == (after[0], True)


def test_what_changed_while_a_token_was_made_is_not_kept(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read", "write"), token_reuse_seconds=300)
    proven = secrets.authenticate(web.rt, ORIGIN, feed.client_id, feed.secret)
    # Between the proof and the look at the epochs.
    change(web, feed, scopes=("read",))
    late = machine_tokens.issue_token(web.rt, proven, scope=None, audience=("https://a.example",))
    again = machine_tokens.issue_token(web.rt, proven, scope=None, audience=("https://a.example",))
    assert (late.is_reused, again.is_reused) == (False, False)


def test_a_secret_that_went_while_a_token_was_made_leaves_none(web: Web) -> None:
    feed = an_application(web.rt, token_reuse_seconds=300)
    proven = secrets.authenticate(web.rt, ORIGIN, feed.client_id, feed.secret)
    with web.rt.unit(ORIGIN) as unit:
        secrets.remove_secret(web.rt, unit, feed.client_id, feed.secret_id, actor="test", force=True)
    for _ in range(2):
        assert machine_tokens.issue_token(web.rt, proven, scope=None, audience=("x",)).is_reused is False


def test_no_token_is_given_beyond_the_end_of_what_proves_the_application_now(web: Web) -> None:
    feed = an_application(web.rt, token_seconds=600, token_reuse_seconds=300)
    proven = secrets.authenticate(web.rt, ORIGIN, feed.client_id, feed.secret)
    ends = {seconds: replace_end(web, proven, seconds) for seconds in (599, 600)}
    machine_tokens.issue_token(web.rt, proven, scope=None, audience=("x",))
    again = {
        seconds: machine_tokens.issue_token(web.rt, one, scope=None, audience=("x",)).is_reused
        for seconds, one in reversed(ends.items())
    }
    assert again == {600: True, 599: False}


def replace_end(web: Web, proven: secrets.Authenticated, seconds: int) -> secrets.Authenticated:
    return proven._replace(ends_at=machine_tokens.later(web.clock.now(), seconds))


def test_a_tenant_that_shortens_its_tokens_shortens_the_window(web: Web, boss: str, ask: Door) -> None:
    a_tenant(web.rt, "acme-bank")
    feed = an_application(web.rt, tenant="acme-bank", token_seconds=3600, token_reuse_seconds=1800)
    web.patch("/admin/tenant/acme-bank", {"policy": {"tokenSeconds": 100}}, bearer=boss)
    token = seen(ask(web, feed))[0]
    web.clock.tick(49)
    assert seen(ask(web, feed)) == (token, 51, True)
    web.clock.tick(1)
    assert seen(ask(web, feed))[2] is False


def test_both_mounts_give_the_same_token_again(web: Web) -> None:
    feed = an_application(web.rt, token_reuse_seconds=300)
    lane = FastLane(web.rt, endpoints(), create_app(runtime=web.rt))
    credentials = {"clientId": feed.client_id, "secret": feed.secret}
    as_json, as_form = ({"Content-Type": f"application/{kind}"} for kind in ("json", "x-www-form-urlencoded"))
    form = urlencode({"grant_type": "client_credentials"}).encode()
    for sent in (
        Sent("POST", "/application/token", 200, as_json, json.dumps(credentials).encode()),
        Sent("POST", "/oauth/token", 200, as_form | as_client(feed), form),
    ):
        through_flask(web, sent)
        by_flask, by_lane = through_flask(web, sent), asyncio.run(through_lane(lane, sent))
        assert ("x-token-reused", "1") in by_lane[1]
        for heard in (by_flask, by_lane):
            heard[1][:] = [field for field in heard[1] if field[0] not in ("x-request-id", "x-ratelimit-remaining")]
        assert by_flask == by_lane


# So many a day.


def test_no_more_new_tokens_in_a_day_than_the_application_may_have(web: Web, ask: Door) -> None:
    feed = an_application(web.rt, scopes=("read",), tokens_per_day=2)
    tokens = {seen(ask(web, feed))[0] for _ in range(2)}
    assert len(tokens) == 2
    refused = ask(web, feed)
    assert refused.status_code == 429
    assert 86_390 <= int(refused.headers["Retry-After"]) <= 86_400
    assert refused.headers["X-RateLimit-Limit"] == "2"
    assert "24 hours" in refused.headers["x-error"]
    assert refused.json.get("error") in ("RATE_LIMITED", "temporarily_unavailable")
    assert explain.get(web.rt, refused.headers["x-error-id"]).detail == "tokensPerDay of the application"
    assert all(web.get("/verify?tenant=optional", bearer=token).status_code == 200 for token in tokens)
    assert seen(ask(web, an_application(web.rt, name="other", tokens_per_day=2)))[2] is False, "by application"


def test_a_token_that_is_given_again_or_refused_does_not_count(web: Web, ask: Door) -> None:
    feed = an_application(web.rt, scopes=("read",), token_reuse_seconds=300, tokens_per_day=2)
    token = seen(ask(web, feed))[0]
    assert [seen(ask(web, feed))[::2] for _ in range(4)] == [(token, True)] * 4
    assert ask(web, feed, "write").status_code in (400, 422)
    assert seen(ask(web, feed, "read"))[::2] == (token, True)
    web.clock.tick(300)
    assert seen(ask(web, feed))[2] is False
    web.clock.tick(300)
    assert ask(web, feed).status_code == 429


# The settings.


def test_both_are_set_shown_and_taken_away(web: Web, boss: str) -> None:
    body = {"name": "feed", "scopes": [], "tokenSeconds": 600, "tokenReuseSeconds": 300, "tokensPerDay": 50}
    made = web.post("/admin/application", body, bearer=boss)
    assert made.status_code == 202, made.json
    path = f"/admin/application/{made.json['clientId']}"
    shown = web.get(path, bearer=boss).json
    assert (shown["tokenReuseSeconds"], shown["tokensPerDay"]) == (300, 50)
    changed = web.patch(path, {"tokenReuseSeconds": 0, "tokensPerDay": None}, bearer=boss).json
    assert (changed["tokenReuseSeconds"], changed["tokensPerDay"]) == (0, None)
    plain = web.get(f"/admin/application/{an_application(web.rt).client_id}", bearer=boss).json
    assert (plain["tokenReuseSeconds"], plain["tokensPerDay"]) == (0, None)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tokenReuseSeconds": 301}, "tokenReuseSeconds"),
        ({"tokenReuseSeconds": -1}, "tokenReuseSeconds"),
        ({"tokenSeconds": 599}, "tokenReuseSeconds"),
        ({"tokensPerDay": 0}, "tokensPerDay"),
        ({"tokensPerDay": 1_000_001}, "tokensPerDay"),
    ],
)
def test_at_most_half_of_the_life_and_at_least_one_a_day(web: Web, boss: str, change: Any, field: str) -> None:
    feed = an_application(web.rt, token_seconds=600, token_reuse_seconds=300)
    refused = web.patch(f"/admin/application/{feed.client_id}", change, bearer=boss)
    assert (refused.status_code, refused.json["field"]) == (400, field)


def test_without_a_life_of_its_own_half_of_the_usual_one_counts(web: Web, boss: str) -> None:
    feed = an_application(web.rt)
    path, half = f"/admin/application/{feed.client_id}", web.rt.settings.application_token_seconds // 2
    assert web.patch(path, {"tokenReuseSeconds": half}, bearer=boss).status_code == 202
    assert web.patch(path, {"tokenSeconds": 600}, bearer=boss).json["field"] == "tokenReuseSeconds"
    assert web.patch(path, {"tokenSeconds": 600, "tokenReuseSeconds": 300}, bearer=boss).status_code == 202
    assert web.patch(path, {"tokenSeconds": None}, bearer=boss).status_code == 202


def test_owners_choose_the_window_and_see_the_number_a_day(web: Web, boss: str) -> None:
    a_tenant(web.rt, "acme-bank")
    owner = a_token(web.rt, a_user(web.rt, tenants={"acme-bank": ("owner",)}))
    there = {"X-Tenant-Id": "acme-bank"}
    body = {"name": "theirs", "scopes": [], "tokenReuseSeconds": 60}
    made = web.post("/tenant/applications", body, bearer=owner, headers=there)
    assert made.status_code == 202, made.json
    client = made.json["clientId"]
    web.patch(f"/admin/application/{client}", {"tokensPerDay": 9}, bearer=boss)
    changed = web.patch(f"/tenant/application/{client}", {"tokenReuseSeconds": 90}, bearer=owner, headers=there).json
    assert (changed["tokenReuseSeconds"], changed["tokensPerDay"]) == (90, 9)
    refused = web.patch(f"/tenant/application/{client}", {"tokensPerDay": 99}, bearer=owner, headers=there)
    assert refused.json["field"] == "tokensPerDay", "an administrator's to set"


# The warning.


def warnings(web: Web) -> list[audit.Event]:
    machine_tokens.record_asking(web.rt)
    return audit.search(web.rt, action="application.asks-too-often")


def ask_every(web: Web, feed: Machine, seconds: float, times: int) -> None:
    proven = secrets.authenticate(web.rt, ORIGIN, feed.client_id, feed.secret)
    for _ in range(times):
        web.clock.tick(seconds)
        machine_tokens.issue_token(web.rt, proven, scope=None, audience=("x",))


def test_a_client_that_asks_too_often_for_an_hour_is_warned_of_once_an_hour(web: Web) -> None:
    a_tenant(web.rt, "acme-bank")
    feed = an_application(web.rt, tenant="acme-bank", token_seconds=6000)
    ask_every(web, feed, 300, 12)
    assert warnings(web) == [], "not yet an hour"
    ask_every(web, feed, 300, 1)
    (event,) = warnings(web)
    assert (event.actor, event.target, event.tenant) == ("background", feed.client_id, "acme-bank")
    assert event.data | {"tenant": ""} == {"asked": 13, "tokenSeconds": 6000, "tokenReuseSeconds": 0, "tenant": ""}
    web.rt.asking.give_back([machine_tokens.Often(feed.client_id, 20, 6000)])
    assert len(warnings(web)) == 1, "another process found it out too"
    ask_every(web, feed, 300, 12)
    assert len(warnings(web)) == 2


def test_once_in_a_tenth_of_its_life_is_not_too_often(web: Web) -> None:
    feed = an_application(web.rt, token_seconds=6000)
    ask_every(web, feed, 600, 20)
    ask_every(web, feed, 599, 6)
    ask_every(web, feed, 600, 1)
    ask_every(web, feed, 599, 6)
    assert warnings(web) == []


def test_a_warning_about_an_application_that_is_gone_is_dropped(web: Web) -> None:
    feed = an_application(web.rt)
    web.rt.asking.give_back([machine_tokens.Often(feed.client_id, 20, 6000)])
    with web.rt.unit(ORIGIN) as unit:
        registration.remove(web.rt, unit, feed.client_id, actor="test")
    assert warnings(web) == []
    assert web.rt.asking.take() == []
