"""Workloads without a secret: what a platform's token must say, every near miss, and issuers that misbehave."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from werkzeug.test import TestResponse

from identity.app import create_runtime
from identity.core.clients import issuers
from identity.core.clients.issuers import TrustInfo
from identity.core.record import audit, explain
from identity.errors import Refused
from identity.instruments import issuers as instrument
from identity.instruments.issuers import Issuers, NotFetched, fetch_keys
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import Machine, an_application
from tests.conftest import fresh_database
from tests.issuer_world import JWT_BEARER, JWT_SPIFFE, StandIn, a_stand_in, ed_key, public_jwk
from tests.oauth_world import ec_key, rsa_key
from tests.world import ORIGIN, FakeClock, Web, fast_settings

DAY = 86_400
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def platform() -> Iterator[StandIn]:
    with a_stand_in() as running:
        yield running


@pytest.fixture
def settings(backend: str, tmp_path: Any, platform: StandIn) -> Settings:
    return fast_settings(
        keys_dir=tmp_path / "keys",
        development=True,
        trusted_issuers=(platform.url,),
        **fresh_database(backend, tmp_path),
    )


def trusting(rt: Runtime, feed: Machine, issuer: str, **options: Any) -> TrustInfo:
    with rt.unit(ORIGIN) as unit:
        return issuers.add_trust(rt, unit, feed.client_id, actor="test", name="ci", issuer=issuer, **options)


def present(web: Web, feed: Machine, token: str, way: str = JWT_BEARER, **form: str) -> TestResponse:
    sent = {
        "grant_type": "client_credentials",
        "client_id": feed.client_id,
        "client_assertion_type": way,
        "client_assertion": token,
    }
    return web.post("/oauth/token", data=sent | form, headers=FORM)


def works(web: Web, answer: TestResponse) -> bool:
    return web.get("/verify?tenant=optional", bearer=answer.json["access_token"]).status_code == 200


def why(web: Web, answer: TestResponse) -> explain.Explanation:
    web.rt.explanations.flush(web.rt.database, web.rt.clock.now())
    return explain.get(web.rt, answer.headers["x-error-id"])


# What passes.


@pytest.mark.parametrize(
    ("kid", "alg"), [("k1", "RS256"), ("k1", "PS256"), ("k2", "ES256"), ("k3", "EdDSA"), (None, "RS256")]
)
def test_a_workloads_token_earns_a_token_as_often_as_it_likes(
    web: Web, platform: StandIn, kid: str | None, alg: str
) -> None:
    feed = an_application(web.rt, scopes=("read",))
    trust = trusting(web.rt, feed, platform.url, subject="workload")
    token = platform.token(web.clock, kid=kid, alg=alg)
    for _ in range(3):
        answer = present(web, feed, token)
        assert answer.status_code == 200, answer.json
        assert answer.json["expires_in"] == 3600
        assert works(web, answer)
    claims = jwt.decode(answer.json["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["scope"]) == (feed.client_id, "read")
    assert claims["jti"].endswith(f".{trust.id}")
    assert platform.hits == {"/.well-known/openid-configuration": 1, "/keys": 1}


def test_a_trust_that_is_removed_ends_what_it_earned_and_one_that_expires_does_not(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    removed = trusting(web.rt, feed, platform.url, subject="workload", claims={"env": "prod"})
    expiring = trusting(web.rt, feed, platform.url, subject="workload", claims={"env": "test"}, expires_in=100)
    first = present(web, feed, platform.token(web.clock, env="prod"))
    second = present(web, feed, platform.token(web.clock, env="test"))
    assert second.json["expires_in"] == 100, "no later than the known end of the trust"
    with web.rt.unit(ORIGIN) as unit:
        issuers.remove_trust(web.rt, unit, feed.client_id, removed.id, actor="test")
    assert not works(web, first)
    assert works(web, second)
    web.clock.tick(99)
    assert works(web, second)
    assert present(web, feed, platform.token(web.clock, env="test")).json["expires_in"] == 1
    web.clock.tick(1)
    late = present(web, feed, platform.token(web.clock, env="test"))
    assert late.status_code == 401
    assert why(web, late).detail == "trust: lives does not match"
    assert expiring.expires_at == web.clock.now()
    assert [event.action for event in audit.search(web.rt, target=feed.client_id)][0:1] == ["application.refused"]


def test_a_spiffe_identity_needs_no_issuer_claim_and_lies_in_its_domain(web: Web) -> None:
    feed, domain = an_application(web.rt), "spiffe://acme.example"
    bundle = {"keys": [public_jwk(ec_key(), "a", use="jwt-svid"), public_jwk(rsa_key("x"), "b", use="x509-svid")]}
    trusting(web.rt, feed, domain, subject=f"{domain}/ns/prod/*", jwks=bundle)
    now = int(web.clock.now().timestamp())

    def svid(**changes: Any) -> str:
        said = {"sub": f"{domain}/ns/prod/feed", "aud": [web.rt.settings.issuer], "exp": now + 300} | changes
        return jwt.encode(said, ec_key(), "ES256", headers={"kid": "a"})

    assert present(web, feed, svid(), JWT_SPIFFE).status_code == 200
    assert present(web, feed, svid(iss="https://spire.example"), JWT_SPIFFE).status_code == 200
    assert present(web, feed, svid(), JWT_BEARER).status_code == 401
    for sub in (f"{domain}.evil/ns/prod/feed", f"{domain}/ns/test/feed", domain, "spiffe://other/ns/prod/feed", "", 7):
        assert present(web, feed, svid(sub=sub), JWT_SPIFFE).status_code == 401, sub
    by_x509 = jwt.encode(
        {"sub": f"{domain}/ns/prod/feed", "aud": web.rt.settings.issuer, "exp": now + 9}, rsa_key("x"), "RS256"
    )
    assert present(web, feed, by_x509, JWT_SPIFFE).status_code == 401


def test_an_audience_of_ones_own_and_uses_are_kept(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="work*", audience="sts.acme.example")
    assert present(web, feed, platform.token(web.clock)).status_code == 401
    assert present(web, feed, platform.token(web.clock, aud=["x", "sts.acme.example"])).status_code == 200
    web.rt.usage.flush(web.rt.database, web.rt.clock.now())
    (one,) = issuers.trusts_of(web.rt, feed.client_id)
    assert (one.last_used_at, one.last_used_ip, one.callers) == (web.clock.now(), "127.0.0.1", ("127.0.0.1",))


def test_keys_of_ones_own_are_not_fetched(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, "https://ci.example", subject="workload", jwks=platform.jwks())
    assert present(web, feed, platform.token(web.clock, iss="https://ci.example")).status_code == 200
    assert platform.hits == {}


# Near misses.

NEAR: dict[str, tuple[dict[str, Any], str]] = {
    "another subject": ({"sub": "workload2"}, "sub"),
    "a beginning of the subject": ({"sub": "workloa"}, "sub"),
    "no subject": ({"sub": None}, "sub"),
    "another claim": ({"repository_id": "43"}, "repository_id"),
    "a claim of another type": ({"repository_id": 42}, "repository_id"),
    "no claim": ({"repository_id": None}, "repository_id"),
    "another audience": ({"aud": "https://other.example"}, "aud"),
    "our audience with a slash": ({"aud": "http://127.0.0.1:8000/"}, "aud"),
    "no audience": ({"aud": None}, "aud"),
    "another issuer": ({"iss": "https://ci.example"}, "iss"),
    "no issuer": ({"iss": None}, "iss"),
    "expired": ({"exp": -1}, "exp"),
    "expired now": ({"exp": 0}, "exp"),
    "without an end": ({"exp": None}, "exp"),
    "an end that is a text": ({"exp": "tomorrow"}, "exp"),
    "longer than a day": ({"exp": DAY + 1}, "exp at most a day ahead"),
    "of the future": ({"iat": 61}, "iat and nbf"),
    "not yet": ({"nbf": 61}, "iat and nbf"),
}


@pytest.mark.parametrize("miss", NEAR)
def test_a_near_miss_earns_nothing_and_explain_says_which_rule(web: Web, platform: StandIn, miss: str) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="workload", claims={"repository_id": "42"})
    changes, rule = NEAR[miss]
    now = int(web.clock.now().timestamp())
    moved = {
        name: now + value if name in ("exp", "iat", "nbf") and isinstance(value, int) else value
        for name, value in changes.items()
    }
    answer = present(web, feed, platform.token(web.clock, **({"repository_id": "42"} | moved)))
    assert (answer.status_code, answer.json["error"]) == (401, "invalid_client")
    assert answer.json["error_description"] == "The client assertion does not prove this client"
    told = why(web, answer)
    assert told.detail == f"trust: {rule} does not match"
    assert told.evidence["expected"] is not None
    assert told.evidence["issuer"] == moved.get("iss", platform.url)
    assert told.evidence["subject"] == moved.get("sub", "workload")


def test_a_token_that_only_just_fits_passes(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, claims={"n": 1, "b": True})
    now = web.clock.now().timestamp()
    for changes in ({"exp": int(now) + DAY}, {"exp": now + 0.5}, {"iat": now + 59.5}, {"sub": None}):
        answer = present(web, feed, platform.token(web.clock, **({"n": 1, "b": True} | changes)))
        assert answer.status_code == 200, changes
    assert present(web, feed, platform.token(web.clock, n=True, b=1)).status_code == 401


def _mac_by_public_key(platform: StandIn, web: Web) -> str:
    """HS256 with the public key's PEM as the secret, made by hand: libraries refuse to."""
    import hashlib
    import hmac

    pem = (
        platform.keys["k1"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    payload = platform.token(web.clock).split(".")[1]
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "k1"}).encode()).rstrip(b"=").decode()
    mac = hmac.digest(pem, f"{head}.{payload}".encode(), hashlib.sha256)
    return f"{head}.{payload}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


@pytest.mark.parametrize("way", ["none", "hs256", "foreign key", "foreign kid", "es256 by the rsa kid", "rs512", "cut"])
def test_what_the_issuer_did_not_sign_earns_nothing(web: Web, platform: StandIn, way: str) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="workload")
    good = platform.token(web.clock)
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","kid":"k1"}').rstrip(b"=").decode()
    token = {
        "none": f"{unsigned}.{good.split('.')[1]}.",
        "hs256": _mac_by_public_key(platform, web),
        "foreign key": platform.token(web.clock, key=rsa_key("foreign")),
        "foreign kid": platform.token(web.clock, kid="of another issuer", key=rsa_key("foreign")),
        "es256 by the rsa kid": platform.token(web.clock, kid="k1", alg="ES256", key=ec_key()),
        "rs512": platform.token(web.clock, alg="RS512"),
        "cut": good[:-8],
    }[way]
    answer = present(web, feed, token)
    assert answer.status_code == 401
    assert why(web, answer).detail.startswith("trust: signature")


def test_an_issuer_with_a_trailing_slash_is_another(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    with pytest.raises(Refused) as caught:
        trusting(web.rt, feed, f"{platform.url}/", subject="workload")
    assert caught.value.field == "issuer"
    trusting(web.rt, feed, platform.url, subject="workload")
    answer = present(web, feed, platform.token(web.clock, iss=f"{platform.url}/"))
    assert why(web, answer).detail == "trust: iss does not match"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "subject"),
        ({"subject": "*"}, "subject"),
        ({"subject": "a*b"}, "subject"),
        ({"subject": "a**"}, "subject"),
        ({"subject": "*a"}, "subject"),
        ({"subject": "a", "claims": {"sub": "x"}}, "claims"),
        ({"subject": "a", "claims": {"aud": "x"}}, "claims"),
        ({"subject": "a", "claims": {"x": ["a"]}}, "claims"),
        ({"subject": "a", "claims": {"x": 1.5}}, "claims"),
        ({"subject": "a", "claims": {"": "x"}}, "claims"),
        ({"subject": "a", "claims": {str(n): "x" for n in range(21)}}, "claims"),
        ({"subject": "a", "issuer": "https://unlisted.example"}, "issuer"),
        ({"subject": "a", "issuer": "http://127.0.0.1:8000", "jwks": {"keys": []}}, "issuer"),
        ({"subject": "a", "issuer": "ftp://x.example", "jwks": {"keys": []}}, "issuer"),
        ({"subject": "a", "issuer": "spiffe://acme.example"}, "issuer"),
        ({"subject": "spiffe://acme.example/a", "issuer": "spiffe://acme.example/", "jwks": {"keys": []}}, "issuer"),
        ({"subject": "a", "issuer": "https://x.example", "jwks": {"keys": []}}, "jwks"),
        ({"subject": "a", "issuer": "https://x.example", "jwks": {"keys": 7}}, "jwks"),
        ({"subject": "a", "issuer": "https://x.example", "jwks": {"keys": [{"kty": "oct", "k": "eA"}]}}, "jwks"),
    ],
    ids=str,
)
def test_a_trust_that_makes_no_sense_is_refused(rt: Runtime, platform: StandIn, options: Any, field: str) -> None:
    feed = an_application(rt)
    with pytest.raises(Refused) as caught:
        trusting(rt, feed, **({"issuer": platform.url} | options))
    assert (caught.value.problem.code, caught.value.field) == ("VALIDATION_ERROR", field)


def test_a_subject_outside_the_trust_domain_is_refused(rt: Runtime) -> None:
    bundle = {"keys": [public_jwk(ec_key(), "a")]}
    with pytest.raises(Refused) as caught:
        trusting(rt, an_application(rt), "spiffe://acme.example", subject="spiffe://acme.examples/a", jwks=bundle)
    assert caught.value.field == "subject"


def test_an_application_has_at_most_twenty_trusts(rt: Runtime, platform: StandIn) -> None:
    feed = an_application(rt)
    for number in range(issuers.MAX_TRUSTS):
        trusting(rt, feed, platform.url, subject=f"w{number}")
    with pytest.raises(Refused, match="CONFLICT"):
        trusting(rt, feed, platform.url, subject="one more")


@pytest.mark.parametrize(
    ("issuer", "claims", "subject", "warned"),
    [
        ("https://token.actions.githubusercontent.com", {"repository": "acme/feed"}, None, True),
        ("https://token.actions.githubusercontent.com", {"repository_id": "42"}, None, False),
        ("https://gitlab.com", {}, "project_path:acme/feed:ref_type:branch:ref:main", True),
        ("https://gitlab.com", {"project_id": "42"}, None, False),
        ("https://k8s.example", {}, "system:serviceaccount:prod:*", True),
        ("https://k8s.example", {}, "system:serviceaccount:prod:feed", False),
    ],
)
def test_a_trust_that_rests_on_a_name_is_made_and_warned_of(
    rt: Runtime, platform: StandIn, issuer: str, claims: Any, subject: str | None, warned: bool
) -> None:
    made = trusting(rt, an_application(rt), issuer, claims=claims, subject=subject, jwks=platform.jwks())
    assert bool(issuers.warnings_of(made)) is warned


def test_a_client_without_trusts_or_without_a_name_is_refused(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    token = platform.token(web.clock)
    assert why(web, present(web, feed, token)).detail == "the client is without trusts"
    stranger = dataclasses.replace(feed, client_id="0191d1e0-7a5c-7000-8000-000000000001")
    assert present(web, stranger, token).data == present(web, feed, token).data
    assert present(web, dataclasses.replace(feed, client_id=""), token, JWT_SPIFFE).status_code == 401


def test_two_trusts_are_tried_and_the_nearest_is_explained(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, "https://ci.example", subject="workload", jwks=platform.jwks())
    nearest = trusting(web.rt, feed, platform.url, subject="other")
    answer = present(web, feed, platform.token(web.clock))
    told = why(web, answer)
    assert (told.detail, told.evidence["trust"]) == ("trust: sub does not match", nearest.id)


def test_a_token_is_tried_without_issuing(rt: Runtime, clock: FakeClock, platform: StandIn) -> None:
    from identity.core.clients import applications

    feed = an_application(rt)
    trusting(rt, feed, platform.url, subject="workload")
    clock.tick(1)
    trusting(rt, feed, platform.url, subject="other")
    verdicts = issuers.try_token(rt, applications.get(rt, feed.client_id), platform.token(clock))
    assert [one.passes for one in verdicts] == [True, False]
    assert [rule[0] for rule in verdicts[1].rules if not rule[1]] == ["sub"]


# Issuers that misbehave.


@pytest.mark.parametrize("mood", ["down", "large", "huge", "redirecting", "html", "error"])
def test_an_issuer_that_misbehaves_is_an_outage_of_its_own(web: Web, platform: StandIn, mood: str) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="workload")
    token = platform.token(web.clock)
    platform.mood = mood
    answer = present(web, feed, token)
    assert (answer.status_code, answer.json["error"]) == (503, "temporarily_unavailable"), answer.json
    assert int(answer.headers["Retry-After"]) >= 1
    assert "issuer keys: " in why(web, answer).detail
    hits = dict(platform.hits)
    assert present(web, feed, token).status_code == 503
    assert platform.hits == hits, "not asked again within 30 seconds"
    body = {"clientId": feed.client_id, "secret": feed.secret}
    assert web.post("/application/token", body).status_code == 200
    platform.mood = ""
    web.clock.tick(30)
    assert present(web, feed, platform.token(web.clock)).status_code == 200


@pytest.mark.parametrize("mood", ["slow", "drip"])
def test_a_slow_issuer_costs_one_caller_three_seconds(web: Web, platform: StandIn, mood: str) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="workload")
    token = platform.token(web.clock)
    platform.mood = mood
    answers: list[tuple[int, float]] = []

    def ask() -> None:
        began = time.monotonic()
        answers.append((present(web, feed, token).status_code, time.monotonic() - began))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {503}
    waited = sorted(seconds for _, seconds in answers)
    assert waited[-1] < 6
    assert waited[-2] < 2.5, "nobody waits for the fetch of another"


def test_known_keys_go_on_for_a_day_while_the_issuer_is_down(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="workload")
    assert present(web, feed, platform.token(web.clock)).status_code == 200
    platform.mood = "down"
    for seconds in (299, 2, 3600, DAY - 3602):
        web.clock.tick(seconds)
        assert present(web, feed, platform.token(web.clock)).status_code == 200, seconds
    web.clock.tick(302)
    assert present(web, feed, platform.token(web.clock)).status_code == 503


def test_an_unknown_kid_is_looked_for_at_most_every_thirty_seconds(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="workload")
    assert present(web, feed, platform.token(web.clock)).status_code == 200
    platform.keys["new"] = rsa_key("new")
    for _ in range(5):
        assert present(web, feed, platform.token(web.clock, kid="new")).status_code == 401
    assert platform.hits["/keys"] == 1, "asked a moment ago"
    web.clock.tick(30)
    assert present(web, feed, platform.token(web.clock, kid="new")).status_code == 200
    for number in range(5):
        assert present(web, feed, platform.token(web.clock, kid=f"made up {number}")).status_code == 401
    assert platform.hits["/keys"] == 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("max-age=1", 60),
        ("max-age=600", 600),
        ("public, max-age=999999999", DAY),
        ("no-store", 60),
        ("no-cache, max-age=900", 60),
        ("private", 300),
        ("", 300),
    ],
)
def test_keys_are_fresh_as_long_as_their_headers_say_within_bounds(
    platform: StandIn, header: str, seconds: int
) -> None:
    platform.headers = {"Cache-Control": header}
    assert fetch_keys(platform.url)[1] == seconds


def test_a_key_that_is_no_longer_published_is_forgotten_with_the_next_fetch(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="workload")
    token = platform.token(web.clock, exp=int(web.clock.now().timestamp()) + 3600)
    assert present(web, feed, token).status_code == 200
    del platform.keys["k1"]
    web.clock.tick(301)
    assert present(web, feed, token).status_code == 401


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"issuer": "https://other.example"}, "another issuer"),
        ({"jwks_uri": "http://169.254.169.254/latest"}, "link-local"),
        ({"jwks_uri": "http://10.0.0.1/keys"}, "private"),
        ({"jwks_uri": "ftp://127.0.0.1/keys"}, "not https"),
        ({"jwks_uri": "http://user@127.0.0.1/keys"}, "not https"),
        ({"jwks_uri": "http://[/keys"}, "cannot be read"),
        ({"jwks_uri": None}, "no jwks_uri"),
    ],
    ids=str,
)
def test_what_a_discovery_document_may_not_say(platform: StandIn, change: dict[str, Any], reason: str) -> None:
    for name, value in change.items():
        setattr(platform, name, value)
    with pytest.raises(NotFetched, match=reason):
        fetch_keys(platform.url)


@pytest.mark.parametrize(
    ("issuer_at", "keys_at", "reason"),
    [
        (["203.0.113.7"], ["127.0.0.1"], "loopback"),
        (["8.8.8.8"], ["10.1.2.3"], "private"),
        (["8.8.8.8"], ["169.254.169.254"], "link-local"),
        (["8.8.8.8"], ["::ffff:127.0.0.1"], "loopback"),
        (["8.8.8.8"], ["fd00::1"], "private"),
        (["8.8.8.8"], ["8.8.4.4", "127.0.0.1"], "loopback"),
        (["8.8.8.8"], ["100.64.0.1"], "private"),
        (["8.8.8.8", "127.0.0.1"], [], "its addresses are"),
        (["10.0.0.1"], ["127.0.0.1"], "loopback"),
        ([], [], "no address"),
    ],
)
def test_a_name_that_leads_inside_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, issuer_at: list[str], keys_at: list[str], reason: str
) -> None:
    asked: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        return issuer_at if host == "issuer.example" else keys_at

    def ask(_way: Any, parts: Any, _sock: Any) -> Any:
        asked.append(parts.hostname)
        return {"issuer": "https://issuer.example", "jwks_uri": "https://keys.example/jwks"}, 300

    monkeypatch.setattr(instrument, "_connected", lambda addresses, port: None)
    monkeypatch.setattr(instrument._Way, "_ask", ask)
    with pytest.raises(NotFetched, match=reason):
        fetch_keys("https://issuer.example", resolve)
    assert "keys.example" not in asked


def test_what_is_not_listed_is_never_asked(clock: FakeClock, platform: StandIn) -> None:
    known = Issuers(("https://listed.example",))
    assert not known.is_trusted(platform.url)
    assert not known.is_trusted("https://listed.example/")
    with pytest.raises(KeyError):
        known.keys(platform.url, None, clock.now())
    assert platform.hits == {}


def test_an_issuer_that_is_taken_from_the_list_is_not_trusted_any_more(
    web: Web, platform: StandIn, backend: str
) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="workload")
    web.rt.issuers = Issuers(())
    answer = present(web, feed, platform.token(web.clock))
    assert answer.status_code == 401
    assert why(web, answer).detail == "trust: signature (the issuer is not listed any more) does not match"


def test_a_fetch_is_never_made_on_the_event_loop(web: Web, platform: StandIn) -> None:
    feed = an_application(web.rt)
    trusting(web.rt, feed, platform.url, subject="workload")
    token = platform.token(web.clock)

    class Elsewhere(Exception):
        pass

    with web.rt.database.without_writes(Elsewhere), pytest.raises(Elsewhere):
        issuers.authenticate_workload(web.rt, ORIGIN, feed.client_id, token, spiffe=False)
    assert platform.hits == {}
    assert present(web, feed, token).status_code == 200
    with web.rt.database.without_writes(Elsewhere):
        issuers.authenticate_workload(web.rt, ORIGIN, feed.client_id, token, spiffe=False)


@pytest.mark.parametrize(
    ("listed", "development", "fits"),
    [
        ("https://issuer.example", False, True),
        ("https://issuer.example/path/", False, True),
        ("http://issuer.example", True, False),
        ("http://127.0.0.1:9", False, False),
        ("http://127.0.0.1:9", True, True),
        ("https://issuer.example?x=1", False, False),
        ("https://user@issuer.example", False, False),
        ("issuer.example", False, False),
    ],
)
def test_only_urls_that_are_safe_can_be_listed(listed: str, development: bool, fits: bool) -> None:
    faults = fast_settings(trusted_issuers=(listed,), development=development)._faults()
    assert ([name for name, _ in faults] == []) is fits


def test_ed25519_keys_are_read() -> None:
    assert public_jwk(ed_key(), "x")["crv"] == "Ed25519"
    assert create_runtime
