"""Each framework's guard: who passes, who does not, and how that is said."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from identity_verifier import Verifier
from identity_verifier.asgi import Guard as AsgiGuard
from identity_verifier.refusals import UNAVAILABLE, Refused, answer
from identity_verifier.testing import Issuer
from services import SERVICES, Client


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, verifier: Verifier) -> Client:
    return SERVICES[request.param](verifier)


@pytest.fixture
def header(issuer: Issuer) -> tuple[str, str]:
    token = issuer.user_token("a-person", roles=["auditor"], tenants={"acme-bank": ["analyst"]})
    return ("Authorization", token.header)


def test_who_meets_the_demand_passes(service: Client, header: tuple[str, str]) -> None:
    answered = service("/reports", [header, ("X-Tenant-Id", "acme-bank")])
    assert answered.status == 200
    assert answered.body == {"subject": "a-person", "roles": ["analyst", "auditor"], "tenant": "acme-bank"}


def test_without_a_token_there_is_a_challenge_and_no_accusation(service: Client) -> None:
    answered = service("/plain", [("X-Request-Id", "mine-1")])
    assert answered.status == 401
    assert answered.headers["www-authenticate"] == "Bearer"
    assert answered.headers["x-request-id"] == "mine-1"
    assert answered.body == {"error": "UNAUTHENTICATED", "message": "This route needs a credential", "status": 401}


def test_a_bad_token_is_told_in_the_envelope(service: Client, issuer: Issuer) -> None:
    answered = service("/plain", [("Authorization", f"Bearer {issuer.bad_tokens()['alg none']}")])
    assert (answered.status, answered.body["error"], answered.body["status"]) == (401, "INVALID_TOKEN", 401)
    assert answered.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
    assert answered.headers["x-error"] == answered.body["message"] == "The token is not valid"
    assert len(answered.headers["x-error-id"]) == 36
    assert answered.headers["content-type"] == "application/json"
    assert answered.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("given", ["a b", "x" * 129, "<script>", "", "é"])
def test_a_request_id_that_is_none_is_replaced(service: Client, given: str) -> None:
    answered = service("/plain", [("X-Request-Id", given)])
    assert len(answered.headers["x-request-id"]) == 36


def test_no_tenant_a_foreign_one_and_two_of_them(service: Client, header: tuple[str, str]) -> None:
    assert service("/reports", [header]).body["error"] == "MISSING_TENANT"
    assert service("/reports", [header]).status == 400
    assert service("/reports", [header, ("X-Tenant-Id", "")]).status == 400
    for foreign in ("other", "acme-bank,other", "ACME-BANK"):
        answered = service("/reports", [header, ("X-Tenant-Id", foreign)])
        assert (answered.status, answered.body["error"]) == (403, "FORBIDDEN")
    two = service("/reports", [header, ("X-Tenant-Id", "acme-bank"), ("X-Tenant-Id", "other")])
    assert two.status == 403
    assert service("/plain", [header]).body["tenant"] is None
    assert service("/plain", [header, ("X-Tenant-Id", "acme-bank")]).body["tenant"] == "acme-bank"
    assert service("/plain", [header, ("X-Tenant-Id", "other")]).status == 403


def test_a_scope_that_is_missing_is_named(service: Client, issuer: Issuer) -> None:
    token = issuer.application_token(scope="read")
    for _ in range(2):
        answered = service("/scoped", [("Authorization", token.header)])
        assert answered.status == 403
        assert answered.headers["www-authenticate"] == (
            'Bearer error="insufficient_scope", error_description="The caller may not do this", scope="read write"'
        )
    both = issuer.application_token(scope="write read")
    assert service("/scoped", [("Authorization", both.header)]).status == 200


def test_two_tokens_are_one_too_many(service: Client, header: tuple[str, str], issuer: Issuer) -> None:
    assert service("/plain", [header, header]).status == 400
    assert service("/plain", [header, ("Authorization", "Bearer x")]).status == 400
    assert service("/plain", [("Authorization", "Basic eDp5"), header]).status == 401
    assert service(f"/plain?access_token={issuer.user_token()}", []).status == 401


def test_fresh_asks_and_is_503_when_nobody_answers(service: Client, header: tuple[str, str], issuer: Issuer) -> None:
    assert service("/plain", [header]).status == 200
    assert service("/fresh", [header]).status == 200
    assert issuer.asked["/oauth/introspect"] == 1
    issuer.down = True
    answered = service("/fresh", [header])
    assert (answered.status, answered.body["error"], answered.headers["retry-after"]) == (503, "UNAVAILABLE", "5")
    assert "www-authenticate" not in answered.headers
    assert service("/plain", [header]).status == 200


def test_changed_rights_say_what_to_do(issuer: Issuer) -> None:
    token = issuer.user_token()
    issuer.change_rights(token, roles=[])
    service = SERVICES["flask"](issuer.verifier(client=("x", "y")))
    assert service("/plain", [("Authorization", token.header)]).status == 503
    service = SERVICES["wsgi"](issuer.verifier(client=issuer.client))
    assert service("/plain", [("Authorization", token.header)]).status == 200


def test_the_log_says_why_and_never_the_token(
    service: Client, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for token in issuer.bad_tokens().values():
        service("/plain?secret=1", [("Authorization", f"Bearer {token}")])
    assert "the signature does not hold" in caplog.text
    assert "GET /plain" in caplog.text
    assert "secret=1" not in caplog.text
    for token in issuer.bad_tokens().values():
        for part in token.split("."):
            assert len(part) < 30 or part not in caplog.text
    answered = service("/plain", [])
    assert answered.headers["x-error-id"] in caplog.text


@pytest.mark.parametrize("name", ["wsgi", "asgi", "django", "django-asgi"])
def test_public_paths_are_public_and_only_those(name: str, verifier: Verifier) -> None:
    service = SERVICES[name](verifier)
    assert service("/health", []).status == 200
    for path in ("/health/", "//health", "/healthy", "/HEALTH", "/health/../reports", "/reports"):
        assert service(path, []).status in (400, 401)


@pytest.mark.parametrize("name", ["django", "django-asgi"])
def test_the_middleware_of_django_guards_views_that_say_nothing(
    name: str, verifier: Verifier, header: tuple[str, str]
) -> None:
    service = SERVICES[name](verifier)
    assert service("/only-the-middleware", []).status == 401
    assert service("/only-the-middleware", [header]).body["subject"] == "a-person"


def test_a_demand_that_can_never_be_met_stops_the_start(issuer: Issuer) -> None:
    alone = issuer.verifier()
    with pytest.raises(ValueError, match="client"):
        AsgiGuard(None, alone, fresh=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tenant"):
        AsgiGuard(None, alone, tenant="acme-bank")  # type: ignore[arg-type]


def test_a_websocket_without_a_token_is_closed_before_it_opens(verifier: Verifier, issuer: Issuer) -> None:
    sent: list[Any] = []
    reached: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        reached.append(scope.get("identity_caller"))

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    guarded = AsgiGuard(app, verifier)
    scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": []}
    asyncio.run(guarded(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert reached == []
    scope["headers"] = [(b"Authorization", issuer.user_token().header.encode())]
    asyncio.run(guarded(scope, receive, send))
    assert reached[0].is_user
    asyncio.run(guarded({"type": "lifespan"}, receive, send))
    assert reached[1] is None


def test_openapi_of_fastapi_names_the_scheme(verifier: Verifier) -> None:
    from fastapi import Depends, FastAPI

    from identity_verifier.fastapi import Guard

    app = FastAPI()
    guard = Guard(app, verifier)

    @app.get("/x", dependencies=[Depends(guard())])
    def nothing() -> None: ...

    assert app.openapi()["paths"]["/x"]["get"]["security"] == [{"HTTPBearer": []}]


def test_flask_views_may_refuse_themselves_and_be_asynchronous(verifier: Verifier, issuer: Issuer) -> None:
    from flask import Flask

    from identity_verifier.flask import Guard, current_caller, refusal
    from services import over_wsgi

    app = Flask("service")
    app.register_error_handler(Refused, refusal)

    @app.get("/later")
    @Guard(verifier)()
    def later() -> dict[str, Any]:
        current_caller().require(role="owner")
        return {}

    service = over_wsgi(app)
    assert service("/later", [("Authorization", issuer.user_token().header)]).status == 403
    assert service("/later", [("Authorization", issuer.user_token(roles=["owner"]).header)]).status == 200


def test_retry_after_is_what_was_asked_for() -> None:
    said = answer(Refused(UNAVAILABLE, "x", retry_after_seconds=9))
    assert dict(said.headers)["Retry-After"] == "9"
    assert json.loads(said.body)["status"] == 503
