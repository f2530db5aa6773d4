"""The console's overview, record, sessions and system; and what an owner sees of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update

from identity.core.admin import applications, backups, tenants, users
from identity.core.admin.by import By
from identity.core.mail.outbox import Mail, State
from identity.core.tokens import sessions
from identity.settings import Settings
from tests.browser import Browser
from tests.builders import Person, a_session, a_user, an_application
from tests.world import ORIGIN, Web

BY = By.command_line()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, console="on", issuer="https://auth.example")


@pytest.fixture
def boss(web: Web) -> Person:
    return a_user(web.rt, alias="boss", roles=("users_admin",))


@pytest.fixture
def browser(web: Web, boss: Person) -> Browser:
    found = Browser(web)
    found.sign_in(boss)
    return found


def test_the_overview_tells_what_needs_a_person_and_nothing_else(
    web: Web, browser: Browser, boss: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    rt = web.rt
    browser.open("/console")
    assert "Only boss administers the service" in browser.text
    assert "There is no backup" in browser.text
    second = a_user(rt, roles=("users_admin",))
    monkeypatch.setattr(backups, "seconds_since_last", lambda *_: 60.0)
    browser.open("/console")
    assert "Nothing needs you now." in browser.text
    # Each thing that does, and that it goes when it is dealt with.
    feed = an_application(rt, name="feed")
    applications.rotate_secret(rt, BY, feed.client_id, expires_in=86_400)
    olga = a_user(rt, tenants={"acme-bank": ("owner",)})
    users.set_enabled(rt, BY, olga.id, enabled=False)
    web.post("/auth/password/forgot", {"email": boss.email})
    web.mails()
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(Mail).values(state=State.DEAD))
    for _ in range(25):
        web.get("/verify", bearer="x.y.z")
    monkeypatch.setattr(backups, "seconds_since_last", lambda *_: 30 * 86_400.0)
    browser.open("/console")
    for words in (
        "feed ends",
        "No owner of acme-bank can sign in",
        "given up: nobody got what was in them",
        "25 refusals in an hour, INVALID_TOKEN",
        "The newest backup is old",
    ):
        assert words in browser.text, words
    assert 'href="/console/why"' in browser.page.text
    users.set_enabled(rt, BY, second.id, enabled=False)
    browser.open("/console")
    assert "Only boss administers the service" in browser.text


def test_the_record_is_read_by_names_and_by_cursor(web: Web, browser: Browser, boss: Person) -> None:
    ada = a_user(web.rt, alias="ada")
    for number in range(60):
        users.change_user(web.rt, By(boss.id, ORIGIN), ada.id, groups=(f"g{number}",))
    browser.open("/console/audit?target=ada&action=user.changed")
    assert browser.page.text.count("user.changed</td>") == 50
    assert browser.page.text.count(f'href="/console/user/{boss.id}"') >= 50
    assert ">ada</a>" in browser.page.text
    link = browser.page.text.split('rel="next"')[0].rpartition('href="')[2].partition('"')[0].replace("&amp;", "&")
    browser.open(link)
    assert browser.page.text.count("user.changed</td>") == 10
    for query, status in (
        ("action=no.such", 422),
        ("actor=nobody-here", 422),
        ("since=yesterday", 422),
        ("since=0", 200),
    ):
        assert browser.open(f"/console/audit?{query}").status_code == status, query


def test_sessions_are_listed_by_name_and_ended(web: Web, browser: Browser, boss: Person) -> None:
    ada, eve = a_user(web.rt, alias="ada", tenants={"acme-bank": ()}), a_user(web.rt, alias="eve")
    opened = [a_session(web.rt, one) for one in (ada, ada, eve)]
    browser.open("/console/sessions?user=ada")
    assert "2 living sessions" in browser.text
    browser.send("End")
    assert len(sessions.listing_of(web.rt, ada.id)) == 1
    browser.open("/console/sessions?of=acme-bank")
    browser.send("End all of these")
    assert "End every session of tenant acme-bank?" in browser.text
    browser.send("End them")
    assert sessions.listing_of(web.rt, ada.id) == []
    assert [one.id for one in sessions.listing_of(web.rt, eve.id)] == [opened[2].session.id]
    assert browser.open("/console/sessions?user=nobody-here").status_code == 422


def test_keys_are_rotated_and_mail_is_tried_again(web: Web, browser: Browser) -> None:
    browser.open("/console/system")
    assert "SQLite" in browser.text or "PostgreSQL" in browser.text
    web.rt.ring.ensure_standby()
    before = [(key.kid, key.state) for key in web.rt.ring.list()]
    browser.open("/console/system")
    browser.send("Rotate")
    assert [(key.kid, key.state) for key in web.rt.ring.list()] == before, "it asks first"
    browser.send("Rotate")
    assert "The next key signs" in browser.text
    web.post("/session", {"email": a_user(web.rt).email})
    with web.rt.unit(ORIGIN) as unit:
        waiting = update(Mail).where(Mail.state == State.PENDING)
        unit.execute(waiting.values(state=State.DEAD, last_error="550 no such box"))
    browser.open("/console/system")
    assert "550 no such box" in browser.text
    browser.send("Try all again")
    assert "It is tried again now." in browser.text
    browser.open("/console/system")
    assert "550 no such box" not in browser.text


def test_an_owner_sees_their_tenant_in_the_same_pages(web: Web) -> None:
    rt = web.rt
    olga = a_user(rt, alias="olga", tenants={"acme-bank": ("owner",), "acme-labs": ("owner",), "globex": ("analyst",)})
    ada = a_user(rt, alias="ada", tenants={"acme-bank": ("analyst",)})
    eve = a_user(rt, alias="eve", full_name="Eve Elsewhere", tenants={"globex": ("owner",)})
    feed = an_application(rt, name="feed", tenant="acme-bank")
    other = an_application(rt, name="spy", tenant="globex")
    for app in (feed, other):
        applications.rotate_secret(rt, BY, app.client_id, expires_in=86_400)
    owner = Browser(web)
    owner.sign_in(olga)
    owner.open("/console")
    assert "feed ends" in owner.text
    assert "Only olga owns acme-bank" in owner.text
    assert "spy" not in owner.text
    owner.open("/console/users")
    assert "ada" in owner.text
    assert "Elsewhere" not in owner.text
    owner.open("/console/users?tenant=acme-labs")
    assert "Members of acme-labs" in owner.text
    assert "ada" not in owner.text
    owner.open("/console/audit?tenant=acme-bank")
    assert "tenant.member-set" in owner.text
    assert "192.0.2.1" not in owner.page.text
    assert eve.id not in owner.page.text
    for path in ("/console/system", "/console/sessions", f"/console/user/{eve.id}", "/console/users?tenant=globex"):
        assert owner.open(path).status_code == 404, path
    # What owners do, in their tenant and by a recent login.
    owner.open(f"/console/user/{ada.id}?tenant=acme-bank")
    owner.send("Save the roles", {"roles": "analyst lead"})
    assert "The roles are saved" in owner.text
    assert users.describe_user(rt, ada.id).tenants == {"acme-bank": ("analyst", "lead")}
    for deed in ("disable", "erase", "logout", "roles", "edit", "reset-mfa"):
        form = owner.form("Save the roles").fields
        refused = owner.post(f"/console/user/{ada.id}", {**form, "deed": deed, "sure": "yes", "roles": "users_admin"})
        assert refused.status_code == 422, deed
        owner.open(f"/console/user/{ada.id}?tenant=acme-bank")
    assert users.describe_user(rt, ada.id).info.roles == ()
    owner.send("End the membership")
    owner.send("End the membership")
    assert users.describe_user(rt, ada.id).tenants == {}
    # A tenant that is stopped is nobody's any more.
    for tenant in ("acme-bank", "acme-labs"):
        tenants.set_tenant_enabled(rt, BY, tenant, enabled=False)
    assert owner.open("/console", follows=False).status_code == 403
