"""The console's tenants, applications and key pairs: what a page shows, what its forms do, and whose they are."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from identity.app import endpoints
from identity.core.clients import applications, keypairs, secrets
from identity.core.people import tenancy
from identity.core.people.rights import Rights
from identity.core.record import audit
from identity.runtime import Runtime
from identity.settings import Settings
from identity.wire.endpoint import Reads
from tests.browser import Browser
from tests.builders import Machine, Person, a_tenant, a_token, a_user, an_application
from tests.world import ORIGIN, Web

ACTIONS = [one for one in endpoints() if one.reads is Reads.COOKIE and one.method == "POST"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, console="on", issuer="https://auth.example")


@pytest.fixture
def boss(web: Web) -> Person:
    return a_user(web.rt, alias="boss", full_name="Bea Boss", roles=("users_admin",))


@pytest.fixture
def browser(web: Web, boss: Person) -> Browser:
    """An administrator's, signed in."""
    found = Browser(web)
    found.sign_in(boss)
    return found


@pytest.fixture
def olga(web: Web) -> Browser:
    """The browser of somebody who owns acme-bank, signed in."""
    a_tenant(web.rt, "acme-bank", name="Acme Bank")
    person = a_user(web.rt, alias="olga", full_name="Olga Owner", tenants={"acme-bank": ("owner",)})
    found = Browser(web)
    found.sign_in(person)
    return found


def token_with(web: Web, client_id: str, secret: str) -> int:
    return web.post("/application/token", {"clientId": client_id, "secret": secret}).status_code


def shown_secret(browser: Browser) -> tuple[str, str]:
    """The client id and the secret on the page that shows them once."""
    text = browser.page.text
    return re.findall(r"CLIENT_ID=(\S+)", text)[0], re.findall(r"CLIENT_SECRET=([^\s<]+)", text)[0]


# Tenants.


def test_a_tenant_is_made_found_and_its_first_owner_invited(web: Web, browser: Browser) -> None:
    browser.open("/console/tenants")
    assert "no tenant yet" in browser.text
    browser.open("/console/tenants/new")
    refused = browser.send("Make the tenant", {"id": "Not An Id", "name": "Acme Bank", "email": ""})
    assert (refused.status_code, "Acme Bank" in refused.text) == (422, True), "what was typed stays"
    browser.send("Make the tenant", {"id": "acme-bank", "name": "Acme Bank", "email": "olga@acme.example"})
    assert browser.at == "/console/tenant/acme-bank"
    assert "An invitation is on its way" in browser.text
    assert "olga@acme.example" in browser.text
    assert "nobody owns it" in browser.text
    assert any(str(mail["To"]) == "olga@acme.example" for mail in web.mails())
    browser.open("/console/tenants?q=acm")
    assert "acme-bank" in browser.text
    browser.open("/console/tenants?q=glo")
    assert "No tenant begins so" in browser.text


def test_a_tenant_is_stopped_by_one_button_and_one_confirmation(web: Web, browser: Browser) -> None:
    ada = a_user(web.rt, tenants={"acme-bank": ("analyst",)})
    bearer, within = a_token(web.rt, ada), {"X-Tenant-Id": "acme-bank"}
    assert web.get("/verify", bearer=bearer, headers=within).status_code == 200
    browser.open("/console/tenant/acme-bank")
    asked = browser.send("Disable")
    assert "Nobody acts in it" in browser.text
    assert tenancy.describe(web.rt, "acme-bank").enabled, asked.status_code
    browser.send("Disable")
    assert "The tenant is stopped" in browser.text
    assert web.get("/verify", bearer=bearer, headers=within).status_code == 403
    browser.send("Enable")
    assert tenancy.describe(web.rt, "acme-bank").enabled


def test_the_forms_of_a_tenant_change_it_and_keep_what_was_wrong(web: Web, browser: Browser) -> None:
    a_tenant(web.rt, "acme-bank", name="Acme Bank")
    browser.open("/console/tenant/acme-bank")
    wrong = browser.send("Save the policy", {"networks": "not-a-network", "tokenSeconds": "600"})
    assert (wrong.status_code, 'value="not-a-network"' in wrong.text) == (422, True)
    browser.open("/console/tenant/acme-bank")
    browser.send("Save the policy", {"networks": "192.0.2.0/24", "tokenSeconds": "600"})
    assert tenancy.describe(web.rt, "acme-bank").policy == {"networks": ["192.0.2.0/24"], "tokenSeconds": 600}
    form = next(one for one in browser.forms() if one.fields.get("deed") == "edit")
    typed = {"scopes": "read, write", "limits": "standard=500/minute", "attributes": '{"plan": "gold"}'}
    browser.post(browser.at, form.fields | typed)
    info = tenancy.describe(web.rt, "acme-bank")
    assert (info.scopes, info.limits, info.attributes) == (
        ("read", "write"),
        {"standard": "500/minute"},
        {"plan": "gold"},
    )
    stale = browser.post(browser.at, form.fields | {"name": "Another"})
    assert (stale.status_code, "Somebody changed this tenant" in browser.text) == (412, True)
    assert "Another" in stale.text


def test_members_invitations_and_roles_of_a_tenant(web: Web, browser: Browser) -> None:
    a_tenant(web.rt, "acme-bank", name="Acme Bank")
    ada = a_user(web.rt, alias="ada")
    browser.open("/console/tenant/acme-bank")
    form = next(one for one in browser.forms() if one.fields.get("deed") == "member")
    browser.post(browser.at, form.fields | {"user": "ada", "memberRoles": "owner analyst"})
    assert tenancy.memberships_of(web.rt, ada.id).all()[0].roles == ("analyst", "owner")
    assert "nobody owns it" not in browser.text
    browser.send("Invite", {"email": "grace@acme.example", "roles": "analyst"})
    assert "1 open" in browser.text
    browser.send("Send again")
    browser.send("Withdraw")
    assert "grace@acme.example" not in browser.text.partition("What happened")[0]
    browser.send("Declare", {"role": "auditor", "description": "Reads, and signs"})
    assert "Reads, and signs" in browser.text


def test_an_owner_finds_their_tenant_and_what_is_theirs_to_do(web: Web, olga: Browser) -> None:
    a_tenant(web.rt, "globex", name="Globex")
    olga.open("/console/tenants")
    assert olga.at == "/console/tenant/acme-bank"
    buttons = {label for form in olga.forms() for label in form.buttons}
    assert "Invite" in buttons
    assert buttons.isdisjoint({"Disable…", "Delete…", "Save the policy", "Declare"})
    olga.send("Invite", {"email": "grace@acme.example", "roles": "analyst"})
    assert "An invitation is on its way" in olga.text
    assert olga.open("/console/tenant/globex").status_code == 404
    olga.open("/console/tenant/acme-bank")
    form = olga.form("Invite")
    for deed in ("disable", "delete", "policy", "edit", "member", "declare"):
        refused = olga.post("/console/tenant/acme-bank", form.fields | {"deed": deed, "sure": "yes"})
        assert refused.status_code == 422, deed
    assert tenancy.describe(web.rt, "acme-bank").enabled


def test_an_owner_makes_an_application_of_their_tenant(web: Web, olga: Browser) -> None:
    other = an_application(web.rt, name="other")
    olga.open("/console/applications/new?tenant=acme-bank")
    olga.send("Make the application", {"name": "feed"})
    client_id, secret = shown_secret(olga)
    assert token_with(web, client_id, secret) == 200
    assert applications.get(web.rt, client_id).tenant == "acme-bank"
    olga.open("/console/applications?tenant=acme-bank")
    assert "feed" in olga.text
    assert "other" not in olga.text
    assert olga.open(f"/console/application/{other.client_id}?tenant=acme-bank").status_code == 404
    olga.open(f"/console/application/{client_id}?tenant=acme-bank")
    olga.send("Make a new secret", {"ends": "never"})
    assert token_with(web, *shown_secret(olga)) == 200


# Applications.


def test_an_application_is_made_and_its_secret_shown_once(web: Web, browser: Browser) -> None:
    browser.open("/console/applications")
    assert "There is none yet" not in browser.text, "GraphQL's own application is always there"
    browser.open("/console/applications/new")
    browser.send("Make the application", {"name": "<b>feed</b>", "scopes": "read", "owner": ""})
    client_id, secret = shown_secret(browser)
    assert f"-u '{client_id}:{secret}'" in browser.text
    assert token_with(web, client_id, secret) == 200
    assert browser.open(f"/console/application/{client_id}").text.count(secret) == 0
    assert "<b>feed</b>" in browser.text
    assert "<b>feed" not in browser.page.text
    browser.open("/console/applications?q=%3Cb")
    assert "<b>feed</b>" in browser.text


def test_a_secret_is_rotated_in_three_steps_on_one_page(web: Web, browser: Browser, boss: Person) -> None:
    feed = an_application(web.rt)
    path = f"/console/application/{feed.client_id}"
    assert step(browser, path) == 1
    browser.send("Make a new secret", {"ends": "never"})
    assert f"{feed.secret_id} , works until you end it" in browser.text
    client_id, secret = shown_secret(browser)
    assert token_with(web, feed.client_id, feed.secret) == token_with(web, client_id, secret) == 200
    assert step(browser, path) in (2, 3)
    web.clock.tick(86_500)
    browser.sign_in(boss)
    assert step(browser, path) == 3
    browser.send("End the old secret")
    assert "out from this moment on" in browser.text
    browser.send("End the secret")
    assert token_with(web, feed.client_id, feed.secret) == 401
    assert token_with(web, client_id, secret) == 200
    assert step(browser, path) == 1


def step(browser: Browser, path: str) -> int:
    """The step of the rotation that the page points at."""
    text = browser.open(path).text
    return re.findall(r"<li( aria-current=\"step\")?>", text).index(' aria-current="step"') + 1 - _items_before(text)


def _items_before(text: str) -> int:
    """How many list items stand before the steps: those of the navigation."""
    return len(re.findall(r"<li>", text.partition('class="steps"')[0]))


def test_a_leaked_secret_is_ended_by_one_button_and_one_confirmation(web: Web, browser: Browser) -> None:
    feed = an_application(web.rt)
    browser.open(f"/console/application/{feed.client_id}")
    browser.send("It leaked")
    assert token_with(web, feed.client_id, feed.secret) == 200
    browser.send("It leaked: end it")
    assert token_with(web, feed.client_id, feed.secret) == 401
    assert "nothing to prove itself with" in browser.text


def test_the_forms_of_an_application_change_it(web: Web, browser: Browser) -> None:
    feed = an_application(web.rt)
    browser.open(f"/console/application/{feed.client_id}")
    browser.send("Save", {"scopes": "read write", "tokenSeconds": "600", "tokenClaims": "[]"})
    assert browser.page.status_code == 422
    assert 'value="read write"' in browser.page.text
    browser.send("Save", {"tokenClaims": "", "tokensPerDay": "40"})
    info = applications.get(web.rt, feed.client_id)
    assert (info.scopes, info.token_seconds, info.tokens_per_day) == (("read", "write"), 600, 40)
    trust = {"trustName": "cluster", "issuer": "https://cluster.example", "subject": "system:serviceaccount:prod:feed"}
    browser.send("Trust it", trust)
    assert browser.page.status_code == 422, "an issuer whose keys nobody knows"
    assert "https://cluster.example" in browser.page.text
    browser.open(f"/console/application/{feed.client_id}")
    browser.send("Disable")
    browser.send("Disable")
    assert token_with(web, feed.client_id, feed.secret) == 401
    browser.send("Enable")
    browser.send("Delete")
    browser.send("Delete")
    assert browser.at == "/console/applications"
    assert applications.find(web.rt, feed.client_id) is None


def test_what_ends_soon_is_listed(web: Web, browser: Browser) -> None:
    feed = an_application(web.rt, name="feed")
    browser.open("/console/expiring")
    before = browser.text
    browser.open(f"/console/application/{feed.client_id}")
    browser.send("Make a new secret", {"ends": "week"})
    browser.open("/console/expiring?days=8")
    assert browser.text != before
    assert "in 7 days" in browser.text
    for days in ("0", "3651", "000000001999999999", "x"):
        assert browser.open(f"/console/expiring?days={days}").status_code == 422, days


# Key pairs.


def a_keypair(rt: Runtime, person: Person, **options: object) -> tuple[keypairs.KeyPairInfo, str]:
    with rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(
            rt, unit, person.id, name="laptop", days=30, actor="test", verified=True, **options
        )
    return pair, secret.reveal()


def test_a_key_pair_is_found_shown_and_ended_after_a_leak(web: Web, browser: Browser) -> None:
    ada = a_user(web.rt, alias="ada", roles=("auditor",))
    pair, secret = a_keypair(web.rt, ada, rights=Rights(("auditor",), None))
    for query in ("", "?q=lap", f"?q={pair.api_key[:9]}", "?user=ada", f"?user={ada.email}"):
        browser.open(f"/console/keypairs{query}")
        assert "laptop" in browser.text, query
    assert "laptop" not in browser.open("/console/keypairs?q=nothing").text
    page = browser.open(f"/console/keypair/{pair.id}")
    assert (page.status_code, secret in page.text, "auditor" in browser.text) == (200, False, True)
    headers = {"api-key": pair.api_key, "api-secret": secret}
    assert web.get("/verify?tenant=optional", headers=headers).status_code == 200
    browser.send("It leaked")
    browser.send("It leaked: end it")
    assert browser.at == "/console/keypairs"
    assert web.get("/verify?tenant=optional", headers=headers).status_code == 401


def test_a_key_pair_is_rotated_and_its_new_secret_shown_once(web: Web, browser: Browser, boss: Person) -> None:
    mine, old = a_keypair(web.rt, boss)
    browser.open(f"/console/keypair/{mine.id}")
    browser.send("Make a new secret", {"ends": "now"})
    new = re.findall(r"API_SECRET=([^\s<]+)", browser.page.text)[0]
    for secret, status in ((new, 200), (old, 401)):
        headers = {"api-key": mine.api_key, "api-secret": secret}
        assert web.get("/verify?tenant=optional", headers=headers).status_code == status
    assert new not in browser.open(f"/console/keypair/{mine.id}").text


# Every action.


@pytest.mark.parametrize("endpoint", ACTIONS, ids=lambda one: one.path)
def test_no_action_is_done_by_get_or_for_another_site(web: Web, browser: Browser, endpoint) -> None:  # type: ignore[no-untyped-def]
    """Nor with a form token that is missing or another's; nothing is written but the refusal."""
    feed = an_application(web.rt)
    path = re.sub(
        r"\{\w+\}", {"application": feed.client_id}.get(endpoint.path.split("/")[2], "acme-bank"), endpoint.path
    )
    a_tenant(web.rt, "acme-bank")
    browser.open("/console/you")
    form = next(one.fields["form"] for one in browser.forms() if "form" in one.fields)
    before = _events(web, feed)
    typed = {"deed": "disable", "sure": "yes", "id": "made-by-another-site", "name": "x"}
    for fields, headers in (
        ({"form": form}, {"Sec-Fetch-Site": "cross-site"}),
        ({"form": form}, {"Sec-Fetch-Site": "same-site"}),
        ({"form": form}, {"Sec-Fetch-Site": "", "Origin": "https://evil.example"}),
        ({}, {}),
        ({"form": "x" * len(form)}, {}),
    ):
        assert browser.post(path, typed | fields, headers=headers).status_code == 403
    browser.open(path + "?deed=disable&sure=yes&form=" + form)
    assert _events(web, feed) == before
    assert tenancy.describe(web.rt, "acme-bank").enabled
    assert secrets.secrets_of(web.rt, feed.client_id)


def _events(web: Web, feed: Machine) -> list[str]:
    return [one.action for one in audit.search(web.rt) if one.target in (feed.client_id, "acme-bank")]
