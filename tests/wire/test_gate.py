"""Group G: every credential kind, every demand, every refusal; what a token says of rights is never believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update
from werkzeug.test import TestResponse

from identity.core.clients import keypairs, machine_tokens, registration, secrets
from identity.core.people import tenancy
from identity.core.people.accounts import User
from identity.core.record import explain
from identity.core.tokens import sessions
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import Person, a_session, a_tenant, a_token, a_user, an_application
from tests.world import ORIGIN, Web

AUTH_HEADERS = ("X-Auth-Subject", "X-Auth-Type", "X-Auth-Tenant", "X-Auth-Roles", "X-Auth-Scopes", "X-Auth-Session")
ACME = {"X-Tenant-Id": "acme-bank"}


def an_application_token(rt: Runtime, **options: object) -> str:
    """A token of a new application."""
    feed = an_application(rt, **options)
    proven = secrets.authenticate(rt, ORIGIN, feed.client_id, feed.secret)
    return machine_tokens.issue_token(rt, proven, scope=None, audience=("https://api.acme.example",)).text


def a_key_pair(rt: Runtime, person: Person, *, verified: bool = True, days: int = 30) -> dict[str, str]:
    """The headers of a key pair of `person`."""
    with rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(rt, unit, person.id, name="ci", days=days, actor=person.id, verified=verified)
    return {"api-key": pair.api_key, "api-secret": secret.reveal()}


def refusal(answer: TestResponse) -> tuple[int, str]:
    """Status and code of a refusal, which must stand in the body and in the headers alike."""
    assert answer.json["error"] == answer.headers["X-Auth-Error"]
    assert answer.json["message"] == answer.headers["x-error"]
    assert not [name for name in AUTH_HEADERS if name in answer.headers]
    return answer.status_code, answer.json["error"]


# Who passes.


def test_a_user_token_passes_and_says_who_for_which_tenant_with_which_rights(web: Web) -> None:
    ada = a_user(web.rt, roles=("auditor",), tenants={"acme-bank": ("analyst",), "globex": ("owner",)})
    opened = a_session(web.rt, ada)
    token = sessions.token_for(web.rt, sessions.find_live(web.rt, opened.session.id), seconds=3600).text
    answer = web.get("/verify", bearer=token, headers=ACME)
    assert answer.status_code == 200, answer.json
    assert {name: answer.headers[name] for name in AUTH_HEADERS} == {
        "X-Auth-Subject": ada.id,
        "X-Auth-Type": "user",
        "X-Auth-Tenant": "acme-bank",
        "X-Auth-Roles": "analyst,auditor",
        "X-Auth-Scopes": "",
        "X-Auth-Session": opened.session.id,
    }
    assert answer.json == {}
    assert answer.headers["Cache-Control"] == "no-store"
    assert "X-Auth-Error" not in answer.headers


def test_a_session_bearer_passes_as_its_user(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ("analyst",)})
    opened = a_session(web.rt, ada)
    answer = web.get("/verify", bearer=opened.bearer.reveal(), headers=ACME)
    assert answer.status_code == 200, answer.json
    assert answer.headers["X-Auth-Subject"] == ada.id
    assert answer.headers["X-Auth-Type"] == "user"
    assert answer.headers["X-Auth-Session"] == opened.session.id


def test_an_application_token_for_any_audience_passes_in_its_tenant(web: Web) -> None:
    a_tenant(web.rt, "acme-bank")
    token = an_application_token(web.rt, tenant="acme-bank", scopes=("write", "read"), roles=("feeder",))
    answer = web.get("/verify", bearer=token, headers=ACME)
    assert answer.status_code == 200, answer.json
    assert answer.headers["X-Auth-Type"] == "application"
    assert answer.headers["X-Auth-Roles"] == "feeder"
    assert answer.headers["X-Auth-Scopes"] == "read write"
    assert answer.headers["X-Auth-Session"] == ""


def test_a_key_pair_passes_as_its_owner(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ("analyst",)})
    answer = web.get("/verify", headers=ACME | a_key_pair(web.rt, ada))
    assert answer.status_code == 200, answer.json
    assert answer.headers["X-Auth-Subject"] == ada.id
    assert answer.headers["X-Auth-Type"] == "key"
    assert answer.headers["X-Auth-Session"] == ""


def test_a_bearer_and_a_key_pair_of_one_user_pass_together(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ()})
    answer = web.get("/verify", bearer=a_token(web.rt, ada), headers=ACME | a_key_pair(web.rt, ada))
    assert answer.status_code == 200, answer.json
    assert answer.headers["X-Auth-Type"] == "user"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_method_passes_alike_and_its_body_is_not_read(web: Web, method: str) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ()})
    answer = web.call(
        method, "/verify", bearer=a_token(web.rt, ada), headers=ACME, data=b"\xff not json", content_type="text/plain"
    )
    assert answer.status_code == 200
    assert answer.headers["X-Auth-Subject"] == ada.id


# Tenants.


def test_a_missing_tenant_is_400_in_the_words_of_the_contract(web: Web) -> None:
    answer = web.get("/verify", bearer=a_token(web.rt, a_user(web.rt, tenants={"acme-bank": ()})))
    assert answer.json == {"error": "MISSING_TENANT", "message": "X-Tenant-Id header is required", "status": 400}
    assert refusal(answer) == (400, "MISSING_TENANT")


def test_an_empty_tenant_is_a_missing_one(web: Web) -> None:
    answer = web.get("/verify", bearer=a_token(web.rt, a_user(web.rt)), headers={"X-Tenant-Id": ""})
    assert refusal(answer) == (400, "MISSING_TENANT")


def test_a_missing_tenant_is_told_only_to_the_authenticated(web: Web) -> None:
    assert refusal(web.get("/verify")) == (401, "UNAUTHENTICATED")


def test_a_tenant_may_be_missing_where_it_is_optional(web: Web) -> None:
    ada = a_user(web.rt, roles=("auditor",), tenants={"acme-bank": ("analyst",)})
    answer = web.get("/verify?tenant=optional", bearer=a_token(web.rt, ada))
    assert answer.status_code == 200, answer.json
    assert answer.headers["X-Auth-Tenant"] == ""
    assert answer.headers["X-Auth-Roles"] == "auditor"


def test_a_foreign_tenant_is_refused_even_where_it_is_optional(web: Web) -> None:
    a_tenant(web.rt, "globex")
    ada = a_user(web.rt, tenants={"acme-bank": ()})
    answer = web.get("/verify?tenant=optional", bearer=a_token(web.rt, ada), headers={"X-Tenant-Id": "globex"})
    assert refusal(answer) == (403, "FORBIDDEN")


def test_a_foreign_and_an_unknown_tenant_look_alike(web: Web) -> None:
    a_tenant(web.rt, "globex")
    token = a_token(web.rt, a_user(web.rt, tenants={"acme-bank": ()}))
    foreign = web.get("/verify", bearer=token, headers={"X-Tenant-Id": "globex"})
    unknown = web.get("/verify", bearer=token, headers={"X-Tenant-Id": "no-such-tenant"})
    assert refusal(foreign) == refusal(unknown) == (403, "FORBIDDEN")
    assert foreign.json == unknown.json
    assert set(foreign.headers.keys()) == set(unknown.headers.keys())


@pytest.mark.parametrize(
    "spelling",
    [
        "globex,acme-bank",
        "acme-bank,globex",
        "acme-bank,acme-bank",
        "acme-bank ,",
        "ACME-BANK",
        "acme-bank\t",
        "*",
        "%",
        "acme_bank' OR 1=1--",
        "ä",
    ],
)
def test_only_the_one_spelling_of_a_tenant_is_that_tenant(web: Web, spelling: str) -> None:
    token = a_token(web.rt, a_user(web.rt, tenants={"acme-bank": ()}))
    answer = web.get("/verify", bearer=token, headers={"X-Tenant-Id": spelling})
    assert refusal(answer) == (403, "FORBIDDEN")


def test_an_application_passes_in_no_tenant_but_its_own(web: Web) -> None:
    a_tenant(web.rt, "acme-bank")
    a_tenant(web.rt, "globex")
    bound = an_application_token(web.rt, tenant="acme-bank")
    free = an_application_token(web.rt)
    assert refusal(web.get("/verify", bearer=bound, headers={"X-Tenant-Id": "globex"})) == (403, "FORBIDDEN")
    assert refusal(web.get("/verify", bearer=free, headers=ACME)) == (403, "FORBIDDEN")
    assert web.get("/verify?tenant=optional", bearer=free).status_code == 200


def test_an_administrator_is_no_member_by_being_one(web: Web) -> None:
    a_tenant(web.rt, "acme-bank")
    root = a_user(web.rt, roles=("users_admin",))
    assert refusal(web.get("/verify", bearer=a_token(web.rt, root), headers=ACME)) == (403, "FORBIDDEN")


# Live state: the token was right when it was made.


def test_a_membership_that_ended_is_gone_from_the_next_request_on(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ("analyst",)})
    token = a_token(web.rt, ada)
    assert web.get("/verify", bearer=token, headers=ACME).status_code == 200
    with web.rt.unit(ORIGIN) as unit:
        tenancy.remove_member(web.rt, unit, "acme-bank", ada.id, actor="test")
    assert refusal(web.get("/verify", bearer=token, headers=ACME)) == (403, "FORBIDDEN")


def test_a_membership_that_began_after_the_token_counts(web: Web) -> None:
    ada = a_user(web.rt)
    token = a_token(web.rt, ada)
    a_tenant(web.rt, "acme-bank")
    with web.rt.unit(ORIGIN) as unit:
        tenancy.set_member(web.rt, unit, "acme-bank", ada.id, roles=("analyst",), actor="test")
    answer = web.get("/verify?role=analyst", bearer=token, headers=ACME)
    assert answer.headers["X-Auth-Roles"] == "analyst"


def test_a_tenant_made_again_under_an_old_name_has_none_of_the_old_members(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ()})
    token = a_token(web.rt, ada)
    with web.rt.unit(ORIGIN) as unit:
        tenancy.remove(web.rt, unit, "acme-bank", actor="test")
    a_tenant(web.rt, "acme-bank")
    assert refusal(web.get("/verify", bearer=token, headers=ACME)) == (403, "FORBIDDEN")


def test_a_disabled_user_is_refused_by_every_credential_at_once(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ()})
    opened = a_session(web.rt, ada)
    token, pair = a_token(web.rt, ada), a_key_pair(web.rt, ada)
    with web.rt.unit(ORIGIN) as unit:
        unit.execute(update(User).where(User.id == ada.id).values(enabled=False))
    assert refusal(web.get("/verify", bearer=token, headers=ACME)) == (401, "INVALID_TOKEN")
    assert refusal(web.get("/verify", bearer=opened.bearer.reveal(), headers=ACME)) == (401, "INVALID_TOKEN")
    assert refusal(web.get("/verify", headers=ACME | pair)) == (401, "INVALID_CREDENTIALS")


def test_the_end_of_the_access_window_ends_every_credential(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ()}, ends_at=web.clock.now() + timedelta(seconds=60))
    # A token's times are whole seconds: it ends with the last whole one of the window.
    token, pair = a_token(web.rt, ada), a_key_pair(web.rt, ada)
    web.clock.tick(59)
    assert web.get("/verify", bearer=token, headers=ACME).status_code == 200
    web.clock.tick(1)
    assert refusal(web.get("/verify", bearer=token, headers=ACME)) == (401, "TOKEN_EXPIRED")
    assert refusal(web.get("/verify", headers=ACME | pair)) == (401, "INVALID_CREDENTIALS")


def test_a_revoked_session_ends_its_bearer_and_its_tokens(web: Web) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ()})
    opened = a_session(web.rt, ada)
    token = sessions.token_for(web.rt, sessions.find_live(web.rt, opened.session.id), seconds=3600).text
    with web.rt.unit(ORIGIN) as unit:
        sessions.revoke(web.rt, unit, opened.session.id, actor=ada.id, reason="test")
    assert refusal(web.get("/verify", bearer=token, headers=ACME)) == (401, "INVALID_TOKEN")
    assert refusal(web.get("/verify", bearer=opened.bearer.reveal(), headers=ACME)) == (401, "INVALID_TOKEN")


def test_a_disabled_application_is_refused_at_once(web: Web) -> None:
    feed = an_application(web.rt)
    proven = secrets.authenticate(web.rt, ORIGIN, feed.client_id, feed.secret)
    token = machine_tokens.issue_token(web.rt, proven, scope=None, audience=("x",)).text
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 200
    with web.rt.unit(ORIGIN) as unit:
        registration.change(web.rt, unit, feed.client_id, actor="test", enabled=False)
    assert refusal(web.get("/verify?tenant=optional", bearer=token)) == (401, "INVALID_TOKEN")


def test_an_unverified_session_and_an_unverified_pair_do_not_pass(web: Web) -> None:
    ada = a_user(web.rt)
    waiting = a_session(web.rt, ada, verified=False)
    assert refusal(web.get("/verify?tenant=optional", bearer=waiting.bearer.reveal())) == (401, "INVALID_TOKEN")
    pair = a_key_pair(web.rt, ada, verified=False)
    assert refusal(web.get("/verify?tenant=optional", headers=pair)) == (401, "INVALID_CREDENTIALS")


def test_a_token_passes_until_its_end_and_is_then_expired(web: Web) -> None:
    token = a_token(web.rt, a_user(web.rt))
    web.clock.tick(3599 - web.clock.now().microsecond / 1e6)
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 200
    web.clock.tick(1)
    late = web.get("/verify?tenant=optional", bearer=token)
    assert refusal(late) == (401, "TOKEN_EXPIRED")
    assert late.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


# Credentials that are none.


def test_without_a_credential_the_challenge_has_no_error_code(web: Web) -> None:
    answer = web.get("/verify", headers=ACME)
    assert refusal(answer) == (401, "UNAUTHENTICATED")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_another_scheme_is_no_credential(web: Web) -> None:
    assert refusal(web.get("/verify", headers={"Authorization": "Basic YTpi"})) == (401, "UNAUTHENTICATED")


def test_two_bearers_are_refused(web: Web) -> None:
    token = a_token(web.rt, a_user(web.rt))
    answer = web.get("/verify", headers={"Authorization": f"Bearer {token},Bearer {token}"})
    assert refusal(answer) == (400, "MALFORMED_REQUEST")


def test_credentials_of_two_subjects_are_refused(web: Web) -> None:
    ada, eve = a_user(web.rt), a_user(web.rt)
    answer = web.get("/verify?tenant=optional", bearer=a_token(web.rt, ada), headers=a_key_pair(web.rt, eve))
    assert refusal(answer) == (400, "MALFORMED_REQUEST")


def test_half_a_key_pair_is_refused(web: Web) -> None:
    pair = a_key_pair(web.rt, a_user(web.rt))
    for half in ("api-key", "api-secret"):
        answer = web.get("/verify?tenant=optional", headers={half: pair[half]})
        assert refusal(answer) == (401, "INVALID_CREDENTIALS")


def test_a_right_token_does_not_excuse_a_wrong_key_pair(web: Web) -> None:
    ada = a_user(web.rt)
    pair = a_key_pair(web.rt, ada)
    answer = web.get("/verify?tenant=optional", bearer=a_token(web.rt, ada), headers=pair | {"api-secret": "wrong"})
    assert refusal(answer) == (401, "INVALID_CREDENTIALS")


# Roles and scopes.


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("role=analyst", 200),
        ("role=auditor", 200),
        ("role=analyst&role=auditor", 200),
        ("role=analyst&role=owner", 403),
        ("role=owner", 403),
        ("role=Analyst", 403),
        ("role=", 403),
        ("role=analyst,auditor", 403),
        ("scope=read", 403),
    ],
)
def test_every_role_that_is_named_is_needed_in_the_tenant_or_globally(web: Web, query: str, status: int) -> None:
    ada = a_user(web.rt, roles=("auditor",), tenants={"acme-bank": ("analyst",), "globex": ("owner",)})
    answer = web.get(f"/verify?{query}", bearer=a_token(web.rt, ada), headers=ACME)
    assert answer.status_code == status
    if status == 403:
        assert refusal(answer) == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("scope=read", 200),
        ("scope=read&scope=write", 200),
        ("scope=read&scope=admin", 403),
        ("scope=read%20write", 403),
    ],
)
def test_every_scope_that_is_named_is_needed(web: Web, query: str, status: int) -> None:
    token = an_application_token(web.rt, scopes=("read", "write"))
    assert web.get(f"/verify?tenant=optional&{query}", bearer=token).status_code == status


def test_a_token_with_fewer_scopes_than_its_application_has_only_those(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read", "write"))
    proven = secrets.authenticate(web.rt, ORIGIN, feed.client_id, feed.secret)
    token = machine_tokens.issue_token(web.rt, proven, scope=("read",), audience=("x",)).text
    assert web.get("/verify?tenant=optional&scope=read", bearer=token).headers["X-Auth-Scopes"] == "read"
    assert web.get("/verify?tenant=optional&scope=write", bearer=token).status_code == 403


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("tier=auth", "tier"),
        ("tier=application", "tier"),
        ("tier=", "tier"),
        ("tier=standard&tier=bulk-upload", "tier"),
        ("tenant=none", "tenant"),
        ("tenant=required&tenant=optional", "tenant"),
        ("rôle=admin", None),
        ("roles=admin", None),
    ],
)
def test_a_demand_that_the_gate_does_not_understand_lets_nobody_pass(web: Web, query: str, field: str | None) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ()})
    answer = web.get(f"/verify?{query}", bearer=a_token(web.rt, ada), headers=ACME)
    assert refusal(answer) == (422, "VALIDATION_ERROR")
    assert answer.json.get("field") == field


# Limits.


@pytest.fixture
def limited(settings: Settings) -> Settings:
    return replace(settings, limit_standard="3/minute", limit_ai_assisted="2/minute", limit_bulk_upload="1/minute")


class TestLimits:
    """Budgets of the tiers: per tenant, a tenant's own where it has some, per subject without a tenant."""

    @pytest.fixture
    def settings(self, limited: Settings) -> Settings:
        return limited

    @pytest.mark.parametrize(("tier", "amount"), [("standard", 3), ("ai-assisted", 2), ("bulk-upload", 1)])
    def test_a_tier_has_its_budget_and_says_how_it_stands(self, web: Web, tier: str, amount: int) -> None:
        token = a_token(web.rt, a_user(web.rt, tenants={"acme-bank": ()}))
        for left in range(amount - 1, -1, -1):
            passed = web.get(f"/verify?tier={tier}", bearer=token, headers=ACME)
            assert passed.status_code == 200
            assert passed.headers["X-RateLimit-Limit"] == str(amount)
            assert passed.headers["X-RateLimit-Remaining"] == str(left)
        over = web.get(f"/verify?tier={tier}", bearer=token, headers=ACME)
        assert refusal(over) == (429, "RATE_LIMITED")
        assert over.headers["X-RateLimit-Remaining"] == "0"
        assert int(over.headers["X-RateLimit-Reset"]) > 0
        assert 1 <= int(over.headers["Retry-After"]) <= 60

    def test_tiers_are_counted_apart_and_members_of_a_tenant_together(self, web: Web) -> None:
        ada, bob = (a_token(web.rt, a_user(web.rt, tenants={"acme-bank": ()})) for _ in range(2))
        assert web.get("/verify?tier=bulk-upload", bearer=ada, headers=ACME).status_code == 200
        assert web.get("/verify?tier=bulk-upload", bearer=bob, headers=ACME).status_code == 429
        assert web.get("/verify?tier=ai-assisted", bearer=bob, headers=ACME).status_code == 200

    def test_tenants_are_counted_apart(self, web: Web) -> None:
        ada = a_token(web.rt, a_user(web.rt, tenants={"acme-bank": (), "globex": ()}))
        assert web.get("/verify?tier=bulk-upload", bearer=ada, headers=ACME).status_code == 200
        assert web.get("/verify?tier=bulk-upload", bearer=ada, headers={"X-Tenant-Id": "globex"}).status_code == 200

    def test_a_tenants_own_budget_takes_the_place_of_the_tiers(self, web: Web) -> None:
        a_tenant(web.rt, "acme-bank", limits={"bulk-upload": "2/minute", "standard": "off"})
        ada = a_token(web.rt, a_user(web.rt, tenants={"acme-bank": ()}))
        for _ in range(2):
            assert web.get("/verify?tier=bulk-upload", bearer=ada, headers=ACME).status_code == 200
        assert web.get("/verify?tier=bulk-upload", bearer=ada, headers=ACME).status_code == 429
        for _ in range(5):
            unlimited = web.get("/verify", bearer=ada, headers=ACME)
            assert unlimited.status_code == 200
        assert "X-RateLimit-Limit" not in unlimited.headers

    def test_a_stranger_spends_its_own_budget_and_not_the_tenants(self, web: Web) -> None:
        eve, ada = a_token(web.rt, a_user(web.rt)), a_token(web.rt, a_user(web.rt, tenants={"acme-bank": ()}))
        refused = [web.get("/verify", bearer=eve, headers=ACME).status_code for _ in range(4)]
        assert refused == [403, 403, 403, 429]
        assert web.get("/verify", bearer=ada, headers=ACME).headers["X-RateLimit-Remaining"] == "2"

    def test_without_a_tenant_the_subject_is_counted(self, web: Web) -> None:
        ada, bob = a_token(web.rt, a_user(web.rt)), a_token(web.rt, a_user(web.rt))
        url = "/verify?tenant=optional&tier=bulk-upload"
        assert [web.get(url, bearer=each).status_code for each in (ada, ada, bob)] == [200, 429, 200]

    def test_a_missing_role_is_counted(self, web: Web) -> None:
        ada = a_token(web.rt, a_user(web.rt, tenants={"acme-bank": ()}))
        statuses = [
            web.get("/verify?role=owner&tier=bulk-upload", bearer=ada, headers=ACME).status_code for _ in range(2)
        ]
        assert statuses == [403, 429]


# Cost.


@pytest.mark.parametrize("kind", ["user token", "session bearer", "application token", "key pair"])
def test_a_pass_costs_at_most_two_reads_and_no_write(web: Web, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ()})
    sent: dict[str, Callable[[], dict[str, str]]] = {
        "user token": lambda: {"Authorization": f"Bearer {a_token(web.rt, ada)}"},
        "session bearer": lambda: {"Authorization": f"Bearer {a_session(web.rt, ada).bearer.reveal()}"},
        "application token": lambda: {"Authorization": f"Bearer {an_application_token(web.rt, tenant='acme-bank')}"},
        "key pair": lambda: a_key_pair(web.rt, ada),
    }
    headers = ACME | sent[kind]()
    reads = []
    rows = type(web.rt.database).rows
    monkeypatch.setattr(
        type(web.rt.database), "rows", lambda self, *args, **values: reads.append(args) or rows(self, *args, **values)
    )
    with web.rt.database.without_writes(AssertionError):
        assert web.get("/verify", headers=headers).status_code == 200
    assert len(reads) <= 2


@pytest.mark.parametrize(
    ("query", "uri", "refused"),
    [
        ("tenant=optional", "/x?tenant=optional", True), ("tenant=optional", "/x?a=1,/y?tenant=optional", True),
        ("role=a&tenant=optional", "/x?role=a&tenant=optional", True), ("tenant=optional", "/x?a=1", False),
        ("tenant=optional", "/x", False), ("tenant=optional", None, False), ("", "/x?", False), ("", "/x", False),
        ("tenant=optional", "/x?tenant=optional&a=1", False),
    ],
)  # fmt: skip
def test_a_query_that_the_client_wrote_is_refused(web: Web, query: str, uri: str | None, refused: bool) -> None:
    """Caddy's `forward_auth` with `uri /verify` passes it on: the client would choose what is demanded of it."""
    token = a_token(web.rt, a_user(web.rt, roles=("a",), tenants={"acme-bank": ()}))
    headers = ACME | ({"X-Forwarded-Uri": uri} if uri else {})
    answer = web.get(f"/verify?{query}", bearer=token, headers=headers)
    if not refused:
        assert answer.status_code == 200
        return
    assert refusal(answer) == (400, "MALFORMED_REQUEST")
    assert answer.headers["X-Auth-Error"] == "MALFORMED_REQUEST"
    found = explain.get(web.rt, answer.headers["x-error-id"])
    assert "uri /verify?tenant=required" in str(found)
