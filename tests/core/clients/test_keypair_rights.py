"""Key pairs with rights of their own: a part of the owner's, nowhere more, and never a way to other credentials."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from sqlalchemy import update

from identity.core.clients import keypairs
from identity.core.clients.keypairs import KeyPair
from identity.core.people import accounts, tenancy
from identity.core.people.rights import Rights
from identity.core.record import audit
from identity.core.tokens import status
from identity.errors import Refused
from identity.runtime import Runtime
from tests.builders import Machine, Person, a_session, a_token, a_user, an_application
from tests.oauth_world import as_client
from tests.world import ORIGIN, Web

TENANTS = {"acme-bank": ("analyst", "auditor"), "globex": ("analyst",)}


def an_owner(rt: Runtime, **options: Any) -> Person:
    return a_user(rt, roles=("reader", "writer", "users_admin"), groups=("staff",), tenants=TENANTS, **options)


def a_pair(rt: Runtime, owner: Person, *, roles: Any = None, tenants: Any = None) -> dict[str, str]:
    with rt.unit(ORIGIN) as unit:
        info, secret = keypairs.create(
            rt,
            unit,
            owner.id,
            name="ci",
            days=30,
            actor=owner.id,
            verified=True,
            rights=Rights(roles and tuple(roles), tenants and tuple(tenants)),
        )
    return {"api-key": info.api_key, "api-secret": secret.reveal(), "id": info.id}


def headers(pair: dict[str, str], tenant: str = "") -> dict[str, str]:
    sent = {name: pair[name] for name in ("api-key", "api-secret")}
    return sent | ({"X-Tenant-Id": tenant} if tenant else {})


def traded(web: Web, pair: dict[str, str]) -> str:
    answer = web.post("/keypair/token", headers=headers(pair))
    assert answer.status_code == 202, answer.json
    token: str = answer.json["accessToken"]
    return token


def gate(web: Web, pair: dict[str, str], tenant: str = "", role: str = "") -> set[int]:
    """What the gate says to the pair, and to the token that it is traded for."""
    path = "/verify?tenant=optional" + (f"&role={role}" if role else "")
    by_pair = web.get(path, headers=headers(pair, tenant)).status_code
    token = traded(web, pair)
    by_token = web.get(path, bearer=token, headers={"X-Tenant-Id": tenant} if tenant else {}).status_code
    return {by_pair, by_token}


def test_a_pair_with_one_role_and_one_tenant_passes_nowhere_else(web: Web) -> None:
    owner = an_owner(web.rt)
    pair = a_pair(web.rt, owner, roles=("analyst", "reader"), tenants=("acme-bank",))
    assert gate(web, pair) == {200}
    assert gate(web, pair, "acme-bank", "analyst") == {200}
    assert gate(web, pair, "", "reader") == {200}
    assert gate(web, pair, "acme-bank", "auditor") == {403}
    assert gate(web, pair, "", "writer") == {403}
    assert gate(web, pair, "globex") == {403}
    assert gate(web, pair, "globex", "analyst") == {403}
    shown = web.get("/keypair", headers=headers(pair)).json
    assert (shown["roles"], shown["groups"], shown["tenants"]) == (["reader"], [], {"acme-bank": ["analyst"]})
    claims = jwt.decode(traded(web, pair), options={"verify_signature": False})
    assert (claims["roles"], claims["tenants"]) == (["reader"], {"acme-bank": ["analyst"]})
    assert "groups" not in claims


def test_what_a_pair_may_is_what_introspection_and_group_h_hear(web: Web) -> None:
    owner, watcher = an_owner(web.rt), an_application(web.rt, scopes=("introspect",))
    narrow, full = a_pair(web.rt, owner, roles=("reader",)), a_pair(web.rt, owner)
    assert introspected(web, watcher, traded(web, narrow))["roles"] == ["reader"]
    assert introspected(web, watcher, traded(web, full))["roles"] == ["reader", "users_admin", "writer"]
    for pair, status_code in ((narrow, 403), (full, 200)):
        assert web.get("/admin/users", headers=headers(pair)).status_code == status_code
        assert web.get("/admin/users", bearer=traded(web, pair)).status_code == status_code


def introspected(web: Web, watcher: Machine, token: str) -> Any:
    form = {**as_client(watcher), "Content-Type": "application/x-www-form-urlencoded"}
    return web.post("/oauth/introspect", data={"token": token}, headers=form).json


@pytest.mark.parametrize("way", ["role", "tenant"])
def test_what_is_taken_from_the_owner_is_taken_from_the_pair_at_the_next_request(web: Web, way: str) -> None:
    owner = an_owner(web.rt)
    pair = a_pair(web.rt, owner, roles=("analyst", "reader"), tenants=("acme-bank",))
    token = traded(web, pair)
    tenant = {"X-Tenant-Id": "acme-bank"} if way == "tenant" else {}
    path = "/verify?tenant=optional&role=" + ("analyst" if way == "tenant" else "reader")
    for _ in range(3):
        assert web.get(path, headers=headers(pair, *tenant.values())).status_code == 200
        assert web.get(path, bearer=token, headers=tenant).status_code == 200
    with web.rt.unit(ORIGIN) as unit:
        if way == "role":
            unit.execute(update(accounts.User).where(accounts.User.id == owner.id).values(roles=("writer",)))
            status.change_subjects(web.rt, unit, accounts.User.id == owner.id)
        else:
            tenancy.set_member(web.rt, unit, "acme-bank", owner.id, roles=("auditor",), actor="test")
    assert web.get(path, headers=headers(pair, *tenant.values())).status_code == 403
    assert web.get(path, bearer=token, headers=tenant).status_code == 403


def test_a_pair_without_rights_of_its_own_has_all_that_the_owner_has_and_gets(web: Web) -> None:
    owner = an_owner(web.rt)
    pair = a_pair(web.rt, owner)
    assert gate(web, pair, "globex", "analyst") == {200}
    with web.rt.unit(ORIGIN) as unit:
        tenancy.set_member(web.rt, unit, "globex", owner.id, roles=("lead",), actor="test")
    assert gate(web, pair, "globex", "lead") == {200}


def test_a_role_that_the_owner_gets_later_is_not_the_pairs(web: Web) -> None:
    owner = an_owner(web.rt)
    pair = a_pair(web.rt, owner, roles=("reader",))
    with web.rt.unit(ORIGIN) as unit:
        accounts.get_row(unit.session, owner.id).roles = ("reader", "boss")
    assert gate(web, pair, "", "boss") == {403}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"roles": ["boss"]}, "roles"),
        ({"roles": []}, "roles"),
        ({"roles": ["auditor"], "tenants": ["globex"]}, "roles"),
        ({"tenants": ["initech"]}, "tenants"),
        ({"tenants": []}, "tenants"),
        ({"roles": ["reader", "boss"]}, "roles"),
    ],
    ids=str,
)
def test_a_pair_cannot_have_what_its_owner_has_not(web: Web, body: dict[str, Any], field: str) -> None:
    bearer = a_token(web.rt, an_owner(web.rt))
    answer = web.post("/keypair", {"name": "ci", "days": 1} | body, bearer=bearer)
    assert (answer.status_code, answer.json["field"]) == (400, field)


def test_rights_and_the_last_use_are_listed(web: Web) -> None:
    owner = an_owner(web.rt)
    bearer = a_token(web.rt, owner)
    made = web.post(
        "/keypair",
        {"name": "ci", "days": 1, "roles": ["reader"], "tenants": ["globex"], "cidrs": ["127.0.0.0/8"]},
        bearer=bearer,
    )
    assert made.status_code == 202, made.json
    code = {"verificationCodeID": made.json["verificationCodeID"], "code": web.last_code()}
    assert web.put("/keypair/verification", code).status_code == 202
    sent = {"api-key": made.json["apiKey"], "api-secret": made.json["apiSecret"]}
    assert web.get("/keypair", headers=sent).json["tenants"] == {"globex": []}
    web.rt.usage.flush(web.rt.database, web.rt.clock.now())
    (listed,) = web.get("/keypairs", bearer=bearer).json["keys"]
    assert (listed["roles"], listed["tenants"], listed["cidrs"]) == (["reader"], ["globex"], ["127.0.0.0/8"])
    assert listed["lastUsedIp"] == "127.0.0.1"
    (by_admin,) = web.get(f"/admin/keypairs?user={owner.id}", bearer=bearer).json["keypairs"]
    assert (by_admin["roles"], by_admin["lastUsedIp"]) == (["reader"], "127.0.0.1")
    null = web.post("/keypair", {"name": "all", "days": 1, "roles": None, "tenants": None}, bearer=bearer)
    assert null.status_code == 202, null.json


# What a pair may never do.


def test_a_pair_makes_and_changes_no_credential_and_not_its_owner(web: Web) -> None:
    owner = an_owner(web.rt)
    pair, session = a_pair(web.rt, owner), a_session(web.rt, owner).session.id
    token = traded(web, pair)
    email = web.get("/emails", bearer=token).json["emails"][0]["emailID"]
    deeds: list[tuple[str, str, Any]] = [
        ("POST", "/keypair", {"name": "x", "days": 1}),
        ("POST", f"/keypair/{pair['id']}/rotate", {}),
        ("DELETE", f"/keypair/{pair['id']}", None),
        ("POST", "/email", {"address": "other@acme.example"}),
        ("POST", "/email/verification", {"address": "other@acme.example"}),
        ("PUT", "/email/preferred", {"emailID": email}),
        ("DELETE", f"/email/{email}", None),
        ("DELETE", f"/session/{session}", None),
        ("DELETE", "/user", None),
        ("PUT", "/auth/password", {"currentPassword": owner.password, "newPassword": "another long password"}),
        ("POST", "/auth/mfa/totp", None),
    ]
    for method, path, body in deeds:
        answer = web.call(method, path, body, bearer=token)
        assert (answer.status_code, answer.json["error"]) == (403, "FORBIDDEN"), path
    by_admin: list[tuple[str, str, Any]] = [
        ("PATCH", f"/admin/user/{owner.id}", {"fullName": "Other"}),
        ("POST", f"/admin/user/{owner.id}/keypair", {"name": "x", "days": 1}),
        ("POST", f"/admin/user/{owner.id}/roles", {"role": "reader"}),
    ]
    code = web.post("/email", {"address": "third@acme.example"}, bearer=a_token(web.rt, owner)).json
    waiting = web.get("/emails", bearer=token).json["emails"]
    third = next(one["emailID"] for one in waiting if one["address"] == "third@acme.example")
    assert code["verificationCodeID"]
    second = a_pair(web.rt, owner)["id"]
    by_admin += [
        ("PUT", f"/admin/session/{session}/verify", None),
        ("PUT", f"/admin/keypair/{second}/verify", None),
        ("POST", f"/admin/keypair/{second}/rotate", {}),
        ("DELETE", f"/admin/keypair/{second}", None),
        ("PUT", f"/admin/email/{third}/verify", None),
        ("PUT", "/admin/email/preferred", {"emailID": email}),
        ("DELETE", f"/admin/email/{email}", None),
        ("DELETE", f"/admin/session/{session}", None),
        ("DELETE", f"/admin/sessions?user={owner.id}", None),
        ("PUT", f"/admin/tenant/acme-bank/member/{owner.id}", {"roles": ["owner"], "newRole": True}),
        ("DELETE", f"/admin/tenant/acme-bank/member/{owner.id}", None),
    ]
    for method, path, body in by_admin:
        for credential in ({"bearer": token}, {"headers": headers(pair)}):
            answer = web.call(method, path, body, **credential)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json["error"]) == (403, "FORBIDDEN"), path
    other = a_user(web.rt)
    assert web.patch(f"/admin/user/{other.id}", {"fullName": "Other"}, headers=headers(pair)).status_code == 202
    line = json.dumps({"email": owner.email, "alias": owner.alias, "fullName": "Other", "roles": ["owner"]})
    imported = web.call(
        "POST",
        "/admin/users/import?newRole=true",
        data=line,
        headers=headers(pair),
        content_type="application/x-ndjson",
    )
    assert [one["error"] for one in imported.json["rejected"]] == ["FORBIDDEN"], imported.json


def test_a_pair_with_rights_of_its_own_administers_no_tenant_but_those(web: Web) -> None:
    owner = a_user(web.rt, tenants={"acme-bank": ("owner", "analyst"), "globex": ("owner",)})
    one_tenant, one_role = (
        a_pair(web.rt, owner, tenants=["acme-bank"]),
        a_pair(web.rt, owner, roles=["analyst"], tenants=["acme-bank"]),
    )
    for pair, tenant, expected in (
        (one_tenant, "acme-bank", 200),
        (one_tenant, "globex", 403),
        (one_role, "acme-bank", 403),
        (one_role, "globex", 403),
    ):
        assert web.get("/tenant/members", headers=headers(pair, tenant)).status_code == expected, (pair, tenant)
        by_token = web.get("/tenant/members", bearer=traded(web, pair), headers={"X-Tenant-Id": tenant})
        assert by_token.status_code == expected, (pair, tenant)


def test_a_pair_ends_itself_and_what_it_opened(web: Web) -> None:
    owner = an_owner(web.rt)
    pair, other = a_pair(web.rt, owner), a_pair(web.rt, owner)
    token = traded(web, pair)
    assert web.delete("/keypair", headers=headers(pair)).status_code == 202
    assert web.get("/keypair", headers=headers(pair)).status_code == 401
    assert web.get("/session", bearer=token).status_code == 401
    assert web.get("/keypair", headers=headers(other)).status_code == 200
    assert web.delete("/keypair", bearer=a_token(web.rt, owner)).status_code == 401


# Rotation.


@pytest.mark.parametrize(("grace", "after", "old_works"), [(0, 0, False), (60, 59, True), (60, 60, False)])
def test_a_rotated_pair_has_a_new_secret_and_the_old_one_its_grace(
    web: Web, grace: int, after: int, old_works: bool
) -> None:
    owner = an_owner(web.rt)
    pair = a_pair(web.rt, owner, roles=("reader",))
    for _ in range(3):
        assert web.get("/keypair", headers=headers(pair)).status_code == 200
    bearer = a_token(web.rt, owner)
    rotated = web.post(f"/keypair/{pair['id']}/rotate", {"graceSeconds": grace}, bearer=bearer)
    assert rotated.status_code == 202, rotated.json
    assert rotated.json["previousExpireAt"] == int(web.clock.now().timestamp()) + grace
    fresh = pair | {"api-secret": rotated.json["apiSecret"]}
    web.clock.tick(after)
    for _ in range(3):
        assert web.get("/keypair", headers=headers(pair)).status_code == (200 if old_works else 401)
        assert web.get("/keypair", headers=headers(fresh)).json["roles"] == ["reader"]
    assert audit.search(web.rt, action="keypair.rotated")[0].target == pair["id"]


def test_only_its_owner_rotates_a_pair_and_within_bounds(web: Web) -> None:
    owner = an_owner(web.rt)
    pair = a_pair(web.rt, owner)
    path = f"/keypair/{pair['id']}/rotate"
    assert web.post(path, {}, bearer=a_token(web.rt, a_user(web.rt))).status_code == 404
    assert web.post(path, {"graceSeconds": 604_801}, bearer=a_token(web.rt, owner)).status_code == 400
    assert web.post(path, {"graceSeconds": -1}, bearer=a_token(web.rt, owner)).status_code == 400


def test_a_second_rotation_ends_the_grace_of_the_first(web: Web) -> None:
    owner = an_owner(web.rt)
    pair, bearer = a_pair(web.rt, owner), a_token(web.rt, owner)
    for _ in range(2):
        assert web.post(f"/keypair/{pair['id']}/rotate", {"graceSeconds": 600}, bearer=bearer).status_code == 202
    assert web.get("/keypair", headers=headers(pair)).status_code == 401
    with web.rt.database.reading() as session:
        assert session.get_one(KeyPair, pair["id"]).previous_until is not None


def test_no_pair_is_made_with_rights_by_somebody_without_them(rt: Runtime) -> None:
    nobody = a_user(rt)
    with pytest.raises(Refused, match="VALIDATION"):
        a_pair(rt, nobody, roles=("reader",))
