"""Every page that anybody may open: nothing wrong for assistive technology, nothing too wide, nothing from elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from identity.core.admin import invitations
from identity.core.admin.by import By
from identity.core.people import accounts
from identity.core.signin import new_password
from tests.builders import PASSWORD, Person, a_tenant, a_user
from tests.chromium.looking import LOOKS, Eyes, fill, picture, press, tab_to
from tests.world import ORIGIN, Live, code_in

LONG = "Wolfeschlegelsteinhausenbergerdorff" * 5
NAMES = {"script": "<script>alert(1)</script>", "long": LONG, "right-to-left": "عمر بن الخطاب"}


@dataclass(frozen=True)
class Place:
    """A page to look at, and the words by which a person knows that they are there."""

    path: str
    words: str


@pytest.fixture(scope="module")
def olga(service: Live) -> Person:
    """The owner of acme-bank."""
    a_tenant(service.rt, "acme-bank", name="Acme Bank")
    return a_user(service.rt, alias="olga", full_name="Olga Owner", tenants={"acme-bank": ("owner",)})


def invite(service: Live, owner: Person, email: str, *, tenant: str = "acme-bank") -> str:
    """The path of the page behind a mailed invitation."""
    by = By(owner.id, ORIGIN).within(tenant)
    invitations.invite(service.rt, by, email=email, roles=["analyst"])
    return link_in(service, "invitation", email)


def link_in(service: Live, kind: str, email: str) -> str:
    """The path of a page of this kind in a mail to an address, once there is one."""
    pattern = re.compile(rf"/{kind}/id[ip]_\w+")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for mail in service.mails():
            body = mail.get_body(("plain",))
            if str(mail["To"]) == email and body and (found := pattern.search(body.get_content())):
                return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no link to {kind} was mailed to {email}")


@pytest.fixture(scope="module")
def places(service: Live, olga: Person) -> Mapping[str, Place]:
    """Every page, by the name of its picture."""
    new = a_user(service.rt, email="ada@acme.example", full_name="Ada Lovelace")
    user = accounts.get(service.rt, new.id)
    with service.rt.unit(ORIGIN) as unit:
        new_password.send_reset(service.rt, unit, user, address=new.email, actor=user.id)
    grace = invite(service, olga, "grace@acme.example")
    return {
        "front": Place("/", "This service signs people and machines in"),
        "docs": Place("/docs", "Get a token"),
        "inbox": Place("/dev/inbox", "Inbox"),
        "invitation": Place(grace, "Olga Owner invites you to Acme Bank"),
        "invitation-known": Place(invite(service, olga, new.email), "This address has an account here"),
        "password-reset": Place(link_in(service, "password-reset", new.email), "Choose a new password"),
        "link-over": Place("/invitation/idi_nothing", "This does not work any more"),
    }


PAGES = ("front", "docs", "inbox", "invitation", "invitation-known", "password-reset", "link-over")


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_with_a_page(
    eyes: Eyes, service: Live, places: Mapping[str, Place], name: str, width: int, scheme: str
) -> None:
    page = eyes.open(service.url + places[name].path, width=width, scheme=scheme)
    assert places[name].words in page.inner_text("body")
    assert eyes.faults(page) == []
    if (width, scheme) in ((1280, "light"), (390, "dark")):
        picture(page, f"{name}-{'desk' if width == 1280 else 'phone'}")


@pytest.mark.parametrize("name", PAGES)
def test_at_200_percent_nothing_is_cut_off(eyes: Eyes, service: Live, places: Mapping[str, Place], name: str) -> None:
    page = eyes.open(service.url + places[name].path, zoom=2)
    assert eyes.cut_off(page) == []


@pytest.mark.parametrize("kind", NAMES)
def test_any_name_is_shown_as_it_is(eyes: Eyes, service: Live, kind: str) -> None:
    name = NAMES[kind]
    a_tenant(service.rt, f"tenant-{kind}", name=name)
    owner = a_user(service.rt, full_name=name, tenants={f"tenant-{kind}": ("owner",)})
    path = invite(service, owner, f"{kind}@acme.example", tenant=f"tenant-{kind}")
    page = eyes.open(service.url + path, width=390)
    assert name in page.inner_text("h1")
    assert eyes.faults(page) == []


def test_an_invitation_is_accepted_on_a_phone_by_keyboard(eyes: Eyes, service: Live, olga: Person) -> None:
    """What was typed stays when something is wrong with it."""
    page = eyes.open(service.url + invite(service, olga, "joan@acme.example"), width=390, scheme="dark")
    fill(page, "Your name", "Joan Clarke")
    fill(page, "A short name", "joan")
    fill(page, "A password", "short")
    press(page, "Make my account and accept")
    assert page.locator("[role=alert]").inner_text()
    assert page.input_value("#fullName") == "Joan Clarke"
    assert page.locator("[aria-invalid=true]").get_attribute("name") == "password"
    assert eyes.faults(page) == []
    picture(page, "invitation-refused-phone")
    fill(page, "A password", "a long enough passphrase")
    press(page, "Make my account and accept")
    assert "You belong to Acme Bank now" in page.inner_text("main")
    assert eyes.faults(page) == []
    assert service.post("/user/token", {"email": "joan", "password": "a long enough passphrase"}).status_code == 200


def test_somebody_known_accepts_by_keyboard(eyes: Eyes, service: Live, olga: Person) -> None:
    mary = a_user(service.rt)
    page = eyes.open(service.url + invite(service, olga, mary.email), width=390)
    fill(page, "Your password", "not it at all")
    press(page, "Sign in and accept")
    assert page.locator("[role=alert]").is_visible()
    fill(page, "Your password", PASSWORD)
    press(page, "Sign in and accept")
    assert "You belong to Acme Bank now" in page.inner_text("main")


def test_a_password_is_reset_by_keyboard(eyes: Eyes, service: Live) -> None:
    person = a_user(service.rt)
    with service.rt.unit(ORIGIN) as unit:
        user = accounts.get(service.rt, person.id)
        new_password.send_reset(service.rt, unit, user, address=person.email, actor=user.id)
    page = eyes.open(service.url + link_in(service, "password-reset", person.email), width=390)
    fill(page, "New password", "another long passphrase")
    press(page, "Save the password")
    assert "Your new password is saved" in page.inner_text("h1")
    assert (
        service.post("/user/token", {"email": person.email, "password": "another long passphrase"}).status_code == 200
    )


def test_a_route_of_the_documentation_opens_by_keyboard(eyes: Eyes, service: Live) -> None:
    page = eyes.open(service.url + "/docs", width=390)
    page.locator("details#userToken summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("details#userToken pre").first.is_visible()
    assert eyes.faults(page) == []
    picture(page, "docs-route-phone-light")


def test_the_inbox_opens_the_newest_code_by_keyboard(eyes: Eyes, service: Live) -> None:
    person = a_user(service.rt)
    service.post("/session", {"email": person.email})
    code = code_in(service.wait_for_mail(person.email))
    page = eyes.open(service.url + "/dev/inbox")
    fill(page, "To, or words in it", person.email)
    press(page, "Open the newest code")
    assert page.inner_text("output") == code
    assert eyes.faults(page) == []
    picture(page, "inbox-code-desk")


def test_the_first_tab_skips_to_the_content(eyes: Eyes, service: Live) -> None:
    page = eyes.open(service.url + "/")
    tab_to(page, "Skip to the content", most=1)
    page.keyboard.press("Enter")
    tab_to(page, "Documentation", most=1)
