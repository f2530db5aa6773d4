"""What an access token says, whom it is for, and how long it is good."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

import jwt
import pytest

from identity.ambient import later
from identity.core.access import callers
from identity.core.access.callers import Presented
from identity.core.clients import keypairs, machine_tokens, secrets
from identity.core.tokens import claims, sessions
from identity.core.tokens.claims import resource_of
from identity.errors import FORBIDDEN, INVALID_TOKEN, TOKEN_EXPIRED, VALIDATION, Refused
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import a_session, a_token, a_user, an_application
from tests.forgeries import forgeries
from tests.world import ORIGIN, FakeClock, Web

USER_CLAIMS = {
    "iss", "sub", "client_id", "aud", "iat", "nbf", "exp", "jti", "auth_time", "amr", "sid", "roles", "groups", "tenants", "status",
}  # fmt: skip
MACHINE_CLAIMS = {
    "iss", "sub", "client_id", "aud", "iat", "nbf", "exp", "jti", "roles", "scope", "status",
}  # fmt: skip


def claims_of(token: str) -> dict[str, object]:
    return jwt.decode(token, options={"verify_signature": False})


def an_application_token(rt: Runtime, **options: object) -> str:
    feed = an_application(rt, **options)
    proven = secrets.authenticate(rt, ORIGIN, feed.client_id, feed.secret)
    return machine_tokens.issue_token(rt, proven, scope=None, audience=(rt.settings.issuer,)).text


def code_of(rt: Runtime, token: str) -> str:
    """The code with which a token is refused; empty when it is good."""
    try:
        callers.identify(rt, ORIGIN, Presented(token))
    except Refused as refused:
        return refused.problem.code
    return ""


def test_a_token_has_the_header_of_rfc_9068(rt: Runtime) -> None:
    header = jwt.get_unverified_header(a_token(rt, a_user(rt)))
    assert header == {"alg": "RS256", "typ": "at+jwt", "kid": rt.ring.list()[0].kid}
    assert list(header) == ["alg", "typ", "kid"]


def test_a_user_token_has_the_claims_of_the_contract_and_no_other(rt: Runtime) -> None:
    ada = a_user(rt, roles=("b", "a"), groups=("z", "y"), tenants={"globex": (), "acme-bank": ("owner", "analyst")})
    opened = a_session(rt, ada)
    live = sessions.find_live(rt, opened.session.id)
    claims = claims_of(sessions.token_for(rt, live, seconds=3600, resource="https://api.acme.example").text)
    assert claims.keys() == USER_CLAIMS
    assert claims["sub"] == ada.id
    assert claims["sid"] == opened.session.id
    assert claims["aud"] == ["https://api.acme.example", rt.settings.issuer]
    assert (claims["roles"], claims["groups"]) == (["a", "b"], ["y", "z"])
    assert json.dumps(claims["tenants"]) == '{"acme-bank": ["analyst", "owner"], "globex": []}'
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["nbf"] + 60 == claims["iat"] == int(rt.clock.now().timestamp())


def test_an_application_token_has_the_claims_of_the_contract_and_no_other(rt: Runtime) -> None:
    claims = claims_of(an_application_token(rt, scopes=("write", "read"), roles=("feeder",)))
    assert claims.keys() == MACHINE_CLAIMS
    assert claims["sub"] == claims["client_id"]
    assert claims["scope"] == "read write"
    assert claims["exp"] - claims["iat"] == 86_400


def test_no_two_tokens_have_the_same_jti(rt: Runtime) -> None:
    ada = a_user(rt)
    assert len({claims_of(a_token(rt, ada))["jti"] for _ in range(20)}) == 20


def test_personal_claims_are_added_only_where_the_setting_names_them(rt: Runtime) -> None:
    ada = a_user(rt, email="ada@acme.example", full_name="Ada Lovelace")
    assert not {"email", "name"} & claims_of(a_token(rt, ada)).keys()
    rt.settings = replace(rt.settings, user_claims=("email", "name"))
    claims = claims_of(a_token(rt, ada))
    assert (claims["email"], claims["name"]) == ("ada@acme.example", "Ada Lovelace")


def test_a_token_never_outlives_its_session(rt: Runtime, clock: FakeClock) -> None:
    opened = a_session(rt, a_user(rt))
    clock.tick(rt.settings.session_idle_seconds - 10)
    live = sessions.find_live(rt, opened.session.id)
    # The session may be extended; until it is, it ends then, and offline verifiers hear of no such end.
    remaining = int(live.session.expires_at.timestamp()) - int(clock.now().timestamp())
    assert sessions.token_for(rt, live, seconds=10**8).expires_in == remaining


@pytest.mark.parametrize(("seconds", "code"), [(3599, ""), (3600, "TOKEN_EXPIRED"), (3601, "TOKEN_EXPIRED")])
def test_a_token_is_good_until_its_second(rt: Runtime, clock: FakeClock, seconds: int, code: str) -> None:
    clock.tick(1 - clock.now().microsecond / 1e6)
    token = a_token(rt, a_user(rt))
    clock.tick(seconds)
    assert code_of(rt, token) == code


def test_an_expired_token_says_to_operators_how_late_it_is(rt: Runtime, clock: FakeClock) -> None:
    token = a_token(rt, a_user(rt))
    clock.tick(3700)
    with pytest.raises(Refused) as caught:
        claims.read(rt, token)
    assert caught.value.problem == TOKEN_EXPIRED
    assert caught.value.evidence


def test_no_forgery_is_read(rt: Runtime) -> None:
    genuine = a_token(rt, a_user(rt))
    for name, forged in forgeries(rt, genuine, "127.0.0.1:1").items():
        assert code_of(rt, forged) == INVALID_TOKEN.code, name
    assert code_of(rt, genuine) == ""


def test_no_part_of_a_token_is_a_token(rt: Runtime) -> None:
    """A cache of verdicts must not answer for what merely begins or ends like a token that was good."""
    token = a_token(rt, a_user(rt))
    assert code_of(rt, token) == ""
    for cut in (1, 2, 3, 20, 64, 256, len(token) // 2, len(token) - 1):
        assert code_of(rt, token[:-cut]) == INVALID_TOKEN.code
        assert code_of(rt, token[cut:]) == INVALID_TOKEN.code
    for more in ("A", "=", ".", "\n", "\0", token):
        assert code_of(rt, token + more) == INVALID_TOKEN.code


def test_an_application_token_must_name_us_as_audience_on_our_own_routes(rt: Runtime) -> None:
    feed = an_application(rt)
    proven = secrets.authenticate(rt, ORIGIN, feed.client_id, feed.secret)
    token = machine_tokens.issue_token(rt, proven, scope=None, audience=("https://api.acme.example",)).text
    assert code_of(rt, token) == INVALID_TOKEN.code
    assert callers.identify(rt, ORIGIN, Presented(token), own_routes=False).subject == feed.client_id


class TestResource:
    """`Origin` and the audience that it names."""

    def asked(self, origin: str | None, *, allowed: tuple[str, ...] = (), required: bool = False) -> str:
        return resource_of(origin, allowed=allowed, required=required, fallback="https://fallback.example")

    def test_without_an_origin_the_default_is_the_audience(self) -> None:
        assert self.asked(None) == "https://fallback.example"

    @pytest.mark.parametrize(
        ("origin", "resource"),
        [
            ("https://api.acme.example", "https://api.acme.example"),
            ("HTTPS://API.Acme.Example", "https://api.acme.example"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ],
    )
    def test_an_origin_is_the_audience(self, origin: str, resource: str) -> None:
        assert self.asked(origin) == resource

    @pytest.mark.parametrize(
        "origin",
        [
            "", "null", "*", "api.acme.example", "://a.example", "https://", "https://a.example/", "https://a.example/path",
            "https://user@a.example", "https://a.example:port", "https://a.example:123456", "https://a.example https://b.example",
            "https://a.example,https://b.example", "https://ä.example", " https://a.example", "https://a.example\n", "javascript:x",
        ],
    )  # fmt: skip
    def test_what_is_no_origin_is_refused(self, origin: str) -> None:
        with pytest.raises(Refused) as caught:
            self.asked(origin)
        assert (caught.value.problem.code, caught.value.field) == (VALIDATION.code, "Origin")

    def test_a_missing_origin_is_refused_where_one_is_required(self) -> None:
        with pytest.raises(Refused) as caught:
            self.asked(None, required=True)
        assert (caught.value.problem.code, caught.value.field) == (VALIDATION.code, "Origin")

    @pytest.mark.parametrize(
        "origin",
        ["https://evil.example", "https://a.example.evil.example", "http://a.example", "https://a.example:444"],
    )
    def test_another_origin_than_the_allowed_is_forbidden(self, origin: str) -> None:
        with pytest.raises(Refused) as caught:
            self.asked(origin, allowed=("https://a.example",))
        assert caught.value.problem.code == FORBIDDEN.code
        assert self.asked("https://A.example", allowed=("https://a.example",)) == "https://a.example"


def test_the_issuer_is_in_the_audience_once(rt: Runtime, settings: Settings) -> None:
    assert claims_of(a_token(rt, a_user(rt)))["aud"] == settings.issuer


class Running(FakeClock):
    """Time that goes on while a request is worked on."""

    def now(self) -> datetime:
        self.tick(0.3)
        return super().now()


class TestLives:
    """A life that nothing shortens is exact to the second, however long the request takes; `expiresIn` is that life."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return Running()

    def test_every_way_to_a_token(self, web: Web) -> None:
        ada = a_user(web.rt)
        feed = an_application(web.rt)
        bearer = a_session(web.rt, ada).bearer
        assert bearer is not None
        with web.rt.unit(ORIGIN) as unit:
            pair, secret = keypairs.create(web.rt, unit, ada.id, name="k", days=1, actor="test", verified=True)
        keys = {"api-key": pair.api_key, "api-secret": secret.reveal()}
        day = web.post("/user/token", {"email": ada.email, "password": ada.password}).json["data"]
        machine = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}).json["data"]
        begun = web.post("/auth/login", {"email": ada.email, "password": ada.password}).json
        answer = {"mfaChallengeToken": begun["mfaChallengeToken"], "emailCode": web.last_code()}
        hour = web.post("/auth/mfa/challenge", answer).json
        again = web.post("/auth/refresh", {"refreshToken": hour["refreshToken"]}).json
        traded = web.post("/session/token", bearer=bearer.reveal()).json
        by_key = web.post("/keypair/token", headers=keys).json
        for answer, seconds in ((day, 86_400), (machine, 86_400), *((a, 3600) for a in (hour, again, traded, by_key))):
            said = claims_of(answer["accessToken"])
            assert (said["exp"] - said["iat"], answer["expiresIn"]) == (seconds, seconds)  # type: ignore[operator]

    def test_graphql(self, web: Web) -> None:
        ada = a_user(web.rt)
        begin = f'mutation {{ login(username: "{ada.email}", password: "{ada.password}") {{ code sessionID }} }}'
        begun = web.post("/query", {"query": begin}).json["data"]["login"]
        end = f'mutation {{ otp(otp: "{web.last_code()}", sessionID: "{begun["sessionID"]}") {{ token }} }}'
        said = claims_of(web.post("/query", {"query": end}).json["data"]["otp"]["token"])
        assert said["exp"] - said["iat"] == 86_400  # type: ignore[operator]


@pytest.mark.parametrize(("seconds", "life"), [(3599, 3599), (3600, 3600), (3601, 3600)])
def test_a_token_never_outlives_the_access_window(rt: Runtime, clock: FakeClock, seconds: int, life: int) -> None:
    clock.tick(1 - clock.now().microsecond / 1e6)
    ada = a_user(rt, ends_at=later(clock.now(), seconds))
    said = claims_of(a_token(rt, ada))
    assert said["exp"] - said["iat"] == life  # type: ignore[operator]


def test_claims_that_would_be_empty_are_left_out(rt: Runtime) -> None:
    """Authlib's RFC 9068 validator refuses blanks."""
    for token in (a_token(rt, a_user(rt)), an_application_token(rt)):
        assert not {"roles", "groups", "tenants", "scope"} & claims_of(token).keys()


def test_what_makes_a_token_too_long_is_left_out_and_that_is_said(rt: Runtime) -> None:
    """Never issue what we would refuse: 300 memberships are no reason to lock somebody out."""
    ada = a_user(rt, roles=("r",), tenants={f"tenant-{number:03}": ("analyst", "auditor") for number in range(300)})
    token = a_token(rt, ada)
    said = claims_of(token)
    assert len(token) <= 6 * 1024
    assert ("tenants" in said, said["tenants_omitted"], said["roles"]) == (False, True, ["r"])
    caller = callers.identify(rt, ORIGIN, Presented(token))
    assert len(caller.memberships.roles()) == 300, "whatever asks us reads the database"
    bob = a_user(rt, groups=tuple(f"group-{number:050}" for number in range(100)))
    assert claims_of(a_token(rt, bob))["groups_omitted"] is True


def test_scopes_that_do_not_fit_into_a_token_are_refused(rt: Runtime) -> None:
    scopes = tuple(f"scope-{number:050}" for number in range(100))
    with pytest.raises(Refused) as caught:
        an_application_token(rt, scopes=(*scopes, *(f"x{scope}" for scope in scopes[:20])))
    assert (caught.value.problem.code, caught.value.field) == (VALIDATION.code, "scope")
