"""Group D: the seed's two documents word for word, every refusal in data and headers, and documents that want too much."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import jwt
import pyotp
import pytest
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from identity.core.clients import applications, registration
from identity.core.people import accounts
from identity.core.people.accounts import User
from identity.core.record.audit import Action, AuditEvent
from identity.core.signin import factors
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import Person, a_user, an_application
from tests.world import ORIGIN, Web

LOGIN = (
    "mutation Login($username: String!, $password: String!, $appId: Int) "
    "{ login(username: $username, password: $password, appId: $appId) { message code sessionID } }"
)
OTP = (
    "mutation OTP($otp: String!, $sessionID: String!, $appId: Int) { otp(otp: $otp, sessionID: $sessionID, appId: $appId) "
    "{ message code token userDetails { username firstName lastName email } } }"
)


# For what ends before any database is asked.
ON_ONE_DATABASE = pytest.mark.parametrize("backend", ["sqlite"])


def ask(web: Web, document: str, **variables: Any) -> TestResponse:
    """A document with its variables, as a GraphQL client sends it."""
    return web.post("/query", {"query": document, "variables": variables})


def log_in(web: Web, person: Person, **changes: Any) -> TestResponse:
    """The seed's first document."""
    variables = {"username": person.email, "password": person.password, "appId": 10} | changes
    return web.post("/query", {"operationName": "Login", "query": LOGIN, "variables": variables})


def answer_otp(web: Web, otp: str, session_id: str, **changes: Any) -> TestResponse:
    """The seed's second document."""
    variables = {"otp": otp, "sessionID": session_id, "appId": 10} | changes
    return web.post("/query", {"operationName": "OTP", "query": OTP, "variables": variables})


def session_of(answer: TestResponse) -> str:
    """The sessionID of a right first step."""
    assert answer.status_code == 200, answer.json
    assert answer.json["data"]["login"]["code"] == "OK", answer.json
    session_id: str = answer.json["data"]["login"]["sessionID"]
    return session_id


def refused(answer: TestResponse, field: str) -> str:
    """The code of a refusal; checks its whole shape."""
    assert answer.status_code == 200, answer.json
    told = dict(answer.json["data"][field])
    code: str = told.pop("code")
    assert answer.headers["x-error"] == told.pop("message")
    assert answer.headers["x-error-id"]
    assert set(told.values()) == {None}
    return code


def malformed(answer: TestResponse) -> str:
    """The message of a document that was not executed."""
    assert answer.status_code == 400, answer.json
    assert answer.json.keys() == {"errors"}
    assert len(answer.json["errors"]) == 1
    assert answer.headers["x-error-id"]
    message: str = answer.json["errors"][0]["message"]
    assert message.startswith(answer.headers["x-error"])
    return message


def an_authenticator(rt: Runtime, person: Person) -> pyotp.TOTP:
    """A confirmed authenticator of `person`."""
    user = accounts.get(rt, person.id)
    enrolment = factors.enrol(rt, ORIGIN, user)
    totp = pyotp.TOTP(enrolment.seed.reveal())
    factors.confirm(rt, ORIGIN, user, totp.at(rt.clock.now()))
    return totp


# The seed's conversation.


def test_the_seeds_conversation_with_an_emailed_code(web: Web) -> None:
    john = a_user(web.rt, email="john.doe@company.example", alias="john.doe", full_name="John van Doe")
    first = log_in(web, john)
    assert first.json["data"]["login"].keys() == {"message", "code", "sessionID"}
    assert first.json["data"]["login"]["message"] == "Session ID creation successful"
    second = answer_otp(web, web.last_code(), session_of(first))
    assert second.status_code == 200
    told = second.json
    token = told["data"]["otp"].pop("token")
    assert told == {
        "data": {
            "otp": {
                "message": "Token created successfully",
                "code": "OK",
                "userDetails": {
                    "username": "john.doe",
                    "firstName": "John",
                    "lastName": "van Doe",
                    "email": "john.doe@company.example",
                },
            }
        }
    }
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["sub"] == john.id
    assert claims["exp"] - claims["iat"] == 86_400
    assert claims["amr"] == ["email", "pwd"]
    assert "x-error" not in second.headers
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 200


def test_the_otp_of_a_user_with_totp_is_their_totp(web: Web) -> None:
    ada = a_user(web.rt)
    totp = an_authenticator(web.rt, ada)
    web.clock.tick(30)
    token = answer_otp(web, totp.at(web.clock.now()), session_of(log_in(web, ada))).json["data"]["otp"]["token"]
    assert jwt.decode(token, options={"verify_signature": False})["amr"] == ["otp", "pwd"]
    assert not [mail for mail in web.mails() if "code" in str(mail["Subject"]).lower()]


@pytest.mark.parametrize("username", ["ADA@acme.example", "ada", "Ada"])
def test_username_is_an_address_or_an_alias_in_any_spelling(web: Web, username: str) -> None:
    ada = a_user(web.rt, email="ada@acme.example", alias="ada")
    session_of(log_in(web, ada, username=username))


@pytest.mark.parametrize("app_id", [{}, {"appId": None}, {"appId": 10}])
def test_the_standard_application_is_meant_where_none_is_named(web: Web, app_id: dict[str, Any]) -> None:
    ada = a_user(web.rt)
    login = ask(web, LOGIN, username=ada.email, password=ada.password, **app_id)
    otp = ask(web, OTP, otp=web.last_code(), sessionID=session_of(login), **app_id)
    claims = jwt.decode(otp.json["data"]["otp"]["token"], options={"verify_signature": False})
    assert claims["client_id"] == applications.find_by_app_id(web.rt, 10).id


def test_a_token_names_the_application_that_was_asked_for(web: Web) -> None:
    ada, portal = a_user(web.rt), an_application(web.rt)
    session_id = session_of(log_in(web, ada, appId=portal.app_id))
    token = answer_otp(web, web.last_code(), session_id, appId=portal.app_id).json["data"]["otp"]["token"]
    assert jwt.decode(token, options={"verify_signature": False})["client_id"] == portal.client_id


def test_arguments_may_stand_in_the_document_and_fields_may_be_renamed(web: Web) -> None:
    ada = a_user(web.rt)
    document = (
        f'mutation {{ step: login(username: "{ada.alias}", password: "{ada.password}") {{ c: code __typename }} }}'
    )
    assert web.post("/query", {"query": document}).json == {"data": {"step": {"c": "OK", "__typename": "Login"}}}


def test_extensions_and_null_members_are_taken_as_clients_send_them(web: Web) -> None:
    body = {"query": "{ service }", "operationName": None, "variables": None, "extensions": {"persistedQuery": {}}}
    assert web.post("/query", body).json == {"data": {"service": "identity"}}


# Refusals of the first step: 200, the code in the data, the x-error headers.


def test_a_wrong_password_is_refused_in_the_data(web: Web) -> None:
    answer = log_in(web, a_user(web.rt), password="wrong")
    assert answer.json["data"]["login"]["message"] == "Email and password do not match"
    assert refused(answer, "login") == "INVALID_CREDENTIALS"


def test_unknown_disabled_and_unknown_application_look_like_a_wrong_password(web: Web) -> None:
    ada, gone = a_user(web.rt), a_user(web.rt, enabled=False)
    nobody = Person("", "nobody@acme.example", "nobody", "whatever it was")
    answers = [log_in(web, ada, password="wrong"), log_in(web, gone), log_in(web, nobody), log_in(web, ada, appId=999)]
    assert [refused(answer, "login") for answer in answers] == ["INVALID_CREDENTIALS"] * 4
    assert len({answer.data for answer in answers}) == 1
    assert not web.mails()


@pytest.mark.parametrize("app_id", [0, -1, 999, 2**31 - 1])
def test_an_unknown_application_is_refused_and_counted_like_a_wrong_password(web: Web, app_id: int) -> None:
    ada = a_user(web.rt)
    for _ in range(5):
        assert refused(log_in(web, ada, appId=app_id), "login") == "INVALID_CREDENTIALS"
    assert refused(log_in(web, ada), "login") == "RATE_LIMITED"


def test_a_disabled_application_is_refused(web: Web) -> None:
    ada, portal = a_user(web.rt), an_application(web.rt)
    session_id = session_of(log_in(web, ada, appId=portal.app_id))
    with web.rt.unit(ORIGIN) as unit:
        registration.change(web.rt, unit, portal.client_id, actor="test", enabled=False)
    assert refused(log_in(web, ada, appId=portal.app_id), "login") == "INVALID_CREDENTIALS"
    assert refused(answer_otp(web, web.last_code(), session_id, appId=portal.app_id), "otp") == "INVALID_CODE"


def test_the_access_window_is_told_with_the_right_password_only(web: Web) -> None:
    late = a_user(web.rt, ends_at=web.clock.now() - timedelta(seconds=1))
    assert refused(log_in(web, late), "login") == "ACCESS_WINDOW_EXPIRED"
    assert refused(log_in(web, late, password="wrong"), "login") == "INVALID_CREDENTIALS"


def test_failures_here_and_at_user_token_share_one_lockout(web: Web) -> None:
    ada = a_user(web.rt)
    for _ in range(3):
        assert web.post("/user/token", {"email": ada.email, "password": "wrong"}).status_code == 401
    for _ in range(2):
        assert refused(log_in(web, ada, password="wrong"), "login") == "INVALID_CREDENTIALS"
    locked = log_in(web, ada)
    assert locked.json["data"]["login"]["message"] == "Too many authentication attempts. Try again in 5 minutes"
    assert refused(locked, "login") == "RATE_LIMITED"
    assert 1 <= int(locked.headers["Retry-After"]) <= 300


def test_a_foreign_origin_is_refused_in_the_data(web: Web) -> None:
    ada = a_user(web.rt)
    body = {"query": LOGIN, "variables": {"username": ada.email, "password": ada.password}}
    answer = web.post("/query", body, headers={"Origin": "not an origin"})
    assert refused(answer, "login") == "VALIDATION_ERROR"


# Refusals of the second step.


@pytest.mark.parametrize("code", ["000000", "", "12345", "１２３４５６", " 123456", "x" * 4000])
def test_a_wrong_otp_is_refused(web: Web, code: str) -> None:
    session_id = session_of(log_in(web, a_user(web.rt)))
    if code == web.last_code():  # one in a million
        code = "000001"
    assert refused(answer_otp(web, code, session_id), "otp") == "INVALID_CODE"


def test_a_session_is_good_for_one_token(web: Web) -> None:
    session_id = session_of(log_in(web, a_user(web.rt)))
    code = web.last_code()
    assert answer_otp(web, code, session_id).json["data"]["otp"]["code"] == "OK"
    assert refused(answer_otp(web, code, session_id), "otp") == "INVALID_CODE"


def test_the_sixth_try_fails_with_the_right_code_too(web: Web) -> None:
    ada = a_user(web.rt)
    session_id, code = session_of(log_in(web, ada)), web.last_code()
    wrong = f"{(int(code) + 1) % 1_000_000:06}"
    for _ in range(5):
        assert refused(answer_otp(web, wrong, session_id), "otp") == "INVALID_CODE"
    assert refused(answer_otp(web, code, session_id), "otp") in ("INVALID_CODE", "RATE_LIMITED")


@pytest.mark.parametrize(("seconds", "code"), [(299, "OK"), (300, "INVALID_CODE"), (301, "INVALID_CODE")])
def test_a_session_waits_for_300_seconds(web: Web, seconds: int, code: str) -> None:
    session_id = session_of(log_in(web, a_user(web.rt)))
    otp = web.last_code()
    web.clock.tick(seconds)
    assert answer_otp(web, otp, session_id).json["data"]["otp"]["code"] == code


@pytest.mark.parametrize("session_id", ["", "x", "00000000-0000-4000-8000-000000000000", "a.b.c", "é.é.é"])
def test_a_session_that_never_was_is_refused_like_a_wrong_code(web: Web, session_id: str) -> None:
    assert refused(answer_otp(web, "123456", session_id), "otp") == "INVALID_CODE"


def test_an_access_token_is_no_session(web: Web) -> None:
    ada = a_user(web.rt)
    token = web.post("/user/token", {"email": ada.email, "password": ada.password}).json["data"]["accessToken"]
    assert refused(answer_otp(web, "123456", token), "otp") == "INVALID_CODE"


def test_a_session_of_one_application_is_no_other_ones(web: Web) -> None:
    ada, portal = a_user(web.rt), an_application(web.rt)
    session_id = session_of(log_in(web, ada, appId=portal.app_id))
    code = web.last_code()
    assert refused(answer_otp(web, code, session_id), "otp") == "INVALID_CODE"
    assert refused(answer_otp(web, code, session_id, appId=999), "otp") == "INVALID_CODE"
    assert answer_otp(web, code, session_id, appId=portal.app_id).json["data"]["otp"]["code"] == "OK"


def test_a_user_disabled_between_the_steps_gets_no_token(web: Web) -> None:
    ada = a_user(web.rt)
    session_id, code = session_of(log_in(web, ada)), web.last_code()
    with web.rt.unit(ORIGIN) as unit:
        unit.execute(update(User).where(User.id == ada.id).values(enabled=False))
    assert refused(answer_otp(web, code, session_id), "otp") == "INVALID_CODE"


# The fixed OTP.


def a_fixed_otp(rt: Runtime, person: Person, otp: str = "246810") -> None:
    with rt.unit(ORIGIN) as unit:
        factors.set_fixed_otp(rt, unit, accounts.get(rt, person.id), otp, actor="admin")


class TestFixedOtp:
    """Where `IDENTITY_FIXED_OTP` permits it."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, fixed_otp=True)

    def test_the_fixed_otp_signs_in_again_and_again(self, web: Web) -> None:
        ada = a_user(web.rt)
        a_fixed_otp(web.rt, ada)
        for _ in range(2):
            session_id = session_of(log_in(web, ada))
            assert answer_otp(web, "246810", session_id).json["data"]["otp"]["code"] == "OK"
        assert not [mail for mail in web.mails() if "sign-in code" in str(mail["Subject"]).lower()]

    def test_a_wrong_fixed_otp_has_five_tries_and_locks_the_account(self, web: Web) -> None:
        ada = a_user(web.rt)
        a_fixed_otp(web.rt, ada)
        session_id = session_of(log_in(web, ada))
        for _ in range(5):
            assert refused(answer_otp(web, "111111", session_id), "otp") == "INVALID_CODE"
        assert refused(answer_otp(web, "246810", session_id), "otp") in ("INVALID_CODE", "RATE_LIMITED")
        assert refused(log_in(web, ada), "login") == "RATE_LIMITED"

    def test_a_user_with_totp_is_asked_for_that_and_not_for_the_fixed_otp(self, web: Web) -> None:
        ada = a_user(web.rt)
        a_fixed_otp(web.rt, ada)
        an_authenticator(web.rt, ada)
        assert refused(answer_otp(web, "246810", session_of(log_in(web, ada))), "otp") == "INVALID_CODE"


def test_a_fixed_otp_is_void_once_it_is_switched_off(web: Web) -> None:
    ada = a_user(web.rt)
    settings = web.rt.settings
    web.rt.settings = replace(settings, fixed_otp=True)
    a_fixed_otp(web.rt, ada)
    web.rt.settings = settings
    assert refused(answer_otp(web, "246810", session_of(log_in(web, ada))), "otp") == "INVALID_CODE"


# Documents that want too much. Each within 100 ms, and none of them is one guess more.


def many_aliases(count: int) -> str:
    guesses = " ".join(f'g{number}: otp(otp: "{number:06}", sessionID: "x") {{ code }}' for number in range(count))
    return f"mutation {{ {guesses} }}"


EXCESSIVE = {
    "3,000 fields": "{ " + "a " * 3000 + "}",
    "3,000 times one field of the answer": 'mutation { login(username: "a", password: "b") { ' + "code " * 1500 + "} }",
    "two aliases": many_aliases(2),
    "50 aliases": many_aliases(50),
    "two root fields": "{ service again: service }",
    "two operations": "query A { service } query B { service }",
    "no operation": "fragment F on Query { service }",
    "a fragment at the root": "query { ...F } fragment F on Query { service }",
    "an inline fragment at the root": "{ ... { service } }",
    "inline fragments, deep": "{ service " + "... { " * 60 + "service" + " }" * 60 + " }",
    "selections, deep": "{ a" * 90 + " }" * 90,
    "selections, much deeper": "{a" * 2000 + "}" * 2000,
    "a list type, deep": "query ($x: " + "[" * 90 + "Int" + "]" * 90 + ") { service }",
    "a list value, deep": "{ service(a: " + "[" * 3000 + "]" * 3000 + ") }",
    "comments": "# a comment\n" * 600 + "{ service }",
    "201 tokens": "{ service " + "@skip(if: true) " * 33 + "}",
    "a fragment that holds itself": 'mutation { login(username: "a", password: "b") { ...F } } fragment F on Login { ...F }',
}


@ON_ONE_DATABASE
@pytest.mark.parametrize("name", EXCESSIVE)
def test_an_excessive_document_is_400_within_100_ms(web: Web, name: str) -> None:
    ask(web, "{ service }")
    before = time.thread_time()  # what it costs, whoever else is using the machine
    answer = ask(web, EXCESSIVE[name])
    elapsed = time.thread_time() - before
    malformed(answer)
    assert elapsed < 0.1


@ON_ONE_DATABASE
def test_a_batch_is_400(web: Web) -> None:
    malformed(web.post("/query", [{"query": "{ service }"}] * 2))


def test_no_alias_is_a_guess(web: Web) -> None:
    ada = a_user(web.rt)
    guesses = " ".join(f'g{n}: login(username: "{ada.alias}", password: "wrong") {{ code }}' for n in range(9))
    malformed(ask(web, f"mutation {{ {guesses} }}"))
    with web.rt.database.reading() as session:
        assert not session.scalars(select(AuditEvent).where(AuditEvent.action == Action.LOGIN_FAILED)).all()


@ON_ONE_DATABASE
@pytest.mark.parametrize("filler", [0, 1])
def test_a_body_of_8_kib_is_read_and_one_byte_more_is_413(web: Web, filler: int) -> None:
    head, tail = '{"query":"{ service }","extensions":"', '"}'
    raw = head + "x" * (8192 - len(head) - len(tail) + filler) + tail
    answer = web.call("POST", "/query", data=raw, content_type="application/json")
    assert answer.status_code == (413 if filler else 200)
    if filler:
        assert answer.json == {"errors": [{"message": "The request body is too large"}]}


# Documents that are none.


@ON_ONE_DATABASE
@pytest.mark.parametrize(
    "document",
    [
        "",
        " ",
        "{",
        "{ }",
        "mutation { login }",
        "{ nothing }",
        "{ service { code } }",
        "\0",
        "{ service(a: 1) }",
        "type A { b: C }",
        "subscription { a }",
        "é",
    ],
)
def test_a_document_that_does_not_parse_or_fit_is_400(web: Web, document: str) -> None:
    malformed(ask(web, document))


@ON_ONE_DATABASE
def test_messages_suggest_nothing(web: Web) -> None:
    message = malformed(ask(web, "mutation { logn(username: 1) { code } }"))
    assert "Did you mean" not in message
    assert "login" not in message


@ON_ONE_DATABASE
@pytest.mark.parametrize("root", ["__schema { types { name } }", '__type(name: "Login") { name }', "__typename"])
def test_there_is_no_introspection(web: Web, root: str) -> None:
    assert malformed(ask(web, "{ " + root + " }")) == "Introspection is switched off"


@ON_ONE_DATABASE
def test_there_is_introspection_in_development(web: Web) -> None:
    web.rt.settings = replace(web.rt.settings, development=True)
    assert ask(web, "{ __schema { mutationType { name } } }").json["data"]["__schema"]["mutationType"]


@ON_ONE_DATABASE
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"username": "ada"},
        {"username": "ada", "password": None},
        {"username": "ada", "password": 12345678},
        {"username": "ada", "password": ["secret password"]},
        {"username": "ada", "password": "secret password", "appId": "10"},
        {"username": "ada", "password": "secret password", "appId": 2**31},
        {"username": "ada", "password": "secret password", "appId": 1.5},
    ],
)
def test_variables_that_do_not_fit_are_400_and_not_quoted(web: Web, variables: dict[str, Any]) -> None:
    answer = ask(web, LOGIN, **variables)
    assert malformed(answer) == "The variables do not fit the GraphQL document"
    assert b"secret" not in answer.data


@ON_ONE_DATABASE
def test_an_operation_name_that_is_not_in_the_document_is_400(web: Web) -> None:
    malformed(web.post("/query", {"query": "query A { service }", "operationName": "B"}))


@ON_ONE_DATABASE
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": None},
        {"query": 1},
        {"query": "{ service }", "variables": []},
        {"query": "{ service }", "variables": "{}"},
        {"query": "{ service }", "operationName": 1},
        {"query": "{ service }", "id": "persisted"},
    ],
)
def test_a_body_that_is_no_graphql_request_is_400(web: Web, body: dict[str, Any]) -> None:
    malformed(web.post("/query", body))


@pytest.mark.parametrize("escape", [r"\u0000", r"\u{0}"])
def test_nul_in_an_escape_of_the_document_is_refused(web: Web, escape: str) -> None:
    document = f'mutation {{ login(username: "ada{escape}", password: "x") {{ code message sessionID }} }}'
    assert refused(ask(web, document), "login") == "MALFORMED_REQUEST"


@ON_ONE_DATABASE
@pytest.mark.parametrize("escape", [r"\ud800", r"\u{d800}", r"\u{110000}"])
def test_a_lone_surrogate_in_an_escape_of_the_document_is_refused(web: Web, escape: str) -> None:
    malformed(ask(web, f'mutation {{ login(username: "ada{escape}", password: "x") {{ code }} }}'))


@ON_ONE_DATABASE
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_only_post_is_answered(web: Web, method: str) -> None:
    answer = web.call(method, "/query?query=%7Bservice%7D")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"


@ON_ONE_DATABASE
@pytest.mark.parametrize("content_type", ["application/graphql", "text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_read(web: Web, content_type: str) -> None:
    answer = web.call("POST", "/query", data=b'{"query":"{ service }"}', content_type=content_type)
    assert answer.status_code == 415
    assert answer.json["errors"]


class TestLimit:
    """GraphQL is counted with the logins."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, limit_auth="2/minute")

    def test_a_request_over_the_login_budget_is_429(self, web: Web) -> None:
        for _ in range(2):
            assert ask(web, "{ service }").status_code == 200
        over = ask(web, "{ service }")
        assert over.status_code == 429
        assert over.json == {"errors": [{"message": "Too many requests"}]}
        assert int(over.headers["Retry-After"]) >= 1
        assert over.headers["X-RateLimit-Limit"] == "2"
