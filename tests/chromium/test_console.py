"""The console in a real browser: every page at both widths, light and dark, and a newcomer's whole path by Tab and Enter alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from playwright.sync_api import Page

from identity.core.admin import console as visiting
from identity.core.admin import invitations
from identity.core.admin.by import By
from identity.core.clients import keypairs
from identity.core.people import tenancy
from tests.builders import Person, a_tenant, a_user, an_application
from tests.chromium.looking import LOOKS, Eyes, fill, picture, press
from tests.world import ORIGIN, Live, code_in

LONG = "Wolfeschlegelsteinhausenbergerdorff" * 5
NAMES = {"script": "<script>alert(1)</script>", "long": LONG, "rtl": "عمر بن الخطاب"}
PAGES = {
    "sign-in": ("/console/sign-in", "Password"),
    "overview": ("/console", "Overview"),
    "why": ("/console/why", "Why was this refused?"),
    "refusals": ("/console/refusals", "wrong secret"),
    "refusal": ("/console/why/{refusal}", "What to tell"),
    "sessions": ("/console/sessions", "living session"),
    "audit": ("/console/audit", "tenant.created"),
    "system": ("/console/system", "Signing keys"),
    "users": ("/console/users", "Ada Lovelace"),
    "user": ("/console/user/{user}", "What happened"),
    "invite": ("/console/users/new", "Invite a user"),
    "you": ("/console/you", "authenticator"),
    "tenants": ("/console/tenants", "Acme Bank"),
    "tenant": ("/console/tenant/acme-bank", "Members"),
    "tenant-new": ("/console/tenants/new", "New tenant"),
    "applications": ("/console/applications", "feed"),
    "application": ("/console/application/{application}", "Rotate its secret"),
    "application-new": ("/console/applications/new", "New application"),
    "expiring": ("/console/expiring", "What ends soon"),
    "keypairs": ("/console/keypairs", "laptop"),
    "keypair": ("/console/keypair/{keypair}", "What it touched"),
    "nothing-here": ("/console/tenant/no-such-tenant", "There is nothing here"),
}
OWNERS = {
    "owner-overview": ("/console", "acme-bank"),
    "owner-audit": ("/console/audit", "Audit"),
    "owner-tenant": ("/console/tenant/acme-bank", "Members"),
    "owner-members": ("/console/users", "Members of acme-bank"),
    "owner-member": ("/console/user/{member}", "Membership"),
    "owner-applications": ("/console/applications", "Applications of acme-bank"),
}


@pytest.fixture(scope="module")
def boss(service: Live) -> Person:
    return a_user(service.rt, alias="boss", full_name="Bea Boss", email="boss@acme.example", roles=("users_admin",))


@pytest.fixture(scope="module")
def olga(service: Live) -> Person:
    a_tenant(service.rt, "acme-bank", name="Acme Bank")
    return a_user(service.rt, alias="olga", full_name="Olga Owner", tenants={"acme-bank": ("owner",)})


@pytest.fixture(scope="module")
def ids(service: Live, boss: Person, olga: Person) -> Mapping[str, str]:
    """One of everything, by what it is."""
    rt = service.rt
    ada = a_user(rt, alias="ada", email="ada@acme.example", roles=("auditor",), tenants={"acme-bank": ("analyst",)})
    feed = an_application(rt, name="feed", tenant="acme-bank", scopes=("read", "write"))
    service.post("/application/token", {"clientId": feed.client_id, "secret": feed.secret})
    wrong = {"clientId": feed.client_id, "secret": "ids_not-the-secret"}
    refused = service.post("/application/token", wrong).headers["x-error-id"]
    with rt.unit(ORIGIN) as unit:
        pair, _ = keypairs.create(rt, unit, ada.id, name="laptop", days=20, actor=boss.id, verified=True)
    invitations.invite(rt, By(olga.id, ORIGIN).within("acme-bank"), email="grace@acme.example", roles=["analyst"])
    for name in NAMES.values():
        a_user(rt, full_name=name)
        an_application(rt, name=name)
    for number, name in enumerate(NAMES.values()):
        a_tenant(rt, f"tenant-{number}", name=name)
    return {"user": ada.id, "member": ada.id, "application": feed.client_id, "keypair": pair.id, "refusal": refused}


def enter(eyes: Eyes, service: Live, person: Person, path: str, **look: object) -> Page:
    """A page of the console, for somebody who came in by a printed link."""
    link = visiting.link(service.rt, By.command_line(), person.id)[1].reveal()
    page = eyes.open(f"{service.url}/console/link/{link}", **look)
    press(page, "Sign in")
    page.goto(service.url + path)
    return page


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_nothing_is_wrong_with_any_page(
    eyes: Eyes, service: Live, boss: Person, ids: Mapping[str, str], width: int, scheme: str
) -> None:
    page = enter(eyes, service, boss, "/console", width=width, scheme=scheme)
    wrong = {}
    for name, (path, words) in PAGES.items():
        page.goto(service.url + path.format(**ids))
        assert words in page.inner_text("body"), name
        wrong[name] = eyes.faults(page)
        if (width, scheme) in ((1280, "light"), (390, "dark")):
            picture(page, f"console-{name}-{'desk' if width == 1280 else 'phone'}")
    assert not any(wrong.values()), {name: found for name, found in wrong.items() if found}


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wrong_with_an_owners_pages(
    eyes: Eyes, service: Live, olga: Person, ids: Mapping[str, str], width: int
) -> None:
    page = enter(eyes, service, olga, "/console", width=width)
    wrong = {}
    for name, (path, words) in OWNERS.items():
        page.goto(service.url + path.format(**ids))
        assert words in page.inner_text("body"), name
        wrong[name] = eyes.faults(page)
        if width == 1280:
            picture(page, f"console-{name}-desk")
    assert not any(wrong.values()), {name: found for name, found in wrong.items() if found}
    for path in (
        "/console/keypairs",
        "/console/tenants/new",
        "/console/tenant/tenant-0",
        "/console/expiring",
        "/console/system",
    ):
        page.goto(service.url + path)
        assert "There is nothing here" in page.inner_text("main"), path


def test_at_200_percent_nothing_is_cut_off(eyes: Eyes, service: Live, boss: Person, ids: Mapping[str, str]) -> None:
    page = enter(eyes, service, boss, "/console", zoom=2)
    for name, (path, _) in PAGES.items():
        page.goto(service.url + path.format(**ids))
        assert eyes.cut_off(page) == [], name


def test_a_secret_is_rotated_by_keyboard(eyes: Eyes, service: Live, boss: Person, ids: Mapping[str, str]) -> None:
    page = enter(eyes, service, boss, f"/console/application/{ids['application']}", width=390, scheme="dark")
    press(page, "Make a new secret")
    shown = page.inner_text("main")
    secret = re.findall(r"CLIENT_SECRET=(\S+)", shown)[0]
    assert eyes.faults(page) == []
    press(page, "I have copied it")
    assert page.locator("[aria-current=step] h3").inner_text() == "See who still uses the old one"
    assert eyes.faults(page) == []
    picture(page, "console-rotation-phone")
    press(page, "End the old secret")
    assert eyes.faults(page) == []
    picture(page, "console-confirm-phone")
    press(page, "End the secret")
    assert "The secret has ended" in page.inner_text("[role=status]")
    asked = {"clientId": ids["application"], "secret": secret}
    assert service.post("/application/token", asked).status_code == 200


def test_a_form_that_was_sent_too_late_keeps_what_was_typed(
    eyes: Eyes, service: Live, boss: Person, ids: Mapping[str, str]
) -> None:
    """The session is over in the middle of a form: after signing in again, the form is sent as it was."""
    page = enter(eyes, service, boss, "/console/tenants/new")
    fill(page, "Id", "late-bank")
    fill(page, "Name", "Late Bank")
    page.context.clear_cookies()
    press(page, "Make the tenant")
    assert eyes.faults(page) == []
    fill(page, "Address or alias", "boss")
    fill(page, "Password", boss.password)
    press(page, "Go on")
    fill(page, "Code", code_in(service.wait_for_mail("boss@acme.example")))
    press(page, "Sign in")
    press(page, "Go on")
    assert tenancy.describe(service.rt, "late-bank").name == "Late Bank"


def test_two_administrators_on_one_tenant_see_both_states(eyes: Eyes, service: Live, boss: Person) -> None:
    a_tenant(service.rt, "shared", name="Before")
    first = enter(eyes, service, boss, "/console/tenant/shared")
    second = enter(eyes, service, boss, "/console/tenant/shared")
    for page, name in ((first, "Mine"), (second, "Theirs")):
        fill(page, "Name", name)
        press(page, "Save")
    assert "Somebody changed this tenant" in second.inner_text("main")
    assert second.inner_text("h1") == "Mine"
    assert second.locator("#name").input_value() == "Theirs"
    assert "Now: Mine" in second.inner_text("main")
    assert eyes.faults(second) == []
    picture(second, "console-conflict-desk")


def test_no_other_site_sends_a_form(eyes: Eyes, service: Live, boss: Person) -> None:
    """A page of another site, with the form's token guessed right even, in the browser of somebody who is in."""
    a_tenant(service.rt, "untouched", name="Untouched")
    page = enter(eyes, service, boss, "/console/tenant/untouched")
    form = page.locator("input[name=form]").first.get_attribute("value")
    evil = (
        f'<form method="post" action="{service.url}/console/tenant/untouched"><input name="form" value="{form}">'
        '<input name="deed" value="disable"><input name="sure" value="yes"><button>Win a prize</button></form>'
    )
    page.route("http://localhost:1/", lambda route: route.fulfill(body=evil, content_type="text/html"))
    page.goto("http://localhost:1/")
    eyes.complaints.clear()
    press(page, "Win a prize")
    # Without a cookie (SameSite=Strict) it is nobody; and where it came, another site's form is refused.
    assert tenancy.describe(service.rt, "untouched").enabled
    page.goto(f"{service.url}/console/tenant/untouched?deed=disable&sure=yes&form={form}")
    assert tenancy.describe(service.rt, "untouched").enabled
