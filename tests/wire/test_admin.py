"""Group H over the Flask mount: who may, every deed and its trace, every refusal, and that no answer holds a secret."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from werkzeug.test import TestResponse

from identity import app as composition
from identity.core.record import audit
from identity.core.tokens import sessions
from identity.settings import Settings
from identity.wire.dialects.admin import admin as group_h
from identity.wire.endpoint import Endpoint
from tests.builders import a_session, a_tenant, a_token, a_user, an_application
from tests.world import Web, code_in

UNKNOWN = "01a20000-0000-7000-8000-000000000000"
NEW_USER = {"email": "grace@acme.example", "fullName": "Grace Hopper", "alias": "grace"}
ADMIN_ROUTES = [one for one in composition.endpoints() if one.admin]


@pytest.fixture
def boss(web: Web) -> str:
    """The token of an administrator."""
    token = a_token(web.rt, a_user(web.rt, alias="boss", roles=("users_admin",)))
    web.clock.tick()  # What the test does comes after.
    return token


def the_event(web: Web, action: str) -> audit.Event:
    """The newest audit event of this kind."""
    return audit.search(web.rt, action=action, limit=1)[0]


def application_token(web: Web, **options: Any) -> str:
    machine = an_application(web.rt, **options)
    answer = web.post("/application/token", {"clientId": machine.client_id, "secret": machine.secret})
    token: str = answer.json["data"]["accessToken"]
    return token


def at(endpoint: Endpoint) -> str:
    """The path of an endpoint with an id that nothing has in every hole."""
    return re.sub(r"\{[^}]+\}", UNKNOWN, endpoint.path)


# Who may.


def test_nobody_but_administrators_may_use_an_admin_route(web: Web) -> None:
    member = a_token(web.rt, a_user(web.rt, roles=("analyst",), tenants={"acme-bank": ("admin", "owner")}))
    machine = application_token(web, scopes=("read", "introspect"))
    for endpoint in ADMIN_ROUTES:
        for mount in endpoint.mounts:
            path = mount + at(endpoint)
            for token in (member, machine):
                # The body is not even looked at: a stranger must not learn what this route reads.
                answer = web.call(endpoint.method, path, bearer=token, data=b"{", content_type="text/plain")
                assert (answer.status_code, answer.json["error"]) == (403, "FORBIDDEN"), path
            assert web.call(endpoint.method, path).status_code == 401, path


def test_the_admin_routes_are_those_of_the_contract() -> None:
    assert sorted(one.name for one in group_h.endpoints) == sorted(
        """
        POST /admin/user|GET /admin/users|GET /admin/user/{id}|PATCH /admin/user/{id}|DELETE /admin/user/{id}
        PUT /admin/user/{id}/enable|PUT /admin/user/{id}/disable|PUT /admin/user/{id}/verify
        PUT /admin/user/{id}/unverify|GET /admin/user/{id}/roles|POST /admin/user/{id}/roles
        DELETE /admin/user/{id}/roles/{role}|PUT /admin/user/{id}/password-reset
        PUT /admin/user/{id}/access-window|PUT /admin/user/{id}/fixed-otp|DELETE /admin/user/{id}/fixed-otp
        DELETE /admin/user/{id}/mfa|POST /admin/user/{id}/session|POST /admin/user/{id}/keypair
        POST /admin/user/{id}/email|GET /admin/sessions|GET /admin/keypairs|PUT /admin/session/{id}/verify
        PUT /admin/keypair/{id}/verify|PUT /admin/email/{id}/verify|PUT /admin/email/preferred
        DELETE /admin/session/{id}|DELETE /admin/keypair/{id}|DELETE /admin/email/{id}|POST /admin/application
        GET /admin/applications|GET /admin/application/{clientId}|PATCH /admin/application/{clientId}
        DELETE /admin/application/{clientId}|POST /admin/application/{clientId}/secret
        GET /admin/application/{clientId}/secrets|DELETE /admin/application/{clientId}/secret/{secretID}
        POST /admin/application/{clientId}/trust|GET /admin/application/{clientId}/trusts
        DELETE /admin/application/{clientId}/trust/{trustID}|GET /admin/expiring
        POST /admin/tenant|GET /admin/tenants|GET /admin/tenant/{id}|PATCH /admin/tenant/{id}
        PUT /admin/tenant/{id}/disable|PUT /admin/tenant/{id}/enable
        DELETE /admin/tenant/{id}|PUT /admin/tenant/{id}/member/{userID}|DELETE /admin/tenant/{id}/member/{userID}
        GET /admin/tenant/{id}/members|GET /admin/tenant/{id}/invitations|POST /admin/tenant/{id}/invitations
        POST /admin/tenant/{id}/invitation/{invitationID}/resend|DELETE /admin/tenant/{id}/invitation/{invitationID}
        GET /admin/roles|POST /admin/role|DELETE /admin/role/{name}|GET /admin/signing-keys|POST /admin/signing-keys/rotate
        DELETE /admin/signing-key/{kid}|GET /admin/audit|GET /admin/error/{errorID}
        DELETE /admin/sessions
        GET /admin/errors
        GET /admin/errors/counts
        GET /admin/incident
        POST /admin/incident
        POST /admin/keypair/{id}/rotate
        GET /admin/mails
        GET /admin/user/{id}/export
        POST /admin/mails/retry
        PUT /admin/user/{id}/unlock
        POST /admin/users/import
        POST /admin/keypairs/import
        """.replace("\n", "|")
        .replace("  ", "")
        .strip("|")
        .split("|")
    )


def test_every_object_that_does_not_exist_is_not_found(web: Web, boss: str) -> None:
    bodies: dict[str, Any] = {
        "PATCH /admin/user/{id}": {"fullName": "X"},
        "POST /admin/user/{id}/roles": {"role": "analyst"},
        "PUT /admin/user/{id}/access-window": {"endsAt": 1},
        "PUT /admin/user/{id}/fixed-otp": {"otp": "482901"},
        "POST /admin/user/{id}/keypair": {"name": "x", "days": 1},
        "POST /admin/user/{id}/email": {"address": "x@acme.example"},
        "PATCH /admin/application/{clientId}": {"name": "x"},
        "POST /admin/application/{clientId}/trust": {"name": "x", "issuer": "https://i.example", "subject": "x"},
        "PATCH /admin/tenant/{id}": {"name": "x"},
        "PUT /admin/tenant/{id}/member/{userID}": {"roles": []},
        "POST /admin/tenant/{id}/invitations": {"email": "x@acme.example", "roles": []},
    }
    for endpoint in ADMIN_ROUTES:
        if "{" in endpoint.path:
            for path in (at(endpoint), at(endpoint).replace(UNKNOWN, "no-id")):
                answer = web.call(endpoint.method, path, bodies.get(endpoint.name), bearer=boss)
                assert (answer.status_code, answer.json["error"]) == (404, "NOT_FOUND"), endpoint.name


def test_an_application_with_the_scope_admin_administers(web: Web) -> None:
    assert web.get("/admin/users", bearer=application_token(web, scopes=("admin",))).status_code == 200


def test_an_administrators_key_pair_administers(web: Web, boss: str) -> None:
    made = web.post("/admin/user", NEW_USER | {"roles": ["users_admin"]}, bearer=boss).json
    keys = {"api-key": made["apiKey"], "api-secret": made["apiSecret"]}
    assert web.get("/api/auth/v2/admin/users", headers=keys).status_code == 200


def test_a_demoted_administrator_may_nothing_at_once(web: Web, boss: str) -> None:
    grace = a_user(web.rt, roles=("users_admin",))
    token = a_token(web.rt, grace)
    assert web.get("/admin/users", bearer=token).status_code == 200
    assert web.delete(f"/admin/user/{grace.id}/roles/users_admin", bearer=boss).status_code == 202
    assert web.get("/admin/users", bearer=token).status_code == 403


# Bodies and queries.


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"email": None}, "email"),
        ({"email": "nobody"}, "email"),
        ({"email": ["x@y.example"]}, "email"),
        ({"alias": "a b"}, "alias"),
        ({"fullName": "\u0007"}, "fullName"),
        ({"roles": "analyst"}, "roles"),
        ({"roles": ["Not A Name"]}, "roles"),
        ({"tenants": ["acme-bank"]}, "tenants"),
        ({"tenants": {"acme-bank": ["users_admin"]}}, "roles"),
        ({"password": "short"}, "password"),
        ({"password": "password123"}, "password"),
        ({"notify": "yes"}, "notify"),
        ({"portalURL": "https://portal.acme.example/"}, "portalURL"),
        ({"verified": True}, "verified"),
        ({"userID": UNKNOWN}, "userID"),
        ({"enabled": True}, "enabled"),
    ],
)
def test_a_wrong_field_of_a_new_user_is_named_and_nobody_is_made(web: Web, boss: str, change: Any, field: str) -> None:
    a_tenant(web.rt, "acme-bank")
    answer = web.post("/admin/user", NEW_USER | change, bearer=boss)
    assert (answer.status_code, answer.json["error"]) == (400, "VALIDATION_ERROR"), answer.json
    assert answer.json["field"] == field
    assert web.get("/admin/users", bearer=boss).json["items"] == 1


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "page=0", "limit=x", "limit=1&limit=2", "page=-1", "limit=%D9%A1", "sort=alias"]
)
def test_a_wrong_query_is_refused(web: Web, boss: str, query: str) -> None:
    assert web.get(f"/admin/users?{query}", bearer=boss).status_code == 400


@pytest.mark.parametrize("limit", [1, 199, 200])
def test_a_limit_within_its_bounds_is_taken(web: Web, boss: str, limit: int) -> None:
    assert web.get(f"/admin/users?limit={limit}", bearer=boss).status_code == 200


def test_pages_hold_everything_once_in_a_stable_order(web: Web, boss: str) -> None:
    made = []
    for _ in range(6):
        web.clock.tick()
        made.append(a_user(web.rt).id)
    pages = [web.get(f"/admin/users?limit=3&page={number}", bearer=boss).json for number in (1, 2, 3, 4)]
    assert [(page["pages"], page["items"], len(page["users"])) for page in pages] == [
        (3, 7, 3),
        (3, 7, 3),
        (3, 7, 1),
        (3, 7, 0),
    ]
    assert [user["userID"] for page in pages for user in page["users"]][1:] == made


def test_users_are_found_by_what_they_are(web: Web, boss: str) -> None:
    ada = a_user(web.rt, email="ada@acme.example", roles=("read_all", "x"), tenants={"acme-bank": ("analyst",)})
    off = a_user(web.rt, enabled=False, roles=("read-all", "readxall"))
    for query, found in (
        ("role=read_all", [ada.id]),  # An underscore is itself, no wildcard.
        ("role=read", []),
        ("enabled=false", [off.id]),
        ("tenant=acme-bank", [ada.id]),
        ("email=ADA@ACME.example", [ada.id]),
        ("tenant=acme-bank&enabled=false", []),
    ):
        answer = web.get(f"/admin/users?{query}", bearer=boss)
        assert [user["userID"] for user in answer.json["users"]] == found, query
    for query in ("enabled=1", "email=ada", "tenant=nowhere", "role=No"):
        assert web.get(f"/admin/users?{query}", bearer=boss).status_code == 400, query


# Users.


def test_a_new_user_has_a_verified_address_and_a_working_key_pair(web: Web, boss: str) -> None:
    a_tenant(web.rt, "acme-bank")
    body = NEW_USER | {"roles": ["analyst"], "tenants": {"acme-bank": ["lead"]}, "password": "correct horse battery"}
    answer = web.post("/admin/user", body, bearer=boss)
    assert answer.status_code == 202, answer.json
    made = answer.json
    assert made.keys() == {"userID", "email", "apiKey", "apiSecret", "keyID", "expireAt"}
    shown = web.get(f"/admin/user/{made['userID']}", bearer=boss)
    assert shown.json | {"emails": [], "createdAt": 0} == {
        "lastLoginAt": None,
        "externalID": None,
        "attributes": {},
        "userID": made["userID"],
        "alias": "grace",
        "fullName": "Grace Hopper",
        "email": "grace@acme.example",
        "emails": [],
        "enabled": True,
        "verified": True,
        "roles": ["analyst"],
        "groups": [],
        "tenants": {"acme-bank": ["lead"]},
        "accessWindow": {"startsAt": None, "endsAt": None},
        "password": True,
        "mfa": {"totp": False, "fixedOtp": False},
        "createdAt": 0,
    }
    assert [one["verified"] for one in shown.json["emails"]] == [True]
    keys = {"api-key": made["apiKey"], "api-secret": made["apiSecret"]}
    assert web.get("/keypair", headers=keys).json["userID"] == made["userID"]
    event = the_event(web, "user.created")
    assert (event.target, event.actor) == (made["userID"], web.get("/auth/me", bearer=boss).json["userID"])


@pytest.mark.parametrize(("change", "field"), [({"email": "x@acme.example"}, "alias"), ({"alias": "other"}, "email")])
def test_an_alias_or_address_in_use_is_a_conflict(web: Web, boss: str, change: Any, field: str) -> None:
    web.post("/admin/user", NEW_USER, bearer=boss)
    answer = web.post("/admin/user", NEW_USER | change, bearer=boss)
    assert (answer.status_code, answer.json["error"], answer.json["field"]) == (409, "CONFLICT", field)


def test_an_unknown_tenant_of_a_new_user_makes_nobody(web: Web, boss: str) -> None:
    assert web.post("/admin/user", NEW_USER | {"tenants": {"nowhere": []}}, bearer=boss).status_code == 404
    assert web.get("/admin/users", bearer=boss).json["items"] == 1


class TestInvitations:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, portal_urls=("https://portal.acme.example/app",))

    def test_an_invitation_is_mailed_in_place_of_a_key_pair(self, web: Web, boss: str) -> None:
        body = NEW_USER | {"notify": True, "portalURL": "https://portal.acme.example/app/welcome?x=1"}
        answer = web.post("/admin/user", body, bearer=boss)
        assert answer.status_code == 202
        assert answer.json.keys() == {"userID", "email"}
        mail = web.mails()[-1]
        assert mail["To"] == "grace@acme.example"
        linked = re.escape("https://portal.acme.example/app/welcome/invitation/") + r"idi_\w{33}\?x=1"
        assert re.search(linked, mail.get_body(("plain",)).get_content())

    def test_a_portal_off_the_list_is_refused_and_mails_nobody(self, web: Web, boss: str) -> None:
        body = NEW_USER | {"notify": True, "portalURL": "https://portal.acme.example.evil.example/app"}
        answer = web.post("/admin/user", body, bearer=boss)
        assert (answer.status_code, answer.json["field"]) == (400, "portalURL")
        assert web.mails() == []


def test_disabling_ends_every_session_at_once_and_enabling_revives_none(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    token, opened = a_token(web.rt, ada), a_session(web.rt, ada)
    bearers = (token, opened.bearer.reveal())
    assert [web.get("/verify?tenant=optional", bearer=one).status_code for one in bearers] == [200, 200]
    assert web.put(f"/admin/user/{ada.id}/disable", bearer=boss).status_code == 202
    assert [web.get("/verify?tenant=optional", bearer=one).status_code for one in bearers] == [401, 401]
    assert web.put(f"/admin/user/{ada.id}/enable", bearer=boss).status_code == 202
    assert [web.get("/verify?tenant=optional", bearer=one).status_code for one in bearers] == [401, 401]
    assert web.get("/verify?tenant=optional", bearer=a_token(web.rt, ada)).status_code == 200
    event = the_event(web, "user.disabled")
    assert (event.target, event.data) == (ada.id, {"before": {"enabled": True}, "after": {"enabled": False}})


def test_an_access_window_that_opens_again_revives_nothing(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    token = a_token(web.rt, ada)
    ends = int(web.clock.now().timestamp()) + 100
    path = f"/admin/user/{ada.id}/access-window"
    assert web.put(path, {"endsAt": ends}, bearer=boss).json["accessWindow"] == {"startsAt": None, "endsAt": ends}
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 200
    web.clock.tick(101)
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 401
    assert web.put(path, {"endsAt": None}, bearer=boss).json["accessWindow"]["endsAt"] is None
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"startsAt": "tomorrow"}, "startsAt"),
        ({"startsAt": "2026-01-01T00:00:00"}, "startsAt"),
        ({"startsAt": True}, "startsAt"),
        ({"endsAt": -1}, "endsAt"),
        ({"endsAt": 10**18}, "endsAt"),
        ({"startsAt": "2030-01-01T00:00:00Z", "endsAt": "2029-01-01T00:00:00Z"}, "endsAt"),
        ({}, None),
    ],
)
def test_a_window_that_is_none_is_refused(web: Web, boss: str, body: Any, field: str | None) -> None:
    answer = web.put(f"/admin/user/{a_user(web.rt).id}/access-window", body, bearer=boss)
    assert (answer.status_code, answer.json.get("field")) == (400, field)


def test_a_change_keeps_what_it_does_not_name_and_tells_before_and_after(web: Web, boss: str) -> None:
    ada = a_user(web.rt, roles=("analyst",), groups=("blue",), full_name="Ada")
    answer = web.patch(f"/admin/user/{ada.id}", {"roles": ["lead"], "fullName": "Ada King"}, bearer=boss)
    assert answer.status_code == 202
    assert (answer.json["roles"], answer.json["groups"], answer.json["fullName"]) == (["lead"], ["blue"], "Ada King")
    event = the_event(web, "user.changed")
    assert event.data == {
        "before": {"roles": ["analyst"]},
        "after": {"roles": ["lead"]},
        "changed": ["full_name", "roles"],
    }


def test_two_administrators_do_not_overwrite_each_other(web: Web, boss: str) -> None:
    ada, machine, tenant = a_user(web.rt), an_application(web.rt), a_tenant(web.rt, "acme-bank")
    for path, body in (
        (f"/admin/user/{ada.id}", {"fullName": "One"}),
        (f"/admin/application/{machine.client_id}", {"name": "One"}),
        (f"/admin/tenant/{tenant}", {"name": "One"}),
    ):
        tag = web.get(path, bearer=boss).headers["ETag"]
        first = web.patch(path, body, bearer=boss, headers={"If-Match": tag})
        assert first.status_code == 202, first.json
        assert first.headers["ETag"] == web.get(path, bearer=boss).headers["ETag"] != tag
        late = web.patch(path, body, bearer=boss, headers={"If-Match": tag})
        assert (late.status_code, late.json["error"]) == (412, "PRECONDITION_FAILED")
        for never in ('"x"', f"W/{first.headers['ETag']}", '""'):
            assert web.patch(path, body, bearer=boss, headers={"If-Match": never}).status_code == 412
        listed = {"If-Match": f'"999", {first.headers["ETag"]}'}
        assert web.patch(path, body, bearer=boss, headers=listed).status_code == 202
        assert web.patch(path, body, bearer=boss, headers={"If-Match": "*"}).status_code == 202
        assert web.patch(path, {}, bearer=boss).status_code == 400


def test_what_was_read_can_be_written_back(web: Web, boss: str) -> None:
    ada = a_user(web.rt, roles=("analyst",), groups=("blue",))
    path = f"/admin/user/{ada.id}"
    before = web.get(path, bearer=boss).json
    body = {name: before[name] for name in ("fullName", "alias", "roles", "groups")}
    assert web.patch(path, body, bearer=boss).json == before


def test_roles_are_granted_and_withdrawn(web: Web, boss: str) -> None:
    path = f"/admin/user/{a_user(web.rt).id}/roles"
    assert web.post(path, {"role": "lead"}, bearer=boss).json == {"roles": ["lead"]}
    assert web.post(path, {"role": "lead"}, bearer=boss).json == {"roles": ["lead"]}
    assert web.get(path, bearer=boss).json == {"roles": ["lead"]}
    assert web.delete(f"{path}/lead", bearer=boss).json == {"roles": []}
    assert web.delete(f"{path}/lead", bearer=boss).status_code == 404
    assert web.post(path, {"role": "a b"}, bearer=boss).status_code == 400


@pytest.mark.parametrize("deed", ["disable", "delete", "demote", "patch", "close"])
def test_the_last_administrator_stays(web: Web, boss: str, deed: str) -> None:
    # Roles that only look alike, and an administrator who cannot come in, do not count.
    a_user(web.rt, roles=("users-admin", "usersxadmin", "users_admin2"))
    a_user(web.rt, roles=("users_admin",), enabled=False)
    a_user(web.rt, roles=("users_admin",), ends_at=web.clock.now() - timedelta(seconds=1))
    mine = web.get("/auth/me", bearer=boss).json["userID"]

    def attempt(user_id: str, token: str) -> TestResponse:
        path = f"/admin/user/{user_id}"
        match deed:
            case "disable":
                return web.put(f"{path}/disable", bearer=token)
            case "delete":
                return web.delete(path, bearer=token)
            case "demote":
                return web.delete(f"{path}/roles/users_admin", bearer=token)
            case "patch":
                return web.patch(path, {"roles": []}, bearer=token)
            case _:
                return web.put(f"{path}/access-window", {"endsAt": 1}, bearer=token)

    answer = attempt(mine, boss)
    assert (answer.status_code, answer.json["error"]) == (409, "CONFLICT"), answer.json
    assert web.get("/admin/users", bearer=boss).status_code == 200
    a_user(web.rt, roles=("users_admin",))
    assert attempt(mine, boss).status_code == 202


def test_erasing_leaves_only_ids_in_the_audit(web: Web, boss: str) -> None:
    ada = a_user(web.rt, email="ada@acme.example", alias="ada-l")
    a_session(web.rt, ada)
    assert web.delete(f"/admin/user/{ada.id}", bearer=boss).status_code == 202
    assert web.get(f"/admin/user/{ada.id}", bearer=boss).status_code == 404
    everything = str(audit.search(web.rt, limit=1000))
    assert ada.id in everything
    assert "ada-l" not in everything
    assert "ada@acme" not in everything
    assert the_event(web, "user.erased").target == ada.id


def test_unverifying_makes_a_user_prove_their_address_again(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    token = a_token(web.rt, ada)
    reset = web.put(f"/admin/user/{ada.id}/password-reset", bearer=boss).json
    asked = reset | {"code": web.last_code(), "newPassword": "an entirely new phrase"}
    assert web.put(f"/admin/user/{ada.id}/unverify", bearer=boss).status_code == 202
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 401
    # What was mailed there before is worth nothing: whoever reads that mailbox may not be this user.
    assert web.put("/auth/password/reset", asked).status_code >= 400
    shown = web.get(f"/admin/user/{ada.id}", bearer=boss).json
    assert (shown["verified"], shown["emails"][0]["verified"]) == (False, False)
    assert web.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 401
    assert web.put(f"/admin/user/{ada.id}/verify", bearer=boss).status_code == 202
    assert web.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 200


def test_a_password_reset_leaves_the_password_to_its_owner(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    answer = web.put(f"/admin/user/{ada.id}/password-reset", bearer=boss)
    assert answer.status_code == 202
    assert answer.json.keys() == {"verificationCodeID"}
    assert web.mails()[-1]["To"] == ada.email
    body = {
        "verificationCodeID": answer.json["verificationCodeID"],
        "code": code_in(web.mails()[-1]),
        "newPassword": "an entirely new phrase",
    }
    assert web.put("/auth/password/reset", body).status_code == 200
    assert web.post("/user/token", {"email": ada.email, "password": "an entirely new phrase"}).status_code == 200
    assert the_event(web, "password.reset-asked").actor != ada.id


def test_fixed_codes_are_off_by_default(web: Web, boss: str) -> None:
    path = f"/admin/user/{a_user(web.rt).id}/fixed-otp"
    assert web.put(path, {"otp": "482901"}, bearer=boss).status_code == 403
    assert web.delete(path, bearer=boss).status_code == 404


# Their credentials.


def test_a_session_opened_for_a_user_waits_for_its_code_or_an_administrator(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    answer = web.post(f"/admin/user/{ada.id}/session", {"kind": "support"}, bearer=boss)
    assert answer.status_code == 202, answer.json
    made = answer.json
    assert made["kind"] == "support"
    assert web.mails()[-1]["To"] == ada.email
    assert web.get("/session", bearer=made["bearer"]).status_code == 401
    assert web.put(f"/admin/session/{made['sessionID']}/verify", bearer=boss).status_code == 202
    assert web.get("/session", bearer=made["bearer"]).json["userID"] == ada.id
    event = the_event(web, "session.verified")
    assert (event.target, event.actor) == (made["sessionID"], web.get("/auth/me", bearer=boss).json["userID"])
    # The mailed code died with that.
    code = {"verificationCodeID": made["verificationCodeID"], "code": web.last_code()}
    assert web.put("/session/verification", code).status_code == 401
    assert made["sessionID"] in [one["sessionID"] for one in web.get("/admin/sessions", bearer=boss).json["sessions"]]
    for _ in range(2):
        assert web.delete(f"/admin/session/{made['sessionID']}", bearer=boss).status_code == 202
    assert web.get("/session", bearer=made["bearer"]).status_code == 401
    over = web.post(f"/admin/user/{ada.id}/session", bearer=boss).json
    web.delete(f"/admin/session/{over['sessionID']}", bearer=boss)
    assert web.put(f"/admin/session/{over['sessionID']}/verify", bearer=boss).status_code == 409
    assert sessions.find(web.rt, over["sessionID"]).verified is False


def test_no_session_is_opened_or_vouched_for_whose_user_is_disabled(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    made = web.post(f"/admin/user/{ada.id}/session", bearer=boss).json
    web.put(f"/admin/user/{ada.id}/disable", bearer=boss)
    assert web.post(f"/admin/user/{ada.id}/session", bearer=boss).status_code == 409
    assert web.put(f"/admin/session/{made['sessionID']}/verify", bearer=boss).status_code == 409


def test_a_key_pair_made_for_a_user_waits_for_its_code_or_an_administrator(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    answer = web.post(f"/admin/user/{ada.id}/keypair", {"name": "feed", "days": 30}, bearer=boss)
    assert answer.status_code == 202, answer.json
    keys = {"api-key": answer.json["apiKey"], "api-secret": answer.json["apiSecret"]}
    assert answer.json["verified"] is False
    assert web.get("/keypair", headers=keys).status_code == 401
    assert web.put(f"/admin/keypair/{answer.json['keyID']}/verify", bearer=boss).status_code == 202
    assert web.get("/keypair", headers=keys).status_code == 200
    assert web.get("/admin/keypairs", bearer=boss).json["keypairs"][-1]["apiKey"] == answer.json["apiKey"]
    assert web.delete(f"/admin/keypair/{answer.json['keyID']}", bearer=boss).status_code == 202
    assert web.get("/keypair", headers=keys).status_code == 401


@pytest.mark.parametrize(("days", "status"), [(0, 400), (1, 202), (3650, 202), (3651, 400)])
def test_a_key_pair_lives_from_a_day_to_ten_years(web: Web, boss: str, days: int, status: int) -> None:
    path = f"/admin/user/{a_user(web.rt).id}/keypair"
    assert web.post(path, {"name": "feed", "days": days}, bearer=boss).status_code == status


def test_an_address_is_added_vouched_for_preferred_and_removed(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    made = web.post(f"/admin/user/{ada.id}/email", {"address": "ada2@acme.example"}, bearer=boss)
    assert made.status_code == 202, made.json
    email = made.json["emailID"]
    assert web.put("/admin/email/preferred", {"emailID": email}, bearer=boss).status_code == 409
    assert web.put(f"/admin/email/{email}/verify", bearer=boss).status_code == 202
    assert web.put("/admin/email/preferred", {"emailID": email}, bearer=boss).status_code == 202
    shown = web.get(f"/admin/user/{ada.id}", bearer=boss).json
    assert shown["email"] == "ada2@acme.example"
    first = next(one["emailID"] for one in shown["emails"] if one["emailID"] != email)
    assert web.delete(f"/admin/email/{first}", bearer=boss).status_code == 202
    assert web.delete(f"/admin/email/{email}", bearer=boss).status_code == 409


def test_nobody_is_given_an_address_that_another_has_verified(web: Web, boss: str) -> None:
    owner, ada = a_user(web.rt), a_user(web.rt)
    made = web.post(f"/admin/user/{ada.id}/email", {"address": owner.email}, bearer=boss)
    assert web.put(f"/admin/email/{made.json['emailID']}/verify", bearer=boss).status_code == 409


# Applications.


def test_an_application_is_made_shown_changed_and_deleted(web: Web, boss: str) -> None:
    a_tenant(web.rt, "acme-bank")
    body = {"name": "feed", "tenant": "acme-bank", "scopes": ["read"], "audiences": ["https://api.acme.example"]}
    answer = web.post("/admin/application", body | {"tokenSeconds": 600}, bearer=boss)
    assert answer.status_code == 202, answer.json
    assert answer.json.keys() == {"clientId", "appId", "secret", "secretID", "expireAt"}
    path = f"/admin/application/{answer.json['clientId']}"
    credentials = {"clientId": answer.json["clientId"], "secret": answer.json["secret"]}
    assert web.post("/application/token", credentials).json["data"]["expiresIn"] == 600
    assert web.get(path, bearer=boss).json["tenant"] == "acme-bank"
    assert web.patch(path, {"enabled": False, "tokenSeconds": None}, bearer=boss).json["enabled"] is False
    assert web.post("/application/token", credentials).status_code == 401
    event = the_event(web, "application.changed")
    assert event.data["before"] == {"enabled": True, "token_seconds": 600}
    assert event.data["after"] == {"enabled": False, "token_seconds": None}
    assert web.delete(path, bearer=boss).status_code == 202
    assert web.get(path, bearer=boss).status_code == 404
    listed = web.get("/admin/applications", bearer=boss).json
    assert [one["appId"] for one in listed["applications"]] == [10]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": ["admin"], "tenant": "acme-bank"}, "scopes"),
        ({"scopes": [], "roles": ["users_admin"]}, "roles"),
        ({"scopes": ["Not A Scope"]}, "scopes"),
        ({"scopes": [], "tokenSeconds": 59}, "tokenSeconds"),
        ({"scopes": [], "tokenSeconds": 86_401}, "tokenSeconds"),
        ({"scopes": [], "tokenSeconds": True}, "tokenSeconds"),
        ({"scopes": [], "audiences": ["has space"]}, "audiences"),
        ({"scopes": [], "jwks": {"keys": [{"kty": "oct", "k": "AAAA"}]}}, "jwks"),
        ({"scopes": [], "appId": 1}, "appId"),
        ({}, "scopes"),
    ],
)
def test_a_wrong_field_of_an_application_is_named(web: Web, boss: str, body: Any, field: str) -> None:
    a_tenant(web.rt, "acme-bank")
    answer = web.post("/admin/application", {"name": "feed"} | body, bearer=boss)
    assert (answer.status_code, answer.json["field"]) == (400, field), answer.json


def test_a_tenants_application_is_not_made_an_administrator_later(web: Web, boss: str) -> None:
    a_tenant(web.rt, "acme-bank")
    machine = an_application(web.rt, tenant="acme-bank")
    answer = web.patch(f"/admin/application/{machine.client_id}", {"scopes": ["admin"]}, bearer=boss)
    assert (answer.status_code, answer.json["field"]) == (400, "scopes")


def test_a_secret_is_replaced_while_the_other_works(web: Web, boss: str) -> None:
    machine = an_application(web.rt)
    path = f"/admin/application/{machine.client_id}"
    token = web.post("/application/token", {"clientId": machine.client_id, "secret": machine.secret})
    web.rt.usage.flush(web.rt.database, web.rt.clock.now())
    second = web.post(f"{path}/secret", {"expiresIn": 3600}, bearer=boss)
    assert second.status_code == 202
    assert web.post(f"{path}/secret", {}, bearer=boss).status_code == 409
    listed = web.get(f"{path}/secrets", bearer=boss).json
    assert listed["items"] == 2
    assert [(one["lastUsedAt"] is None, one["expireAt"] is None) for one in listed["secrets"]] == [
        (False, True),
        (True, False),
    ]
    assert listed["secrets"][0]["lastUsedIp"] == "127.0.0.1"
    assert web.delete(f"{path}/secret/{machine.secret_id}", bearer=boss).status_code == 409
    assert web.delete(f"{path}/secret/{machine.secret_id}?force=true", bearer=boss).status_code == 202
    gone = web.get("/verify?tenant=optional", bearer=token.json["data"]["accessToken"])
    assert gone.status_code == 401
    fresh = {"clientId": machine.client_id, "secret": second.json["secret"]}
    assert web.post("/application/token", fresh).status_code == 200


def test_a_third_secret_names_the_older_one_and_force_makes_room(web: Web, boss: str) -> None:
    machine = an_application(web.rt)
    path = f"/admin/application/{machine.client_id}/secret"
    assert web.post("/application/token", {"clientId": machine.client_id, "secret": machine.secret}).status_code == 200
    web.rt.usage.flush(web.rt.database, web.rt.clock.now())
    web.clock.tick(1)
    second = web.post(path, {"retireOldAfterQuiet": 604_800}, bearer=boss)
    assert second.json["previous"] == {
        "secretID": machine.secret_id,
        "expireAt": None,
        "retireAfterQuietSeconds": 604_800,
    }
    third = web.post(path, {}, bearer=boss)
    assert (third.status_code, third.json["error"]) == (409, "CONFLICT")
    assert machine.secret_id in third.json["message"]
    assert "127.0.0.1" in third.json["message"]
    assert web.post(f"{path}?force=yes", {}, bearer=boss).status_code == 400
    assert web.post(f"{path}?force=false", {}, bearer=boss).status_code == 409
    forced = web.post(f"{path}?force=true", {"expiresIn": 1}, bearer=boss)
    assert forced.json["previous"]["secretID"] == machine.secret_id, "the second was never used"
    assert web.post(path, {"force": True}, bearer=boss).status_code == 202
    listed = web.get(f"{path}s", bearer=boss).json["secrets"]
    assert listed[0]["callers"] == ["127.0.0.1"]
    assert listed[0]["retireAfterQuietSeconds"] == 604_800


def test_a_trust_is_made_listed_and_removed(web: Web, boss: str) -> None:
    machine = an_application(web.rt)
    path = f"/admin/application/{machine.client_id}/trust"
    key = {"kty": "EC", "crv": "P-256", "kid": "a", "use": "sig"} | {
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }
    body = {
        "name": "deploys",
        "issuer": "https://token.actions.githubusercontent.com",
        "subject": "repo:acme/feed:ref:refs/heads/main",
        "claims": {"repository_id": "42", "private": True},
        "jwks": {"keys": [key]},
        "expiresIn": 3600,
    }
    made = web.post(path, body, bearer=boss)
    assert made.status_code == 202, made.json
    assert made.json["warnings"] == []
    assert made.json["expireAt"] == int(web.clock.now().timestamp()) + 3600
    warned = web.post(path, body | {"claims": {"repository": "acme/feed"}}, bearer=boss)
    assert len(warned.json["warnings"]) == 1
    unlisted = web.post(path, {"name": "x", "issuer": "https://unlisted.example", "subject": "x"}, bearer=boss)
    assert (unlisted.status_code, unlisted.json["field"]) == (400, "issuer")
    listed = web.get(f"{path}s", bearer=boss).json
    assert {one["trustID"] for one in listed["trusts"]} == {made.json["trustID"], warned.json["trustID"]}
    assert web.delete(f"{path}/{made.json['trustID']}", bearer=boss).status_code == 202
    assert web.delete(f"{path}/{made.json['trustID']}", bearer=boss).status_code == 404
    actions = [one["action"] for one in web.get("/admin/audit", bearer=boss).json["events"]]
    assert {"trust.created", "trust.removed"} <= set(actions)


def test_the_standard_application_always_stays(web: Web, boss: str) -> None:
    standard = web.get("/admin/applications", bearer=boss).json["applications"][0]
    assert web.delete(f"/admin/application/{standard['clientId']}", bearer=boss).status_code == 409


# Tenants.


def test_a_tenant_is_made_changed_and_deleted(web: Web, boss: str) -> None:
    made = web.post("/admin/tenant", {"id": "acme-bank", "name": "Acme"}, bearer=boss)
    assert (made.status_code, made.json["id"]) == (202, "acme-bank")
    assert web.post("/admin/tenant", {"id": "acme-bank", "name": "Acme"}, bearer=boss).json["field"] == "id"
    changed = web.patch("/admin/tenant/acme-bank", {"limits": {"standard": "5/minute"}}, bearer=boss)
    assert changed.json["limits"] == {"standard": "5/minute"}
    assert changed.json["name"] == "Acme"
    for limits in ({"gold": "5/minute"}, {"standard": "lots"}, {"standard": 5}, ["standard"]):
        answer = web.patch("/admin/tenant/acme-bank", {"limits": limits}, bearer=boss)
        assert (answer.status_code, answer.json["field"]) == (400, "limits")
    assert web.delete("/admin/tenant/acme-bank", bearer=boss).status_code == 202
    assert web.get("/admin/tenants", bearer=boss).json == {"pages": 0, "items": 0, "tenants": []}


@pytest.mark.parametrize("tenant", ["", "-x", "UPPER", "a b", "x" * 65])
def test_a_tenant_id_that_is_none_is_refused(web: Web, boss: str, tenant: str) -> None:
    answer = web.post("/admin/tenant", {"id": tenant, "name": "Acme"}, bearer=boss)
    assert (answer.status_code, answer.json["field"]) == (400, "id")


def test_membership_takes_effect_at_once(web: Web, boss: str) -> None:
    a_tenant(web.rt, "acme-bank")
    ada = a_user(web.rt)
    token = a_token(web.rt, ada)
    inside = {"X-Tenant-Id": "acme-bank"}
    path = f"/admin/tenant/acme-bank/member/{ada.id}"
    assert web.get("/verify", bearer=token, headers=inside).status_code == 403
    assert web.put(path, {"roles": ["analyst"]}, bearer=boss).json["roles"] == ["analyst"]
    assert web.get("/verify?role=analyst", bearer=token, headers=inside).status_code == 200
    assert web.get("/admin/tenant/acme-bank/members", bearer=boss).json["members"] == [
        {"userID": ada.id, "alias": ada.alias, "roles": ["analyst"]}
    ]
    assert web.put(path, {"roles": ["users_admin"]}, bearer=boss).status_code == 400
    assert web.delete(path, bearer=boss).status_code == 202
    assert web.get("/verify", bearer=token, headers=inside).status_code == 403
    assert web.delete(path, bearer=boss).status_code == 404


# Signing keys.


def test_a_rotation_publishes_first_and_signs_later(web: Web, boss: str) -> None:
    before = web.get("/admin/signing-keys", bearer=boss).json["keys"]
    assert [key["state"] for key in before] == ["active"]
    rotated = web.post("/admin/signing-keys/rotate", bearer=boss)
    assert (rotated.status_code, rotated.json["state"]) == (202, "next")
    assert rotated.json["kid"] in str(web.get("/.well-known/jwks.json").json)
    assert rotated.json["signsFrom"] - rotated.json["publishedAt"] == web.rt.settings.jwks_max_age_seconds + 60
    assert the_event(web, "signing-key.rotated").target == rotated.json["kid"]


def test_a_revoked_key_takes_its_tokens_with_it(web: Web, boss: str) -> None:
    kid = web.get("/admin/signing-keys", bearer=boss).json["keys"][0]["kid"]
    assert web.delete(f"/admin/signing-key/{kid}", bearer=boss).status_code == 202
    assert web.get("/admin/users", bearer=boss).status_code == 401
    assert kid not in str(web.get("/.well-known/jwks.json").json)


# What happened, and why.


def test_the_audit_is_searched_newest_first(web: Web, boss: str) -> None:
    start = int(web.clock.now().timestamp())
    web.clock.tick(10)
    made = web.post("/admin/user", NEW_USER, bearer=boss).json["userID"]
    web.clock.tick(10)
    web.put(f"/admin/user/{made}/disable", bearer=boss)
    found = web.get(f"/admin/audit?target={made}", bearer=boss).json
    assert [event["action"] for event in found["events"]] == ["user.disabled", "user.created"]
    assert all(event["genuine"] for event in found["events"])
    early = web.get(f"/admin/audit?since={start}&until={start + 15}&target={made}", bearer=boss).json
    assert [event["action"] for event in early["events"]] == ["user.created"]
    assert web.get("/admin/audit?since=yesterday", bearer=boss).status_code == 400
    paged = web.get("/admin/audit?limit=1&page=2", bearer=boss).json
    assert len(paged["events"]) == 1
    assert paged["pages"] == paged["items"]


def test_a_refusal_explains_itself_to_administrators_only(web: Web, boss: str) -> None:
    ada = a_user(web.rt)
    refused = web.get("/admin/users", bearer=a_token(web.rt, ada))
    shown = web.get(f"/admin/error/{refused.headers['x-error-id']}", bearer=boss)
    assert shown.status_code == 200, shown.json
    assert shown.json["status"] == 403
    assert shown.json["route"] == "GET /admin/users"
    assert shown.json["check"] == "not an administrator"
    assert shown.json["expected"] == "role users_admin"
    assert shown.json["seen"] == {"roles": [], "scopes": []}
    assert shown.json["caller"] == ada.id
    assert "expected" not in refused.json


# No answer holds a secret.


def test_no_answer_but_the_one_that_makes_it_holds_a_secret(web: Web, boss: str) -> None:
    made = web.post("/admin/user", NEW_USER | {"password": "correct horse battery"}, bearer=boss).json
    machine = web.post("/admin/application", {"name": "feed", "scopes": []}, bearer=boss).json
    web.post(f"/admin/user/{made['userID']}/session", bearer=boss)
    secrets = (
        made["apiSecret"],
        machine["secret"],
        web.last_code(),
        "$argon2",
        "correct horse",
        "fingerprint",
        "sealed",
    )
    holes = {"{id}": made["userID"], "{clientId}": machine["clientId"]}
    for endpoint in ADMIN_ROUTES:
        if endpoint.method == "GET":
            path = endpoint.path
            for hole, value in holes.items():
                path = path.replace(hole, value)
            text = web.get(path, bearer=boss).get_data(as_text=True)
            assert not [secret for secret in secrets if secret in text], path


def test_the_shapes_that_a_client_of_structures_sends(web: Web, boss: str) -> None:
    """ThreatWinds' own Go SDK writes every field of its structures, used or not, and the id of the path again."""
    blank = {"roles": None, "groups": None, "tenants": None, "portalURL": "", "notify": False, "password": ""}
    made = web.post("/api/auth/v2/admin/user", NEW_USER | blank, bearer=boss)
    assert made.status_code == 202
    user_id = made.json["userID"]
    path = f"/api/auth/v2/admin/user/{user_id}"
    for said in ({"userID": user_id}, {"userID": user_id.upper()}, {"userID": ""}, {"userID": None}, {}):
        assert web.post(f"{path}/session", {"kind": "", **said}, bearer=boss).status_code == 202, said
    assert web.post(f"{path}/keypair", {"name": "k", "days": 1, "userID": user_id}, bearer=boss).status_code == 202
    other = web.post(f"{path}/session", {"userID": UNKNOWN}, bearer=boss)
    assert (other.status_code, other.json["field"]) == (400, "userID")


def test_a_missing_body_names_the_missing_field(web: Web, boss: str) -> None:
    path = f"/admin/user/{UNKNOWN}"
    for route, field in (("keypair", "name"), ("email", "address"), ("roles", "role")):
        answer = web.post(f"{path}/{route}", bearer=boss)
        assert (answer.status_code, answer.json["error"], answer.json["field"]) == (400, "VALIDATION_ERROR", field)


def test_null_in_a_change_is_not_silence(web: Web, boss: str) -> None:
    """Where it can clear it clears; where it cannot it is refused, since nobody sends it for nothing."""
    feed = an_application(web.rt, token_seconds=600)
    path = f"/admin/application/{feed.client_id}"
    assert web.patch(path, {"tokenSeconds": None}, bearer=boss).json["tokenSeconds"] is None
    refused = web.patch(path, {"name": None}, bearer=boss)
    assert (refused.status_code, refused.json["field"]) == (400, "name")
    web.patch(path, {"attributes": {"a": 1}, "tokenClaims": {"b": "=c"}, "tokenReuseSeconds": 9}, bearer=boss)
    cleared = web.patch(path, dict.fromkeys(("attributes", "tokenClaims", "scopes", "tokenReuseSeconds")), bearer=boss)
    assert [cleared.json[name] for name in ("attributes", "tokenClaims", "scopes", "tokenReuseSeconds")] == [
        {},
        {},
        [],
        0,
    ]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/admin/application", {"name": "feed"}, "scopes"),
        ("/admin/tenant/acme/member/x", {}, "roles"),
        ("/admin/tenant/acme/invitations", {"email": "ada@acme.example"}, "roles"),
    ],
)
def test_a_missing_list_is_named_like_a_missing_text(web: Web, boss: str, path: str, body: Any, field: str) -> None:
    answer = (web.put if "member" in path else web.post)(path, body, bearer=boss)
    assert answer.json["message"] == f"Missing {field} request body parameter"
