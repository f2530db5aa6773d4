"""No way in accepts less than the user's factors, and all of them count failures together.

The routes are enumerated from the application: one that reads no credential, or that answers with a secret, must be placed in one of
the tables below before these tests pass again. The thief of these tests has the password and the mailbox of a user with TOTP, and no
authenticator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jwt
import pytest
from marshmallow import Schema, fields
from werkzeug.test import TestResponse

from identity import errors
from identity.app import endpoints
from identity.core.signin import factors
from identity.core.tokens import sessions
from identity.runtime import Runtime
from identity.settings import Settings
from identity.wire.endpoint import Endpoint, Reads
from tests.browser import Browser
from tests.builders import Authenticator, Person, a_session, a_user, an_authenticator
from tests.world import Web, code_in

WRONG = "000000"
FRESH = "a fresh and rather long phrase"
LOGIN = "mutation($u: String!, $p: String!) { login(username: $u, password: $p) { code sessionID } }"
OTP = "mutation($o: String!, $s: String!) { otp(otp: $o, sessionID: $s) { code token } }"

# What each route that reads no credential is.
DOORS = {
    "POST /user/token": "user token",
    "POST /auth/login": "challenge",
    "POST /auth/mfa/challenge": "challenge",
    "POST /query": "GraphQL",
    "POST /session": "emailed session",
    "PUT /session/verification": "emailed session",
    "POST /auth/password/forgot": "reset",
    "PUT /auth/password/reset": "reset",
    "POST /user": "registration",
    "GET /console/sign-in": "console",
    "POST /console/sign-in": "console",
}
"""Where a person comes in: the name of the way that the route is part of."""

CONTINUES = {"POST /auth/refresh"}
"""Takes the secret of a login that had all factors, and gives no more than that had."""

MACHINES = {"POST /application/token", "POST /oauth/token", "POST /oauth/introspect", "POST /oauth/revoke"}
"""For applications; no user stands behind what they give."""

ENDS = {"POST /console/sign-out"}
"""Ends the login whose cookie it is sent, and gives nothing."""

HOST_LINKS = {"GET /console/link/{token}", "POST /console/link/{token}"}
"""Takes the token of a link that only who holds the host can print (`test_console`)."""

CONFIRMS = {"PUT /email/verification", "PUT /keypair/verification"}
"""Takes a code whose id only a live session could ask for, and answers with nothing."""

LINKS = {
    "GET /invitation/{token}",
    "POST /invitation/{token}",
    "PUT /invitation",
    "GET /password-reset/{token}",
    "POST /password-reset/{token}",
}
"""Takes the token of a mailed link; signs nobody in. Whoever has an account proves it with all their factors (`test_invitations`)."""

PUBLIC = {
    "GET /.well-known/jwks.json",
    "GET /.well-known/oauth-authorization-server",
    "GET /.well-known/openid-configuration",
    "GET /.well-known/status-lists",
    "GET /.well-known/status-lists/{id}",
    "GET /health/live",
    "GET /health/ready",
    "GET /openapi.json",
    "GET /docs",
    "GET /docs.md",
    "GET /dev/inbox",
    "GET /",
    "GET /style.css",
}
"""Reads only, and the same for everybody; the inbox shows itself to the machine of an embedded service alone."""

# What each route is that reads a credential and answers with a secret.
SAME_LOGIN = {"POST /session/token", "POST /keypair/token"}
"""Spells the presented credential in another form, with its own `amr`."""

MAKES_SECRETS = {
    "POST /auth/mfa/totp",
    "POST /auth/mfa/totp/confirm",
    "POST /auth/mfa/recovery-codes",
    "POST /keypair",
    "POST /keypair/{key_id}/rotate",
    "POST /admin/user",
    "POST /admin/user/{id}/session",
    "POST /admin/user/{id}/keypair",
    "POST /admin/keypair/{id}/rotate",
    "POST /admin/application",
    "POST /admin/application/{clientId}/secret",
    "POST /tenant/applications",
    "POST /tenant/application/{clientId}/secret",
}
"""Makes a credential for later, for who is signed in or for an administrator."""

SECRET_FIELDS = {
    "accessToken",
    "access_token",
    "refreshToken",
    "token",
    "bearer",
    "apiSecret",
    "secret",
    "recoveryCodes",
    "mfaChallengeToken",
}


def field_names(schema: Schema) -> Iterator[str]:
    """Every field of an answer, however deep."""
    for name, field in schema.fields.items():
        yield field.data_key or name
        inner = field.inner if isinstance(field, fields.List) else field
        if isinstance(inner, fields.Nested):
            yield from field_names(inner.schema)


def answers_with_a_secret(endpoint: Endpoint) -> bool:
    return endpoint.answer is not None and bool(SECRET_FIELDS & set(field_names(endpoint.answer())))


def test_every_route_without_a_credential_is_placed() -> None:
    open_routes = {one.name for one in endpoints() if one.reads in (Reads.NOTHING, Reads.CLIENT)}
    assert open_routes == set(DOORS) | CONTINUES | MACHINES | CONFIRMS | LINKS | HOST_LINKS | ENDS | PUBLIC


def test_every_route_that_answers_with_a_secret_is_placed() -> None:
    yielding = {one.name for one in endpoints() if answers_with_a_secret(one)}
    placed = set(DOORS) | CONTINUES | MACHINES | SAME_LOGIN | MAKES_SECRETS
    assert yielding <= placed
    assert yielding >= SAME_LOGIN | MAKES_SECRETS


def test_what_makes_secrets_reads_a_credential() -> None:
    reads = {one.name: one.reads for one in endpoints()}
    assert {reads[name] for name in SAME_LOGIN | MAKES_SECRETS} <= {Reads.BEARER, Reads.BEARER_OR_KEY, Reads.KEY}


# The ways in. Each takes what is tried as a second factor (None: as far as one comes without) and returns the last answer and what
# bearer it gave.

Way = Callable[[Web, Person, str | None], tuple[TestResponse, str | None]]


def mailed(web: Web, person: Person, subject: str) -> str:
    """The newest code with this subject that the person was mailed, or a wrong one: whoever reads the mailbox tries that."""
    letters = [mail for mail in web.mails() if str(mail["To"]) == person.email and subject in str(mail["Subject"])]
    return code_in(letters[-1]) if letters else WRONG


def by_user_token(web: Web, person: Person, second: str | None) -> tuple[TestResponse, str | None]:
    body = {"email": person.email, "password": person.password} | ({"totpCode": second} if second else {})
    answer = web.post("/user/token", body)
    return answer, answer.json.get("data", {}).get("accessToken")


def by_challenge(web: Web, person: Person, second: str | None) -> tuple[TestResponse, str | None]:
    first = web.post("/auth/login", {"email": person.email, "password": person.password})
    if "mfaChallengeToken" not in first.json:
        return first, first.json.get("accessToken")
    factor = {"totpCode": second} if second else {"emailCode": mailed(web, person, "second sign-in code")}
    answer = web.post("/auth/mfa/challenge", {"mfaChallengeToken": first.json["mfaChallengeToken"], **factor})
    return answer, answer.json.get("accessToken")


def by_graphql(web: Web, person: Person, second: str | None) -> tuple[TestResponse, str | None]:
    variables = {"u": person.email, "p": person.password}
    first = web.post("/query", {"query": LOGIN, "variables": variables})
    session_id = first.json["data"]["login"]["sessionID"]
    if session_id is None:
        return first, None
    otp = second or mailed(web, person, "second sign-in code")
    answer = web.post("/query", {"query": OTP, "variables": {"o": otp, "s": session_id}})
    return answer, answer.json["data"]["otp"]["token"]


def by_emailed_session(web: Web, person: Person, second: str | None) -> tuple[TestResponse, str | None]:
    opened = web.post("/session", {"email": person.email}).json
    body = {"verificationCodeID": opened["verificationCodeID"], "code": mailed(web, person, "Your sign-in code")}
    answer = web.put("/session/verification", body | ({"totpCode": second} if second else {}))
    return answer, opened["bearer"]


def by_reset(web: Web, person: Person, second: str | None) -> tuple[TestResponse, str | None]:
    asked = web.post("/auth/password/forgot", {"email": person.email}).json
    code = mailed(web, person, "Choose a new password")
    answer = web.put("/auth/password/reset", {**asked, "code": code, "newPassword": FRESH})
    if answer.status_code != 200:
        return answer, None
    return by_user_token(web, replace(person, password=FRESH), second)


def by_registration(web: Web, person: Person, second: str | None) -> tuple[TestResponse, str | None]:
    alias = f"other.{second or 'none'}"
    opened = web.post("/user", {"email": person.email, "fullName": "Somebody Else", "alias": alias})
    body = {"verificationCodeID": opened.json["verificationCodeID"], "code": mailed(web, person, "sign-in code")}
    answer = web.put("/session/verification", body | ({"totpCode": second} if second else {}))
    return answer, opened.json["bearer"]


def by_console(web: Web, person: Person, second: str | None) -> tuple[TestResponse, str | None]:
    browser = Browser(web)
    browser.open("/console/sign-in")
    first = browser.send("Go on", {"identifier": person.email, "password": person.password})
    if first.status_code != 200:
        return first, None
    answer = browser.send("Sign in", {"code": second or mailed(web, person, "second sign-in code")}, follows=False)
    return answer, browser.cookies.get("identity")


WAYS: dict[str, Way] = {
    "user token": by_user_token,
    "challenge": by_challenge,
    "GraphQL": by_graphql,
    "emailed session": by_emailed_session,
    "console": by_console,
    "reset": by_reset,
    "registration": by_registration,
}
FOR_A_KNOWN_USER = [name for name in WAYS if name != "registration"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, console="on")


@pytest.fixture
def ada(web: Web) -> Person:
    """Somebody for whom every door is."""
    return a_user(web.rt, roles=("users_admin",))


@pytest.fixture
def app(web: Web, ada: Person) -> Authenticator:
    made = an_authenticator(web.rt, ada)
    web.clock.tick(30)
    return made


def is_in(web: Web, bearer: str | None) -> bool:
    if bearer is None:
        return False
    if bearer.startswith("idw_"):
        return web.get("/console/users", headers={"Cookie": f"identity={bearer}"}).status_code == 200
    return web.get("/auth/me", bearer=bearer).status_code == 200


def test_every_door_belongs_to_a_way_in_that_is_tried() -> None:
    assert set(DOORS.values()) == set(WAYS)


@pytest.mark.parametrize("name", WAYS)
def test_password_and_mailbox_do_not_replace_the_authenticator(
    web: Web, ada: Person, app: Authenticator, name: str
) -> None:
    for second in (None, WRONG):
        answer, bearer = WAYS[name](web, ada, second)
        assert not is_in(web, bearer), answer.json
    assert not [one for one in sessions.listing_of(web.rt, ada.id) if one.verified]


@pytest.mark.parametrize("name", FOR_A_KNOWN_USER)
def test_with_the_authenticator_every_way_lets_in(web: Web, ada: Person, app: Authenticator, name: str) -> None:
    answer, bearer = WAYS[name](web, ada, app.at(web.clock.now()))
    assert is_in(web, bearer), answer.json
    assert bearer is not None
    assert "otp" in sessions.listing_of(web.rt, ada.id)[0].amr


@pytest.mark.parametrize("name", FOR_A_KNOWN_USER)
def test_a_code_that_one_way_took_no_other_takes(web: Web, ada: Person, app: Authenticator, name: str) -> None:
    code = app.at(web.clock.now())
    assert is_in(web, by_user_token(web, ada, code)[1])
    assert not is_in(web, WAYS[name](web, ada, code)[1])


class TestEnrolledOnly:
    """`IDENTITY_SECOND_FACTOR=enrolled` spares nobody who has a factor."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, second_factor="enrolled", fixed_otp=True, console="on")

    def test_password_and_mailbox_do_not_replace_the_authenticator(
        self, web: Web, ada: Person, app: Authenticator
    ) -> None:
        for name, way in WAYS.items():
            assert not is_in(web, way(web, ada, None)[1]), name


# What follows a login gives no more than the login had.


def test_what_spells_a_login_anew_keeps_how_it_was_proven(web: Web, ada: Person) -> None:
    opened = a_session(web.rt, ada, amr=("email",))
    assert opened.bearer is not None
    assert opened.refresh is not None
    traded = web.post("/session/token", bearer=opened.bearer.reveal())
    refreshed = web.post("/auth/refresh", {"refreshToken": opened.refresh.reveal()})
    for answer in (traded, refreshed):
        claims = jwt.decode(answer.json["accessToken"], options={"verify_signature": False})
        assert (claims["amr"], claims["sid"]) == (["email"], opened.session.id)


def test_secrets_of_other_kinds_refresh_nothing(web: Web, ada: Person, app: Authenticator) -> None:
    challenge = web.post("/auth/login", {"email": ada.email, "password": ada.password}).json["mfaChallengeToken"]
    opened = a_session(web.rt, ada)
    assert opened.bearer is not None
    for secret in (challenge, opened.bearer.reveal(), app.recovery_codes[0], ada.password):
        assert web.post("/auth/refresh", {"refreshToken": secret}).status_code == 401


def test_a_users_credentials_are_no_machines(web: Web, ada: Person, app: Authenticator) -> None:
    for client_id in (ada.email, ada.alias, ada.id):
        answer = web.post("/application/token", {"clientId": client_id, "secret": ada.password})
        assert (answer.status_code, answer.json["error"]) == (401, "INVALID_CREDENTIALS")
    form = {"grant_type": "password", "username": ada.email, "password": ada.password}
    assert web.post("/oauth/token", data=form).status_code in (400, 401)


# Failures, wherever they happen, are failures of one account.


def guesses_of(web: Web, person: Person) -> dict[str, Callable[[], TestResponse]]:
    """One wrong guess by each route that looks at a password or a code; what it needs first was asked for already."""
    wrong = replace(person, password="wrong")
    # Every way that begins with a right password is begun now: a lockout would refuse the beginning.
    challenge = web.post("/auth/login", {"email": person.email, "password": person.password}).json
    otp = {"query": OTP, "variables": {"o": WRONG, "s": graphql_session(web, person)}}
    session = web.post("/session", {"email": person.email}).json["verificationCodeID"]
    reset = web.post("/auth/password/forgot", {"email": person.email}).json["verificationCodeID"]
    opened = a_session(web.rt, person)
    assert opened.bearer is not None
    bearer = opened.bearer.reveal()
    pair = web.post("/keypair", {"name": "feed", "days": 1}, bearer=bearer).json["verificationCodeID"]
    address = web.post("/email", {"address": f"second.{person.email}"}, bearer=bearer).json["verificationCodeID"]
    answered = {"mfaChallengeToken": challenge["mfaChallengeToken"]}

    begun = Browser(web)
    begun.open("/console/sign-in")
    begun.send("Go on", {"identifier": person.email, "password": person.password})

    def confirmation(verification_id: str) -> dict[str, Any]:
        return {"verificationCodeID": verification_id, "code": WRONG}

    return {
        "user token, password": lambda: web.post("/user/token", {"email": person.alias, "password": "wrong"}),
        "user token, code": lambda: by_user_token(web, person, WRONG)[0],
        "login": lambda: by_challenge(web, wrong, None)[0],
        "challenge, code": lambda: web.post("/auth/mfa/challenge", {**answered, "totpCode": WRONG}),
        "challenge, recovery": lambda: web.post("/auth/mfa/challenge", {**answered, "recoveryCode": "a" * 16}),
        "console, password": lambda: by_console(web, wrong, None)[0],
        "console, code": lambda: by_console_code(begun),
        "GraphQL login": lambda: by_graphql(web, wrong, None)[0],
        "GraphQL otp": lambda: web.post("/query", otp),
        "session": lambda: web.put("/session/verification", confirmation(session)),
        "reset": lambda: web.put("/auth/password/reset", {**confirmation(reset), "newPassword": FRESH}),
        "key pair": lambda: web.put("/keypair/verification", confirmation(pair)),
        "address": lambda: web.put("/email/verification", confirmation(address)),
        "password": lambda: web.put(
            "/auth/password", {"currentPassword": "wrong", "newPassword": FRESH}, bearer=bearer
        ),
        "remove": lambda: web.delete("/auth/mfa/totp", {"totpCode": WRONG}, bearer=bearer),
        "renew": lambda: web.post("/auth/mfa/recovery-codes", {"totpCode": WRONG}, bearer=bearer),
    }


def by_console_code(begun: Browser) -> TestResponse:
    """A wrong code in a sign-in that was begun; the page stays, whatever was answered before."""
    page = begun.page
    answer = begun.send("Sign in", {"code": WRONG})
    begun.page = page
    return answer


def graphql_session(web: Web, person: Person) -> str:
    variables = {"u": person.email, "p": person.password}
    session_id: str = web.post("/query", {"query": LOGIN, "variables": variables}).json["data"]["login"]["sessionID"]
    return session_id


def error_of(answer: TestResponse) -> str:
    """The error code of a refusal, in whatever shape."""
    if answer.json is None:
        problems = [one for one in vars(errors).values() if isinstance(one, errors.Problem)]
        return next(one.code for one in problems if one.message == answer.headers["x-error"])
    data = answer.json.get("data")
    code: str = answer.json["error"] if data is None else next(iter(data.values()))["code"]
    return code


def test_any_five_failures_lock_every_way(web: Web) -> None:
    names = list(guesses_of(web, enrolled(web)))
    # Five routes at a time, until each has been among the five; then every route refuses, right or wrong.
    for start in range(0, len(names), 5):
        web.clock.tick(600)
        person = enrolled(web)
        guesses = guesses_of(web, person)
        five = [names[(start + offset) % len(names)] for offset in range(5)]
        for name in five:
            assert error_of(guesses[name]()) in ("INVALID_CREDENTIALS", "INVALID_CODE"), name
        for name, guess in guesses.items():
            assert error_of(guess()) == "RATE_LIMITED", f"{name} after {five}"


def test_the_right_password_and_code_are_refused_during_a_lockout(web: Web, ada: Person, app: Authenticator) -> None:
    for _ in range(5):
        by_user_token(web, replace(ada, password="wrong"), None)
    for name in FOR_A_KNOWN_USER:
        answer, bearer = WAYS[name](web, ada, app.at(web.clock.now()))
        assert (error_of(answer), is_in(web, bearer)) == ("RATE_LIMITED", False), name
    web.clock.tick(300)
    for name in FOR_A_KNOWN_USER:
        web.clock.tick(30)
        assert is_in(web, WAYS[name](web, ada, app.at(web.clock.now()))[1]), name


def test_an_authenticator_enrolled_while_the_password_is_checked_is_demanded(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    person, asked = a_user(web.rt), factors.is_enrolled

    def enrol_just_after(rt: Runtime, user_id: str) -> bool:
        answer = asked(rt, user_id)
        monkeypatch.setattr(factors, "is_enrolled", asked)
        an_authenticator(rt, person)
        return answer

    monkeypatch.setattr(factors, "is_enrolled", enrol_just_after)
    answer, bearer = by_user_token(web, person, None)
    assert (error_of(answer), is_in(web, bearer)) == ("MFA_REQUIRED", False)
    for _ in range(5):
        assert error_of(by_user_token(web, person, None)[0]) == "MFA_REQUIRED", "a right password is no failed attempt"


def enrolled(web: Web) -> Person:
    """A user with TOTP, seconds after enrolling."""
    person = a_user(web.rt, roles=("users_admin",))
    an_authenticator(web.rt, person)
    web.clock.tick(30)
    return person
