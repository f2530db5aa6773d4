"""Group E over the Flask mount: RFC 6749 sections 4.4 and 5, RFC 7523, 7662, 7009, 8707 and 9068 as promises."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from sqlalchemy import func, select, update
from werkzeug.test import TestResponse

from identity.app import create_app, endpoints
from identity.core.access import introspection
from identity.core.clients import assertions, registration, secrets
from identity.core.clients.assertions import SpentAssertion
from identity.core.people.accounts import User
from identity.core.record import explain
from identity.core.tokens import refresh, sessions
from identity.errors import CATALOGUE, UNAVAILABLE, Refused
from identity.wire.dialects.oauth import SHAPE
from tests.builders import Machine, a_session, a_tenant, a_token, a_user, an_application
from tests.oauth_world import as_client, asking, assertion, basic, ec_key, jwks, rsa_key, session_of, with_assertion
from tests.world import ORIGIN, Web

FORM = "application/x-www-form-urlencoded"


def ask(web: Web, path: str, form: Any, headers: dict[str, str] | None = None, **options: Any) -> TestResponse:
    return web.post(path, data=form, headers={"Content-Type": FORM, **(headers or {})}, **options)


def get_token(web: Web, machine: Machine, form: dict[str, str] | None = None, **headers: str) -> TestResponse:
    return ask(web, "/oauth/token", asking(form), {**as_client(machine), **headers})


def granted(web: Web, machine: Machine, form: dict[str, str] | None = None) -> str:
    answer = get_token(web, machine, form)
    assert answer.status_code == 200, answer.json
    token: str = answer.json["access_token"]
    return token


def introspected(web: Web, machine: Machine, token: str, **form: str) -> Any:
    answer = ask(web, "/oauth/introspect", {"token": token, **form}, as_client(machine))
    assert answer.status_code == 200, answer.json
    return answer.json


def revoke(web: Web, machine: Machine, token: str, **form: str) -> TestResponse:
    return ask(web, "/oauth/revoke", {"token": token, **form}, as_client(machine))


def claims_of(token: str) -> Any:
    return jwt.decode(token, options={"verify_signature": False})


def refused(answer: TestResponse, status: int, error: str) -> None:
    """The whole of an RFC 6749 section 5.2 error."""
    assert (answer.status_code, answer.json["error"]) == (status, error), answer.json
    assert answer.json.keys() == {"error", "error_description"}
    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Pragma"] == "no-cache"
    assert answer.headers["x-error"] == answer.json["error_description"]
    assert answer.headers["x-error-id"]
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    if status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


# The token answer.


def test_a_token_answer_is_that_of_rfc_6749_section_5_1(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read", "write"))
    answer = get_token(web, feed)
    assert answer.status_code == 200, answer.json
    assert answer.json.keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert (answer.json["token_type"], answer.json["expires_in"], answer.json["scope"]) == (
        "Bearer",
        86_400,
        "read write",
    )
    assert answer.content_type == "application/json"
    assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")


def test_a_token_is_an_rfc_9068_token_that_the_published_keys_verify(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read",), audiences=("https://api.example",))
    token = granted(web, feed)
    header = jwt.get_unverified_header(token)
    assert (header["alg"], header["typ"]) == ("RS256", "at+jwt")
    keys = jwt.PyJWKSet.from_dict(web.get("/.well-known/jwks.json").json)
    claims = jwt.decode(
        token,
        next(key for key in keys.keys if key.key_id == header["kid"]),
        ["RS256"],
        audience="https://api.example",
        issuer=web.rt.settings.issuer,
        options={"require": ["iss", "exp", "aud", "sub", "client_id", "iat", "jti"]},
    )
    assert claims["sub"] == claims["client_id"] == feed.client_id
    assert claims["scope"] == "read"


def test_a_token_lives_as_long_as_its_application_says_and_not_for_ten_days(web: Web) -> None:
    feed = an_application(web.rt, token_seconds=600)
    answer = get_token(web, feed)
    claims = claims_of(answer.json["access_token"])
    assert answer.json["expires_in"] == claims["exp"] - claims["iat"] == 600


def test_a_token_costs_no_write(web: Web) -> None:
    feed = an_application(web.rt)
    token = granted(web, feed)
    with web.rt.database.without_writes(AssertionError):
        assert get_token(web, feed).status_code == 200
        assert introspected(web, feed, token)["active"] is True


@pytest.mark.parametrize("spelling", [str.upper, lambda text: text.replace("-", "%2D")])
def test_basic_credentials_may_be_form_encoded(web: Web, spelling: Any) -> None:
    feed = an_application(web.rt)
    assert ask(web, "/oauth/token", asking(), basic(spelling(feed.client_id), feed.secret)).status_code == 200


def test_a_secret_in_the_form_authenticates(web: Web) -> None:
    feed = an_application(web.rt)
    form = asking({"client_id": feed.client_id, "client_secret": feed.secret})
    assert ask(web, "/oauth/token", form).status_code == 200


def test_a_client_id_beside_basic_is_no_second_authentication(web: Web) -> None:
    feed = an_application(web.rt)
    assert get_token(web, feed, {"client_id": feed.client_id}).status_code == 200


def test_tokens_never_reach_the_log(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    feed = an_application(web.rt)
    with caplog.at_level(logging.DEBUG):
        token = granted(web, feed)
    assert token not in caplog.text
    assert feed.secret not in caplog.text


# Scopes.


def test_without_a_scope_the_token_has_all_that_the_application_has(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read", "write"))
    assert claims_of(granted(web, feed, {"scope": ""}))["scope"] == "read write"


def test_an_asked_scope_narrows_the_token(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read", "write"))
    answer = get_token(web, feed, {"scope": "write write"})
    assert (answer.json["scope"], claims_of(answer.json["access_token"])["scope"]) == ("write", "write")


@pytest.mark.parametrize("scope", ["admin", "read admin", "READ", 'rea"d', "réad"])
def test_a_scope_that_the_application_has_not_is_invalid_scope(web: Web, scope: str) -> None:
    feed = an_application(web.rt, scopes=("read",))
    refused(get_token(web, feed, {"scope": scope}), 400, "invalid_scope")


# The audience.


def test_resource_selects_among_the_audiences_of_the_application(web: Web) -> None:
    feed = an_application(web.rt, audiences=("https://a.example", "https://b.example/api"))
    assert claims_of(granted(web, feed))["aud"] == "https://a.example"
    assert claims_of(granted(web, feed, {"resource": "https://b.example/api"}))["aud"] == "https://b.example/api"
    assert claims_of(granted(web, feed, {"resource": "HTTPS://A.example:443/"}))["aud"] == "https://a.example"


@pytest.mark.parametrize("resource", ["https://c.example", "https://a.example/api", "http://a.example", "x"])
def test_a_resource_that_is_not_listed_is_invalid_target(web: Web, resource: str) -> None:
    feed = an_application(web.rt, audiences=("https://a.example",))
    refused(get_token(web, feed, {"resource": resource}), 400, "invalid_target")


def test_an_application_without_audiences_may_name_any_resource(web: Web) -> None:
    feed = an_application(web.rt)
    assert claims_of(granted(web, feed, {"resource": "https://c.example/x?y"}))["aud"] == "https://c.example/x?y"


@pytest.mark.parametrize(
    "resource", ["c.example", "/path", "https://c.example/#part", "https://c.example/é", "x://" + "a" * 300]
)
def test_a_resource_is_an_absolute_uri_without_a_fragment(web: Web, resource: str) -> None:
    refused(get_token(web, an_application(web.rt), {"resource": resource}), 400, "invalid_target")


def test_the_origins_of_the_service_bound_the_resource_too(web: Web) -> None:
    web.rt.settings = dataclasses.replace(web.rt.settings, origins=("https://a.example",))
    feed = an_application(web.rt)
    assert get_token(web, feed, {"resource": "https://a.example"}).status_code == 200
    refused(get_token(web, feed, {"resource": "https://c.example"}), 400, "invalid_target")


def test_the_origin_header_names_the_audience_where_no_resource_does(web: Web) -> None:
    feed = an_application(web.rt, audiences=("https://a.example", "https://b.example"))
    answer = get_token(web, feed, Origin="https://b.example")
    assert claims_of(answer.json["access_token"])["aud"] == "https://b.example"
    refused(get_token(web, feed, Origin="https://c.example"), 400, "unauthorized_client")


# What RFC 6749 section 5.2 refuses.


def test_without_a_grant_type_the_request_is_invalid(web: Web) -> None:
    feed = an_application(web.rt)
    refused(ask(web, "/oauth/token", {"scope": ""}, as_client(feed)), 400, "invalid_request")


@pytest.mark.parametrize(
    "grant",
    [
        "password",
        "implicit",
        "refresh_token",
        "authorization_code",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "urn:ietf:params:oauth:grant-type:device_code",
        "CLIENT_CREDENTIALS",
    ],
)
def test_other_grants_do_not_exist(web: Web, grant: str) -> None:
    ada = a_user(web.rt)
    form = {"grant_type": grant, "username": ada.email, "password": ada.password}
    refused(ask(web, "/oauth/token", form, as_client(an_application(web.rt))), 400, "unsupported_grant_type")


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke"])
@pytest.mark.parametrize("again", ["grant_type", "token", "client_id", "scope", "resource", "anything"])
def test_a_parameter_sent_twice_is_invalid(web: Web, path: str, again: str) -> None:
    body = f"grant_type=client_credentials&token=x&{again}=1&{again}=1"
    refused(ask(web, path, body, as_client(an_application(web.rt))), 400, "invalid_request")


@pytest.mark.parametrize("name", ["client_secret", "client_id", "grant_type", "token", "scope", "client_assertion"])
@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke"])
def test_parameters_in_the_query_are_refused(web: Web, path: str, name: str) -> None:
    feed = an_application(web.rt)
    form = asking({"token": "x"})
    refused(ask(web, f"{path}?{name}={feed.secret}", form, as_client(feed)), 400, "invalid_request")


def test_unknown_parameters_are_ignored_wherever_they_stand(web: Web) -> None:
    feed = an_application(web.rt)
    assert ask(web, "/oauth/token?trace=1", asking({"colour": "blue"}), as_client(feed)).status_code == 200


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke"])
def test_two_client_authentications_are_refused(web: Web, path: str) -> None:
    feed = an_application(web.rt, jwks=jwks(rsa_key()))
    post = {"client_id": feed.client_id, "client_secret": feed.secret}
    signed = with_assertion(assertion(web.rt, feed.client_id))
    for form, headers in (
        (post, as_client(feed)),
        (signed, as_client(feed)),
        (post | signed, {}),
        ({}, {"Authorization": as_client(feed)["Authorization"] + "," + as_client(feed)["Authorization"]}),
    ):
        refused(ask(web, path, asking({"token": "x", **form}), headers), 400, "invalid_request")


def test_a_client_id_of_another_client_is_refused(web: Web) -> None:
    feed, other = an_application(web.rt), an_application(web.rt)
    refused(get_token(web, feed, {"client_id": other.client_id}), 400, "invalid_request")


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke"])
def test_without_authentication_the_client_is_invalid(web: Web, path: str) -> None:
    feed = an_application(web.rt)
    for form in ({}, {"client_id": feed.client_id}, {"client_id": feed.client_id, "client_secret": ""}):
        refused(ask(web, path, asking({"token": "x", **form})), 401, "invalid_client")


@pytest.mark.parametrize(
    "header",
    ["Bearer abc", "Basic", "Basic !!!", "Basic YWJj", "Basic /w==", "Basic JUZGOng=", "Digest x", "", "Basic  "],
)
def test_malformed_basic_credentials_are_an_invalid_client(web: Web, header: str) -> None:
    refused(ask(web, "/oauth/token", asking(), {"Authorization": header}), 401, "invalid_client")


def test_unknown_disabled_and_wrong_look_alike(web: Web) -> None:
    feed, gone = an_application(web.rt), an_application(web.rt)
    with web.rt.unit(ORIGIN) as unit:
        registration.change(web.rt, unit, gone.client_id, actor="test", enabled=False)
    answers = [
        ask(web, "/oauth/token", asking(), basic(client_id, secret))
        for client_id, secret in (
            (feed.client_id, "wrong"),
            (feed.client_id, gone.secret),
            (gone.client_id, gone.secret),
            ("00000000-0000-4000-8000-000000000000", feed.secret),
            ("nobody", feed.secret),
        )
    ]
    for answer in answers:
        refused(answer, 401, "invalid_client")
        assert answer.data == answers[0].data


def test_twenty_failures_lock_a_client_out_whatever_its_spelling(web: Web) -> None:
    feed = an_application(web.rt)
    for number in range(20):
        name = feed.client_id.upper() if number % 2 else feed.client_id
        refused(ask(web, "/oauth/token", asking(), basic(name, "wrong")), 401, "invalid_client")
    locked = get_token(web, feed)
    refused(locked, 429, "temporarily_unavailable")
    assert 1 <= int(locked.headers["Retry-After"]) <= 300
    web.clock.tick(301)
    assert get_token(web, feed).status_code == 200


def test_the_limit_counts_a_client_and_its_address(web: Web) -> None:
    settings = dataclasses.replace(web.rt.settings, limit_application="2/minute")
    web.rt.limiter = type(web.rt.limiter)(settings)
    feed, other = an_application(web.rt), an_application(web.rt)
    body = {"clientId": feed.client_id, "secret": feed.secret}
    assert web.post("/application/token", body).status_code == 200
    assert get_token(web, feed).headers["X-RateLimit-Remaining"] == "0"
    limited = get_token(web, feed)
    refused(limited, 429, "temporarily_unavailable")
    assert int(limited.headers["Retry-After"]) >= 1
    token = granted(web, other)
    assert introspected(web, feed, token) == {"active": False}


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x", "", "text/plain"])
def test_only_forms_are_read(web: Web, content_type: str) -> None:
    headers = {**as_client(an_application(web.rt)), "Content-Type": content_type}
    refused(ask(web, "/oauth/token", b"grant_type=client_credentials", headers), 415, "invalid_request")


@pytest.mark.parametrize("body", [b"grant_type=client_credentials&scope=%00", b"grant_type=%ff", b"a&b", b"\xff=1"])
def test_a_malformed_form_is_invalid(web: Web, body: bytes) -> None:
    refused(ask(web, "/oauth/token", body, as_client(an_application(web.rt))), 400, "invalid_request")


def test_a_form_over_64_kib_is_refused(web: Web) -> None:
    refused(ask(web, "/oauth/token", b"a=" + b"x" * 65_536), 413, "invalid_request")


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke"])
def test_only_post_is_answered_and_the_refusal_has_the_shape_of_the_group(web: Web, path: str) -> None:
    answer = web.get(path)
    refused(answer, 405, "invalid_request")
    assert answer.headers["Allow"] == "POST"


def test_no_error_ever_redirects(web: Web) -> None:
    form = asking({"redirect_uri": "https://evil.example", "response_type": "code", "state": "x"})
    answer = ask(web, "/oauth/token", form)
    refused(answer, 401, "invalid_client")
    assert "Location" not in answer.headers


@pytest.mark.parametrize("problem", [problem for problem, _ in CATALOGUE], ids=lambda problem: problem.code)
def test_every_problem_has_a_section_5_2_form(problem: Any) -> None:
    refusal = Refused(problem)
    body = SHAPE.render(refusal, SHAPE.status(refusal))
    allowed = set(map(chr, range(0x20, 0x7F))) - {'"', "\\"}
    assert set(body["error_description"]) <= allowed
    assert SHAPE.status(refusal) in (400, 401, 405, 412, 413, 415, 429, 500, 503)


# private_key_jwt.


def signing(web: Web, **options: Any) -> Machine:
    return an_application(web.rt, jwks=jwks(rsa_key(), ec_key()), **options)


def present(web: Web, text: str, **form: str) -> TestResponse:
    return ask(web, "/oauth/token", asking({**with_assertion(text), **form}))


@pytest.mark.parametrize(("key", "alg", "kid"), [(rsa_key, "RS256", "key-0"), (ec_key, "ES256", "key-1")])
def test_an_assertion_by_a_registered_key_authenticates(web: Web, key: Any, alg: str, kid: str) -> None:
    feed = signing(web, scopes=("read",))
    answer = present(web, assertion(web.rt, feed.client_id, key=key(), alg=alg, kid=kid), client_id=feed.client_id)
    assert answer.status_code == 200, answer.json
    assert introspected(web, feed, answer.json["access_token"])["active"] is True


def test_an_assertion_serves_once(web: Web) -> None:
    feed = signing(web)
    text = assertion(web.rt, feed.client_id)
    assert present(web, text).status_code == 200
    refused(present(web, text), 401, "invalid_client")
    again = ask(web, "/oauth/introspect", {"token": "x", **with_assertion(text)})
    refused(again, 401, "invalid_client")


def test_of_sixteen_parallel_uses_of_an_assertion_one_succeeds(web: Web) -> None:
    feed = signing(web)
    text = assertion(web.rt, feed.client_id)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: present(web, text).status_code, range(16)))
    assert sorted(answers) == [200] + [401] * 15


def test_the_same_jti_of_two_applications_is_two_assertions(web: Web) -> None:
    one, two = signing(web), signing(web)
    assert present(web, assertion(web.rt, one.client_id, jti="same")).status_code == 200
    assert present(web, assertion(web.rt, two.client_id, jti="same")).status_code == 200


def test_a_spent_assertion_is_forgotten_only_once_it_is_dead(web: Web) -> None:
    feed = signing(web)
    text = assertion(web.rt, feed.client_id)
    assert present(web, text).status_code == 200
    for seconds, kept in ((60, 1), (59, 1), (2, 0)):
        web.clock.tick(seconds)
        with web.rt.unit(ORIGIN) as unit:
            assertions.purge(web.rt, unit)
            assert unit.execute(select(func.count()).select_from(SpentAssertion)).scalar_one() == kept
        refused(present(web, text), 401, "invalid_client")


@pytest.mark.parametrize(("ahead", "status"), [(0, 401), (1, 200), (299, 200), (300, 200), (301, 401), (86_400, 401)])
def test_an_assertion_ends_within_five_minutes(web: Web, ahead: int, status: int) -> None:
    feed = signing(web)
    now = int(web.clock.now().timestamp())
    assert present(web, assertion(web.rt, feed.client_id, exp=now + ahead)).status_code == status


def test_the_audience_of_an_assertion_may_be_the_issuer_or_the_token_endpoint(web: Web) -> None:
    feed, issuer = signing(web), web.rt.settings.issuer
    for audience in (issuer, f"{issuer}/oauth/token", [issuer], [issuer, f"{issuer}/oauth/token"]):
        assert present(web, assertion(web.rt, feed.client_id, aud=audience)).status_code == 200


@pytest.mark.parametrize("path", ["/oauth/introspect", "/oauth/revoke"])
def test_the_audience_of_an_assertion_may_be_the_very_endpoint(web: Web, path: str) -> None:
    feed, issuer = signing(web), web.rt.settings.issuer
    for audience in (f"{issuer}{path}", issuer, [f"{issuer}{path}", f"{issuer}/oauth/token"]):
        form = {"token": "x", **with_assertion(assertion(web.rt, feed.client_id, aud=audience))}
        assert ask(web, path, form).status_code == 200
    other = assertion(web.rt, feed.client_id, aud=f"{issuer}/oauth/introspect")
    refused(present(web, other), 401, "invalid_client")


def test_times_of_an_assertion_may_have_fractions(web: Web) -> None:
    feed, now = signing(web), web.clock.now().timestamp()
    assert (
        present(web, assertion(web.rt, feed.client_id, iat=now - 0.5, exp=now + 59.5, nbf=now - 0.25)).status_code
        == 200
    )
    refused(present(web, assertion(web.rt, feed.client_id, exp=now + 300.5)), 401, "invalid_client")


def test_keys_without_a_kid_are_tried_by_what_they_can_do(web: Web) -> None:
    keys = [
        {name: value for name, value in key.items() if name != "kid"}
        for key in jwks(rsa_key("a"), ec_key(), rsa_key("b"))["keys"]
    ]
    feed = an_application(web.rt, jwks={"keys": keys})
    for key, alg in ((rsa_key("a"), "RS256"), (rsa_key("b"), "RS256"), (ec_key(), "ES256")):
        for kid in ({"kid": None}, {"kid": "whatever"}):
            assert present(web, assertion(web.rt, feed.client_id, key=key, alg=alg, **kid)).status_code == 200
    refused(present(web, assertion(web.rt, feed.client_id, key=rsa_key("c"), kid=None)), 401, "invalid_client")


def test_a_token_without_a_kid_is_tried_against_keys_with_one(web: Web) -> None:
    feed = an_application(web.rt, jwks=jwks(rsa_key("a"), rsa_key("b")))
    assert present(web, assertion(web.rt, feed.client_id, key=rsa_key("b"), kid=None)).status_code == 200
    refused(present(web, assertion(web.rt, feed.client_id, key=rsa_key("b"), kid="key-0")), 401, "invalid_client")


@pytest.mark.parametrize(
    ("claims", "check", "name"),
    [
        ({"aud": "https://other.example"}, "aud must be this server, and nobody else", "aud"),
        ({"iss": "somebody"}, "iss and sub must be the client id", "iss"),
        ({"exp": 1}, "exp must be within the next 300 seconds", "exp"),
        ({"exp": "soon"}, "exp, iat and nbf must be numbers", "exp"),
        ({"iat": 2**36}, "iat or nbf lies ahead: two clocks differ", "iat"),
        ({"jti": None}, "jti is missing or is no text", "jti"),
    ],
)
def test_a_refused_assertion_is_explained(web: Web, claims: dict[str, Any], check: str, name: str) -> None:
    feed = signing(web)
    answer = present(web, assertion(web.rt, feed.client_id, **claims))
    refused(answer, 401, "invalid_client")
    assert answer.json["error_description"] == "The client assertion does not prove this client"
    web.rt.explanations.flush(web.rt.database, web.rt.clock.now())
    why = explain.get(web.rt, answer.headers["x-error-id"])
    assert why.detail == f"assertion: {check}"
    assert why.evidence["expected"]
    assert name in why.evidence["seen"]


@pytest.mark.parametrize("way", ["another key", "another algorithm", "an unknown client"])
def test_an_assertion_that_nobody_made_is_explained_too(web: Web, way: str) -> None:
    feed = signing(web)
    text = {
        "another key": assertion(web.rt, feed.client_id, key=rsa_key("foreign")),
        "another algorithm": assertion(web.rt, feed.client_id, alg="RS512"),
        "an unknown client": assertion(web.rt, "0191d1e0-7a5c-7000-8000-000000000001"),
    }[way]
    answer = present(web, text)
    web.rt.explanations.flush(web.rt.database, web.rt.clock.now())
    why = explain.get(web.rt, answer.headers["x-error-id"])
    assert why.evidence["expected"]
    assert why.evidence["seen"]


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "https://other.example"},
        {"aud": ["http://127.0.0.1:8000", "https://other.example"]},
        {"aud": ["http://127.0.0.1:8000", 7]},
        {"aud": "http://127.0.0.1:8000/oauth/introspect"},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": 10**400},
        {"aud": []},
        {"aud": None},
        {"aud": "http://127.0.0.1:8000/"},
        {"iss": "somebody"},
        {"iss": None},
        {"exp": None},
        {"jti": None},
        {"jti": ""},
        {"jti": "x" * 257},
        {"iat": 2**40},
        {"nbf": 2**40},
    ],
    ids=str,
)
def test_an_assertion_with_wrong_claims_is_refused(web: Web, claims: dict[str, Any]) -> None:
    feed = signing(web)
    refused(present(web, assertion(web.rt, feed.client_id, **claims)), 401, "invalid_client")


def test_an_assertion_by_another_key_or_algorithm_is_refused(web: Web) -> None:
    feed = signing(web)
    public = rsa_key().public_key().public_numbers().n.to_bytes(256)
    good = assertion(web.rt, feed.client_id)
    head, body, _ = good.split(".")
    for text in (
        assertion(web.rt, feed.client_id, key=rsa_key("foreign")),
        assertion(web.rt, feed.client_id, alg="RS512"),
        assertion(web.rt, feed.client_id, alg="PS256"),
        assertion(web.rt, feed.client_id, key=public, alg="HS256"),
        assertion(web.rt, feed.client_id, key=feed.secret, alg="HS256"),
        jwt.encode({"iss": feed.client_id, "sub": feed.client_id}, None, "none"),
        f"{head}.{body}.",
        f"{head}.{body}",
        "not a token",
        "a.b.c",
        good + "=",
    ):
        refused(present(web, text), 401, "invalid_client")


def test_an_assertion_needs_its_type(web: Web) -> None:
    feed = signing(web)
    text = assertion(web.rt, feed.client_id)
    for form in ({"client_assertion": text}, {"client_assertion": text, "client_assertion_type": "saml"}):
        refused(ask(web, "/oauth/token", asking(form)), 401, "invalid_client")


def test_an_assertion_of_a_disabled_application_is_refused(web: Web) -> None:
    feed = signing(web)
    token = present(web, assertion(web.rt, feed.client_id)).json["access_token"]
    with web.rt.unit(ORIGIN) as unit:
        registration.change(web.rt, unit, feed.client_id, actor="test", enabled=False)
    refused(present(web, assertion(web.rt, feed.client_id)), 401, "invalid_client")
    assert introspected(web, watcher(web), token) == {"active": False}


def test_an_application_without_keys_has_no_assertions(web: Web) -> None:
    feed = an_application(web.rt)
    refused(present(web, assertion(web.rt, feed.client_id)), 401, "invalid_client")


def test_an_assertion_and_a_client_id_must_name_the_same_client(web: Web) -> None:
    feed, other = signing(web), signing(web)
    # Another client's assertion is a platform's token that this client does not trust (RFC 7521 section 4.2.1: invalid_client).
    answer = present(web, assertion(web.rt, feed.client_id), client_id=other.client_id)
    refused(answer, 401, "invalid_client")


# Introspection.


def watcher(web: Web) -> Machine:
    return an_application(web.rt, name="watcher", scopes=("introspect",))


def test_a_client_hears_all_about_its_own_token(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read",), roles=("reader",))
    token = granted(web, feed)
    answer = ask(web, "/oauth/introspect", {"token": token}, as_client(feed))
    rights = {"groups": [], "tenants": {}}  # Left out of the token, since they are empty.
    assert answer.json == {"active": True, "token_type": "Bearer", **claims_of(token), **rights}
    assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")


def test_inactive_is_exactly_active_false(web: Web) -> None:
    feed, other = an_application(web.rt), an_application(web.rt)
    token, foreign = granted(web, feed), granted(web, other)
    for text in (foreign, "x", "a.b.c", token + "x", token[:-1], "ids_" + "0" * 33, "\u2603", "x" * 9000, ","):
        answer = ask(web, "/oauth/introspect", {"token": text}, as_client(feed))
        assert (answer.status_code, answer.data) == (200, b'{"active":false}')


def test_with_the_scope_introspect_every_token_is_heard_of(web: Web) -> None:
    ada = a_user(web.rt, roles=("analyst",), tenants={"acme-bank": ("auditor",)})
    token = a_token(web.rt, ada)
    answer = introspected(web, watcher(web), token)
    assert answer["active"] is True
    assert (answer["sub"], answer["username"], answer["tenants"]) == (ada.id, ada.alias, {"acme-bank": ["auditor"]})
    assert introspected(web, an_application(web.rt, scopes=("read",)), token) == {"active": False}


def test_the_rights_told_are_those_of_now(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read", "write"), roles=("one",))
    token = granted(web, feed)
    with web.rt.unit(ORIGIN) as unit:
        registration.change(web.rt, unit, feed.client_id, actor="test", scopes=("read",), roles=("two",))
    answer = introspected(web, feed, token)
    assert (answer["scope"], answer["roles"]) == ("read", ["two"])


def test_a_session_bearer_is_heard_of_and_a_refresh_token_is_not(web: Web) -> None:
    ada, asking_client = a_user(web.rt), watcher(web)
    opened = a_session(web.rt, ada)
    answer = introspected(web, asking_client, opened.bearer.reveal())
    assert (answer["active"], answer["sub"], answer["sid"]) == (True, ada.id, opened.session.id)
    assert answer["exp"] == int(opened.session.expires_at.timestamp())
    assert introspected(web, asking_client, opened.refresh.reveal(), token_type_hint="refresh_token") == {
        "active": False
    }


@pytest.mark.parametrize("hint", ["access_token", "refresh_token", "nonsense", ""])
def test_a_hint_changes_nothing(web: Web, hint: str) -> None:
    feed = an_application(web.rt)
    token = granted(web, feed)
    assert introspected(web, feed, token, token_type_hint=hint)["active"] is True
    assert revoke(web, feed, token, token_type_hint=hint).status_code == 200
    assert introspected(web, feed, token, token_type_hint=hint) == {"active": False}


def test_a_token_is_inactive_from_its_last_second_on(web: Web) -> None:
    feed = an_application(web.rt, token_seconds=60)
    token = granted(web, feed)
    left = claims_of(token)["exp"] - web.clock.now().timestamp()
    web.clock.tick(left - 1)
    assert introspected(web, feed, token)["active"] is True
    web.clock.tick(1)
    assert introspected(web, feed, token) == {"active": False}


def test_disabling_an_application_ends_its_tokens_at_once(web: Web) -> None:
    feed, asking_client = an_application(web.rt), watcher(web)
    token = granted(web, feed)
    with web.rt.unit(ORIGIN) as unit:
        registration.change(web.rt, unit, feed.client_id, actor="test", enabled=False)
    assert introspected(web, asking_client, token) == {"active": False}


def test_removing_a_secret_ends_the_tokens_that_it_earned(web: Web) -> None:
    feed, asking_client = an_application(web.rt), watcher(web)
    token = granted(web, feed)
    with web.rt.unit(ORIGIN) as unit:
        secrets.remove_secret(web.rt, unit, feed.client_id, feed.secret_id, actor="test")
    assert introspected(web, asking_client, token) == {"active": False}


def test_a_user_token_ends_with_its_session_and_its_user(web: Web) -> None:
    ada, bob, asking_client = a_user(web.rt), a_user(web.rt), watcher(web)
    one, two = a_token(web.rt, ada), a_token(web.rt, bob)
    with web.rt.unit(ORIGIN) as unit:
        sessions.revoke(web.rt, unit, claims_of(one)["sid"], actor="test", reason="test")
        unit.execute(update(User).where(User.id == bob.id).values(enabled=False))
    assert introspected(web, asking_client, one) == {"active": False}
    assert introspected(web, asking_client, two) == {"active": False}


def test_a_database_that_is_down_is_no_verdict(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_args: Any, **_options: Any) -> None:
        raise Refused(UNAVAILABLE)

    feed = an_application(web.rt)
    token = granted(web, feed)
    monkeypatch.setattr(introspection.callers, "identify", down)
    answer = ask(web, "/oauth/introspect", {"token": token}, as_client(feed))
    refused(answer, 503, "temporarily_unavailable")


@pytest.mark.parametrize("path", ["/oauth/introspect", "/oauth/revoke"])
@pytest.mark.parametrize("form", [{}, {"token": ""}])
def test_without_a_token_the_request_is_invalid(web: Web, path: str, form: dict[str, str]) -> None:
    refused(ask(web, path, form, as_client(an_application(web.rt))), 400, "invalid_request")


# Revocation.


def test_a_revoked_token_is_dead_everywhere_at_once(web: Web) -> None:
    feed = an_application(web.rt, scopes=("introspect",))
    token, other = granted(web, feed), granted(web, feed)
    answer = revoke(web, feed, token)
    assert (answer.status_code, answer.data) == (200, b"{}")
    assert (answer.headers["Cache-Control"], answer.headers["Pragma"]) == ("no-store", "no-cache")
    assert introspected(web, feed, token) == {"active": False}
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 401
    assert introspected(web, feed, other)["active"] is True
    assert revoke(web, feed, token).status_code == 200


def test_a_stranger_cannot_revoke_and_learns_nothing(web: Web) -> None:
    feed, stranger = an_application(web.rt), an_application(web.rt, scopes=("introspect", "admin"))
    ada = a_user(web.rt)
    opened = a_session(web.rt, ada)
    user_token = sessions.token_for(web.rt, sessions.find_live(web.rt, opened.session.id), seconds=60).text
    theirs = (granted(web, feed), user_token, opened.bearer.reveal(), opened.refresh.reveal())
    answers = [revoke(web, stranger, token) for token in (*theirs, "unknown", "a.b.c", "idr_x")]
    assert {(answer.status_code, answer.data) for answer in answers} == {(200, b"{}")}
    assert all(introspected(web, stranger, token)["active"] for token in theirs[:3])
    assert refresh.find_session(web.rt, theirs[3]).revoked_at is None


@pytest.mark.parametrize("shown_as", ["token", "bearer", "refresh"])
def test_a_users_token_ends_the_session_behind_it(web: Web, shown_as: str) -> None:
    portal = an_application(web.rt, name="portal", scopes=("introspect",))
    opened = session_of(web.rt, a_user(web.rt), portal.client_id)
    signed = sessions.token_for(web.rt, sessions.find_live(web.rt, opened.session.id), seconds=60).text
    shown = {"token": signed, "bearer": opened.bearer.reveal(), "refresh": opened.refresh.reveal()}
    assert revoke(web, portal, shown[shown_as]).status_code == 200
    assert introspected(web, portal, signed) == {"active": False}
    assert introspected(web, portal, shown["bearer"]) == {"active": False}
    assert sessions.find(web.rt, opened.session.id).revoked_at is not None


def test_a_spent_refresh_token_still_ends_its_family(web: Web) -> None:
    portal = an_application(web.rt)
    opened = session_of(web.rt, a_user(web.rt), portal.client_id)
    with web.rt.unit(ORIGIN) as unit:
        refresh.turn(web.rt, unit, opened.refresh.reveal())
    assert revoke(web, portal, opened.refresh.reveal()).status_code == 200
    assert sessions.find(web.rt, opened.session.id).revoked_at is not None


def test_a_forged_refresh_token_ends_nothing(web: Web) -> None:
    portal = an_application(web.rt)
    opened = session_of(web.rt, a_user(web.rt), portal.client_id)
    other = session_of(web.rt, a_user(web.rt), portal.client_id)
    real, foreign = opened.refresh.reveal(), other.refresh.reveal()
    for text in (real[:-1], real + "0", real[:20] + foreign[20:], real.swapcase()):
        assert revoke(web, portal, text).status_code == 200
    assert sessions.find(web.rt, opened.session.id).revoked_at is None


def test_an_expired_token_is_revoked_without_a_trace(web: Web) -> None:
    feed = an_application(web.rt, token_seconds=60)
    token = granted(web, feed)
    web.clock.tick(60)
    with web.rt.database.without_writes(AssertionError):
        assert revoke(web, feed, token).status_code == 200


# Metadata.


@pytest.mark.parametrize("document", ["oauth-authorization-server", "openid-configuration"])
def test_the_metadata_tells_the_truth(web: Web, document: str) -> None:
    data = web.get(f"/.well-known/{document}").json
    issuer = web.rt.settings.issuer
    assert data["issuer"] == issuer
    routes = {(endpoint.method, prefix + endpoint.path) for endpoint in endpoints() for prefix in endpoint.mounts}
    for name, url in data.items():
        if name.endswith("_endpoint"):
            method = "GET" if name == "status_list_aggregation_endpoint" else "POST"
            assert (method, url.removeprefix(issuer)) in routes
    assert ("GET", data["jwks_uri"].removeprefix(issuer)) in routes
    assert data["grant_types_supported"] == ["client_credentials"]
    assert data["token_endpoint_auth_methods_supported"] == [
        "client_secret_basic",
        "client_secret_post",
        "private_key_jwt",
    ]


def test_no_authorization_endpoint_is_advertised_or_there(web: Web) -> None:
    for document in ("oauth-authorization-server", "openid-configuration"):
        data = web.get(f"/.well-known/{document}").json
        assert not {"authorization_endpoint", "device_authorization_endpoint", "registration_endpoint"} & data.keys()
        assert data["response_types_supported"] == ["none"]
    assert web.get("/oauth/authorize").status_code == 404


def test_both_documents_say_the_same_of_the_server(web: Web) -> None:
    """openid-client 5 reads only one of them, and takes from it how to sign."""
    an_application(web.rt, scopes=("read", "write"))
    an_application(web.rt, scopes=("secret:project",), tenant=a_tenant(web.rt, "acme-bank"))
    oauth = web.get("/.well-known/oauth-authorization-server").json
    openid = web.get("/.well-known/openid-configuration").json
    assert oauth.items() <= openid.items()
    assert oauth["scopes_supported"] == ["admin", "introspect", "read", "write"], "none that is a tenant's own"
    for endpoint in ("token", "introspection", "revocation"):
        assert oauth[f"{endpoint}_endpoint_auth_signing_alg_values_supported"] == ["RS256", "ES256"]
    assert all(value not in ([], "", None) for value in openid.values()), "RFC 8414 section 3.2: no empty members"


def test_two_services_in_one_process_do_not_mix(web: Web) -> None:
    feed = an_application(web.rt)
    again = Web(create_app(runtime=web.rt), web.rt, web.mailbox, web.clock)
    assert introspected(again, feed, granted(web, feed))["active"] is True
