"""Invitations from the mail to the membership: as JSON and by the page, for people who exist and people who do not."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from sqlalchemy import func, select

from identity.core.admin import invitations, tenants, users
from identity.core.admin.by import By
from identity.core.people import accounts, addresses
from identity.core.people.accounts import Email, User
from identity.core.people.invitations import Invitation
from identity.core.people.ownership import ANYONE
from identity.core.people.tenancy import Membership
from identity.core.record import audit
from identity.paging import Part
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import PASSWORD, Person, a_session, a_tenant, a_token, a_user, an_authenticator
from tests.world import ORIGIN, Web

LINK = re.compile(r"/invitation/(idi_\w+)")
RESET = re.compile(r"/password-reset/(idp_\w+)")
NEW = {"fullName": "Grace Hopper", "alias": "grace", "password": "a long enough passphrase"}
BROWSER = {"Accept": "text/html"}


@pytest.fixture
def olga(web: Web) -> Person:
    """The owner of acme-bank."""
    a_tenant(web.rt, "acme-bank", name="Acme Bank")
    return a_user(web.rt, alias="olga", full_name="Olga Owner", tenants={"acme-bank": ("owner",)})


def invite(web: Web, olga: Person, email: str = "grace@acme.example", **options: object) -> str:
    """Invite, and return the token of the mailed link."""
    web.clock.tick()  # Mails of one moment have no order.
    by = By(olga.id, ORIGIN).within("acme-bank")
    invitations.invite(web.rt, by, email=email, roles=["analyst"], **options)
    return token_in(web)


def token_in(web: Web, pattern: re.Pattern[str] = LINK) -> str:
    found = pattern.search(web.mails()[-1].get_body(("plain",)).get_content().replace("=\n", ""))
    assert found
    return found[1]


def roles_of(rt: Runtime, user_id: str) -> tuple[str, ...] | None:
    with rt.database.reading() as session:
        row = session.get(Membership, (user_id, "acme-bank"))
        return row.roles if row else None


def test_a_new_person_is_invited_and_belongs(web: Web, olga: Person) -> None:
    owner = {"Authorization": f"Bearer {a_token(web.rt, olga)}", "X-Tenant-Id": "acme-bank"}
    made = web.post("/tenant/invitations", {"email": "Grace@ACME.example", "roles": ["analyst"]}, headers=owner)
    assert made.status_code == 202
    assert (made.json["email"], made.json["state"], made.json["invitedBy"]) == (
        "grace@acme.example",
        "pending",
        olga.id,
    )
    assert made.json["expireAt"] - made.json["createdAt"] == 7 * 86_400
    mail = web.mails()[-1]
    plain, html = (mail.get_body((kind,)).get_content() for kind in ("plain", "html"))
    assert str(mail["Subject"]) == "Olga Owner invites you to Acme Bank at 127.0.0.1:8000"
    assert "Olga Owner invites you to Acme Bank" in plain
    assert LINK.search(html)
    token = token_in(web)
    answer = web.put("/invitation", {"token": token, **NEW})
    assert answer.status_code == 202, answer.json
    user = accounts.find_by_identifier(web.rt, "grace@acme.example")
    assert user is not None
    assert answer.json == {"userID": user.id, "tenant": "acme-bank", "roles": ["analyst"]}
    assert (user.verified, user.full_name) == (True, "Grace Hopper")
    assert web.post("/user/token", {"email": "grace", "password": NEW["password"]}).status_code == 200
    assert web.get("/tenant/invitations", headers=owner).json["items"] == 0
    assert web.put("/invitation", {"token": token, **NEW, "alias": "grace2"}).status_code == 401, "once"
    assert {one.action for one in audit.search(web.rt, tenant="acme-bank")} >= {
        "invitation.sent",
        "invitation.accepted",
    }


def test_inviting_says_and_writes_the_same_for_an_address_that_somebody_has(web: Web, olga: Person) -> None:
    ada = a_user(web.rt)
    owner = {"Authorization": f"Bearer {a_token(web.rt, olga)}", "X-Tenant-Id": "acme-bank"}
    known, unknown = (
        web.post("/tenant/invitations", {"email": email, "roles": ["analyst"]}, headers=owner).json
        for email in (ada.email, "nobody@acme.example")
    )
    differing = {"invitationID", "email", "createdAt", "expireAt"}
    assert {name: known[name] for name in known.keys() - differing} == {
        name: unknown[name] for name in unknown.keys() - differing
    }


def test_somebody_who_has_an_account_accepts_with_their_bearer(web: Web, olga: Person) -> None:
    ada = a_user(web.rt, email="grace@acme.example", tenants={"globex": ("auditor",)})
    token = invite(web, olga)
    bearer = a_token(web.rt, ada)
    assert web.put("/invitation", {"token": token}).status_code == 403, "nobody is signed in"
    for extra in ({"fullName": "X"}, {"alias": "xyz"}, {"password": PASSWORD}):
        assert web.put("/invitation", {"token": token, **extra}, bearer=bearer).json["error"] == "VALIDATION_ERROR"
    answer = web.put("/invitation", {"token": token}, bearer=bearer)
    assert (answer.status_code, answer.json["roles"]) == (202, ["analyst"])
    assert web.get("/verify?role=analyst", bearer=bearer, headers={"X-Tenant-Id": "acme-bank"}).status_code == 200


def test_another_users_session_is_refused_and_uses_nothing_up(web: Web, olga: Person) -> None:
    ada, mallory = a_user(web.rt, email="grace@acme.example"), a_user(web.rt)
    token = invite(web, olga)
    refused = web.put("/invitation", {"token": token}, bearer=a_token(web.rt, mallory))
    assert (refused.status_code, refused.json["message"]) == (403, "This invitation is for another address")
    assert roles_of(web.rt, mallory.id) is None
    assert web.put("/invitation", {"token": token}, bearer=a_token(web.rt, ada)).status_code == 202


def test_a_new_persons_link_is_not_another_users(web: Web, olga: Person) -> None:
    mallory = a_user(web.rt)
    token = invite(web, olga)
    assert web.put("/invitation", {"token": token}, bearer=a_token(web.rt, mallory)).status_code == 403
    assert web.put("/invitation", {"token": token, **NEW}).status_code == 202


def test_an_address_that_is_theirs_no_more_is_refused(web: Web, olga: Person) -> None:
    ada = a_user(web.rt, email="grace@acme.example")
    token = invite(web, olga)
    with web.rt.unit(ORIGIN) as unit:
        addresses.add(web.rt, unit, ada.id, "other@acme.example", actor=ada.id)
        addresses.mark_proven(web.rt, unit, ada.id, "other@acme.example", actor=ada.id)
        email_id = unit.session.scalars(select(Email.id).where(Email.address == "grace@acme.example")).one()
        addresses.remove(web.rt, unit, email_id, actor=ada.id, of=ANYONE)
    assert web.put("/invitation", {"token": token}, bearer=a_token(web.rt, ada)).status_code == 403
    assert roles_of(web.rt, ada.id) is None


def test_a_key_pair_and_its_token_accept_nothing(web: Web, olga: Person) -> None:
    ada = a_user(web.rt, email="grace@acme.example")
    token = invite(web, olga)
    by_key = a_session(web.rt, ada, amr=("key",)).bearer
    assert by_key is not None
    assert web.put("/invitation", {"token": token}, bearer=by_key.reveal()).status_code == 403


def test_a_link_that_is_over_is_refused_whatever_ended_it(web: Web, olga: Person) -> None:
    by = By(olga.id, ORIGIN).within("acme-bank")

    def is_good(token: str) -> bool:
        return web.get(f"/invitation/{token}").status_code == 200

    first = invite(web, olga)
    assert is_good(first)
    second = invite(web, olga)
    assert (is_good(first), is_good(second)) == (False, True), "the same address again"
    info = invitations.listing(web.rt, by, Part()).items[0]
    invitations.resend(web.rt, by, info.id)
    web.clock.tick()
    third = token_in(web)
    assert (is_good(second), is_good(third)) == (False, True), "sent again"
    tenants.set_tenant_enabled(web.rt, By("boss", ORIGIN), "acme-bank", enabled=False)
    assert not is_good(third), "the tenant is disabled"
    tenants.set_tenant_enabled(web.rt, By("boss", ORIGIN), "acme-bank", enabled=True)
    assert is_good(third)
    invitations.withdraw(web.rt, by, info.id)
    assert not is_good(third), "withdrawn"
    fourth = invite(web, olga, email="late@acme.example", expires_in=60)
    web.clock.tick(59)
    assert is_good(fourth)
    web.clock.tick(1)
    assert not is_good(fourth), "expired"


def test_who_only_looks_uses_nothing_up(web: Web, olga: Person) -> None:
    token = invite(web, olga)
    for method in ("GET", "HEAD", "GET"):
        assert web.call(method, f"/invitation/{token}").status_code in (200, 405)
    assert web.put("/invitation", {"token": token, **NEW}).status_code == 202


def test_wrong_links_are_failures_of_the_clients_address(web: Web, olga: Person) -> None:
    token = invite(web, olga)
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    for _ in range(100):
        assert web.put("/invitation", {"token": wrong}).status_code == 401
    assert web.put("/invitation", {"token": token, **NEW}).status_code == 429
    assert web.get(f"/invitation/{token}").status_code == 429
    web.clock.tick(300)
    assert web.put("/invitation", {"token": token, **NEW}).status_code == 202


def test_a_refusal_leaves_the_invitation_as_it_was(web: Web, olga: Person) -> None:
    token = invite(web, olga)
    for body in ({**NEW, "alias": "olga"}, {**NEW, "password": "short"}, {**NEW, "alias": "?"}, {"alias": "grace"}):
        assert web.put("/invitation", {"token": token, **body}).status_code in (409, 422), body
    assert web.put("/invitation", {"token": token, **NEW}).status_code == 202


def test_an_address_is_not_flooded_with_invitations(web: Web, olga: Person) -> None:
    owner = {"Authorization": f"Bearer {a_token(web.rt, olga)}", "X-Tenant-Id": "acme-bank"}
    body = {"email": "grace@acme.example", "roles": ["analyst"]}
    made = web.post("/tenant/invitations", body, headers=owner).json
    for _ in range(4):
        web.clock.tick()
        assert web.post(f"/tenant/invitation/{made['invitationID']}/resend", headers=owner).status_code == 202
    for refused in (
        web.post("/tenant/invitations", body, headers=owner),
        web.post(f"/tenant/invitation/{made['invitationID']}/resend", headers=owner),
    ):
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "596")
    assert web.post("/tenant/invitations", body | {"email": "other@acme.example"}, headers=owner).status_code == 202
    web.clock.tick(596)
    assert web.post("/tenant/invitations", body, headers=owner).status_code == 202


def test_one_host_of_many_addresses_floods_nobody(web: Web, olga: Person) -> None:
    owner = {"Authorization": f"Bearer {a_token(web.rt, olga)}", "X-Tenant-Id": "acme-bank"}
    body = {"email": "grace@acme.example", "roles": ["analyst"]}
    seen = []
    for host in (*range(1, 7), 0x10000000000000000):  # The last one is in another /64.
        web.clock.tick()
        address = str(IPv6Address((0x20010DB8 << 96) + host))
        answer = web.post("/tenant/invitations", body, headers=owner, environ_base={"REMOTE_ADDR": address})
        seen.append(answer.status_code)
    assert seen == [202] * 5 + [429, 202]


def test_fifty_acceptances_at_once_make_one_membership(web: Web, olga: Person) -> None:
    token = invite(web, olga)

    def accept(number: int) -> int:
        return web.put("/invitation", {"token": token, **NEW, "alias": f"grace{number}"}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(accept, range(50)))
    assert sorted(set(statuses)) == [202, 401]
    assert statuses.count(202) == 1
    with web.rt.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(User).where(User.alias.like("grace%"))) == 1
        assert session.scalar(select(func.count()).select_from(Membership)) == 2


def test_a_member_keeps_what_they_have(web: Web, olga: Person) -> None:
    token = invite(web, olga, email=olga.email)
    assert web.put("/invitation", {"token": token}, bearer=a_token(web.rt, olga)).json["roles"] == ["analyst", "owner"]


def test_who_is_erased_is_invited_no_more(web: Web, olga: Person) -> None:
    ada = a_user(web.rt, email="grace@acme.example")
    invite(web, olga)
    users.erase_user(web.rt, By("boss", ORIGIN), ada.id)
    with web.rt.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Invitation)) == 0


# The pages.


def form(web: Web, path: str, **fields: str) -> object:
    return web.call("POST", path, data=fields, headers=BROWSER)


def test_a_new_person_accepts_on_the_page(web: Web, olga: Person) -> None:
    path = f"/invitation/{invite(web, olga)}"
    shown = web.get(path, headers=BROWSER)
    assert (shown.status_code, shown.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "Olga Owner invites you to Acme Bank" in shown.text
    assert "grace@acme.example" in shown.text
    assert shown.headers["Content-Security-Policy"] == (
        "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    assert shown.headers["Referrer-Policy"] == "no-referrer"
    assert shown.headers["Cache-Control"] == "no-store"
    assert "<script" not in shown.text
    again = form(web, path, deed="accept", **{**NEW, "password": "short", "fullName": "<b>Grace</b>"})
    assert again.status_code == 422
    assert "&lt;b&gt;Grace&lt;/b&gt;" in again.text, "what was typed is kept, escaped"
    assert 'aria-invalid="true"' in again.text
    assert "short" not in re.findall(r'value="([^"]*)"', again.text)
    assert again.headers["x-error-id"]
    done = form(web, path, deed="accept", **NEW)
    assert (done.status_code, "You belong to Acme Bank now" in done.text) == (200, True)
    over = web.get(path, headers=BROWSER)
    assert (over.status_code, over.headers["Content-Type"]) == (401, "text/html; charset=utf-8")
    assert "no longer valid" in over.text


def test_whoever_has_an_account_signs_in_on_the_page_with_all_their_factors(web: Web, olga: Person) -> None:
    ada = a_user(web.rt, email="grace@acme.example")
    authenticator = an_authenticator(web.rt, ada)
    web.clock.tick(30)
    path = f"/invitation/{invite(web, olga)}"
    assert "Sign in to accept" in web.get(path).text
    assert form(web, path, deed="accept", password="wrong one").status_code == 401
    missing = form(web, path, deed="accept", password=PASSWORD)
    assert (missing.status_code, "second factor" in missing.text) == (401, True)
    assert form(web, path, deed="accept", password=PASSWORD, code="000000").status_code == 401
    assert roles_of(web.rt, ada.id) is None
    done = form(web, path, deed="accept", password=PASSWORD, code=authenticator.at(web.clock.now()))
    assert done.status_code == 200, done.text
    assert roles_of(web.rt, ada.id) == ("analyst",)


def test_wrong_passwords_on_the_page_lock_the_account_like_everywhere(web: Web, olga: Person) -> None:
    ada = a_user(web.rt, email="grace@acme.example")
    path = f"/invitation/{invite(web, olga)}"
    for _ in range(5):
        assert form(web, path, deed="accept", password="wrong one").status_code == 401
    assert form(web, path, deed="accept", password=PASSWORD).status_code == 429
    assert web.post("/user/token", {"email": ada.email, "password": PASSWORD}).status_code == 429


def test_who_never_chose_a_password_gets_a_link_to_choose_one(web: Web, olga: Person) -> None:
    ada = a_user(web.rt, email="grace@acme.example", password=None)
    path = f"/invitation/{invite(web, olga)}"
    web.clock.tick()
    assert "on its way" in form(web, path, deed="mail").text
    token = token_in(web, RESET)
    shown = web.get(f"/password-reset/{token}")
    assert (shown.status_code, shown.headers["Referrer-Policy"]) == (200, "no-referrer")
    weak = form(web, f"/password-reset/{token}", password="short")
    assert (weak.status_code, 'aria-invalid="true"' in weak.text) == (422, True)
    assert form(web, f"/password-reset/{token}", password="a long enough passphrase").status_code == 200
    assert web.get(f"/password-reset/{token}").status_code == 401, "once"
    assert form(web, f"/password-reset/{token}", password="another long passphrase").status_code == 401
    assert form(web, path, deed="accept", password="a long enough passphrase").status_code == 200
    assert roles_of(web.rt, ada.id) == ("analyst",)


def test_looking_at_a_reset_link_costs_it_no_try_and_a_wrong_one_counts(web: Web) -> None:
    ada = a_user(web.rt)
    web.post("/auth/password/forgot", {"email": ada.email})
    token = token_in(web, RESET)
    for _ in range(10):
        assert web.get(f"/password-reset/{token}").status_code == 200
    assert web.get("/password-reset/nonsense").status_code == 401
    assert form(web, f"/password-reset/{token}", password="a long enough passphrase").status_code == 200


class TestAccounts:
    """`POST /admin/user {notify: true}`: an account that waits for its first password."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return replace(settings, name="Acme ID", logo_url="https://acme.example/logo.png")

    def invited(self, web: Web) -> str:
        boss = a_token(web.rt, a_user(web.rt, roles=("users_admin",)))
        a_tenant(web.rt, "acme-bank")
        body = {"email": "grace@acme.example", "fullName": "Grace Hopper", "alias": "grace", "notify": True}
        assert web.post("/admin/user", body | {"tenants": {"acme-bank": ["lead"]}}, bearer=boss).status_code == 202
        return token_in(web)

    def test_it_is_opened_by_the_link_and_the_mail_has_name_and_logo(self, web: Web) -> None:
        token = self.invited(web)
        mail = web.mails()[-1]
        assert str(mail["Subject"]) == "An account for you at Acme ID"
        assert 'src="https://acme.example/logo.png"' in mail.get_body(("html",)).get_content()
        shown = web.get(f"/invitation/{token}").text
        assert "Choose a password" in shown
        assert 'name="alias"' not in shown
        assert form(web, f"/invitation/{token}", deed="accept", password="a long enough passphrase").status_code == 200
        assert web.post("/user/token", {"email": "grace", "password": "a long enough passphrase"}).status_code == 200

    def test_as_json_only_the_password_is_asked(self, web: Web) -> None:
        token = self.invited(web)
        assert web.put("/invitation", {"token": token, **NEW}).status_code == 422
        answer = web.put("/invitation", {"token": token, "password": NEW["password"]})
        assert (answer.status_code, answer.json["tenant"], answer.json["roles"]) == (202, None, [])

    def test_a_password_chosen_otherwise_leaves_the_link_nothing_to_do(self, web: Web) -> None:
        token = self.invited(web)
        user = accounts.find_by_identifier(web.rt, "grace")
        assert user is not None
        with web.rt.unit(ORIGIN) as unit:
            accounts.set_password_hash(unit, user.id, "x")
        assert web.put("/invitation", {"token": token, "password": NEW["password"]}).status_code in (403, 422)


def test_the_front_page_is_for_browsers(web: Web) -> None:
    shown = web.get("/", headers={"Accept": "text/html,application/xhtml+xml"})
    assert (shown.status_code, 'href="/docs"' in shown.text) == (200, True)
    assert shown.headers["Referrer-Policy"] == "same-origin"
    other = web.get("/", headers={"Accept": "application/json"})
    assert (other.status_code, other.json["error"]) == (404, "NOT_FOUND")
    style = web.get("/style.css")
    assert (style.status_code, style.headers["Content-Type"]) == (200, "text/css; charset=utf-8")
    assert web.get("/style.css", headers={"If-None-Match": style.headers["ETag"]}).status_code == 304
