"""Group C over the Flask mount: every route, every refusal, and the trace that each leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import jwt
import pyotp
import pytest
from werkzeug.test import TestResponse

from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people import accounts
from identity.core.record import audit, explain
from identity.core.signin import factors
from identity.core.tokens import sessions
from identity.instruments.limits import Limiter
from identity.paging import Part
from tests.builders import Person, a_session, a_token, a_user, an_application
from tests.world import ORIGIN, Web, code_in

ACKNOWLEDGED = {"message": "acknowledged"}


@pytest.fixture(params=["", "/api/auth/v2"])
def mount(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def sign_in(web: Web, person: Person, *, kind: str | None = None) -> dict[str, Any]:
    """A session by emailed code, ready to use. A second passes first, so that newer things are newer."""
    web.clock.tick(1)
    waiting = web.post("/session", {"email": person.email} | ({"kind": kind} if kind else {}))
    assert waiting.status_code == 202, waiting.json
    asked = {"verificationCodeID": waiting.json["verificationCodeID"], "code": web.last_code()}
    assert web.put("/session/verification", asked).status_code == 202
    result: dict[str, Any] = waiting.json
    return result


def a_keypair(web: Web, bearer: str, **options: Any) -> dict[str, Any]:
    """A confirmed key pair of whoever has the bearer."""
    made = web.post("/keypair", {"name": "ci", "days": 30} | options, bearer=bearer)
    assert made.status_code == 202, made.json
    asked = {"verificationCodeID": made.json["verificationCodeID"], "code": web.last_code()}
    assert web.put("/keypair/verification", asked).status_code == 202
    web.mails()
    result: dict[str, Any] = made.json
    return result


def key_headers(pair: Mapping[str, Any]) -> dict[str, str]:
    return {"api-key": pair["apiKey"], "api-secret": pair["apiSecret"]}


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"


def assert_refused(answer: TestResponse, status: int, error: str, *, field: str | None = None) -> None:
    assert (answer.status_code, answer.json["error"]) == (status, error), answer.json
    assert answer.json["status"] == status
    assert answer.json.get("field") == field
    assert answer.headers["x-error"] == answer.json["message"]
    assert answer.headers["x-error-id"]


def actions(web: Web) -> set[str]:
    return {event.action for event in audit.search(web.rt, limit=200)}


# Sessions.


def test_a_session_is_asked_for_verified_used_extended_traded_and_ended(web: Web, mount: str) -> None:
    ada = a_user(web.rt, roles=("analyst",), groups=("blue",), tenants={"acme-bank": ("viewer",)})
    asked = web.post(f"{mount}/session", {"email": ada.email, "kind": "laptop"}, headers={"User-Agent": "Browser/1.0"})
    assert asked.status_code == 202
    waiting = asked.json
    assert set(waiting) == {"bearer", "sessionID", "expireAt", "ip", "userAgent", "kind", "verificationCodeID"}
    assert waiting["kind"] == "laptop"
    assert waiting["userAgent"] == "Browser/1.0"
    assert waiting["expireAt"] == int(web.clock.now().timestamp()) + 86_400
    bearer = waiting["bearer"]
    assert_refused(web.get(f"{mount}/session", bearer=bearer), 401, "INVALID_TOKEN")
    body = {"verificationCodeID": waiting["verificationCodeID"], "code": web.last_code()}
    verified = web.put(f"{mount}/session/verification", body)
    assert (verified.status_code, verified.json) == (202, ACKNOWLEDGED)
    seen = web.get(f"{mount}/session", bearer=bearer)
    assert seen.status_code == 200
    assert seen.json == {
        "sessionID": waiting["sessionID"],
        "userID": ada.id,
        "alias": ada.alias,
        "fullName": "Ada Lovelace",
        "expireAt": waiting["expireAt"],
        "ip": waiting["ip"],
        "userAgent": "Browser/1.0",
        "kind": "laptop",
        "verified": True,
        "roles": ["analyst"],
        "groups": ["blue"],
        "tenants": {"acme-bank": ["viewer"]},
    }
    web.clock.tick(3600)
    extended = web.put(f"{mount}/session/extend", bearer=bearer)
    assert (extended.status_code, extended.json) == (202, ACKNOWLEDGED)
    assert web.get(f"{mount}/session", bearer=bearer).json["expireAt"] == waiting["expireAt"] + 3600
    traded = web.post(f"{mount}/session/token", bearer=bearer, headers={"Origin": "https://api.acme.example"})
    assert traded.status_code == 202
    assert (traded.json["tokenType"], traded.json["expiresIn"]) == ("Bearer", 3600)
    claims = jwt.decode(traded.json["accessToken"], options={"verify_signature": False})
    assert (claims["sub"], claims["sid"], claims["amr"]) == (ada.id, waiting["sessionID"], ["email"])
    assert claims["aud"] == ["https://api.acme.example", web.rt.settings.issuer]
    assert web.get(f"{mount}/session", bearer=traded.json["accessToken"]).json["sessionID"] == waiting["sessionID"]
    ended = web.delete(f"{mount}/session/{waiting['sessionID']}", bearer=bearer)
    assert (ended.status_code, ended.json) == (202, ACKNOWLEDGED)
    for credential in (bearer, traded.json["accessToken"]):
        gone = web.get(f"{mount}/session", bearer=credential)
        assert_refused(gone, 401, "INVALID_TOKEN")
        assert gone.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert actions(web) >= {"session.created", "session.verified", "session.extended", "session.revoked"}


def test_the_mail_with_the_code_goes_to_the_stored_address_only(web: Web) -> None:
    a_user(web.rt, email="ada@acme.example")
    web.post("/session", {"email": "ADA@Acme.Example."})
    (mail,) = web.mails()
    assert mail["To"] == "ada@acme.example"
    assert "127.0.0.1" in mail.get_body(("plain",)).get_content()


def test_the_code_is_in_no_answer(web: Web) -> None:
    ada = a_user(web.rt)
    answer = web.post("/session", {"email": ada.email})
    assert web.last_code() not in answer.text.replace(answer.json["verificationCodeID"], "")


def test_nobody_learns_who_has_an_account_by_asking_for_a_session(web: Web) -> None:
    known, disabled = a_user(web.rt), a_user(web.rt, enabled=False)
    late = a_user(web.rt, ends_at=web.clock.now())
    answers = {
        name: web.post("/session", {"email": email})
        for name, email in {
            "known": known.email,
            "disabled": disabled.email,
            "late": late.email,
            "unknown": "nobody@acme.example",
        }.items()
    }
    shapes = {
        (answer.status_code, tuple(answer.json), tuple(len(str(value)) for value in answer.json.values()))
        for answer in answers.values()
    }
    assert len(shapes) == 1
    assert [mail["To"] for mail in web.mails()] == [known.email]
    for answer in answers.values():
        assert_refused(web.get("/session", bearer=answer.json["bearer"]), 401, "INVALID_TOKEN")
        guess = {"verificationCodeID": answer.json["verificationCodeID"], "code": "000000"}
        if answer is not answers["known"]:
            assert_refused(web.put("/session/verification", guess), 401, "INVALID_CODE")


def test_wrong_codes_lock_out_known_and_unknown_addresses_alike(web: Web) -> None:
    ada, seen = a_user(web.rt), []
    for email in (ada.email, "nobody@acme.example"):
        asked = web.post("/session", {"email": email}).json
        code = wrong(web.last_code())
        body = {"verificationCodeID": asked["verificationCodeID"], "code": code}
        tries = [web.put("/session/verification", body).status_code for _ in range(7)]
        another = web.post("/session", {"email": email}).json
        tries.append(
            web.put("/session/verification", {**body, "verificationCodeID": another["verificationCodeID"]}).status_code
        )
        tries.append(web.post("/user/token", {"email": email, "password": "wrong"}).status_code)
        seen.append(tries)
    assert seen[0] == seen[1] == [401, 401, 401, 401, 401, 401, 401, 429, 429]


def test_the_sixth_code_to_an_address_in_ten_minutes_is_refused_known_or_not(web: Web) -> None:
    ada = a_user(web.rt)
    for email in (ada.email, "nobody@acme.example"):
        for _ in range(5):
            assert web.post("/session", {"email": email}).status_code == 202
        sixth = web.post("/session", {"email": email})
        assert_refused(sixth, 429, "RATE_LIMITED")
        assert 1 <= int(sixth.headers["Retry-After"]) <= 600


def test_a_bad_session_request_is_400_and_blames_the_field(web: Web) -> None:
    for body, field in (
        ({}, "email"),
        ({"email": "no address"}, "email"),
        ({"email": "a@x.example", "kind": " "}, "kind"),
        ({"email": "a@x.example", "kind": "k" * 65}, "kind"),
        ({"email": "a@x.example", "kind": "\u200b"}, "kind"),
        ({"email": 5}, "email"),
        ({"email": "a@x.example", "userID": "x"}, "userID"),
    ):
        assert_refused(web.post("/session", body), 400, "VALIDATION_ERROR", field=field)


VERIFICATIONS = ("/session/verification", "/email/verification", "/keypair/verification")


def test_a_verification_names_its_missing_field(web: Web) -> None:
    for path in VERIFICATIONS:
        for body, field in (({"code": "123456"}, "verificationCodeID"), ({"verificationCodeID": "x"}, "code")):
            assert_refused(web.put(path, body), 400, "VALIDATION_ERROR", field=field)


@pytest.mark.parametrize("code", ["000000", "12345", "1234567", "\uff11\uff12\uff13\uff14\uff15\uff16", "abcdef"])
def test_an_unknown_verification_id_is_an_invalid_code(web: Web, code: str) -> None:
    for path in VERIFICATIONS:
        for unknown in ("0192f3a0-0000-7000-8000-000000000000", "not an id"):
            assert_refused(web.put(path, {"verificationCodeID": unknown, "code": code}), 401, "INVALID_CODE")


def test_a_code_works_once(web: Web) -> None:
    ada = a_user(web.rt)
    asked = web.post("/session", {"email": ada.email}).json
    body = {"verificationCodeID": asked["verificationCodeID"], "code": web.last_code()}
    assert web.put("/session/verification", body).status_code == 202
    assert_refused(web.put("/session/verification", body), 401, "INVALID_CODE")


def test_a_code_lives_ten_minutes(web: Web) -> None:
    ada = a_user(web.rt)
    for seconds, status in ((599, 202), (600, 401), (601, 401)):
        asked = web.post("/session", {"email": ada.email}).json
        body = {"verificationCodeID": asked["verificationCodeID"], "code": web.last_code()}
        web.clock.tick(seconds)
        assert web.put("/session/verification", body).status_code == status


def test_a_code_for_one_thing_is_no_code_for_another(web: Web) -> None:
    ada = a_user(web.rt)
    bearer = sign_in(web, ada)["bearer"]
    made = web.post("/keypair", {"name": "ci", "days": 1}, bearer=bearer).json
    body = {"verificationCodeID": made["verificationCodeID"], "code": web.last_code()}
    assert_refused(web.put("/session/verification", body), 401, "INVALID_CODE")
    assert_refused(web.put("/email/verification", body), 401, "INVALID_CODE")
    assert web.put("/keypair/verification", body).status_code == 202


def test_a_user_disabled_between_the_steps_is_not_let_in(web: Web) -> None:
    ada = a_user(web.rt)
    asked = web.post("/session", {"email": ada.email}).json
    code = web.last_code()
    with web.rt.unit(ORIGIN) as unit:
        accounts.get_row(unit.session, ada.id).enabled = False
    body = {"verificationCodeID": asked["verificationCodeID"], "code": code}
    assert_refused(web.put("/session/verification", body), 401, "INVALID_CODE")
    assert_refused(web.get("/session", bearer=asked["bearer"]), 401, "INVALID_TOKEN")


def test_a_session_that_was_ended_while_it_waited_cannot_be_verified(web: Web) -> None:
    ada = a_user(web.rt)
    asked = web.post("/session", {"email": ada.email}).json
    code = web.last_code()
    with web.rt.unit(ORIGIN) as unit:
        sessions.revoke_all(web.rt, unit, ada.id, actor="test", reason="password changed")
    body = {"verificationCodeID": asked["verificationCodeID"], "code": code}
    assert_refused(web.put("/session/verification", body), 401, "INVALID_CODE")
    assert_refused(web.get("/session", bearer=asked["bearer"]), 401, "INVALID_TOKEN")


def test_a_window_that_closed_between_the_steps_is_named(web: Web) -> None:
    ada = a_user(web.rt, ends_at=web.clock.now() + timedelta(seconds=60))
    asked = web.post("/session", {"email": ada.email}).json
    body = {"verificationCodeID": asked["verificationCodeID"], "code": web.last_code()}
    web.clock.tick(60)
    assert_refused(web.put("/session/verification", body), 401, "ACCESS_WINDOW_EXPIRED")


def enrol(web: Web, person: Person) -> pyotp.TOTP:
    enrolment = factors.enrol(web.rt, ORIGIN, accounts.get(web.rt, person.id))
    totp = pyotp.TOTP(enrolment.seed.reveal())
    factors.confirm(web.rt, ORIGIN, accounts.get(web.rt, person.id), totp.at(web.clock.now()))
    web.clock.tick(30)
    web.mails()
    return totp


def test_a_second_factor_cannot_be_skipped_by_signing_in_with_an_emailed_code(web: Web) -> None:
    ada = a_user(web.rt)
    totp = enrol(web, ada)
    asked = web.post("/session", {"email": ada.email}).json
    body = {"verificationCodeID": asked["verificationCodeID"], "code": web.last_code()}
    for _ in range(7):  # More often than a code may be tried wrongly: asking for the factor burns nothing.
        assert_refused(web.put("/session/verification", body), 401, "MFA_REQUIRED")
    assert_refused(web.get("/session", bearer=asked["bearer"]), 401, "INVALID_TOKEN")
    right = totp.at(web.clock.now())
    assert_refused(web.put("/session/verification", {**body, "totpCode": wrong(right)}), 401, "INVALID_CODE")
    assert web.put("/session/verification", {**body, "totpCode": right}).status_code == 202
    claims = sessions.find_live_bearer(web.rt, asked["bearer"]).session
    assert claims.amr == ("email", "otp")


def test_a_right_second_factor_does_not_mend_a_wrong_emailed_code(web: Web) -> None:
    ada = a_user(web.rt)
    totp = enrol(web, ada)
    asked = web.post("/session", {"email": ada.email}).json
    body = {"verificationCodeID": asked["verificationCodeID"], "code": wrong(web.last_code())}
    right = totp.at(web.clock.now())
    assert_refused(web.put("/session/verification", {**body, "totpCode": right}), 401, "INVALID_CODE")
    assert_refused(web.get("/session", bearer=asked["bearer"]), 401, "INVALID_TOKEN")


def test_five_wrong_second_factors_use_the_emailed_code_up(web: Web) -> None:
    ada = a_user(web.rt)
    totp = enrol(web, ada)
    asked = web.post("/session", {"email": ada.email}).json
    code = web.last_code()
    body = {"verificationCodeID": asked["verificationCodeID"], "code": code}
    for _ in range(5):
        bad = wrong(totp.at(web.clock.now()))
        assert_refused(web.put("/session/verification", {**body, "totpCode": bad}), 401, "INVALID_CODE")
    web.clock.tick(301)
    right = totp.at(web.clock.now())
    assert_refused(web.put("/session/verification", {**body, "totpCode": right}), 401, "INVALID_CODE")


def test_a_recovery_code_stands_in_for_a_lost_device(web: Web) -> None:
    ada = a_user(web.rt)
    user = accounts.get(web.rt, ada.id)
    totp = pyotp.TOTP(factors.enrol(web.rt, ORIGIN, user).seed.reveal())
    recovery = factors.confirm(web.rt, ORIGIN, user, totp.at(web.clock.now()))[0].reveal()
    web.mails()
    for status in (202, 401):
        asked = web.post("/session", {"email": ada.email}).json
        body = {"verificationCodeID": asked["verificationCodeID"], "code": web.last_code()}
        assert web.put("/session/verification", {**body, "recoveryCode": recovery}).status_code == status


def test_sessions_of_every_dialect_are_listed_and_only_the_current_one_says_so(web: Web) -> None:
    ada, eve = a_user(web.rt), a_user(web.rt)
    mine = sign_in(web, ada, kind="phone")
    web.clock.tick(1)
    token = web.post("/user/token", {"email": ada.email, "password": ada.password}).json["data"]["accessToken"]
    web.post("/session", {"email": ada.email})  # Waits for its code: no session yet, whoever asked for it.
    sign_in(web, eve)
    listed = web.get("/sessions", bearer=mine["bearer"])
    assert listed.status_code == 200
    assert [(one["kind"], one["current"]) for one in listed.json["sessions"]] == [("token", False), ("phone", True)]
    assert set(listed.json["sessions"][0]) == {"sessionID", "ip", "userAgent", "expireAt", "kind", "current"}
    day = next(one for one in listed.json["sessions"] if not one["current"])
    assert web.delete(f"/session/{day['sessionID']}", bearer=mine["bearer"]).status_code == 202
    assert_refused(web.get("/session", bearer=token), 401, "INVALID_TOKEN")
    assert web.delete(f"/session/{day['sessionID']}", bearer=mine["bearer"]).json == ACKNOWLEDGED


def test_the_session_of_another_user_is_not_found(web: Web) -> None:
    ada, eve = a_user(web.rt), a_user(web.rt)
    mine, hers = sign_in(web, ada), sign_in(web, eve)
    for unknown in (hers["sessionID"], "0192f3a0-0000-7000-8000-000000000000", "x"):
        assert_refused(web.delete(f"/session/{unknown}", bearer=mine["bearer"]), 404, "NOT_FOUND")
    assert web.get("/session", bearer=hers["bearer"]).status_code == 200


def test_a_session_ends_when_idle_and_absolutely(web: Web) -> None:
    ada = a_user(web.rt)
    bearer = sign_in(web, ada)["bearer"]
    started = web.clock.now()
    for _ in range(30):
        web.clock.tick(86_399)
        assert web.put("/session/extend", bearer=bearer).status_code == 202
    left = web.rt.settings.session_absolute_seconds - int((web.clock.now() - started).total_seconds())
    web.clock.tick(left - 1)
    assert web.get("/session", bearer=bearer).status_code == 200
    web.clock.tick(1)
    assert_refused(web.get("/session", bearer=bearer), 401, "TOKEN_EXPIRED")


@pytest.mark.parametrize("seconds", [86_399, 86_400, 86_401])
def test_an_unextended_session_ends_after_a_day(web: Web, seconds: int) -> None:
    bearer = sign_in(web, a_user(web.rt))["bearer"]
    web.clock.tick(seconds)
    assert web.get("/session", bearer=bearer).status_code == (200 if seconds < 86_400 else 401)


def test_extending_never_shortens_a_session(web: Web) -> None:
    ada = a_user(web.rt)
    challenge = web.post("/auth/login", {"email": ada.email, "password": ada.password}).json["mfaChallengeToken"]
    body = {"mfaChallengeToken": challenge, "emailCode": web.last_code()}
    bearer = web.post("/auth/mfa/challenge", body).json["accessToken"]
    before = web.get("/session", bearer=bearer).json["expireAt"]
    assert web.put("/session/extend", bearer=bearer).status_code == 202
    assert web.get("/session", bearer=bearer).json["expireAt"] == before


def test_misspelt_bearers_are_refused_alike(web: Web) -> None:
    bearer = sign_in(web, a_user(web.rt))["bearer"]
    bodies = set()
    for bad in (bearer[:-1], bearer + "0", bearer.swapcase(), bearer.upper(), "ids_" + "0" * 33, "x", bearer[4:]):
        answer = web.get("/session", bearer=bad)
        assert_refused(answer, 401, "INVALID_TOKEN")
        bodies.add(answer.text)
    assert len(bodies) == 1


# What every route of the group demands.


def test_asking_and_verifying_share_one_budget_of_the_client_address_on_both_mounts(web: Web) -> None:
    web.rt.settings = replace(web.rt.settings, limit_auth="4/minute")
    web.rt.limiter = Limiter(web.rt.settings)
    guess = {"verificationCodeID": "0192f3a0-0000-7000-8000-000000000000", "code": "123456"}
    assert web.post("/session", {"email": "a@x.example"}).headers["X-RateLimit-Remaining"] == "3"
    assert web.put("/api/auth/v2/session/verification", guess).headers["X-RateLimit-Remaining"] == "2"
    assert web.put("/email/verification", guess).headers["X-RateLimit-Remaining"] == "1"
    assert web.put("/keypair/verification", guess).headers["X-RateLimit-Remaining"] == "0"
    for path in ("/user", "/api/auth/v2/session"):
        assert_refused(web.post(path, {"email": "a@x.example"}), 429, "RATE_LIMITED")


BEARER_ROUTES = [
    ("GET", "/session", None),
    ("PUT", "/session/extend", None),
    ("DELETE", "/session/0192f3a0-0000-7000-8000-000000000000", None),
    ("GET", "/sessions", None),
    ("POST", "/session/token", None),
    ("POST", "/email", {"address": "a@x.example"}),
    ("POST", "/email/verification", {"address": "a@x.example"}),
    ("GET", "/emails", None),
    ("PUT", "/email/preferred", {"emailID": "0192f3a0-0000-7000-8000-000000000000"}),
    ("DELETE", "/email/0192f3a0-0000-7000-8000-000000000000", None),
    ("POST", "/keypair", {"name": "x", "days": 1}),
    ("GET", "/keypairs", None),
    ("DELETE", "/keypair/0192f3a0-0000-7000-8000-000000000000", None),
    ("DELETE", "/user", None),
]


def test_a_route_for_users_takes_nobody_and_no_application(web: Web) -> None:
    feed = an_application(web.rt)
    issued = web.post(
        "/application/token",
        {"clientId": feed.client_id, "secret": feed.secret},
        headers={"Origin": web.rt.settings.issuer},
    )
    for method, path, body in BEARER_ROUTES:
        nobody = web.call(method, path, body)
        assert_refused(nobody, 401, "UNAUTHENTICATED")
        assert nobody.headers["WWW-Authenticate"] == "Bearer"
        assert_refused(web.call(method, path, body, bearer=issued.json["data"]["accessToken"]), 403, "FORBIDDEN")


def test_a_route_for_key_pairs_takes_no_bearer(web: Web) -> None:
    bearer = sign_in(web, a_user(web.rt))["bearer"]
    for method, path in (("GET", "/keypair"), ("POST", "/keypair/token")):
        assert_refused(web.call(method, path, bearer=bearer), 401, "UNAUTHENTICATED")


# Emails.


def test_an_address_is_added_proven_preferred_and_removed(web: Web, mount: str) -> None:
    ada = a_user(web.rt)
    bearer = sign_in(web, ada)["bearer"]
    web.clock.tick(1)
    added = web.post(f"{mount}/email", {"address": "Ada@Other.example"}, bearer=bearer)
    assert added.status_code == 202
    assert set(added.json) == {"verificationCodeID"}
    mail = web.mails()[-1]
    assert mail["To"] == "ada@other.example"
    listed = web.get(f"{mount}/emails", bearer=bearer)
    assert listed.status_code == 200
    first, second = listed.json["emails"]
    assert first == {"emailID": first["emailID"], "address": ada.email, "verified": True, "preferred": True}
    assert second == {
        "emailID": second["emailID"],
        "address": "ada@other.example",
        "verified": False,
        "preferred": False,
    }
    early = web.put(f"{mount}/email/preferred", {"emailID": second["emailID"]}, bearer=bearer)
    assert_refused(early, 409, "CONFLICT", field="emailID")
    body = {"verificationCodeID": added.json["verificationCodeID"], "code": code_in(mail)}
    assert web.put(f"{mount}/email/verification", body).json == ACKNOWLEDGED
    notice = web.mails()[-1]
    assert notice["To"] == ada.email
    assert "ada@other.example" in notice.get_body(("plain",)).get_content()
    assert web.put(f"{mount}/email/preferred", {"emailID": second["emailID"]}, bearer=bearer).json == ACKNOWLEDGED
    assert [each["preferred"] for each in web.get(f"{mount}/emails", bearer=bearer).json["emails"]] == [False, True]
    assert web.delete(f"{mount}/email/{first['emailID']}", bearer=bearer).json == ACKNOWLEDGED
    last = web.delete(f"{mount}/email/{second['emailID']}", bearer=bearer)
    assert_refused(last, 409, "CONFLICT")
    assert [each["address"] for each in web.get(f"{mount}/emails", bearer=bearer).json["emails"]] == [
        "ada@other.example"
    ]
    assert actions(web) >= {"email.added", "email.verified", "email.preferred", "email.removed"}


def test_a_new_code_for_an_address_kills_the_old_one(web: Web) -> None:
    bearer = sign_in(web, a_user(web.rt))["bearer"]
    old = web.post("/email", {"address": "ada@other.example"}, bearer=bearer).json["verificationCodeID"]
    old_code = web.last_code()
    new = web.post("/email/verification", {"address": "ada@other.example"}, bearer=bearer)
    assert new.status_code == 202
    new_code = web.last_code()
    stale = {"verificationCodeID": old, "code": old_code}
    assert_refused(web.put("/email/verification", stale), 401, "INVALID_CODE")
    fresh = {"verificationCodeID": new.json["verificationCodeID"], "code": new_code}
    assert web.put("/email/verification", fresh).status_code == 202
    again = web.post("/email/verification", {"address": "ada@other.example"}, bearer=bearer)
    assert_refused(again, 409, "CONFLICT", field="address")
    twice = web.post("/email", {"address": "ada@other.example"}, bearer=bearer)
    assert_refused(twice, 409, "CONFLICT", field="address")


def test_an_address_that_was_never_added_gets_no_new_code(web: Web) -> None:
    bearer = sign_in(web, a_user(web.rt))["bearer"]
    answer = web.post("/email/verification", {"address": "ada@other.example"}, bearer=bearer)
    assert_refused(answer, 404, "NOT_FOUND")


def test_that_somebody_has_an_address_is_told_to_its_owner_only(web: Web) -> None:
    ada, eve = a_user(web.rt), a_user(web.rt)
    bearer = sign_in(web, eve)["bearer"]
    taken = web.post("/email", {"address": ada.email}, bearer=bearer)
    assert web.mails()[-1]["To"] == ada.email
    assert "You already have an account" in web.mails()[-1]["Subject"]
    free = web.post("/email", {"address": "free@acme.example"}, bearer=bearer)
    assert (taken.status_code, set(taken.json)) == (free.status_code, set(free.json))


def test_the_addresses_of_another_user_are_not_found(web: Web) -> None:
    ada, eve = a_user(web.rt), a_user(web.rt)
    mine, hers = sign_in(web, ada)["bearer"], sign_in(web, eve)["bearer"]
    other = web.get("/emails", bearer=hers).json["emails"][0]["emailID"]
    for unknown in (other, "0192f3a0-0000-7000-8000-000000000000", "x"):
        assert_refused(web.delete(f"/email/{unknown}", bearer=mine), 404, "NOT_FOUND")
        assert_refused(web.put("/email/preferred", {"emailID": unknown}, bearer=mine), 404, "NOT_FOUND")


def test_what_no_mail_can_go_to_is_no_address(web: Web) -> None:
    bearer = sign_in(web, a_user(web.rt))["bearer"]
    for address in ("a\r\nBcc: x@y.example", '"a b"@x.example', "a@\uff45.example ", "a" * 300):
        answer = web.post("/email", {"address": address}, bearer=bearer)
        assert_refused(answer, 400, "VALIDATION_ERROR", field="address")


# Key pairs.


def test_a_key_pair_is_made_confirmed_used_traded_and_revoked(web: Web, mount: str) -> None:
    ada = a_user(web.rt, roles=("analyst",), groups=("blue",), tenants={"acme-bank": ("viewer",)})
    bearer = sign_in(web, ada)["bearer"]
    made = web.post(f"{mount}/keypair", {"name": "ci", "days": 30}, bearer=bearer)
    assert made.status_code == 202
    pair = made.json
    assert set(pair) == {
        "apiKey",
        "apiSecret",
        "keyID",
        "keyName",
        "expireAt",
        "verified",
        "verificationCodeID",
    }
    assert (pair["keyName"], pair["verified"]) == ("ci", False)
    assert pair["expireAt"] == int(web.clock.now().timestamp()) + 30 * 86_400
    assert_refused(web.get(f"{mount}/keypair", headers=key_headers(pair)), 401, "INVALID_CREDENTIALS")
    body = {"verificationCodeID": pair["verificationCodeID"], "code": web.last_code()}
    assert web.put(f"{mount}/keypair/verification", body).json == ACKNOWLEDGED
    notice = web.mails()[-1]
    assert (notice["To"], '"ci"' in notice.get_body(("plain",)).get_content()) == (ada.email, True)
    checked = web.get(f"{mount}/keypair", headers=key_headers(pair))
    assert checked.status_code == 200
    assert checked.json == {
        "apiKey": pair["apiKey"],
        "keyID": pair["keyID"],
        "keyName": "ci",
        "expireAt": pair["expireAt"],
        "verified": True,
        "userID": ada.id,
        "userName": "Ada Lovelace",
        "userAlias": ada.alias,
        "roles": ["analyst"],
        "groups": ["blue"],
        "tenants": {"acme-bank": ["viewer"]},
    }
    web.rt.usage.flush(web.rt.database, web.rt.clock.now())
    listed = web.get(f"{mount}/keypairs", bearer=bearer)
    assert listed.status_code == 200
    assert listed.json == {
        "keys": [
            {
                "apiKey": pair["apiKey"],
                "keyID": pair["keyID"],
                "keyName": "ci",
                "expireAt": pair["expireAt"],
                "verified": True,
                "lastUsedAt": int(web.clock.now().timestamp()),
                "lastUsedIp": "127.0.0.1",
                "cidrs": [],
                "roles": None,
                "tenants": None,
            }
        ]
    }
    traded = web.post(f"{mount}/keypair/token", headers=key_headers(pair))
    assert traded.status_code == 202
    assert (traded.json["tokenType"], traded.json["expiresIn"]) == ("Bearer", 3600)
    claims = jwt.decode(traded.json["accessToken"], options={"verify_signature": False})
    assert (claims["sub"], claims["amr"]) == (ada.id, ["key"])
    assert web.get(f"{mount}/session", bearer=traded.json["accessToken"]).status_code == 200
    assert web.delete(f"{mount}/keypair/{pair['keyID']}", bearer=bearer).json == ACKNOWLEDGED
    assert_refused(web.get(f"{mount}/keypair", headers=key_headers(pair)), 401, "INVALID_CREDENTIALS")
    assert_refused(web.get(f"{mount}/session", bearer=traded.json["accessToken"]), 401, "INVALID_TOKEN")
    assert "keypair.revoked" in actions(web)


def test_a_key_pair_lives_from_one_day_to_ten_years(web: Web) -> None:
    bearer = sign_in(web, a_user(web.rt))["bearer"]
    for days, is_fine in ((0, False), (1, True), (2, True), (3649, True), (3650, True), (3651, False)):
        answer = web.post("/keypair", {"name": "ci", "days": days}, bearer=bearer)
        if is_fine:
            assert answer.status_code == 202
        else:
            assert_refused(answer, 400, "VALIDATION_ERROR", field="days")


def test_a_bad_key_pair_request_is_400_and_blames_the_field(web: Web) -> None:
    bearer = sign_in(web, a_user(web.rt))["bearer"]
    for body, field in (
        ({"days": 1}, "name"),
        ({"name": "x"}, "days"),
        ({"name": "x", "days": "1"}, "days"),
        ({"name": "x", "days": True}, "days"),
        ({"name": "x", "days": 1, "userId": "y"}, "userId"),
        ({"name": "x", "days": 1, "cidrs": ["300.0.0.0/8"]}, "cidrs"),
        ({"name": " ", "days": 1}, "name"),
    ):
        assert_refused(web.post("/keypair", body, bearer=bearer), 400, "VALIDATION_ERROR", field=field)


def test_misspelt_secrets_are_refused_alike(web: Web) -> None:
    ada, eve = a_user(web.rt), a_user(web.rt)
    pair = a_keypair(web, sign_in(web, ada)["bearer"])
    foreign = a_keypair(web, sign_in(web, eve)["bearer"])
    secret, bodies = pair["apiSecret"], set()
    for bad in (secret[:-1], secret + "0", secret.swapcase(), foreign["apiSecret"], pair["apiKey"], "x", ""):
        answer = web.get("/keypair", headers={"api-key": pair["apiKey"], "api-secret": bad})
        assert_refused(answer, 401, "INVALID_CREDENTIALS")
        bodies.add(answer.text)
    for headers in ({"api-key": pair["apiKey"]}, {"api-secret": secret}, key_headers({**pair, "apiKey": "idk_x"})):
        bodies.add(web.get("/keypair", headers=headers).text)
    assert len(bodies) == 1


def test_a_key_pair_stops_with_its_time_and_its_owner(web: Web) -> None:
    ada = a_user(web.rt)
    pair = a_keypair(web, sign_in(web, ada)["bearer"], days=1)
    web.clock.tick(86_399)
    assert web.get("/keypair", headers=key_headers(pair)).status_code == 200
    token = web.post("/keypair/token", headers=key_headers(pair))
    assert token.json["expiresIn"] == 1
    web.clock.tick(1)
    assert_refused(web.get("/keypair", headers=key_headers(pair)), 401, "INVALID_CREDENTIALS")
    longer = a_keypair(web, sign_in(web, ada)["bearer"])
    with web.rt.unit(ORIGIN) as unit:
        accounts.get_row(unit.session, ada.id).enabled = False
    assert_refused(web.get("/keypair", headers=key_headers(longer)), 401, "INVALID_CREDENTIALS")


def test_a_key_pair_may_be_held_to_networks(web: Web) -> None:
    bearer = sign_in(web, a_user(web.rt))["bearer"]
    near = a_keypair(web, bearer, cidrs=["127.0.0.0/8"])
    far = a_keypair(web, bearer, cidrs=["192.0.2.0/24", "2001:db8::/32"])
    assert web.get("/keypair", headers=key_headers(near)).status_code == 200
    assert_refused(web.get("/keypair", headers=key_headers(far)), 401, "INVALID_CREDENTIALS")


def test_twenty_wrong_secrets_lock_a_key_out_for_this_address(web: Web) -> None:
    pair = a_keypair(web, sign_in(web, a_user(web.rt))["bearer"])
    for _ in range(20):
        wrong_pair = {"api-key": pair["apiKey"], "api-secret": "x"}
        assert_refused(web.get("/keypair", headers=wrong_pair), 401, "INVALID_CREDENTIALS")
    assert_refused(web.get("/keypair", headers=key_headers(pair)), 429, "RATE_LIMITED")


def test_a_key_pair_does_not_pass_for_a_recent_login(web: Web) -> None:
    pair = a_keypair(web, sign_in(web, a_user(web.rt))["bearer"])
    token = web.post("/keypair/token", headers=key_headers(pair)).json["accessToken"]
    refused = web.delete("/user", bearer=token)
    assert_refused(refused, 403, "FORBIDDEN")
    assert "WWW-Authenticate" not in refused.headers, "no login that it could make would help"


def test_the_key_pair_of_another_user_is_not_found(web: Web) -> None:
    ada, eve = a_user(web.rt), a_user(web.rt)
    mine = sign_in(web, ada)["bearer"]
    hers = a_keypair(web, sign_in(web, eve)["bearer"])
    for unknown in (hers["keyID"], "0192f3a0-0000-7000-8000-000000000000", "x"):
        assert_refused(web.delete(f"/keypair/{unknown}", bearer=mine), 404, "NOT_FOUND")
    assert web.get("/keypair", headers=key_headers(hers)).status_code == 200


# Users.


def test_a_user_registers_and_is_in_with_the_first_code(web: Web, mount: str) -> None:
    answer = web.post(f"{mount}/user", {"email": "Grace@Navy.example", "fullName": "Grace  Hopper", "alias": "Grace"})
    assert answer.status_code == 202
    assert set(answer.json) == {"bearer", "sessionID", "expireAt", "ip", "userAgent", "kind", "verificationCodeID"}
    assert_refused(web.get("/session", bearer=answer.json["bearer"]), 401, "INVALID_TOKEN")
    body = {"verificationCodeID": answer.json["verificationCodeID"], "code": web.last_code()}
    assert web.put(f"{mount}/session/verification", body).status_code == 202
    seen = web.get(f"{mount}/session", bearer=answer.json["bearer"]).json
    assert (seen["alias"], seen["fullName"], seen["roles"]) == ("grace", "Grace Hopper", [])
    assert web.get(f"{mount}/emails", bearer=answer.json["bearer"]).json["emails"][0]["verified"] is True
    assert web.get(f"{mount}/user/{seen['userID']}", bearer=answer.json["bearer"]).json == {"alias": "grace"}
    assert web.get(f"{mount}/user/id/{seen['userID']}", bearer=answer.json["bearer"]).json == {"alias": "grace"}


def test_who_registered_may_ask_for_another_code(web: Web) -> None:
    web.post("/user", {"email": "grace@navy.example", "fullName": "Grace", "alias": "grace"})
    web.mails().clear()
    asked = web.post("/session", {"email": "grace@navy.example"}).json
    body = {"verificationCodeID": asked["verificationCodeID"], "code": web.last_code()}
    assert web.put("/session/verification", body).status_code == 202
    assert web.get("/session", bearer=asked["bearer"]).json["alias"] == "grace"


def test_nobody_learns_who_has_an_account_by_registering(web: Web) -> None:
    ada = a_user(web.rt)
    taken = web.post("/user", {"email": ada.email, "fullName": "Eve", "alias": "eve1"})
    mail = web.mails()[-1]
    assert (mail["To"], "already have an account" in mail["Subject"]) == (ada.email, True)
    free = web.post("/user", {"email": "eve@x.example", "fullName": "Eve", "alias": "eve2"})
    assert (taken.status_code, set(taken.json)) == (free.status_code, set(free.json)) == (202, set(free.json))
    # Nor by what became of the alias.
    for alias in ("eve1", "eve2"):
        again = web.post("/user", {"email": "third@x.example", "fullName": "Eve", "alias": alias})
        assert_refused(again, 409, "CONFLICT", field="alias")
    for code in ("000000", "999999"):
        guess = {"verificationCodeID": taken.json["verificationCodeID"], "code": code}
        assert_refused(web.put("/session/verification", guess), 401, "INVALID_CODE")


def test_of_two_who_claim_an_address_the_first_to_prove_it_has_it(web: Web) -> None:
    claims = []
    for alias in ("first", "second"):
        asked = web.post("/user", {"email": "shared@x.example", "fullName": "X", "alias": alias}).json
        claims.append({"verificationCodeID": asked["verificationCodeID"], "code": web.last_code()})
    assert web.put("/session/verification", claims[1]).status_code == 202
    assert_refused(web.put("/session/verification", claims[0]), 409, "CONFLICT")


def test_a_bad_registration_is_400_and_blames_the_field(web: Web) -> None:
    for body, field in (
        ({"fullName": "A", "alias": "ada"}, "email"),
        ({"email": "a@x.example", "alias": "ada"}, "fullName"),
        ({"email": "a@x.example", "fullName": "A"}, "alias"),
        ({"email": "a@x.example", "fullName": "A", "alias": "a b"}, "alias"),
        ({"email": "a@x.example", "fullName": "\u202e", "alias": "ada"}, "fullName"),
        ({"email": "a@x.example", "fullName": "A", "alias": "ada", "roles": ["users_admin"]}, "roles"),
        ({"email": "a@x.example", "fullName": "A", "alias": "ada", "verified": True}, "verified"),
    ):
        assert_refused(web.post("/user", body), 400, "VALIDATION_ERROR", field=field)


def test_a_user_is_shown_by_alias_to_whoever_has_a_credential(web: Web) -> None:
    ada, eve = a_user(web.rt), a_user(web.rt)
    bearer = sign_in(web, eve)["bearer"]
    pair = a_keypair(web, bearer)
    for path in (f"/user/{ada.id}", f"/user/id/{ada.id}"):
        assert web.get(path, bearer=bearer).json == {"alias": ada.alias}
        assert web.get(path, headers=key_headers(pair)).json == {"alias": ada.alias}
        assert_refused(web.get(path), 401, "UNAUTHENTICATED")
    for unknown in ("0192f3a0-0000-7000-8000-000000000000", "x"):
        assert_refused(web.get(f"/user/{unknown}", bearer=bearer), 404, "NOT_FOUND")


def test_two_credentials_of_different_subjects_are_400_and_of_one_are_fine(web: Web) -> None:
    ada, eve = a_user(web.rt), a_user(web.rt)
    mine = sign_in(web, ada)["bearer"]
    pair, hers = a_keypair(web, mine), sign_in(web, eve)["bearer"]
    assert web.get(f"/user/{ada.id}", bearer=mine, headers=key_headers(pair)).status_code == 200
    both = web.get(f"/user/{ada.id}", bearer=hers, headers=key_headers(pair))
    assert_refused(both, 400, "MALFORMED_REQUEST")


def test_only_administrators_find_a_user_by_email(web: Web) -> None:
    root, ada = a_user(web.rt, roles=("users_admin",)), a_user(web.rt)
    bearer = sign_in(web, root)["bearer"]
    pair = a_keypair(web, bearer)
    found = web.get(f"/user/by-email?email={ada.email.upper()}", bearer=bearer)
    assert (found.status_code, found.json) == (200, {"userID": ada.id})
    assert web.get(f"/user/by-email?email={ada.email}", headers=key_headers(pair)).json == {"userID": ada.id}
    assert_refused(web.get("/user/by-email?email=no@x.example", bearer=bearer), 404, "NOT_FOUND")
    assert_refused(web.get("/user/by-email", bearer=bearer), 400, "VALIDATION_ERROR", field="email")
    assert_refused(web.get("/user/by-email?email=x", bearer=bearer), 400, "VALIDATION_ERROR", field="email")
    assert_refused(web.get(f"/user/by-email?email={ada.email}", bearer=sign_in(web, ada)["bearer"]), 403, "FORBIDDEN")
    assert_refused(web.get(f"/user/by-email?email={ada.email}"), 401, "UNAUTHENTICATED")


def test_erasing_oneself_needs_a_login_younger_than_fifteen_minutes(web: Web) -> None:
    for seconds, status in ((899, 202), (900, 401), (901, 401)):
        bearer = sign_in(web, a_user(web.rt))["bearer"]
        web.clock.tick(seconds)
        answer = web.delete("/user", bearer=bearer)
        assert answer.status_code == status
        if status == 401:
            assert answer.headers["WWW-Authenticate"] == 'Bearer error="insufficient_user_authentication"'


def test_an_erased_user_is_gone_at_once_and_the_address_is_free(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ("viewer",)})
    bearer = sign_in(web, ada)["bearer"]
    pair, token = a_keypair(web, bearer), a_token(web.rt, ada)
    assert web.delete("/user", bearer=bearer).json == ACKNOWLEDGED
    assert_refused(web.get("/session", bearer=bearer), 401, "INVALID_TOKEN")
    assert_refused(web.get("/session", bearer=token), 401, "INVALID_TOKEN")
    assert_refused(web.get("/keypair", headers=key_headers(pair)), 401, "INVALID_CREDENTIALS")
    assert_refused(web.post("/user/token", {"email": ada.email, "password": ada.password}), 401, "INVALID_CREDENTIALS")
    again = web.post("/user", {"email": ada.email, "fullName": "Ada", "alias": ada.alias})
    assert again.status_code == 202
    assert "user.erased" in actions(web)


def test_the_last_administrator_cannot_leave(web: Web) -> None:
    root = a_user(web.rt, roles=("users_admin",))
    bearer = sign_in(web, root)["bearer"]
    assert_refused(web.delete("/user", bearer=bearer), 409, "CONFLICT")
    assert web.get("/session", bearer=bearer).status_code == 200
    a_user(web.rt, roles=("users_admin",))
    assert web.delete("/user", bearer=bearer).status_code == 202


def test_the_last_owner_of_a_tenant_cannot_leave(web: Web) -> None:
    olga = a_user(web.rt, tenants={"acme-bank": ("owner",), "globex": ("owner",), "initech": ("analyst",)})
    a_user(web.rt, tenants={"acme-bank": ("owner",)})
    a_user(web.rt, tenants={"globex": ("owner",)}, enabled=False)
    bearer = sign_in(web, olga)["bearer"]
    refused = web.delete("/user", bearer=bearer)
    assert_refused(refused, 409, "CONFLICT")
    assert explain.get(web.rt, refused.headers["x-error-id"]).evidence["seen"] == {"tenant": "globex"}
    assert web.get("/session", bearer=bearer).status_code == 200
    a_user(web.rt, tenants={"globex": ("owner",)})
    assert web.delete("/user", bearer=bearer).status_code == 202


def test_no_answer_of_a_refusal_may_be_cached_and_no_body_is_lost(web: Web) -> None:
    answer = web.post("/session", {"email": "no address"})
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"] == "application/json"


def test_every_login_by_code_leaves_its_events_without_an_address(web: Web) -> None:
    ada = a_user(web.rt)
    sign_in(web, ada)
    web.put("/session/verification", {"verificationCodeID": "0192f3a0-0000-7000-8000-000000000000", "code": "123456"})
    found = audit.search(web.rt, limit=100)
    assert not [event for event in found if ada.email in str(event)]
    assert [event.actor for event in found if event.action == "session.verified"] == [ada.id]


def test_sessions_of_nobody_are_listed_to_nobody(web: Web) -> None:
    ada = a_user(web.rt)
    web.post("/session", {"email": "nobody@acme.example"})
    opened = a_session(web.rt, ada)
    found = sessions.listing(web.rt, Part(limit=10))
    total, listed = found.total, found.items
    assert (total, [one.id for one in listed]) == (1, [opened.session.id])
    assert not [m for m in outbox.list_mails(web.rt) if m.template == Template.SESSION_CODE]
