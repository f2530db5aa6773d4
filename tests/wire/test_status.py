"""The status lists over HTTP: what a cache, a browser and a verifier see."""

from __future__ import annotations

import gzip

import jwt
import pytest

from identity.core.clients import machine_tokens
from identity.core.tokens import claims, status
from identity.instruments.statuslists import PLACES
from identity.runtime import Runtime
from tests.builders import Machine, a_session, a_token, a_user, an_application
from tests.oauth_world import as_client
from tests.stranger import value_at
from tests.test_status_matrix import a_stranger, token_in
from tests.world import ORIGIN, Web

LIST = "/.well-known/status-lists/0"


@pytest.fixture
def token(web: Web) -> str:
    """An access token, whose session has a place in the first list."""
    return a_token(web.rt, a_user(web.rt))


def listed(web: Web) -> dict[str, object]:
    answer = web.get(LIST)
    assert answer.status_code == 200
    said: dict[str, object] = jwt.decode(answer.text, options={"verify_signature": False})
    return said


def test_a_token_names_its_place(web: Web, token: str) -> None:
    said = jwt.decode(token, options={"verify_signature": False})
    assert said["status"] == {"status_list": {"idx": 0, "uri": web.rt.settings.issuer + LIST}}


def test_all_tokens_of_one_login_share_its_place_and_no_other_login_does(web: Web) -> None:
    ada = a_user(web.rt)
    opened, other = a_session(web.rt, ada), a_session(web.rt, ada)
    assert opened.bearer is not None
    assert other.bearer is not None
    mine = {place(web, token_in(web.post("/session/token", bearer=opened.bearer.reveal()))) for _ in range(3)}
    assert len(mine) == 1
    assert place(web, token_in(web.post("/session/token", bearer=other.bearer.reveal()))) not in mine


def place(web: Web, token: str) -> int:
    found = web.rt.status_lists.place_of(jwt.decode(token, options={"verify_signature": False}))
    assert found is not None
    return found


def test_a_list_says_what_the_draft_asks_for_and_no_more(web: Web, token: str) -> None:
    answer = web.get(LIST)
    assert answer.content_type == "application/statuslist+jwt"
    header = jwt.get_unverified_header(answer.text)
    assert header == {"alg": "RS256", "typ": "statuslist+jwt", "kid": jwt.get_unverified_header(token)["kid"]}
    said = listed(web)
    ttl, now = web.rt.settings.status_ttl_seconds, web.clock.now().timestamp()
    assert said.keys() == {"sub", "iat", "exp", "ttl", "status_list"}
    assert said["sub"] == web.rt.settings.issuer + LIST
    assert said["iat"] == now // ttl * ttl
    assert said["exp"] == now // ttl * ttl + 3600
    assert said["ttl"] == ttl
    assert value_at(said["status_list"]["lst"], 2, PLACES - 1) == 0, "it has room for every index to come"  # type: ignore[index]


def test_a_list_is_no_access_token(web: Web, token: str) -> None:
    answer = web.get("/verify?tenant=optional", bearer=web.get(LIST).text)
    assert (answer.status_code, answer.json["error"]) == (401, "INVALID_TOKEN")


def test_anybody_may_keep_it_for_its_ttl(web: Web, token: str) -> None:
    for path in (LIST, "/.well-known/status-lists"):
        answer = web.get(path)
        assert answer.headers["Cache-Control"] == f"public, max-age={web.rt.settings.status_ttl_seconds}"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


def test_an_unchanged_list_is_not_sent_again(web: Web, token: str) -> None:
    web.clock.tick(1800 - web.clock.now().timestamp() % 1800 + 0.001)
    etag = web.get(LIST).headers["ETag"]
    for headers in ({"If-None-Match": etag}, {"If-None-Match": f'"x", {etag}'}, {"If-None-Match": "*"}):
        answer = web.get(LIST, headers=headers)
        assert (answer.status_code, answer.data) == (304, b"")
        assert answer.headers["ETag"] == etag
    # It is signed anew all the while; what it says is the same, and the older copy lives on.
    web.clock.tick(1798)
    assert web.get(LIST, headers={"If-None-Match": etag}).status_code == 304
    # Half of its life is over: whoever still has it gets a new one.
    web.clock.tick(web.rt.settings.status_ttl_seconds)
    assert web.get(LIST, headers={"If-None-Match": etag}).status_code == 200


def test_a_changed_list_is_sent(web: Web, token: str) -> None:
    etag = web.get(LIST).headers["ETag"]
    assert web.post("/auth/logout", bearer=token).status_code == 200
    web.clock.tick(web.rt.settings.status_ttl_seconds)
    answer = web.get(LIST, headers={"If-None-Match": etag})
    assert answer.status_code == 200
    assert answer.headers["ETag"] != etag


@pytest.mark.parametrize(
    ("accepts", "packed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("*", True), ("", False), ("br", False), ("gzip;q=0", False)],
)
def test_it_is_packed_for_those_who_can_unpack(web: Web, token: str, accepts: str, packed: bool) -> None:
    plain = web.get(LIST).data
    answer = web.get(LIST, headers={"Accept-Encoding": accepts} if accepts else {})
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert ("Content-Encoding" in answer.headers) is packed
    assert (gzip.decompress(answer.data) if packed else answer.data) == plain


@pytest.mark.parametrize("name", ["1", "77", "-1", "00", "x", "0x0", "9" * 30, "%30%30", "0%2f", "٠"])
def test_there_is_no_other_list(web: Web, token: str, name: str) -> None:
    answer = web.get(f"/.well-known/status-lists/{name}")
    assert (answer.status_code, answer.json["error"]) == (404, "NOT_FOUND")
    assert answer.headers["Cache-Control"] == "no-store"


def test_every_list_that_a_token_can_name_is_told(web: Web) -> None:
    assert web.get("/.well-known/status-lists").json == {"status_lists": []}
    a_token(web.rt, a_user(web.rt))
    web.clock.tick(web.rt.settings.status_ttl_seconds)
    assert web.get("/.well-known/status-lists").json == {"status_lists": [web.rt.settings.issuer + LIST]}


def test_both_metadata_documents_lead_there(web: Web) -> None:
    for document in ("oauth-authorization-server", "openid-configuration"):
        told = web.get(f"/.well-known/{document}").json["status_list_aggregation_endpoint"]
        assert told == f"{web.rt.settings.issuer}/.well-known/status-lists"


# Tokens that are ended one by one.


def test_tokens_that_ended_singly_are_named_until_they_would_have_ended(web: Web) -> None:
    feed = an_application(web.rt)
    tokens = [earned(web, feed) for _ in range(3)]
    for one in tokens[:2]:
        assert web.post("/oauth/revoke", data={"token": one}, headers=as_client(feed)).status_code == 200
    web.clock.tick(web.rt.settings.status_ttl_seconds)
    assert listed(web)["revoked_tokens"] == sorted(token_id(one) for one in tokens[:2])
    web.clock.tick(86_400 + 1800 + 60)
    assert "revoked_tokens" not in listed(web)


def test_of_one_secret_at_most_a_thousand_are_named(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "MAX_TOKENS", 3)
    feed, other, stranger = an_application(web.rt), an_application(web.rt), a_stranger(web)
    tokens = [earned(web, feed) for _ in range(5)]
    for number, one in enumerate(tokens[:4]):
        end(web.rt, one)
        web.clock.tick(web.rt.settings.status_ttl_seconds)
        verdicts = [stranger.verdict(token) for token in tokens]
        if number < 3:
            assert verdicts == ["invalid"] * (number + 1) + ["valid"] * (4 - number)
    assert verdicts == ["changed"] * 5, "one more, and everybody asks us about all of them"
    assert [web.get("/verify?tenant=optional", bearer=one).status_code for one in tokens] == [401] * 4 + [200]
    assert "revoked_tokens" not in listed(web)
    # What the secret earns from now on is of a fresh place, and can be ended singly again.
    fresh = [earned(web, feed), earned(web, feed)]
    end(web.rt, tokens[4])
    end(web.rt, fresh[0])
    web.clock.tick(web.rt.settings.status_ttl_seconds)
    assert [stranger.verdict(token) for token in fresh] == ["invalid", "valid"]
    assert stranger.verdict(earned(web, other)) == "valid"


def end(rt: Runtime, token: str) -> None:
    with rt.unit(ORIGIN) as unit:
        machine_tokens.revoke(rt, unit, claims.read(rt, token), actor="test")


def earned(web: Web, feed: Machine) -> str:
    return token_in(web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}))


def token_id(token: str) -> str:
    return str(jwt.decode(token, options={"verify_signature": False})["jti"])
