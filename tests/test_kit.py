"""The kit for services (`kit/`) judges as the service itself does: every forged and odd token, and every key of every age."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from identity.app import create_app
from identity.core.admin import keys
from identity.core.admin.by import By
from identity.opening import create_runtime
from identity_verifier import Refused, Verifier
from identity_verifier.refusals import Unreachable
from identity_verifier.transport import Request, Response
from tests.builders import a_token, a_user, an_application
from tests.conftest import fresh_database
from tests.forgeries import expired, for_another_audience, forgeries, rs256, signing_key, spell, un64
from tests.world import FakeClock, Mailbox, Web, fast_settings

# Really signed by our key, for a subject or a session that never was: only the rows of now can tell, so only `fresh` does.
KNOWN_TO_THE_DATABASE_ONLY = {
    "our key, another subject",
    "our key, another session",
    "our key, a session that is no id",
}


class Asks:
    """A transport of the kit that asks the service in this process."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.down = False

    def __call__(self, request: Request) -> Response:
        if self.down:
            raise Unreachable("the service is down")
        path = request.url.removeprefix(self.web.rt.settings.issuer)
        answer = self.web.call(request.method, path, headers=request.headers, data=request.body)
        return Response(
            answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, answer.data
        )


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("kit")
    settings = fast_settings(keys_dir=folder / "keys", **fresh_database("sqlite", folder))
    clock, mailbox = FakeClock(), Mailbox()
    rt = create_runtime(settings, clock=clock, mailer=mailbox, migrate=False)
    yield Web(create_app(runtime=rt), rt, mailbox, clock)
    rt.close()


def verifier_of(web: Web, **options: Any) -> Verifier:
    asking = an_application(web.rt, scopes=("introspect",))
    settings = web.rt.settings
    defaults: dict[str, Any] = {
        "audience": settings.default_audience,
        "client": (asking.client_id, asking.secret),
        "transport": Asks(web),
        "allow_http": True,
        "wall": lambda: web.clock.now().timestamp(),
        "elapsed": lambda: web.clock.now().timestamp(),
    }
    return Verifier(settings.issuer, **(defaults | options))


def a_machine_token(web: Web) -> str:
    machine = an_application(web.rt, audiences=(web.rt.settings.default_audience,))
    answer = web.post("/application/token", {"clientId": machine.client_id, "secret": machine.secret})
    return str(answer.json["data"]["accessToken"])


def said_by_kit(verifier: Verifier, token: str, *, fresh: bool = False) -> tuple[int, str]:
    try:
        verifier.verify(f"Bearer {token}", fresh=fresh)
    except Refused as refused:
        return refused.status, refused.code
    return 200, ""


def said_by_gate(web: Web, token: str) -> tuple[int, str]:
    answer = web.get("/verify?tenant=optional", bearer=token)
    return answer.status_code, "" if answer.status_code == 200 else answer.json["error"]


@pytest.mark.parametrize("kind", ["user", "application"])
def test_every_forgery_gets_the_verdict_of_the_gate(web: Web, kind: str) -> None:
    verifier = verifier_of(web)
    token = a_token(web.rt, a_user(web.rt)) if kind == "user" else a_machine_token(web)
    assert said_by_kit(verifier, token) == said_by_gate(web, token) == (200, "")
    assert said_by_kit(verifier, token, fresh=True) == (200, "")
    found = forgeries(web.rt, token, "127.0.0.1:1")
    assert len(found) > 120
    for name, forged in found.items():
        expected = said_by_gate(web, forged)
        # A machine is known by its `client_id`; whoever holds our key can write anything beside it.
        assert expected[0] in (400, 401) or (kind == "application" and name == "our key, another subject"), name
        assert said_by_kit(verifier, forged, fresh=True) == expected, name
        if name not in KNOWN_TO_THE_DATABASE_ONLY:
            assert said_by_kit(verifier, forged) == expected, name


def test_expired_tokens_get_the_verdict_of_the_gate_after_the_leeway(web: Web) -> None:
    verifier, token = verifier_of(web), a_token(web.rt, a_user(web.rt))
    genuine, forged = expired(web.rt, token, forged=False), expired(web.rt, token, forged=True)
    assert said_by_kit(verifier, forged) == said_by_gate(web, forged) == (401, "INVALID_TOKEN")
    assert said_by_kit(verifier, genuine)[0] == 200
    web.clock.tick(30)
    assert said_by_kit(verifier, genuine) == said_by_gate(web, genuine) == (401, "TOKEN_EXPIRED")


def test_for_another_audience_the_kit_is_stricter_than_the_gate_which_has_none(web: Web) -> None:
    token = for_another_audience(web.rt, a_token(web.rt, a_user(web.rt)))
    assert said_by_gate(web, token)[0] == 200
    assert said_by_kit(verifier_of(web), token) == (401, "INVALID_TOKEN")


ODD: dict[str, dict[str, Any]] = {
    **{f"without {name}": {name: None} for name in ("iss", "sub", "client_id", "aud", "exp", "iat", "jti")},
    "exp that is text": {"exp": "x"},
    "exp beyond all years": {"exp": 10**30},
    "exp that is a fraction": {"exp": 1e12},
    "aud that is a number": {"aud": 7},
    "aud that is an object": {"aud": {"https://api.example": 1}},
    "scope that is a list": {"scope": ["admin"]},
    "roles that are text": {"roles": "users_admin"},
    "tenants that are a list": {"tenants": ["acme-bank"]},
    "amr that is text": {"amr": "pwd"},
    "iat that is true": {"iat": True},
    "jti that is empty": {"jti": ""},
}


def with_claims(web: Web, token: str, changes: dict[str, Any]) -> str:
    """`token` with other claims, signed by our key."""
    head, body, _ = token.split(".")
    claims = {k: v for k, v in (json.loads(un64(body)) | changes).items() if v is not None}
    return spell(json.loads(un64(head)), json.dumps(claims).encode(), rs256(signing_key(web.rt).private))


@pytest.mark.parametrize("name", ODD)
def test_odd_claims_get_the_verdict_of_the_gate(web: Web, name: str) -> None:
    odd = with_claims(web, a_token(web.rt, a_user(web.rt)), ODD[name])
    assert said_by_kit(verifier_of(web), odd) == said_by_gate(web, odd) == (401, "INVALID_TOKEN")


def test_rotation_is_no_event_and_a_revoked_key_is_out_within_one_ttl(web: Web) -> None:
    verifier, person = verifier_of(web), a_user(web.rt)
    tokens = [a_token(web.rt, person)]
    for _ in range(3):
        keys.rotate_key(web.rt, By.command_line())
        for _ in range(12):
            web.clock.tick(37)
            tokens.append(a_token(web.rt, person))
            for token in tokens:
                assert said_by_kit(verifier, token) == said_by_gate(web, token) == (200, "")
    active = next(each.kid for each in keys_of(web) if each.state == "active")
    keys.revoke_key(web.rt, By.command_line(), active)
    # Long before the keys are due again: the list is signed by the new key, and so they are looked at.
    web.clock.tick(web.rt.settings.status_ttl_seconds)
    for token in tokens:
        assert said_by_kit(verifier, token) == said_by_gate(web, token)
    assert said_by_gate(web, tokens[-1])[0] == 401
    assert said_by_kit(verifier, a_token(web.rt, person)) == (200, "")


def test_a_retired_key_that_is_revoked_is_out_when_the_keys_are_due(web: Web) -> None:
    # The list is signed by another key and says nothing of it: the age of the JWKS bounds how long its tokens pass here.
    verifier, token = verifier_of(web), a_token(web.rt, a_user(web.rt))
    kid = next(each.kid for each in keys_of(web) if each.state == "active")
    keys.rotate_key(web.rt, By.command_line())
    web.clock.tick(web.rt.settings.jwks_max_age_seconds + 61)
    fresh = a_token(web.rt, a_user(web.rt))
    assert [each.state for each in keys_of(web) if each.kid == kid] == ["retired"]
    assert said_by_kit(verifier, token) == said_by_kit(verifier, fresh) == (200, "")
    keys.revoke_key(web.rt, By.command_line(), kid)
    assert said_by_gate(web, token) == (401, "INVALID_TOKEN")
    web.clock.tick(web.rt.settings.jwks_max_age_seconds + 1)
    assert said_by_kit(verifier, token) == (401, "INVALID_TOKEN")
    assert said_by_kit(verifier, fresh) == said_by_gate(web, fresh) == (200, "")


def keys_of(web: Web) -> Any:
    return web.rt.ring.list()


def test_a_day_without_the_service(web: Web) -> None:
    asks = Asks(web)
    verifier = verifier_of(web, transport=asks)
    machine = an_application(web.rt, audiences=(web.rt.settings.default_audience,), token_seconds=86_400)
    answer = web.post("/application/token", {"clientId": machine.client_id, "secret": machine.secret})
    lasting, brief = answer.json["data"]["accessToken"], a_token(web.rt, a_user(web.rt))
    assert said_by_kit(verifier, lasting) == said_by_kit(verifier, brief) == (200, "")
    asks.down = True
    for _ in range(23):
        web.clock.tick(3600)
        assert said_by_kit(verifier, lasting) == (200, "")
    assert said_by_kit(verifier, brief) == (401, "TOKEN_EXPIRED")
    web.clock.tick(3700)
    assert said_by_kit(verifier, lasting)[0] in (401, 503)
