"""Who may administer a tenant: subjects x tenants x routes x verbs, made from the endpoints. A new route fails until it is listed here.

Every call aims at something that is really there in the tenant of the header, so that what is refused is refused for who asks, and what
succeeds succeeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import select

from identity.app import create_app, endpoints
from identity.core.admin import tenants
from identity.core.admin.by import By
from identity.core.clients import issuers, keypair_proof, keypairs, machine_tokens, secrets
from identity.core.people import invitations, tenancy
from identity.core.people.accounts import User
from identity.core.people.tenancy import Membership
from identity.core.tokens import sessions
from identity.opening import create_runtime
from identity.runtime import Runtime
from identity.wire.endpoint import Endpoint
from tests.builders import a_session, a_tenant, a_token, a_user, an_application
from tests.conftest import BACKENDS, fresh_database
from tests.issuer_world import ed_key, public_jwk
from tests.world import ORIGIN, FakeClock, Mailbox, Web, fast_settings

# What needs a recent login, which a key pair and a machine never have; everything else does not.
READS = """
    GET /tenant, GET /tenant/members, GET /tenant/invitations, GET /tenant/applications, GET /tenant/application/{clientId}/secrets,
    GET /tenant/application/{clientId}/trusts, GET /tenant/audit, GET /tenant/limits
"""
CHANGES = """
    POST /tenant/invitations, POST /tenant/invitation/{id}/resend, DELETE /tenant/invitation/{id},
    DELETE /tenant/application/{clientId}
"""
# What a key pair and its token never do.
CREDENTIALS = """
    POST /tenant/applications, PATCH /tenant/application/{clientId}, POST /tenant/application/{clientId}/secret,
    POST /tenant/application/{clientId}/trust
"""
RECENT = """
    PUT /tenant/member/{userID}, DELETE /tenant/member/{userID}, DELETE /tenant/application/{clientId}/secret/{secretID},
    DELETE /tenant/application/{clientId}/trust/{trustID}
"""


def listed(routes: str) -> set[str]:
    return {" ".join(route.split()) for route in routes.split(",")}


TRUST = {
    "name": "ci",
    "issuer": "https://ci.example",
    "subject": "runner",
    "jwks": {"keys": [public_jwk(ed_key(), "k1")]},
}
OWNERS = {endpoint.name: endpoint for endpoint in endpoints() if endpoint.owners}
HEADERS = ("acme-bank", "globex", "closed", "no-such-tenant", "")
_numbers = itertools.count()


@dataclass(frozen=True)
class Scene:
    """One service with a few tenants and everybody who may ask."""

    web: Web
    subjects: dict[str, dict[str, str]]

    @property
    def rt(self) -> Runtime:
        return self.web.rt


def _token(rt: Runtime, **options: object) -> dict[str, str]:
    return {"Authorization": f"Bearer {a_token(rt, a_user(rt, password=None, **options))}"}


def _bearer(rt: Runtime, **options: object) -> dict[str, str]:
    bearer = a_session(rt, a_user(rt, password=None, **options)).bearer
    assert bearer is not None
    return {"Authorization": f"Bearer {bearer.reveal()}"}


def _key(rt: Runtime, **options: object) -> dict[str, str]:
    person = a_user(rt, password=None, **options)
    with rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(rt, unit, person.id, name="ci", days=1, actor=person.id, verified=True)
    return {"api-key": pair.api_key, "api-secret": secret.reveal()}


def _key_token(rt: Runtime) -> dict[str, str]:
    person = a_user(rt, password=None, tenants={"acme-bank": ("owner",)})
    with rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(rt, unit, person.id, name="ci", days=1, actor=person.id, verified=True)
    info = keypair_proof.authenticate(rt, ORIGIN, pair.api_key, secret.reveal())
    return {"Authorization": f"Bearer {keypair_proof.trade(rt, ORIGIN, info, resource=rt.settings.issuer).text}"}


def _machine(rt: Runtime, **options: object) -> dict[str, str]:
    feed = an_application(rt, **options)
    proven = secrets.authenticate(rt, ORIGIN, feed.client_id, feed.secret)
    token = machine_tokens.issue_token(rt, proven, scope=None, audience=(rt.settings.issuer,))
    return {"Authorization": f"Bearer {token.text}"}


def _stale(rt: Runtime) -> dict[str, str]:
    person = a_user(rt, password=None, tenants={"acme-bank": ("owner",), "closed": ("owner",)})
    opened = a_session(rt, person)
    with rt.unit(ORIGIN) as unit:
        row = unit.session.get_one(sessions.UserSession, opened.session.id)
        row.auth_time = row.auth_time.fromtimestamp(row.auth_time.timestamp() - 901, row.auth_time.tzinfo)
        unit.session.flush()
    assert opened.bearer is not None
    return {"Authorization": f"Bearer {opened.bearer.reveal()}"}


OWNS = {"acme-bank": ("owner",), "closed": ("owner",)}
# Of each subject: where it administers, and whether its login is one, and recent.
SUBJECTS: dict[str, tuple[Callable[[Runtime], dict[str, str]], frozenset[str], bool]] = {
    "an owner by token": (lambda rt: _token(rt, tenants=OWNS), frozenset({"acme-bank"}), True),
    "an owner by bearer": (lambda rt: _bearer(rt, tenants=OWNS), frozenset({"acme-bank"}), True),
    "an owner by key pair": (lambda rt: _key(rt, tenants=OWNS), frozenset({"acme-bank"}), False),
    "an owner by the token of a key pair": (_key_token, frozenset({"acme-bank"}), False),
    "an owner whose login is old": (_stale, frozenset({"acme-bank"}), False),
    "an owner of another tenant": (lambda rt: _token(rt, tenants={"globex": ("owner",)}), frozenset({"globex"}), True),
    "a member": (lambda rt: _token(rt, tenants={"acme-bank": ("analyst", "co-owner")}), frozenset(), True),
    "an owner everywhere in name": (lambda rt: _token(rt, roles=("owner",)), frozenset(), True),
    "a member who holds users_admin there": (
        lambda rt: _token(rt, tenants={"acme-bank": ("users_admin",)}),
        frozenset(),
        True,
    ),
    "an application of the tenant that holds the role": (
        lambda rt: _machine(rt, tenant="acme-bank", roles=("owner",)),
        frozenset(),
        False,
    ),
    "a stranger": (_token, frozenset(), True),
    "an administrator": (
        lambda rt: _token(rt, roles=("users_admin",)),
        frozenset({"acme-bank", "globex", "closed"}),
        True,
    ),
    "an administrator's key pair": (
        lambda rt: _key(rt, roles=("users_admin",)),
        frozenset({"acme-bank", "globex", "closed"}),
        False,
    ),
    "an application with the scope admin": (
        lambda rt: _machine(rt, scopes=("admin",)),
        frozenset({"acme-bank", "globex", "closed"}),
        False,
    ),
}


@pytest.fixture(params=BACKENDS, scope="module")
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("owners")
    settings = fast_settings(keys_dir=folder / "keys", **fresh_database(request.param, folder))
    clock, mailbox = FakeClock(), Mailbox()
    rt = create_runtime(settings, clock=clock, mailer=mailbox, migrate=False)
    for tenant in ("acme-bank", "globex", "closed"):
        a_tenant(rt, tenant)
    with rt.unit(ORIGIN) as unit:
        for tenant in ("acme-bank", "globex", "closed"):
            tenancy.change(rt, unit, tenant, actor="test", scopes=["read"])
    subjects = {name: make(rt) for name, (make, _, _) in SUBJECTS.items()}
    tenants.set_tenant_enabled(rt, By("test", ORIGIN), "closed", enabled=False)
    yield Scene(Web(create_app(runtime=rt), rt, mailbox, clock), {"nobody": {}, **subjects})
    rt.database.close()


def test_every_route_of_owners_is_listed() -> None:
    assert listed(READS) | listed(CHANGES) | listed(CREDENTIALS) | listed(RECENT) == set(OWNERS)
    assert {name for name, endpoint in OWNERS.items() if endpoint.makes_credential} == listed(CREDENTIALS)
    assert {name for name, endpoint in OWNERS.items() if endpoint.recent_login} == listed(RECENT)
    assert {endpoint.name for endpoint in endpoints() if endpoint.path.startswith("/tenant")} == set(OWNERS)


@pytest.mark.parametrize("subject", ["nobody", *SUBJECTS])
def test_who_administers_a_tenant_may_and_nobody_else(scene: Scene, subject: str) -> None:
    for name, endpoint in OWNERS.items():
        for tenant in HEADERS:
            path, body = a_target(scene.rt, endpoint, tenant)
            headers = scene.subjects[subject] | ({"X-Tenant-Id": tenant} if tenant else {})
            answer = scene.web.call(endpoint.method, path, headers=headers, **({"json": body} if body else {}))
            where = f"{subject}, {name}, {tenant}: {answer.text}"
            assert (answer.status_code, answer.json.get("error")) == expected(subject, endpoint, tenant), where


def expected(subject: str, endpoint: Endpoint, tenant: str) -> tuple[int, str | None]:
    if subject == "nobody":
        return 401, "UNAUTHENTICATED"
    _, where, has_recent_login = SUBJECTS[subject]
    if not tenant:
        return 400, "MISSING_TENANT"
    if tenant == "no-such-tenant" and "closed" in where:
        return 404, "NOT_FOUND"
    if tenant not in where or ((endpoint.makes_credential or endpoint.recent_login) and "key pair" in subject):
        return 403, "FORBIDDEN"
    if endpoint.recent_login and not has_recent_login:
        return 401, "UNAUTHENTICATED"
    return endpoint.status, None


def a_target(rt: Runtime, endpoint: Endpoint, tenant: str) -> tuple[str, dict[str, object]]:
    """A path that names something of the tenant (of acme-bank, where it does not exist), and a body that fits."""
    path, home, number = (
        endpoint.path,
        tenant if tenant in ("acme-bank", "globex", "closed") else "acme-bank",
        next(_numbers),
    )
    if "{userID}" in path:
        path = path.replace("{userID}", a_user(rt, password=None, tenants={home: ("analyst",)}).id)
    if "{clientId}" in path:
        app = an_application(rt, tenant=home, scopes=("read",))
        path = path.replace("{clientId}", app.client_id).replace("{secretID}", app.secret_id)
    if "{trustID}" in path:
        with rt.unit(ORIGIN) as unit:
            trust = issuers.add_trust(rt, unit, app.client_id, actor="test", **TRUST)
        path = path.replace("{trustID}", trust.id)
    if "{id}" in path:
        with rt.unit(ORIGIN) as unit:
            info = invitations.issue(
                rt, unit, address=f"guest{number}@acme.example", actor="test", tenant=home, roles=("analyst",)
            )
        path = path.replace("{id}", info.id)
    bodies: dict[str, dict[str, object]] = {
        "POST /tenant/invitations": {"email": f"new{number}@acme.example", "roles": ["analyst"]},
        "POST /tenant/applications": {"name": "feed", "scopes": ["read"]},
        "PATCH /tenant/application/{clientId}": {"name": "fed"},
        "POST /tenant/application/{clientId}/secret": {},
        "POST /tenant/application/{clientId}/trust": TRUST,
        "PUT /tenant/member/{userID}": {"roles": ["analyst"]},
    }
    return path, bodies.get(endpoint.name, {})


# What is another tenant's is not found, and what a user has elsewhere is neither seen nor changed.


@pytest.fixture
def owner(web: Web) -> dict[str, str]:
    """The headers of an owner of acme-bank."""
    a_tenant(web.rt, "globex")
    person = a_user(web.rt, alias="olga", tenants={"acme-bank": ("owner",)})
    with web.rt.unit(ORIGIN) as unit:
        tenancy.change(web.rt, unit, "acme-bank", actor="test", scopes=["read"])
    return {"Authorization": f"Bearer {a_token(web.rt, person)}", "X-Tenant-Id": "acme-bank"}


def test_things_of_another_tenant_are_not_found_and_stay_as_they_are(web: Web, owner: dict[str, str]) -> None:
    for endpoint in OWNERS.values():
        if "{" not in endpoint.path:
            continue
        path, body = a_target(web.rt, endpoint, "globex")
        answer = web.call(endpoint.method, path, headers=owner, **({"json": body} if body else {}))
        assert (answer.status_code, answer.json["error"]) == (404, "NOT_FOUND"), endpoint.name


def test_two_owners_who_share_a_user_cannot_learn_of_each_other(web: Web, owner: dict[str, str]) -> None:
    shared = a_user(
        web.rt,
        alias="sam",
        roles=("auditor",),
        groups=("board",),
        tenants={"acme-bank": ("analyst",), "globex": ("globexonly",)},
    )
    other = a_user(web.rt, alias="otto", tenants={"globex": ("owner",)})
    theirs = {"Authorization": f"Bearer {a_token(web.rt, other)}", "X-Tenant-Id": "globex"}
    assert web.put(f"/tenant/member/{shared.id}", {"roles": ["globexsecret"]}, headers=theirs).status_code == 202
    an_application(web.rt, name="globexsecret", tenant="globex", scopes=("read",))
    heard = [
        web.call(one.method, one.path, headers=owner).text
        for one in OWNERS.values()
        if one.method == "GET" and "{" not in one.path
    ]
    heard.append(web.put(f"/tenant/member/{shared.id}", {"roles": ["analyst", "lead"]}, headers=owner).text)
    for text in heard:
        for word in ("globex", "auditor", "board", "otto", other.id):
            assert word not in text
    assert web.delete(f"/tenant/member/{shared.id}", headers=owner).status_code == 202
    with web.rt.database.reading() as session:
        row = session.get_one(User, shared.id)
        assert (row.enabled, row.roles, row.groups) == (True, ("auditor",), ("board",))
        kept = session.execute(
            select(Membership.tenant_id, Membership.roles).where(Membership.user_id == shared.id)
        ).all()
    assert kept == [("globex", ("globexsecret",))]


def test_a_member_is_shown_with_what_they_are_here_and_nothing_else(web: Web, owner: dict[str, str]) -> None:
    ada = a_user(web.rt, alias="ada", full_name="Ada Lovelace", tenants={"acme-bank": ("analyst",)})
    found = {one["userID"]: one for one in web.get("/tenant/members", headers=owner).json["members"]}
    assert found[ada.id] == {
        "userID": ada.id,
        "alias": "ada",
        "fullName": "Ada Lovelace",
        "email": ada.email,
        "roles": ["analyst"],
    }


def test_who_is_no_member_cannot_be_made_one_by_id(web: Web, owner: dict[str, str]) -> None:
    stranger = a_user(web.rt)
    for user_id in (stranger.id, "00000000-0000-7000-8000-000000000000", "no-id"):
        answer = web.put(f"/tenant/member/{user_id}", {"roles": ["analyst"]}, headers=owner)
        assert (answer.status_code, answer.text) == (404, web.delete(f"/tenant/member/{user_id}", headers=owner).text)


def test_an_owner_never_grants_what_reaches_beyond_the_tenant(web: Web, owner: dict[str, str]) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ("analyst",)})
    refused = (
        web.put(f"/tenant/member/{ada.id}", {"roles": ["users_admin"]}, headers=owner),
        web.post("/tenant/invitations", {"email": "x@acme.example", "roles": ["users_admin"]}, headers=owner),
        web.post("/tenant/applications", {"name": "x", "scopes": ["admin"]}, headers=owner),
        web.post("/tenant/applications", {"name": "x", "scopes": ["introspect"]}, headers=owner),
        web.post("/tenant/applications", {"name": "x", "scopes": ["write"]}, headers=owner),
        web.post("/tenant/applications", {"name": "x", "roles": ["analyst"]}, headers=owner),
        web.post("/tenant/applications", {"name": "x", "tenant": "globex"}, headers=owner),
    )
    assert {(one.status_code, one.json["error"]) for one in refused} == {(422, "VALIDATION_ERROR")}
    kept = an_application(web.rt, tenant="acme-bank", scopes=("read", "introspect"))
    for method, path, body in (
        ("PATCH", f"/tenant/application/{kept.client_id}", {"name": "mine"}),
        ("POST", f"/tenant/application/{kept.client_id}/secret", {}),
    ):
        assert web.call(method, path, body, headers=owner).status_code == 403, "it would hand out introspect"
    assert web.delete(f"/tenant/application/{kept.client_id}", headers=owner).status_code == 202
    boss = a_token(web.rt, a_user(web.rt, roles=("users_admin",)))
    for scope in ("admin", "introspect"):
        assert web.patch("/admin/tenant/acme-bank", {"scopes": [scope]}, bearer=boss).status_code == 400
    assert web.patch("/admin/tenant/acme-bank", {"scopes": ["read", "write"]}, bearer=boss).json["scopes"] == [
        "read",
        "write",
    ]
    made = web.post("/tenant/applications", {"name": "x", "scopes": ["write"]}, headers=owner)
    assert made.status_code == 202


def test_the_last_owner_stays(web: Web, owner: dict[str, str]) -> None:
    olga = next(
        one["userID"] for one in web.get("/tenant/members", headers=owner).json["members"] if one["alias"] == "olga"
    )
    a_user(web.rt, tenants={"acme-bank": ("owner",)}, enabled=False)
    for answer in (
        web.put(f"/tenant/member/{olga}", {"roles": ["analyst"]}, headers=owner),
        web.delete(f"/tenant/member/{olga}", headers=owner),
    ):
        assert (answer.status_code, answer.json["error"]) == (409, "CONFLICT")
    second = a_user(web.rt, tenants={"acme-bank": ("owner",)})
    assert web.put(f"/tenant/member/{olga}", {"roles": ["owner", "lead"]}, headers=owner).status_code == 202
    assert web.delete(f"/tenant/member/{olga}", headers=owner).status_code == 202
    assert web.get("/tenant", headers=owner).status_code == 403, "she owns it no more, from the next request on"
    boss = {
        "Authorization": f"Bearer {a_token(web.rt, a_user(web.rt, roles=('users_admin',)))}",
        "X-Tenant-Id": "acme-bank",
    }
    assert web.delete(f"/tenant/member/{second.id}", headers=boss).status_code == 409
    assert web.delete(f"/admin/tenant/acme-bank/member/{second.id}", headers=boss).status_code == 202


def test_the_events_of_a_tenant_are_its_own_and_tell_no_address(web: Web, owner: dict[str, str]) -> None:
    made = web.post("/tenant/applications", {"name": "feed", "scopes": ["read"]}, headers=owner).json
    web.patch(f"/tenant/application/{made['clientId']}", {"name": "fed"}, headers=owner)
    web.post(f"/tenant/application/{made['clientId']}/secret", headers=owner)
    web.delete(f"/tenant/application/{made['clientId']}/secret/{made['secretID']}", headers=owner)
    web.post("/tenant/invitations", {"email": "new@acme.example", "roles": ["analyst"]}, headers=owner)
    web.delete(f"/tenant/application/{made['clientId']}", headers=owner)
    a_user(web.rt, tenants={"globex": ("analyst",)})
    told = web.get("/tenant/audit?limit=200", headers=owner).json
    assert {one["action"] for one in told["events"]} >= {
        "tenant.created",
        "tenant.changed",
        "tenant.member-set",
        "application.created",
        "application.changed",
        "application.deleted",
        "secret.created",
        "secret.revoked",
        "invitation.sent",
    }
    assert "globex" not in str(told)
    assert "new@acme.example" not in str(told)
    assert set(told["events"][0]) == {"eventID", "at", "action", "actor", "target", "data", "genuine"}


def test_budgets_are_those_in_force(web: Web, owner: dict[str, str]) -> None:
    a_tenant(web.rt, "acme-bank", limits={"bulk-upload": "7/minute"})
    told = web.get("/tenant/limits", headers=owner).json
    assert told == {
        "limits": {"standard": "off", "ai-assisted": "off", "bulk-upload": "7/minute"},
        "own": ["bulk-upload"],
    }
