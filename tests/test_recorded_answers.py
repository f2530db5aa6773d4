"""One good call of each deed of administrators and owners, in an order that works: what `/docs` shows of them is heard here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from identity.core.clients import keypairs
from identity.settings import Settings
from tests.builders import Person, a_token, a_user, an_application, an_authenticator
from tests.conftest import fresh_database
from tests.world import ORIGIN, Web, fast_settings

TRUSTED = ("https://token.actions.githubusercontent.com",)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return fast_settings(
        keys_dir=tmp_path / "keys", fixed_otp=True, trusted_issuers=TRUSTED, **fresh_database("sqlite", tmp_path)
    )


def test_each_deed_of_administrators_answers(web: Web) -> None:
    rt = web.rt
    boss = a_user(rt, alias="boss", email="boss@acme.example", roles=("users_admin",))
    ada = a_user(rt, alias="ada", email="ada@acme.example")
    an_authenticator(rt, ada)
    bearer = a_token(rt, boss)

    def ask(method: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = web.call(method, path, body, bearer=bearer, headers=headers)
        assert answer.status_code in (200, 202), f"{method} {path}: {answer.text}"
        return answer.json

    ask("POST", "/admin/tenant", {"id": "acme-bank", "name": "Acme Bank"})
    ask("PATCH", "/admin/tenant/acme-bank", {"scopes": ["read"], "attributes": {"plan": "gold"}})
    ask("POST", "/admin/role", {"name": "analyst", "description": "Reads reports"})
    ask("POST", "/admin/role", {"name": "reviewer", "description": "Reads what others wrote"})
    ask("DELETE", "/admin/role/reviewer")
    ask("POST", "/admin/mails/retry", {})
    line = json.dumps({"email": "linus@acme.example", "alias": "linus", "fullName": "Linus T.", "externalID": "7"})
    sent = {"Content-Type": "application/x-ndjson"}
    imported = web.call("POST", "/admin/users/import", bearer=bearer, headers=sent, data=line + "\n")
    assert imported.status_code == 202, imported.text
    ask("PUT", f"/admin/tenant/acme-bank/member/{ada.id}", {"roles": ["owner"]})
    for verb in ("disable", "enable"):
        ask("PUT", f"/admin/tenant/acme-bank/{verb}")
    invited = ask("POST", "/admin/tenant/acme-bank/invitations", {"email": "new@acme.example", "roles": ["analyst"]})
    invitation = f"/admin/tenant/acme-bank/invitation/{invited['invitationID']}"
    ask("POST", f"{invitation}/resend")
    ask("DELETE", invitation)
    made = ask("POST", "/admin/user", {"email": "grace@acme.example", "fullName": "Grace Hopper", "alias": "grace"})
    user = f"/admin/user/{made['userID']}"
    ask("PATCH", user, {"fullName": "Grace B. Hopper"})
    for verb in ("disable", "enable", "unverify", "verify", "unlock"):
        ask("PUT", f"{user}/{verb}")
    ask("POST", f"{user}/roles", {"role": "auditor", "newRole": True})
    ask("DELETE", f"{user}/roles/auditor")
    ask("PUT", f"{user}/access-window", {"startsAt": 1_700_000_000})
    ask("PUT", f"{user}/password-reset")
    ask("PUT", f"{user}/fixed-otp", {"otp": "fixed77otp"})
    ask("DELETE", f"{user}/fixed-otp")
    ask("DELETE", f"/admin/user/{ada.id}/mfa")
    line = '{"user": "ada", "apiKey": "sk_live_4eC39HqLyjWDarjtT1zdp7dc", "secretHash": "sha256:%s"}' % ("5a" * 32)
    taken = web.call(
        "POST",
        "/admin/keypairs/import?prefix=sk_live_",
        data=line,
        bearer=bearer,
        content_type="application/x-ndjson",
    )
    assert taken.json["created"] == 1, taken.text
    opened = ask("POST", f"/admin/user/{ada.id}/session")
    ask("PUT", f"/admin/session/{opened['sessionID']}/verify")
    ask("DELETE", f"/admin/session/{opened['sessionID']}")
    ask("DELETE", f"/admin/sessions?user={ada.id}")
    with rt.unit(ORIGIN) as unit:
        pair, _ = keypairs.create(rt, unit, ada.id, name="laptop", days=30, actor="test", verified=True)
    ask("GET", f"/admin/incident?key={pair.id}")
    ask("POST", f"/admin/keypair/{pair.id}/rotate", {"graceSeconds": 3600})
    ask("DELETE", f"/admin/keypair/{pair.id}")
    machine = ask("POST", "/admin/application", {"name": "feed", "scopes": ["read"]})
    app = f"/admin/application/{machine['clientId']}"
    ask("PATCH", app, {"name": "news"})
    second = ask("POST", f"{app}/secret", {"expiresIn": 86_400})
    ask("DELETE", f"{app}/secret/{second['secretID']}")
    ask("DELETE", app)
    ask("POST", "/admin/signing-keys/rotate")
    refused = web.get("/verify", bearer="nonsense").headers["x-error-id"]
    ask("GET", f"/admin/error/{refused}")
    ask("DELETE", f"/admin/tenant/acme-bank/member/{ada.id}")
    ask("DELETE", "/admin/tenant/acme-bank")
    ask("DELETE", user)


def test_each_deed_of_owners_answers(web: Web) -> None:
    rt = web.rt
    olga: Person = a_user(rt, alias="olga", email="olga@acme.example", tenants={"acme-bank": ("owner",)})
    ada = a_user(rt, alias="ada", email="ada@acme.example", tenants={"acme-bank": ("analyst",)})
    bearer = a_token(rt, olga)

    def ask(method: str, path: str, body: Any = None) -> Any:
        answer = web.call(method, path, body, bearer=bearer, headers={"X-Tenant-Id": "acme-bank"})
        assert answer.status_code in (200, 202), f"{method} {path}: {answer.text}"
        return answer.json

    ask("PUT", f"/tenant/member/{ada.id}", {"roles": ["analyst", "owner"]})
    ask("DELETE", f"/tenant/member/{ada.id}")
    invited = ask("POST", "/tenant/invitations", {"email": "new@acme.example", "roles": ["analyst"]})
    ask("POST", f"/tenant/invitation/{invited['invitationID']}/resend")
    ask("DELETE", f"/tenant/invitation/{invited['invitationID']}")
    machine = ask("POST", "/tenant/applications", {"name": "feed"})
    app = f"/tenant/application/{machine['clientId']}"
    ask("PATCH", app, {"name": "news"})
    second = ask("POST", f"{app}/secret", {})
    ask("DELETE", f"{app}/secret/{second['secretID']}")
    trusted = ask("POST", f"{app}/trust", {"name": "ci", "issuer": TRUSTED[0], "subject": "repo:acme/feed"})
    ask("DELETE", f"{app}/trust/{trusted['trustID']}")
    ask("DELETE", app)


def test_a_key_pair_gets_a_new_secret_and_ends_itself(web: Web) -> None:
    ada = a_user(web.rt, alias="ada", email="ada@acme.example")
    with web.rt.unit(ORIGIN) as unit:
        pair, _ = keypairs.create(web.rt, unit, ada.id, name="laptop", days=30, actor="test", verified=True)
    rotated = web.post(f"/keypair/{pair.id}/rotate", {"graceSeconds": 3600}, bearer=a_token(web.rt, ada))
    assert rotated.status_code == 202, rotated.text
    keys = {"api-key": rotated.json["apiKey"], "api-secret": rotated.json["apiSecret"]}
    assert web.delete("/keypair", headers=keys).status_code == 202


def test_a_machine_gets_inspects_and_ends_a_token(web: Web) -> None:
    feed = an_application(web.rt, scopes=("read", "introspect"))
    client = (feed.client_id, feed.secret)

    def ask(path: str, **form: str) -> Any:
        answer = web.post(path, data=form, auth=client)
        assert answer.status_code == 200, answer.text
        return answer.json

    token = ask("/oauth/token", grant_type="client_credentials", scope="read")["access_token"]
    assert ask("/oauth/introspect", token=token)["active"] is True
    ask("/oauth/revoke", token=token)
