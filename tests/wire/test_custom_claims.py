"""Claims of one's own: from attributes into tokens, introspection and the gate; and what is refused when it is written."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest

from identity.canonical import decode_base64url
from identity.core.clients import keypairs
from identity.core.tokens import custom_claims, sessions
from identity.errors import Refused
from tests.builders import Person, a_session, a_tenant, a_token, a_user, an_application
from tests.oauth_world import as_client
from tests.world import ORIGIN, Web

API = "https://api.acme.example"


@pytest.fixture
def boss(web: Web) -> str:
    """The token of an administrator."""
    return a_token(web.rt, a_user(web.rt, roles=("users_admin",)))


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def user_token(web: Web, person: Person, resource: str = API) -> str:
    live = sessions.find_live(web.rt, a_session(web.rt, person).session.id)
    return sessions.token_for(web.rt, live, seconds=3600, resource=resource).text


def gate_claims(web: Web, **options: Any) -> dict[str, Any]:
    answer = web.get("/verify?tenant=optional&claims=1", **options)
    raw = decode_base64url(answer.headers["X-Auth-Claims"])
    assert raw is not None
    told: dict[str, Any] = json.loads(raw)
    return told


def configured(web: Web, boss: str) -> Any:
    """An application of acme-bank that adds claims to tokens for API."""
    a_tenant(web.rt, "acme-bank")
    feed = an_application(web.rt, tenant="acme-bank", scopes=("read",), audiences=(API,))
    assert (
        web.patch("/admin/tenant/acme-bank", {"attributes": {"plan": "gold", "seats": 12}}, bearer=boss).status_code
        == 202
    )
    body = {"tokenClaims": {"plan": "tenant.plan", "seats": "tenant.seats", "dept": "user.department", "tier": "=one"}}
    answer = web.patch(f"/admin/application/{feed.client_id}", body, bearer=boss)
    assert (answer.status_code, answer.json["tokenClaims"]) == (202, body["tokenClaims"])
    return feed


def test_an_attribute_is_in_the_next_token_in_introspection_and_at_the_gate(web: Web, boss: str) -> None:
    feed, ada = configured(web, boss), a_user(web.rt)
    watcher = an_application(web.rt, scopes=("introspect",))
    before = user_token(web, ada)
    assert "dept" not in claims_of(before)
    noted = web.patch(f"/admin/user/{ada.id}", {"attributes": {"department": ["sales", "ops"]}}, bearer=boss)
    assert noted.json["attributes"] == {"department": ["sales", "ops"]}
    token = user_token(web, ada)
    wanted = {"plan": "gold", "seats": 12, "dept": ["sales", "ops"], "tier": "one"}
    assert {name: claims_of(token).get(name) for name in wanted} == wanted

    def introspected(of: str) -> dict[str, Any]:
        told: dict[str, Any] = web.post("/oauth/introspect", headers=as_client(watcher), data={"token": of}).json
        return told

    for one in (before, token):
        assert {name: introspected(one).get(name) for name in wanted} == wanted, "as of now"
        assert gate_claims(web, bearer=one) == wanted
    assert "X-Auth-Claims" not in web.get("/verify?tenant=optional", bearer=token).headers
    # Removing the attribute removes the claim.
    assert web.patch(f"/admin/user/{ada.id}", {"attributes": {}}, bearer=boss).status_code == 202
    assert "dept" not in claims_of(user_token(web, ada))
    assert "dept" not in introspected(token)
    assert "dept" not in gate_claims(web, bearer=token)
    machine = web.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret}).json["data"][
        "accessToken"
    ]
    assert {name: claims_of(machine).get(name) for name in ("plan", "dept")} == {"plan": "gold", "dept": None}
    attributes = {"attributes": {"department": "machines"}}
    assert (
        web.patch(f"/admin/application/{feed.client_id}", attributes, bearer=boss).json["attributes"]
        == attributes["attributes"]
    )
    assert gate_claims(web, bearer=machine)["dept"] == "machines", "the subject of a machine's token is the application"


def test_tokens_for_others_carry_nothing_of_it(web: Web, boss: str) -> None:
    configured(web, boss)
    ada = a_user(web.rt)
    for resource in ("https://other.example", web.rt.settings.issuer):
        assert {"plan", "tier"}.isdisjoint(claims_of(user_token(web, ada, resource)))
    other = an_application(web.rt)
    token = web.post("/application/token", {"clientId": other.client_id, "secret": other.secret}).json["data"][
        "accessToken"
    ]
    assert {"plan", "tier"}.isdisjoint(claims_of(token))
    bearer = a_session(web.rt, ada).bearer
    assert bearer is not None
    assert gate_claims(web, bearer=bearer.reveal()) == {}
    with web.rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(web.rt, unit, ada.id, name="ci", days=1, actor=ada.id, verified=True)
    assert gate_claims(web, headers={"api-key": pair.api_key, "api-secret": secret.reveal()}) == {}


@pytest.mark.parametrize(
    "attributes",
    [
        {"x": "a" * 4100},
        {"Plan": "gold"},
        {"plan-b": "gold"},
        {"": "gold"},
        {"plan": None},
        {"plan": {"deep": 1}},
        {"plan": [1]},
        {"plan": [["x"]]},
        {"plan": 2**53 + 1},
        ["plan"],
        "plan",
    ],
)
def test_attributes_that_no_token_should_carry_are_refused(web: Web, boss: str, attributes: Any) -> None:
    a_tenant(web.rt, "acme-bank")
    ada, feed = a_user(web.rt), an_application(web.rt)
    for path in (f"/admin/user/{ada.id}", "/admin/tenant/acme-bank", f"/admin/application/{feed.client_id}"):
        answer = web.patch(path, {"attributes": attributes}, bearer=boss)
        assert (answer.status_code, answer.json["error"], answer.json["field"]) == (
            400,
            "VALIDATION_ERROR",
            "attributes",
        )


def test_a_lone_surrogate_is_refused(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    for text in (r'"\ud800"', r'["\udfff"]', r'"a\u0000"'):
        raw = '{"attributes":{"plan":' + text + "}}"
        answer = web.call("PATCH", f"/admin/user/{ada.id}", bearer=boss, data=raw, content_type="application/json")
        assert answer.status_code == 400
    assert web.get(f"/admin/user/{ada.id}", bearer=boss).json["attributes"] == {}


NOT_FREE = "iss sub scope roles tenants status email active tenants_omitted authorization_details vc Plan a-b"


@pytest.mark.parametrize("name", NOT_FREE.split())
def test_a_registered_name_is_refused_as_a_claim(web: Web, boss: str, name: str) -> None:
    feed = an_application(web.rt)
    answer = web.patch(f"/admin/application/{feed.client_id}", {"tokenClaims": {name: "=x"}}, bearer=boss)
    assert (answer.status_code, answer.json["field"]) == (400, "tokenClaims")


@pytest.mark.parametrize("source", ["plan", "tenant.", "tenant.Plan", "group.x", "user.a.b", "=" + "x" * 300, "=a\nb"])
def test_a_source_that_names_nothing_is_refused(web: Web, boss: str, source: str) -> None:
    feed = an_application(web.rt)
    assert (
        web.patch(f"/admin/application/{feed.client_id}", {"tokenClaims": {"plan": source}}, bearer=boss).status_code
        == 400
    )


def test_what_does_not_fit_is_left_out_and_said(web: Web, boss: str) -> None:
    a_tenant(web.rt, "acme-bank")
    feed = an_application(web.rt, tenant="acme-bank", audiences=(API,))
    ada = a_user(web.rt, tenants={f"tenant-number-{number:03}": ("analyst",) for number in range(120)})
    web.patch("/admin/tenant/acme-bank", {"attributes": {"a": "x" * 3900}}, bearer=boss)
    web.patch(f"/admin/user/{ada.id}", {"attributes": {"b": "y" * 3900}}, bearer=boss)
    web.patch(f"/admin/application/{feed.client_id}", {"tokenClaims": {"a": "tenant.a", "b": "user.b"}}, bearer=boss)
    token = user_token(web, ada)
    said = claims_of(token)
    assert len(token) <= 8192
    assert (len(said["a"]), "b" in said, said["claims_omitted"], said["tenants_omitted"]) == (3900, False, True, True)
    passed = web.get("/verify?role=analyst", bearer=token, headers={"X-Tenant-Id": "tenant-number-119"})
    assert passed.status_code == 200, "what is asked of us reads the database"


def test_an_application_adds_at_most_twenty_claims() -> None:
    claims = {f"c{number}": "=x" for number in range(custom_claims.MOST + 1)}
    with pytest.raises(Refused, match="VALIDATION"):
        custom_claims.checked(claims)
    claims.popitem()
    assert len(json.loads(custom_claims.checked(claims))) == 20
