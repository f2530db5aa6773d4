"""Group A over the Flask mount: both tokens, every refusal, and the trace that each leaves."""

from __future__ import annotations

from datetime import timedelta

import jwt
import pytest

from tests.builders import a_user, an_application
from tests.world import Web


def test_a_user_gets_a_token_that_the_published_keys_verify(web: Web) -> None:
    ada = a_user(web.rt, roles=("analyst",), tenants={"acme-bank": ("analyst",)})
    answer = web.post(
        "/user/token", {"email": ada.email, "password": ada.password}, headers={"Origin": "https://api.acme.example"}
    )
    assert answer.status_code == 200, answer.json
    assert answer.json["status"] == "success"
    assert answer.json["data"]["tokenType"] == "Bearer"
    assert answer.json["data"]["expiresIn"] == 86_400
    token = answer.json["data"]["accessToken"]
    keys = jwt.PyJWKSet.from_dict(web.get("/.well-known/jwks.json").json)
    key = next(key for key in keys.keys if key.key_id == jwt.get_unverified_header(token)["kid"])
    claims = jwt.decode(token, key, ["RS256"], audience="https://api.acme.example", issuer=web.rt.settings.issuer)
    assert claims["sub"] == ada.id
    assert claims["tenants"] == {"acme-bank": ["analyst"]}
    assert claims["amr"] == ["pwd"]


@pytest.mark.parametrize("spelling", ["ADA@ACME.example", "ada@acme.example.", "Ada"])
def test_every_spelling_of_an_address_or_alias_signs_in(web: Web, spelling: str) -> None:
    a_user(web.rt, email="ada@acme.example", alias="ada", password="correct horse battery staple")
    assert web.post("/user/token", {"email": spelling, "password": "correct horse battery staple"}).status_code == 200


def test_an_application_gets_a_token_without_a_write(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read",))
    answer = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret})
    assert answer.status_code == 200, answer.json
    claims = jwt.decode(answer.json["data"]["accessToken"], options={"verify_signature": False})
    assert claims["sub"] == claims["client_id"] == feed.client_id
    assert claims["scope"] == "read"


def test_the_access_window_is_told_only_with_the_right_password(web: Web) -> None:
    late = a_user(web.rt, ends_at=web.clock.now() - timedelta(seconds=1))
    right = web.post("/user/token", {"email": late.email, "password": late.password})
    assert (right.status_code, right.json["message"]) == (401, "User access window has expired")
    wrong = web.post("/user/token", {"email": late.email, "password": "wrong"})
    assert (wrong.status_code, wrong.json["message"]) == (401, "Email and password do not match")


def test_five_failures_lock_the_account_for_this_address(web: Web) -> None:
    ada = a_user(web.rt)
    for _ in range(5):
        assert web.post("/user/token", {"email": ada.email, "password": "wrong"}).status_code == 401
    locked = web.post("/user/token", {"email": ada.alias, "password": ada.password})
    assert locked.status_code == 429
    assert locked.json["message"] == "Too many authentication attempts. Try again in 5 minutes"
    assert 1 <= int(locked.headers["Retry-After"]) <= 300
    web.clock.tick(300)
    assert web.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 200
