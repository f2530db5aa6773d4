"""Tokens that our key signed and we would never write: refused everywhere in the words for a forged one, and never a fault of ours."""

from __future__ import annotations

import pytest

from identity.core.clients import machine_tokens, secrets
from tests.builders import a_token, a_user, an_application
from tests.forgeries import almost_ours
from tests.oauth_world import as_client
from tests.world import ORIGIN, Web

# What may be missing, or may stand there, without being odd.
HARMLESS = {
    *(f"without {name}" for name in ("roles", "groups", "tenants", "scope", "status")),
    *(f"{name} is []" for name in ("roles", "groups", "amr")),
    *(f"scope is {text!r}" for text in ("", "x", " ")),
    *(f"{name} is 7" for name in ("iat", "nbf", "auth_time")),
    "tenants is {}",
    "jti is 'x'",
    "aud is 'x'",
    "aud is ' '",
}
# Odd in nothing but what it says of the world: refused, in words of its own.
EXPIRED = {"exp is 7"}
# An application's token names the secret that earned it, which must be there.
BOUND = {"jti is 'x'", "iat is 7"}


@pytest.fixture(params=["user", "application"])
def token(request: pytest.FixtureRequest, web: Web) -> str:
    if request.param == "user":
        return a_token(web.rt, a_user(web.rt, roles=("r",), groups=("g",), tenants={"acme": ("owner",)}))
    feed = an_application(web.rt, scopes=("read",), roles=("r",))
    proven = secrets.authenticate(web.rt, ORIGIN, feed.client_id, feed.secret)
    return machine_tokens.issue_token(web.rt, proven, scope=None, audience=(web.rt.settings.issuer,)).text


def odd_tokens(web: Web, token: str) -> dict[str, str]:
    return {name: one for name, one in almost_ours(web.rt, token).items() if name not in HARMLESS | EXPIRED}


def test_the_gate_and_our_own_routes_refuse_them(web: Web, token: str) -> None:
    for name, odd in odd_tokens(web, token).items():
        for path in ("/verify?tenant=optional", "/session", "/admin/users"):
            answer = web.get(path, bearer=odd)
            assert answer.status_code == 401, (name, path)
            assert answer.json["error"] == "INVALID_TOKEN", (name, path)


def test_introspection_calls_them_inactive_and_revocation_leaves_them_alone(web: Web, token: str) -> None:
    desk = as_client(an_application(web.rt, scopes=("introspect",)))
    for name, odd in odd_tokens(web, token).items():
        asked = web.post("/oauth/introspect", headers=desk, data={"token": odd})
        assert (asked.status_code, asked.json) == (200, {"active": False}), name
        assert web.post("/oauth/revoke", headers=desk, data={"token": odd}).status_code == 200, name


def test_what_we_could_have_written_is_good(web: Web, token: str) -> None:
    for name, other in almost_ours(web.rt, token).items():
        if name in EXPIRED:
            assert web.get("/verify?tenant=optional", bearer=other).json["error"] == "TOKEN_EXPIRED"
        elif name in HARMLESS:
            status = web.get("/verify?tenant=optional", bearer=other).status_code
            assert status in ((200, 401) if name in BOUND else (200,)), name


def test_a_far_end_does_not_break_the_revocation_of_a_token(web: Web) -> None:
    """Its owner may end it; the end that it claims must be one that a database can hold."""
    feed = an_application(web.rt)
    proven = secrets.authenticate(web.rt, ORIGIN, feed.client_id, feed.secret)
    token = machine_tokens.issue_token(web.rt, proven, scope=None, audience=(web.rt.settings.issuer,)).text
    for name, odd in almost_ours(web.rt, token).items():
        answer = web.post("/oauth/revoke", headers=as_client(feed), data={"token": odd})
        assert answer.status_code == 200, name


def test_an_opaque_value_of_another_kind_is_wrong_and_not_malformed(web: Web) -> None:
    """However long it is: whoever mixes two of them up must read which credential was refused."""
    ada = a_user(web.rt)
    for other in (a_token(web.rt, ada), "x" * 30_000):
        code = {"verificationCodeID": other, "code": other}
        for method, path, body, error in (
            ("POST", "/auth/refresh", {"refreshToken": other}, "INVALID_TOKEN"),
            ("POST", "/auth/mfa/challenge", {"mfaChallengeToken": other, "totpCode": other}, "INVALID_CODE"),
            ("POST", "/auth/mfa/challenge", {"mfaChallengeToken": other, "recoveryCode": other}, "INVALID_CODE"),
            ("PUT", "/auth/password/reset", {**code, "newPassword": "a new password of mine"}, "INVALID_CODE"),
            ("PUT", "/session/verification", code, "INVALID_CODE"),
            ("PUT", "/keypair/verification", code, "INVALID_CODE"),
            ("POST", "/application/token", {"clientId": other, "secret": other}, "INVALID_CREDENTIALS"),
        ):
            answer = web.call(method, path, body)
            assert (answer.status_code, answer.json["error"]) == (401, error), (path, len(other))


def test_a_code_may_be_a_number(web: Web) -> None:
    """Some clients take six digits for one, and so lose the zeros that it begins with."""
    waiting = web.post("/session", {"email": a_user(web.rt).email}).json
    body = {"verificationCodeID": waiting["verificationCodeID"], "code": int(web.last_code())}
    assert web.put("/session/verification", body).status_code == 202
