"""Group B over the Flask mount, at both mounts: the whole exchanges, their refusals word for word, and their limits."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import jwt
import pyotp
import pytest
from werkzeug.test import TestResponse

from identity.core.tokens import sessions
from identity.settings import Settings
from tests.builders import Authenticator, Person, a_session, a_token, a_user, an_application, an_authenticator
from tests.world import Web, code_in

# What differs between databases is tested under tests/core, and over a socket in test_risksage_live.py.
pytestmark = pytest.mark.parametrize("backend", ["sqlite"])

MOUNTS = ("", "/api/v1")
FRESH = "a fresh and rather long phrase"


@pytest.fixture
def ada(web: Web) -> Person:
    return a_user(
        web.rt,
        email="analyst@acme-bank.in",
        alias="ada",
        roles=("analyst",),
        tenants={"acme-bank": ("analyst", "lead")},
    )


@pytest.fixture
def app(web: Web, ada: Person) -> Authenticator:
    made = an_authenticator(web.rt, ada)
    web.clock.tick(30)
    return made


def begin(web: Web, person: Person, *, mount: str = "") -> str:
    answer = web.post(f"{mount}/auth/login", {"email": person.email, "password": person.password})
    assert answer.status_code == 200, answer.json
    token: str = answer.json["mfaChallengeToken"]
    return token


def signed_in(web: Web, person: Person, app: Authenticator | None = None) -> dict[str, str]:
    """The tokens of a login with all factors."""
    body = {"mfaChallengeToken": begin(web, person)}
    body |= {"totpCode": app.at(web.clock.now())} if app else {"emailCode": login_code(web)}
    answer = web.post("/auth/mfa/challenge", body)
    assert answer.status_code == 200, answer.json
    tokens: dict[str, str] = answer.json
    return tokens


def login_code(web: Web) -> str:
    return code_in(next(mail for mail in reversed(web.mails()) if "second sign-in code" in str(mail["Subject"])))


def refusal(answer: TestResponse) -> tuple[int, str, str]:
    """Status, code and message; the envelope around them is checked on the way."""
    assert answer.json["status"] == answer.status_code
    assert answer.headers["x-error"] == answer.json["message"]
    assert answer.headers["x-error-id"]
    return answer.status_code, answer.json["error"], answer.json["message"]


WRONG_CODE = (401, "INVALID_CODE", "That code is not right or no longer valid")
WRONG_TOKEN = (401, "INVALID_TOKEN", "The token is not valid")


# Login.


def test_the_conversation_of_the_seed(web: Web, ada: Person, app: Authenticator) -> None:
    for mount in MOUNTS:
        web.clock.tick(30)
        first = web.post(f"{mount}/auth/login", {"email": ada.email, "password": ada.password})
        assert first.status_code == 200
        assert first.json == {
            "mfaChallengeToken": first.json["mfaChallengeToken"],
            "mfaMethod": "TOTP",
            "expiresIn": 300,
        }
        second = web.post(
            f"{mount}/auth/mfa/challenge",
            {"mfaChallengeToken": first.json["mfaChallengeToken"], "totpCode": app.at(web.clock.now())},
        )
        assert second.status_code == 200
        assert second.json == {
            "accessToken": second.json["accessToken"],
            "refreshToken": second.json["refreshToken"],
            "expiresIn": 3600,
            "tokenType": "Bearer",
        }
        assert second.headers["Cache-Control"] == "no-store"
        third = web.post(f"{mount}/auth/refresh", {"refreshToken": second.json["refreshToken"]})
        assert third.status_code == 200
        assert third.json.keys() == second.json.keys()
        assert third.json["refreshToken"] != second.json["refreshToken"]
        claims = jwt.decode(third.json["accessToken"], options={"verify_signature": False})
        assert claims["amr"] == ["otp", "pwd"]
        assert claims["tenants"] == {"acme-bank": ["analyst", "lead"]}
        assert claims["exp"] - claims["iat"] == 3600


def test_a_challenge_token_cannot_be_verified_with_the_published_keys(web: Web, ada: Person) -> None:
    token = begin(web, ada)
    header = json.loads(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))
    assert (header["alg"], header["typ"]) == ("HS256", "mfa-challenge+jwt")
    for key in web.get("/.well-known/jwks.json").json["keys"]:
        with pytest.raises(jwt.InvalidTokenError):
            jwt.decode(token, jwt.PyJWK(key), ["RS256", "HS256"])


def test_a_challenge_token_is_no_bearer(web: Web, ada: Person) -> None:
    assert refusal(web.get("/auth/me", bearer=begin(web, ada))) == WRONG_TOKEN


def test_without_totp_a_code_is_mailed_and_said_nowhere_else(web: Web, ada: Person) -> None:
    answer = web.post("/auth/login", {"email": ada.email, "password": ada.password})
    assert answer.json["mfaMethod"] == "EMAIL"
    code = login_code(web)
    assert code not in answer.text
    body = {"mfaChallengeToken": answer.json["mfaChallengeToken"], "emailCode": code}
    done = web.post("/auth/mfa/challenge", body)
    assert jwt.decode(done.json["accessToken"], options={"verify_signature": False})["amr"] == ["email", "pwd"]


def test_a_recovery_code_signs_in_once(web: Web, ada: Person, app: Authenticator) -> None:
    code = app.recovery_codes[0]
    answers = [
        web.post("/auth/mfa/challenge", {"mfaChallengeToken": begin(web, ada), "recoveryCode": code}) for _ in range(2)
    ]
    assert answers[0].status_code == 200
    assert refusal(answers[1]) == WRONG_CODE


def test_wrong_unknown_and_disabled_look_alike(web: Web, ada: Person) -> None:
    gone = a_user(web.rt, enabled=False)
    bodies = (
        {"email": ada.email, "password": "wrong"},
        {"email": "nobody@acme-bank.in", "password": ada.password},
        {"email": gone.email, "password": gone.password},
    )
    seen = {refusal(web.post("/auth/login", body)) for body in bodies}
    assert seen == {(401, "INVALID_CREDENTIALS", "Email and password do not match")}


def test_every_wrong_code_and_challenge_looks_alike(web: Web, ada: Person, app: Authenticator) -> None:
    code = app.at(web.clock.now())
    spent = begin(web, ada)
    assert web.post("/auth/mfa/challenge", {"mfaChallengeToken": spent, "totpCode": code}).status_code == 200
    bodies = (
        {"mfaChallengeToken": spent, "totpCode": code},
        {"mfaChallengeToken": begin(web, ada), "totpCode": code},  # the step is spent
        {"mfaChallengeToken": begin(web, ada), "totpCode": "12345"},
        {"mfaChallengeToken": begin(web, ada), "emailCode": code},
        {"mfaChallengeToken": "eyJhbGciOi...", "totpCode": code},
        {"mfaChallengeToken": a_token(web.rt, ada), "totpCode": code},
    )
    answers = [web.post("/auth/mfa/challenge", body) for body in bodies]
    assert {refusal(answer) for answer in answers} == {WRONG_CODE}
    assert len({tuple(sorted(answer.json)) for answer in answers}) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "mfaChallengeToken"),
        ({"mfaChallengeToken": "x"}, "totpCode"),
        ({"mfaChallengeToken": "x", "totpCode": "123456", "emailCode": "123456"}, "emailCode"),
        ({"mfaChallengeToken": "x", "emailCode": "123456", "recoveryCode": "x"}, "recoveryCode"),
        ({"mfaChallengeToken": "x", "totpCode": 1234567}, "totpCode"),
        ({"mfaChallengeToken": "x", "totpCode": "123456", "userID": "x"}, "userID"),
    ],
)
def test_exactly_one_code_answers_a_challenge(web: Web, body: dict[str, object], field: str) -> None:
    answer = web.post("/auth/mfa/challenge", body)
    assert refusal(answer)[:2] == (422, "VALIDATION_ERROR")
    assert answer.json["field"] == field


def test_missing_fields_are_named(web: Web) -> None:
    answer = web.post("/auth/login", {"email": "ada@acme-bank.in"})
    assert answer.json == {
        "error": "VALIDATION_ERROR",
        "message": "Missing password request body parameter",
        "field": "password",
        "status": 422,
    }


def test_an_origin_that_may_not_ask_is_refused(web: Web, ada: Person) -> None:
    body = {"email": ada.email, "password": ada.password}
    answer = web.post("/auth/login", body, headers={"Origin": "not an origin"})
    assert (refusal(answer)[0], answer.json["field"]) == (422, "Origin")


def test_the_origin_of_the_login_is_the_audience_to_the_end(web: Web, ada: Person, app: Authenticator) -> None:
    origin = "https://api.acme.example"
    first = web.post("/auth/login", {"email": ada.email, "password": ada.password}, headers={"Origin": origin})
    body = {"mfaChallengeToken": first.json["mfaChallengeToken"], "totpCode": app.at(web.clock.now())}
    second = web.post("/auth/mfa/challenge", body)
    third = web.post("/auth/refresh", {"refreshToken": second.json["refreshToken"]})
    for answer in (second, third):
        claims = jwt.decode(answer.json["accessToken"], options={"verify_signature": False})
        assert claims["aud"] == [origin, web.rt.settings.issuer]


class TestEnrolledOnly:
    """`IDENTITY_SECOND_FACTOR=enrolled`."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, second_factor="enrolled")

    def test_who_has_no_totp_gets_tokens_at_once(self, web: Web, ada: Person) -> None:
        answer = web.post("/auth/login", {"email": ada.email, "password": ada.password})
        assert answer.status_code == 200
        assert answer.json.keys() == {"accessToken", "refreshToken", "expiresIn", "tokenType"}
        assert web.get("/auth/me", bearer=answer.json["accessToken"]).json["amr"] == ["pwd"]


# The session.


def test_me_tells_who_signed_in_and_how(web: Web, ada: Person, app: Authenticator) -> None:
    tokens = signed_in(web, ada, app)
    for mount in MOUNTS:
        answer = web.get(f"{mount}/auth/me", bearer=tokens["accessToken"])
        assert answer.status_code == 200
        claims = jwt.decode(tokens["accessToken"], options={"verify_signature": False})
        assert answer.json == {
            "userID": ada.id,
            "alias": "ada",
            "fullName": "Ada Lovelace",
            "email": "analyst@acme-bank.in",
            "roles": ["analyst"],
            "groups": [],
            "tenants": {"acme-bank": ["analyst", "lead"]},
            "amr": ["otp", "pwd"],
            "authTime": claims["auth_time"],
            "sessionID": claims["sid"],
            "mfa": {"totp": True},
        }


def test_logout_ends_the_session_at_once(web: Web, ada: Person, app: Authenticator) -> None:
    tokens = signed_in(web, ada, app)
    answer = web.post("/auth/logout", bearer=tokens["accessToken"])
    assert (answer.status_code, answer.json) == (200, {"message": "acknowledged"})
    assert refusal(web.get("/auth/me", bearer=tokens["accessToken"])) == WRONG_TOKEN
    assert refusal(web.post("/auth/refresh", {"refreshToken": tokens["refreshToken"]})) == WRONG_TOKEN


def test_a_session_bearer_serves_where_a_token_does(web: Web, ada: Person) -> None:
    opened = a_session(web.rt, ada)
    assert opened.bearer is not None
    answer = web.get("/auth/me", bearer=opened.bearer.reveal())
    assert (answer.status_code, answer.json["sessionID"]) == (200, opened.session.id)


BEARER_ROUTES = (
    ("POST", "/auth/logout", None),
    ("GET", "/auth/me", None),
    ("POST", "/auth/mfa/totp", None),
    ("POST", "/auth/mfa/totp/confirm", {"totpCode": "123456"}),
    ("DELETE", "/auth/mfa/totp", {"totpCode": "123456"}),
    ("POST", "/auth/mfa/recovery-codes", {"totpCode": "123456"}),
    ("PUT", "/auth/password", {"currentPassword": "x", "newPassword": FRESH}),
)


def test_bearer_routes_ask_for_a_bearer(web: Web) -> None:
    for method, path, body in BEARER_ROUTES:
        answer = web.call(method, path, body)
        assert refusal(answer)[:2] == (401, "UNAUTHENTICATED"), path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        forged = web.call(method, path, body, bearer="forged")
        assert refusal(forged) == WRONG_TOKEN, path
        assert forged.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_an_applications_token_is_no_users(web: Web) -> None:
    feed = an_application(web.rt)
    answer = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret})
    token = answer.json["data"]["accessToken"]
    for method, path, body in BEARER_ROUTES:
        assert refusal(web.call(method, path, body, bearer=token))[:2] == (403, "FORBIDDEN"), path


def test_an_expired_access_token_says_so_and_its_refresh_token_still_works(
    web: Web, ada: Person, app: Authenticator
) -> None:
    tokens = signed_in(web, ada, app)
    web.clock.tick(3600)
    assert refusal(web.get("/auth/me", bearer=tokens["accessToken"]))[:2] == (401, "TOKEN_EXPIRED")
    assert web.post("/auth/refresh", {"refreshToken": tokens["refreshToken"]}).status_code == 200


def test_reuse_of_a_refresh_token_ends_the_access_tokens_too(web: Web, ada: Person, app: Authenticator) -> None:
    tokens = signed_in(web, ada, app)
    fresh = web.post("/auth/refresh", {"refreshToken": tokens["refreshToken"]}).json
    web.clock.tick(10)
    assert refusal(web.post("/auth/refresh", {"refreshToken": tokens["refreshToken"]})) == WRONG_TOKEN
    assert refusal(web.get("/auth/me", bearer=fresh["accessToken"])) == WRONG_TOKEN
    assert "was ended" in str(web.mails()[-1]["Subject"])


# Second factors.


def test_an_authenticator_from_enrolment_to_removal(web: Web, ada: Person) -> None:
    for mount in MOUNTS:
        token = a_token(web.rt, ada)
        enrolled = web.post(f"{mount}/auth/mfa/totp", bearer=token)
        assert enrolled.status_code == 200, enrolled.json
        assert enrolled.json.keys() == {"secret", "otpauthUri", "expiresIn"}
        assert enrolled.json["expiresIn"] == 600
        totp = pyotp.parse_uri(enrolled.json["otpauthUri"])
        assert isinstance(totp, pyotp.TOTP)
        assert totp.secret == enrolled.json["secret"]
        assert web.get("/auth/me", bearer=token).json["mfa"] == {"totp": False}
        confirmed = web.post(f"{mount}/auth/mfa/totp/confirm", {"totpCode": totp.at(web.clock.now())}, bearer=token)
        assert confirmed.status_code == 200, confirmed.json
        assert len(set(confirmed.json["recoveryCodes"])) == 10
        assert web.get("/auth/me", bearer=token).json["mfa"] == {"totp": True}
        web.clock.tick(30)
        renewed = web.post(f"{mount}/auth/mfa/recovery-codes", {"totpCode": totp.at(web.clock.now())}, bearer=token)
        assert not set(renewed.json["recoveryCodes"]) & set(confirmed.json["recoveryCodes"])
        removed = web.delete(f"{mount}/auth/mfa/totp", {"recoveryCode": renewed.json["recoveryCodes"][0]}, bearer=token)
        assert (removed.status_code, removed.json) == (200, {"message": "acknowledged"})
        assert web.get("/auth/me", bearer=token).json["mfa"] == {"totp": False}


def test_who_has_totp_cannot_enrol_again(web: Web, ada: Person, app: Authenticator) -> None:
    assert refusal(web.post("/auth/mfa/totp", bearer=a_token(web.rt, ada)))[:2] == (409, "CONFLICT")


def test_removing_takes_one_code_of_either_kind(web: Web, ada: Person, app: Authenticator) -> None:
    token = a_token(web.rt, ada)
    for body in ({}, {"totpCode": "1", "recoveryCode": "2"}, {"emailCode": "123456"}):
        assert refusal(web.delete("/auth/mfa/totp", body, bearer=token))[:2] == (422, "VALIDATION_ERROR")
    assert refusal(web.delete("/auth/mfa/totp", {"totpCode": "000000"}, bearer=token)) == WRONG_CODE
    assert web.delete("/auth/mfa/totp", {"totpCode": app.at(web.clock.now())}, bearer=token).status_code == 200


def test_factors_and_passwords_change_only_within_15_minutes_of_the_login(web: Web, ada: Person) -> None:
    changing = [route for route in BEARER_ROUTES if route[1] not in ("/auth/logout", "/auth/me")]
    token = a_token(web.rt, ada)
    web.clock.tick(899)
    assert web.post("/auth/mfa/totp", bearer=token).status_code == 200
    for _ in range(2):
        web.clock.tick(1)
        for method, path, body in changing:
            answer = web.call(method, path, body, bearer=token)
            assert refusal(answer)[:2] == (401, "UNAUTHENTICATED"), path
            assert answer.headers["WWW-Authenticate"] == 'Bearer error="insufficient_user_authentication"'
    assert web.get("/auth/me", bearer=token).status_code == 200


def test_a_refresh_makes_no_login_young(web: Web, ada: Person) -> None:
    tokens = signed_in(web, ada)
    web.clock.tick(900)
    fresh = web.post("/auth/refresh", {"refreshToken": tokens["refreshToken"]}).json
    assert refusal(web.post("/auth/mfa/totp", bearer=fresh["accessToken"]))[0] == 401


# Passwords.


def test_a_changed_password_ends_the_other_sessions(web: Web, ada: Person) -> None:
    mine, other = a_token(web.rt, ada), a_token(web.rt, ada)
    body = {"currentPassword": ada.password, "newPassword": FRESH}
    answer = web.put("/auth/password", body, bearer=mine)
    assert (answer.status_code, answer.json) == (200, {"message": "acknowledged"})
    assert web.get("/auth/me", bearer=mine).status_code == 200
    assert refusal(web.get("/auth/me", bearer=other)) == WRONG_TOKEN
    assert web.post("/user/token", {"email": ada.email, "password": FRESH}).status_code == 200


def test_a_wrong_current_password_is_refused_and_counted_with_the_logins(web: Web, ada: Person) -> None:
    token = a_token(web.rt, ada)
    body = {"currentPassword": "wrong", "newPassword": FRESH}
    for _ in range(5):
        answer = web.put("/auth/password", body, bearer=token)
        assert refusal(answer)[:2] == (401, "INVALID_CREDENTIALS")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    locked = web.post("/user/token", {"email": ada.email, "password": ada.password})
    assert refusal(locked)[:2] == (429, "RATE_LIMITED")
    assert web.get("/auth/me", bearer=token).status_code == 200  # live sessions go on


def test_a_weak_new_password_names_its_field(web: Web, ada: Person) -> None:
    body = {"currentPassword": ada.password, "newPassword": "short"}
    answer = web.put("/auth/password", body, bearer=a_token(web.rt, ada))
    assert (refusal(answer)[:2], answer.json["field"]) == ((422, "VALIDATION_ERROR"), "newPassword")


def test_a_forgotten_password_from_the_mail_to_the_next_login(web: Web, ada: Person, app: Authenticator) -> None:
    for mount in MOUNTS:
        web.clock.tick(30)
        token = a_token(web.rt, ada)
        asked = web.post(f"{mount}/auth/password/forgot", {"email": ada.email})
        assert (asked.status_code, list(asked.json)) == (202, ["verificationCodeID"])
        letter = next(mail for mail in reversed(web.mails()) if "Choose a new password" in str(mail["Subject"]))
        code, fresh = code_in(letter), f"{FRESH} for {mount or 'the root'}"
        body = {**asked.json, "code": code, "newPassword": fresh}
        done = web.put(f"{mount}/auth/password/reset", body)
        assert (done.status_code, done.json) == (200, {"message": "acknowledged"})
        assert refusal(web.get("/auth/me", bearer=token)) == WRONG_TOKEN
        assert refusal(web.put(f"{mount}/auth/password/reset", body)) == WRONG_CODE
        login = web.post("/auth/login", {"email": ada.email, "password": fresh})
        assert login.json["mfaMethod"] == "TOTP"  # the reset proved a mailbox, no factor


def test_forgot_answers_alike_for_an_unknown_address(web: Web, ada: Person) -> None:
    known = web.post("/auth/password/forgot", {"email": ada.email})
    unknown = web.post("/auth/password/forgot", {"email": "nobody@acme-bank.in"})
    assert (known.status_code, known.json.keys()) == (unknown.status_code, unknown.json.keys())
    assert [*known.headers.keys()] == [*unknown.headers.keys()]
    assert [str(mail["To"]) for mail in web.mails()] == [ada.email]


def test_an_unknown_verification_id_is_a_wrong_code(web: Web) -> None:
    body = {"verificationCodeID": "not-an-id", "code": "123456", "newPassword": FRESH}
    assert refusal(web.put("/auth/password/reset", body)) == WRONG_CODE
    body["verificationCodeID"] = "018f0000-0000-7000-8000-000000000000"
    assert refusal(web.put("/auth/password/reset", body)) == WRONG_CODE


# Limits.


class TestLimits:
    """Three a minute each."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, limit_auth="3/minute", limit_standard="3/minute")

    def test_routes_without_a_bearer_share_the_budget_of_their_address(self, web: Web) -> None:
        calls = (
            ("POST", "/auth/login", {"email": "nobody@acme-bank.in", "password": "x"}),
            ("POST", "/api/v1/auth/refresh", {"refreshToken": "x"}),
            ("POST", "/auth/mfa/challenge", {"mfaChallengeToken": "x", "totpCode": "123456"}),
            ("POST", "/auth/password/forgot", {"email": "nobody@acme-bank.in"}),
            ("PUT", "/auth/password/reset", {"verificationCodeID": "x", "code": "1", "newPassword": FRESH}),
        )
        answers = [web.call(*call) for call in calls]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
        assert [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["2", "1", "0", "0", "0"]
        assert 1 <= int(answers[3].headers["Retry-After"]) <= 60

    def test_routes_with_a_bearer_share_the_budget_of_their_subject(self, web: Web, ada: Person) -> None:
        token = a_token(web.rt, ada)
        answers = [
            web.get("/auth/me", bearer=token),
            web.get("/api/v1/auth/me", bearer=token),
            web.post("/auth/logout", bearer=a_token(web.rt, ada)),
            web.get("/auth/me", bearer=token),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert {answer.headers["X-RateLimit-Limit"] for answer in answers} == {"3"}


def test_a_session_of_a_login_is_listed_with_where_it_came_from(web: Web, ada: Person, app: Authenticator) -> None:
    signed_in(web, ada, app)
    listed = sessions.listing_of(web.rt, ada.id)
    assert [(one.kind, one.amr) for one in listed] == [("login", ("otp", "pwd"))]
