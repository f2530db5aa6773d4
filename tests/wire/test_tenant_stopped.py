"""A tenant that is disabled is stopped at once, everywhere; enabled again it goes on, but nothing that ended revives."""

from __future__ import annotations

import jwt
import pytest

from identity.core.admin import tenants
from identity.core.admin.by import By
from identity.core.record import audit, explain
from identity.core.signin import challenges
from tests.builders import a_session, a_tenant, a_token, a_user, an_application
from tests.oauth_world import as_client
from tests.world import ORIGIN, Web

ACME = {"X-Tenant-Id": "acme-bank"}
BY = By("test", ORIGIN)


def disable(web: Web) -> None:
    tenants.set_tenant_enabled(web.rt, BY, "acme-bank", enabled=False)


def enable(web: Web) -> None:
    tenants.set_tenant_enabled(web.rt, BY, "acme-bank", enabled=True)


@pytest.fixture(autouse=True)
def acme(web: Web) -> None:
    a_tenant(web.rt, "acme-bank", name="Acme Bank")
    a_tenant(web.rt, "globex")


def test_the_gate_refuses_its_members_as_it_refuses_strangers_and_explain_says_why(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ("analyst",), "globex": ("auditor",)})
    token, bearer = a_token(web.rt, ada), a_session(web.rt, ada).bearer
    assert bearer is not None
    stranger = a_token(web.rt, a_user(web.rt))
    assert web.get("/verify", bearer=token, headers=ACME).status_code == 200
    disable(web)
    refused = [web.get("/verify", bearer=one, headers=ACME) for one in (token, bearer.reveal(), stranger)]
    assert {(one.status_code, one.text, one.headers["x-error"]) for one in refused} == {
        (403, refused[2].text, "The caller may not do this")
    }
    why = explain.get(web.rt, refused[0].headers["x-error-id"])
    assert (why.detail, why.evidence["seen"]) == ("the tenant is disabled", {"tenant": "acme-bank"})
    # What the user has elsewhere goes on.
    assert web.get("/verify", bearer=token, headers={"X-Tenant-Id": "globex"}).status_code == 200
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 200
    enable(web)
    answer = web.get("/verify?role=analyst", bearer=token, headers=ACME)
    assert (answer.status_code, answer.headers["X-Auth-Roles"]) == (200, "analyst")


def test_what_says_where_a_user_belongs_leaves_it_out(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ("analyst",), "globex": ("auditor",)})
    disable(web)
    token, bearer = a_token(web.rt, ada), a_session(web.rt, ada).bearer
    assert bearer is not None
    assert jwt.decode(token, options={"verify_signature": False})["tenants"] == {"globex": ["auditor"]}
    watcher = an_application(web.rt, scopes=("introspect",))
    told = (
        web.get("/auth/me", bearer=token).json,
        web.get("/session", bearer=bearer.reveal()).json,
        web.post("/oauth/introspect", headers=as_client(watcher), data={"token": token}).json,
    )
    assert [one["tenants"] for one in told] == [{"globex": ["auditor"]}] * 3
    enable(web)
    assert web.get("/auth/me", bearer=token).json["tenants"] == {"acme-bank": ["analyst"], "globex": ["auditor"]}


def test_its_applications_prove_nothing_and_what_they_earned_ends_for_good(web: Web) -> None:
    feed, other = (
        an_application(web.rt, tenant="acme-bank", scopes=("read",)),
        an_application(web.rt, scopes=("introspect",)),
    )
    proof = {"clientId": feed.client_id, "secret": feed.secret}
    earned = web.post("/application/token", proof).json["data"]["accessToken"]
    assert web.get("/verify", bearer=earned, headers=ACME).status_code == 200
    web.clock.tick()
    disable(web)

    def introspected() -> bool:
        asked = web.post("/oauth/introspect", headers=as_client(other), data={"token": earned})
        active: bool = asked.json["active"]
        return active

    refused = web.post("/application/token", proof)
    assert (refused.status_code, refused.json["error"]) == (401, "INVALID_CREDENTIALS")
    assert "tenant is disabled" in explain.get(web.rt, refused.headers["x-error-id"]).detail
    form = {"grant_type": "client_credentials"}
    assert web.post("/oauth/token", headers=as_client(feed), data=form).status_code == 401
    assert web.post("/oauth/introspect", headers=as_client(feed), data={"token": earned}).status_code == 401
    assert web.get("/verify", bearer=earned, headers=ACME).status_code == 401
    assert not introspected()
    web.clock.tick()
    enable(web)
    assert web.get("/verify", bearer=earned, headers=ACME).status_code == 401, "enabling revives no token"
    assert not introspected()
    again = web.post("/application/token", proof).json["data"]["accessToken"]
    assert web.get("/verify", bearer=again, headers=ACME).status_code == 200


def test_a_login_under_way_with_one_of_its_applications_leads_nowhere(web: Web) -> None:
    feed, ada = an_application(web.rt, tenant="acme-bank"), a_user(web.rt)
    variables = {"u": ada.email, "p": ada.password, "a": feed.app_id}
    begin = "mutation($u:String!,$p:String!,$a:Int){login(username:$u,password:$p,appId:$a){code sessionID}}"
    session_id = web.post("/query", {"query": begin, "variables": variables}).json["data"]["login"]["sessionID"]
    code = web.last_code()
    disable(web)
    finish = "mutation($o:String!,$s:String!,$a:Int){otp(otp:$o,sessionID:$s,appId:$a){code token}}"
    answer = web.post("/query", {"query": finish, "variables": {"o": code, "s": session_id, "a": feed.app_id}})
    assert answer.json["data"]["otp"] == {"code": "INVALID_CODE", "token": None}
    assert (
        web.post("/query", {"query": begin, "variables": variables}).json["data"]["login"]["code"]
        == "INVALID_CREDENTIALS"
    )


def test_the_last_step_of_a_login_looks_at_its_application_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, ada = an_application(web.rt, tenant="acme-bank"), a_user(web.rt)
    variables = {"u": ada.email, "p": ada.password, "a": feed.app_id}
    begin = "mutation($u:String!,$p:String!,$a:Int){login(username:$u,password:$p,appId:$a){code sessionID}}"
    session_id = web.post("/query", {"query": begin, "variables": variables}).json["data"]["login"]["sessionID"]
    code, found = web.last_code(), challenges.get

    def stop_just_after(*arguments: object, **options: object) -> challenges.Pending:
        pending = found(*arguments, **options)  # type: ignore[arg-type]
        disable(web)
        return pending

    monkeypatch.setattr(challenges, "get", stop_just_after)
    finish = "mutation($o:String!,$s:String!,$a:Int){otp(otp:$o,sessionID:$s,appId:$a){code token}}"
    answer = web.post("/query", {"query": finish, "variables": {"o": code, "s": session_id, "a": feed.app_id}})
    assert answer.json["data"]["otp"] == {"code": "INVALID_CODE", "token": None}


def test_a_disabled_tenant_has_no_budget_of_its_own(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ("analyst",)})
    a_tenant(web.rt, "acme-bank", limits={"standard": "1/minute"})
    token = a_token(web.rt, ada)
    disable(web)
    for _ in range(3):
        assert web.get("/verify", bearer=token, headers=ACME).status_code == 403


def test_owners_hear_of_it_once_and_the_audit_keeps_it(web: Web) -> None:
    owner = a_user(web.rt, tenants={"acme-bank": ("owner",)})
    a_user(web.rt, tenants={"acme-bank": ("analyst",)})
    a_user(web.rt, tenants={"acme-bank": ("owner",)}, enabled=False)
    boss = a_token(web.rt, a_user(web.rt, roles=("users_admin",)))
    for _ in range(2):
        answer = web.put("/admin/tenant/acme-bank/disable", bearer=boss)
        assert (answer.status_code, answer.json["enabled"]) == (202, False)
    web.clock.tick()
    for _ in range(2):
        assert web.put("/admin/tenant/acme-bank/enable", bearer=boss).json["enabled"] is True
    assert [(str(mail["To"]), str(mail["Subject"])) for mail in web.mails()] == [
        (owner.email, "Acme Bank was stopped at 127.0.0.1:8000"),
        (owner.email, "Acme Bank goes on at 127.0.0.1:8000"),
    ]
    for action in ("tenant.disabled", "tenant.enabled"):
        assert [event.target for event in audit.search(web.rt, action=action)] == ["acme-bank"]
    assert web.put("/admin/tenant/no-such/disable", bearer=boss).status_code == 404
