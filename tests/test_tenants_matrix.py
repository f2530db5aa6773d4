"""Subjects of one tenant against everything of another, on every route: what is not listed here fails until somebody has thought about it.

A victim lives in tenant globex; whatever is hers is called "globexsecret". Subjects of acme-bank call every route with every tenant header,
aiming at her ids. No answer may hold that word, nothing of hers may change, and each kind of route refuses in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest
from sqlalchemy import select
from werkzeug.test import TestResponse

from identity.app import create_app, endpoints
from identity.core.clients import keypairs, machine_tokens, secrets
from identity.core.clients.applications import Application
from identity.core.clients.keypairs import KeyPair
from identity.core.clients.secrets import ClientSecret
from identity.core.people import tenancy
from identity.core.people.accounts import Email, User
from identity.core.people.tenancy import Membership, Tenant
from identity.core.tokens import sessions
from identity.core.tokens.sessions import UserSession
from identity.opening import create_runtime
from identity.runtime import Runtime
from identity.wire.endpoint import Endpoint
from tests.browser import console_deeds
from tests.builders import PASSWORD, Person, a_session, a_tenant, a_user, an_application, at_the_console
from tests.conftest import BACKENDS, fresh_database
from tests.world import ORIGIN, FakeClock, Mailbox, Web, fast_settings

SECRET = "globexsecret"
NOBODYS_ID = "00000000-0000-4000-8000-000000000000"


class Kind(Enum):
    """What a route does with tenants and with things of others."""

    PUBLIC = "reads no credential, says nothing of anybody"
    LOGIN = "proves who somebody is; nothing of a tenant is in it"
    CLIENT = "proves an application by itself"
    OWN = "touches what is the caller's own, by the credential and never by an id"
    OBJECT = "touches one thing by its id: another's is 404"
    ALIAS = "tells the alias behind an id to whoever is authenticated, by contract"
    ADMIN = "is for administrators of the whole service; a tenant's own is none"
    GATE = "is for members of the tenant in the header"
    LINK = "acts on the token of a mailed link, and on nothing else"
    CONSOLE = "is a page for who has the console's cookie; none of these subjects has one (see the owner at the console below)"
    CONSOLE_DOOR = "leads into the console; nothing of a tenant is in it"
    TENANT = "is for owners of the tenant in the header; none of these subjects is one (`test_owners_matrix` has those)"


ROUTES: dict[Kind, str] = {
    Kind.PUBLIC: """
        GET /.well-known/jwks.json, GET /.well-known/oauth-authorization-server, GET /.well-known/openid-configuration,
        GET /.well-known/status-lists, GET /.well-known/status-lists/{id}, GET /health/live, GET /health/ready, GET /openapi.json,
        GET /docs, GET /docs.md, GET /style.css
    """,
    Kind.LOGIN: """
        POST /user/token, POST /query, POST /auth/login, POST /auth/mfa/challenge, POST /auth/refresh, POST /auth/password/forgot,
        PUT /auth/password/reset, POST /session, PUT /session/verification, PUT /email/verification, PUT /keypair/verification, POST /user
    """,
    Kind.CLIENT: "POST /application/token, POST /oauth/token, POST /oauth/introspect, POST /oauth/revoke",
    Kind.OWN: """
        POST /auth/logout, GET /auth/me, POST /auth/mfa/totp, POST /auth/mfa/totp/confirm, DELETE /auth/mfa/totp,
        POST /auth/mfa/recovery-codes, PUT /auth/password, GET /session, PUT /session/extend, GET /sessions, POST /session/token,
        POST /email, POST /email/verification, GET /emails, POST /keypair, GET /keypair,
        DELETE /keypair, GET /keypairs, POST /keypair/token, DELETE /user
    """,
    Kind.OBJECT: """
        DELETE /session/{session_id}, DELETE /keypair/{key_id}, POST /keypair/{key_id}/rotate,
        DELETE /email/{email_id}, PUT /email/preferred
    """,
    Kind.ALIAS: "GET /user/{user_id}, GET /user/id/{user_id}",
    Kind.ADMIN: """
        GET /user/by-email, POST /admin/user, GET /admin/users, GET /admin/user/{id}, PATCH /admin/user/{id}, DELETE /admin/user/{id},
        PUT /admin/user/{id}/enable, PUT /admin/user/{id}/disable, PUT /admin/user/{id}/verify, PUT /admin/user/{id}/unverify,
        GET /admin/user/{id}/roles, POST /admin/user/{id}/roles, DELETE /admin/user/{id}/roles/{role}, PUT /admin/user/{id}/password-reset,
        PUT /admin/user/{id}/access-window, PUT /admin/user/{id}/fixed-otp, DELETE /admin/user/{id}/fixed-otp, DELETE /admin/user/{id}/mfa,
        POST /admin/user/{id}/session, POST /admin/user/{id}/keypair, POST /admin/user/{id}/email, GET /admin/sessions, GET /admin/keypairs,
        PUT /admin/session/{id}/verify, PUT /admin/keypair/{id}/verify, PUT /admin/email/{id}/verify, PUT /admin/email/preferred,
        DELETE /admin/session/{id}, DELETE /admin/keypair/{id}, DELETE /admin/email/{id}, POST /admin/application, GET /admin/applications,
        GET /admin/application/{clientId}, PATCH /admin/application/{clientId}, DELETE /admin/application/{clientId},
        POST /admin/application/{clientId}/secret, GET /admin/application/{clientId}/secrets,
        DELETE /admin/application/{clientId}/secret/{secretID}, POST /admin/application/{clientId}/trust,
        GET /admin/application/{clientId}/trusts, DELETE /admin/application/{clientId}/trust/{trustID}, GET /admin/expiring,
        POST /admin/tenant, GET /admin/tenants, GET /admin/tenant/{id},
        PATCH /admin/tenant/{id}, DELETE /admin/tenant/{id}, PUT /admin/tenant/{id}/disable,
        PUT /admin/tenant/{id}/enable, PUT /admin/tenant/{id}/member/{userID},
        DELETE /admin/tenant/{id}/member/{userID}, GET /admin/tenant/{id}/members, GET /admin/tenant/{id}/invitations,
        POST /admin/tenant/{id}/invitations, POST /admin/tenant/{id}/invitation/{invitationID}/resend,
        DELETE /admin/tenant/{id}/invitation/{invitationID}, GET /admin/roles, POST /admin/role,
        DELETE /admin/role/{name},
        GET /admin/signing-keys,
        POST /admin/signing-keys/rotate, DELETE /admin/signing-key/{kid}, GET /admin/audit, GET /admin/error/{errorID},
        GET /admin/incident, POST /admin/incident, POST /admin/keypair/{id}/rotate,
        DELETE /admin/sessions, GET /admin/errors,
        GET /admin/errors/counts, GET /admin/mails, GET /admin/user/{id}/export, POST /admin/mails/retry,
        POST /admin/users/import, POST /admin/keypairs/import, PUT /admin/user/{id}/unlock
    """,
    Kind.GATE: "GET /verify",
    Kind.LINK: """
        GET /invitation/{token}, POST /invitation/{token}, PUT /invitation, GET /password-reset/{token}, POST /password-reset/{token}
    """,
    Kind.CONSOLE: """
        GET /console, GET /console/users, GET /console/users/new, POST /console/users/new, GET /console/user/{id}, POST /console/user/{id},
        GET /console/user/{id}/export, GET /console/you, POST /console/you, GET /console/why, POST /console/why, GET /console/why/{id},
        GET /console/refusals, POST /console/find, GET /console/audit, GET /console/sessions, POST /console/sessions, GET /console/system,
        POST /console/system, GET /console/tenants, GET /console/tenants/new,
        POST /console/tenants/new, GET /console/tenant/{id}, POST /console/tenant/{id}, GET /console/applications,
        GET /console/applications/new, POST /console/applications/new, GET /console/application/{id}, POST /console/application/{id},
        GET /console/expiring, GET /console/keypairs, GET /console/keypair/{id}, POST /console/keypair/{id}
    """,
    Kind.CONSOLE_DOOR: """
        GET /console/sign-in, POST /console/sign-in, POST /console/sign-out, GET /console/link/{token}, POST /console/link/{token}
    """,
    Kind.TENANT: """
        GET /tenant, GET /tenant/members, PUT /tenant/member/{userID}, DELETE /tenant/member/{userID}, GET /tenant/invitations,
        POST /tenant/invitations, POST /tenant/invitation/{id}/resend, DELETE /tenant/invitation/{id}, GET /tenant/applications,
        POST /tenant/applications, PATCH /tenant/application/{clientId}, DELETE /tenant/application/{clientId},
        POST /tenant/application/{clientId}/secret, GET /tenant/application/{clientId}/secrets,
        DELETE /tenant/application/{clientId}/secret/{secretID}, POST /tenant/application/{clientId}/trust,
        GET /tenant/application/{clientId}/trusts, DELETE /tenant/application/{clientId}/trust/{trustID},
        GET /tenant/audit, GET /tenant/limits
    """,
}
KINDS = {" ".join(route.split()): kind for kind, routes in ROUTES.items() for route in routes.split(",")}
# What shows mails to whoever sits at the machine, and what only browsers get, have tests of their own.
EXEMPT = {"GET /dev/inbox", "GET /"}
ENDPOINTS = {endpoint.name: endpoint for endpoint in endpoints() if endpoint.name not in EXEMPT}
TENANTS: tuple[dict[str, str], ...] = (
    {},
    {"X-Tenant-Id": "acme-bank"},
    {"X-Tenant-Id": "globex"},
    {"X-Tenant-Id": "no-such-tenant"},
)


@dataclass(frozen=True)
class Victim:
    """A user of globex and what is hers, by the names that paths and bodies have for it."""

    person: Person
    ids: Mapping[str, str]


@dataclass(frozen=True)
class Scene:
    """One service with a victim in it."""

    web: Web
    victim: Victim
    subjects: dict[str, dict[str, str]]
    owner: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def rt(self) -> Runtime:
        return self.web.rt

    def at_the_console(self) -> tuple[str, str]:
        """The cookie of an owner of acme-bank, and the token of its forms; a new one where the last was signed out."""
        held = self.owner.get("cookie")
        if held is None or self.web.get("/console/you", headers={"Cookie": f"identity={held[0]}"}).status_code != 200:
            held = self.owner["cookie"] = at_the_console(self.rt, a_user(self.rt, tenants={"acme-bank": ("owner",)}))
        return held

    def credential(self, subject: str, kind: Kind) -> dict[str, str]:
        """The headers of a subject; of a new one for a route that may end or change its caller."""
        if kind is Kind.OWN:
            return SUBJECTS[subject](self.rt)
        if subject not in self.subjects:
            self.subjects[subject] = SUBJECTS[subject](self.rt)
        return self.subjects[subject]


@pytest.fixture(params=BACKENDS, scope="module")
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("matrix")
    settings = fast_settings(console="on", keys_dir=folder / "keys", **fresh_database(request.param, folder))
    clock, mailbox = FakeClock(), Mailbox()
    rt = create_runtime(settings, clock=clock, mailer=mailbox, migrate=False)
    a_tenant(rt, "acme-bank")
    yield Scene(Web(create_app(runtime=rt), rt, mailbox, clock), a_victim(rt), {})
    rt.database.close()


def a_victim(rt: Runtime) -> Victim:
    a_tenant(rt, "globex", name=SECRET)
    person = a_user(
        rt, email=f"{SECRET}@globex.example", alias="eve", full_name=f"Eve {SECRET}", tenants={"globex": (SECRET,)}
    )
    opened = a_session(rt, person)
    app = an_application(rt, name=SECRET, tenant="globex", scopes=(SECRET,))
    with rt.unit(ORIGIN) as unit:
        pair, _ = keypairs.create(rt, unit, person.id, name=SECRET, days=30, actor=person.id, verified=True)
        email_id = unit.session.scalars(select(Email.id).where(Email.user_id == person.id)).one()
    ids = {
        "session": opened.session.id,
        "keypair": pair.id,
        "email": email_id,
        "user": person.id,
        "tenant": "globex",
        "clientId": app.client_id,
        "application": app.client_id,
        "secretID": app.secret_id,
        "trustID": "trust-000000000000",
        "kid": rt.ring.list()[0].kid,
        "errorID": NOBODYS_ID,
        "role": SECRET,
        "invitationID": NOBODYS_ID,
        "token": "no-token",
    }
    return Victim(person, ids)


def state_of(rt: Runtime, victim: Victim) -> list[Any]:
    """Everything of the victim that others could want to change."""
    person = victim.person.id
    queries = (
        select(
            User.enabled,
            User.roles,
            User.groups,
            User.alias,
            User.full_name,
            User.password_hash,
            User.starts_at,
            User.ends_at,
        ).where(User.id == person),
        select(Email.id, Email.address, Email.preferred).where(Email.user_id == person).order_by(Email.id),
        select(UserSession.id, UserSession.revoked_at).where(UserSession.user_id == person, UserSession.verified),
        select(KeyPair.id, KeyPair.verified).where(KeyPair.user_id == person),
        select(Membership.tenant_id, Membership.roles).where(Membership.user_id == person),
        select(Membership.user_id).where(Membership.tenant_id == "globex"),
        select(Tenant.name, Tenant.limits, Tenant.enabled).where(Tenant.id == "globex"),
        select(Application.enabled, Application.scopes).where(Application.id == victim.ids["clientId"]),
        select(ClientSecret.id).where(ClientSecret.client_id == victim.ids["clientId"]),
    )
    with rt.database.reading() as session:
        return [session.execute(query).all() for query in queries] + [[key.kid for key in rt.ring.list()]]


# Subjects: each of acme-bank.


def _member(rt: Runtime, **options: Any) -> Person:
    return a_user(rt, password=None, tenants={"acme-bank": ("analyst",)}, **options)


def _token(rt: Runtime, person: Person) -> dict[str, str]:
    live = sessions.find_live(rt, a_session(rt, person).session.id)
    return {"Authorization": f"Bearer {sessions.token_for(rt, live, seconds=3600).text}"}


def _bearer(rt: Runtime, person: Person) -> dict[str, str]:
    bearer = a_session(rt, person).bearer
    assert bearer is not None
    return {"Authorization": f"Bearer {bearer.reveal()}"}


def _key(rt: Runtime, person: Person) -> dict[str, str]:
    with rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(rt, unit, person.id, name="ci", days=1, actor=person.id, verified=True)
    return {"api-key": pair.api_key, "api-secret": secret.reveal()}


def _tenant_admin(rt: Runtime) -> dict[str, str]:
    person = a_user(rt, password=None)
    with rt.unit(ORIGIN) as unit:
        tenancy.set_member(rt, unit, "acme-bank", person.id, roles=("users_admin",), actor="test")
    return _token(rt, person)


def _machine(rt: Runtime) -> dict[str, str]:
    feed = an_application(rt, tenant="acme-bank", scopes=("read",), roles=("users_admin", "owner"))
    proven = secrets.authenticate(rt, ORIGIN, feed.client_id, feed.secret)
    token = machine_tokens.issue_token(rt, proven, scope=None, audience=(rt.settings.issuer,))
    return {"Authorization": f"Bearer {token.text}"}


SUBJECTS: dict[str, Callable[[Runtime], dict[str, str]]] = {
    "nobody": lambda rt: {},
    "a member by token": lambda rt: _token(rt, _member(rt)),
    "a member by bearer": lambda rt: _bearer(rt, _member(rt)),
    "a member by key pair": lambda rt: _key(rt, _member(rt)),
    "an administrator of the tenant": _tenant_admin,
    "an application of the tenant": _machine,
}


def ask(scene: Scene, endpoint: Endpoint, headers: Mapping[str, str]) -> TestResponse:
    """Call a route, aiming at the victim with everything that it takes."""
    victim, path = scene.victim, endpoint.path
    thing = next((name for name in ("session", "keypair", "email", "tenant", "user") if f"/{name}" in path), "user")
    names = {"id": victim.ids[thing], "session_id": victim.ids["session"], "key_id": victim.ids["keypair"]}
    if path.startswith("/.well-known/status-lists/"):
        names["id"] = scene.web.get("/.well-known/status-lists").json["status_lists"][0].rpartition("/")[2]
    names |= {
        "email_id": victim.ids["email"],
        "user_id": victim.person.id,
        "userID": victim.person.id,
        "name": "analyst",
    }
    for name, value in {**victim.ids, **names}.items():
        path = path.replace("{" + name + "}", value)
    assert "{" not in path, "a parameter that the victim has no value for"
    if endpoint.path == "/user/by-email":
        path += f"?email={victim.person.email}"
    if endpoint.body is None:
        return scene.web.call(endpoint.method, path, headers=headers)
    body = body_for(endpoint, victim)
    return scene.web.call(endpoint.method, path, headers=headers, **{"data" if endpoint.form else "json": body})


def body_for(endpoint: Endpoint, victim: Victim) -> dict[str, Any]:
    """A body with everything that the route must have, hers where it can be."""
    known: dict[str, Any] = {
        "email": victim.person.email,
        "address": victim.person.email,
        "username": victim.person.alias,
        "emailID": victim.ids["email"],
        "clientId": victim.ids["clientId"],
        "verificationCodeID": NOBODYS_ID,
        "code": "000000",
        "totpCode": "000000",
        "password": "a wrong password",
        "currentPassword": PASSWORD,
        "newPassword": "another battery staple",
        "fullName": "Mallory",
        "alias": "mallory",
        "name": "mallory",
        "id": "globex",
        "days": 1,
        "otp": "123456",
        "role": "users_admin",
        "roles": ["users_admin"],
        "scopes": ["admin"],
        "query": "{ service }",
    }
    assert endpoint.body is not None
    required = {name: field for name, field in endpoint.body().fields.items() if field.required}
    return {field.data_key or name: known.get(name, "x") for name, field in required.items()}


def test_every_route_is_listed() -> None:
    assert set(KINDS) == set(ENDPOINTS), "say in ROUTES what a new route does with tenants and with things of others"


@pytest.mark.parametrize("route", ENDPOINTS)
def test_nothing_of_another_tenant_is_told_or_changed(scene: Scene, route: str) -> None:
    endpoint, kind = ENDPOINTS[route], KINDS[route]
    before = state_of(scene.rt, scene.victim)
    for name in SUBJECTS:
        for tenant in TENANTS:
            answer = ask(scene, endpoint, scene.credential(name, kind) | tenant)
            where = f"{name}, {tenant.get('X-Tenant-Id', 'no tenant')}: {answer.status_code} {answer.text[:300]}"
            assert answer.status_code < 500, where
            assert SECRET not in answer.text, where
            assert SECRET not in str(answer.headers), where
            assert_fitting(kind, name, tenant.get("X-Tenant-Id", ""), answer, where)
    assert state_of(scene.rt, scene.victim) == before


def assert_fitting(kind: Kind, subject: str, tenant: str, answer: TestResponse, where: str) -> None:
    """A route of this kind answers this subject as such routes do."""
    status, is_user = answer.status_code, subject not in ("nobody", "an application of the tenant")
    match kind:
        case Kind.PUBLIC:
            assert status == 200, where
        case Kind.LOGIN | Kind.CLIENT:
            # 429: the same guess at the same account, again and again.
            assert status in (200, 202, 400, 401, 422, 429), where
        case Kind.LINK:
            # 403: an application accepts no invitation. 415: a form is posted, not JSON.
            assert status in (401, 403, 415, 422, 429), where
        case Kind.CONSOLE_DOOR:
            assert status in (200, 401, 415, 429), where
        case Kind.CONSOLE:
            # To a page a stranger is led to the way in. 415: a form is posted, and this is none.
            assert status == (303 if answer.request.method == "GET" else 415), where
        case _ if subject == "nobody":
            assert status == 401, where
        case Kind.ADMIN:
            assert status == 403, where
        case Kind.OBJECT:
            # A key pair and an application are no credentials of these routes.
            assert status == (404 if is_user and "key pair" not in subject else status), where
            assert status in (401, 403, 404), where
        case Kind.GATE:
            assert status == {"acme-bank": 200, "": 400}.get(tenant, 403), where
        case Kind.TENANT:
            assert status == (403 if tenant else 400), where
        case Kind.ALIAS:
            assert (status, answer.json) == (200, {"alias": "eve"}), where
        case Kind.OWN:
            assert status in (200, 202, 400, 401, 403, 404, 409, 422, 429), where


@pytest.mark.parametrize("route", [name for name, kind in KINDS.items() if kind is Kind.CONSOLE])
def test_an_owner_at_the_console_is_told_nothing_of_another_tenant(scene: Scene, route: str) -> None:
    endpoint, rt, before = ENDPOINTS[route], scene.rt, state_of(scene.rt, scene.victim)
    path = endpoint.path
    for tenant in ("", "acme-bank", "globex", "no-such-tenant"):
        for name in console_deeds() if endpoint.method == "POST" else ("",):
            bearer, form = scene.at_the_console()
            headers = {"Cookie": f"identity={bearer}", "Sec-Fetch-Site": "same-origin"}
            typed = {**scene.victim.ids, "form": form, "deed": name, "sure": "yes", "tenant": tenant, "roles": "owner"}
            for parameter, value in scene.victim.ids.items():
                path = path.replace("{" + parameter + "}", value)
            path = (
                path.replace("{id}", scene.victim.ids.get(path.split("/")[2], NOBODYS_ID)) if "{id}" in path else path
            )
            query = f"?tenant={tenant}" if tenant and endpoint.method == "GET" else ""
            sent = {"data": typed} if endpoint.method == "POST" else {}
            answer = scene.web.call(endpoint.method, path + query, headers=headers, **sent)
            where = f"{path} {tenant} {name}: {answer.status_code} {answer.text[:300]}"
            assert answer.status_code < 500, where
            assert SECRET not in answer.text.replace(f'value="{SECRET}', ""), where
            assert tenant in ("", "acme-bank") or answer.status_code == 404, where
    assert state_of(rt, scene.victim) == before


def test_the_word_would_be_seen_where_it_is(scene: Scene) -> None:
    """The victim's own routes, and an administrator's, do show what the others must not."""
    hers = _token(scene.rt, scene.victim.person)
    for path in ("/auth/me", "/emails", "/keypairs"):
        assert SECRET in scene.web.get(path, headers=hers).text
    root = _token(scene.rt, a_user(scene.rt, roles=("users_admin",)))
    for path in ("/admin/tenants", "/admin/applications", f"/admin/user/{scene.victim.person.id}"):
        assert SECRET in scene.web.get(path, headers=root).text


def test_a_token_of_one_tenant_names_no_other(scene: Scene) -> None:
    answer = scene.web.get("/auth/me", headers=_token(scene.rt, _member(scene.rt)) | {"X-Tenant-Id": "globex"})
    assert answer.json["tenants"] == {"acme-bank": ["analyst"]}
