"""The console's way in, its cookie, its forms, and who gets which page."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pyotp
import pytest

from identity.app import create_app, endpoints
from identity.core.admin import console as visiting
from identity.core.admin import users
from identity.core.admin.by import By
from identity.core.people import accounts
from identity.core.tokens import sessions
from identity.errors import Refused
from identity.settings import Settings
from identity.wire.endpoint import Reads
from tests.browser import OURS, Browser
from tests.builders import Person, a_session, a_token, a_user, an_authenticator
from tests.world import FakeClock, Mailbox, Web

PAGES = [one for one in endpoints() if one.path.startswith("/console")]


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
    assert found.at == "/console"
    return found


def link_token(web: Web, who: str | None = None) -> str:
    return visiting.link(web.rt, By.command_line(), who)[1].reveal()


def a_path(path: str, user_id: str) -> str:
    return path.replace("{id}", user_id).replace("{token}", "no-token")


# The way in.


def test_an_administrator_signs_in_by_password_and_code(web: Web, boss: Person) -> None:
    browser = Browser(web)
    browser.open("/console/users?q=bo")
    assert browser.at == "/console/sign-in"
    browser.send("Go on", {"identifier": "boss", "password": boss.password})
    assert not browser.cookies, "a password alone opens nothing"
    shown = browser.send("Sign in", {"code": web.last_code()})
    assert shown.status_code == 200
    assert browser.page.request.full_path == "/console/users?q=bo"
    assert "Bea Boss" in browser.text


def test_the_second_factor_is_asked_whatever_the_settings_say(web: Web, boss: Person) -> None:
    web.rt.settings = replace(web.rt.settings, second_factor="enrolled")
    browser = Browser(web)
    browser.open("/console/sign-in")
    browser.send("Go on", {"identifier": boss.email, "password": boss.password})
    assert not browser.cookies
    assert browser.form("Sign in").fields["factor"] == "mail"


def test_an_authenticator_or_a_recovery_code_is_the_second_factor(web: Web, boss: Person) -> None:
    app = an_authenticator(web.rt, boss)
    browser = Browser(web)
    browser.sign_in(boss, app)
    assert browser.at == "/console"
    other = Browser(web)
    other.open("/console/sign-in")
    other.send("Go on", {"identifier": boss.email, "password": boss.password})
    wrong = other.send("Sign in", {"code": "000000"})
    assert (wrong.status_code, other.cookies) == (401, {})
    assert "not right or no longer valid" in other.text
    other.send("Sign in", {"code": app.recovery_codes[0]})
    assert other.at == "/console"


def test_who_administers_nothing_stays_outside(web: Web) -> None:
    browser = Browser(web)
    browser.open("/console")
    ada = a_user(web.rt, tenants={"acme-bank": ("analyst",)})
    refused = browser.send("Go on", {"identifier": ada.email, "password": ada.password})
    assert (refused.status_code, "administers nothing" in browser.text) == (403, True)
    wrong = browser.send("Go on", {"identifier": ada.email, "password": "wrong"})
    assert wrong.status_code == 401, "whether somebody administers is told only for a right password"
    assert not browser.cookies


def test_five_wrong_passwords_lock_the_console_too(web: Web, boss: Person) -> None:
    browser = Browser(web)
    browser.open("/console")
    for _ in range(5):
        browser.send("Go on", {"identifier": boss.email, "password": "wrong"})
    assert browser.send("Go on", {"identifier": boss.email, "password": boss.password}).status_code == 429


def test_rights_are_those_of_now(web: Web, browser: Browser, boss: Person) -> None:
    a_user(web.rt, roles=("users_admin",))
    by = By.command_line()
    users.withdraw_role(web.rt, by, boss.id, "users_admin")
    assert browser.open("/console/users", follows=False).status_code == 403
    users.set_enabled(web.rt, by, boss.id, enabled=False)
    browser.open("/console/users")
    assert browser.at == "/console/sign-in"


# Links.


def test_a_link_signs_in_once_and_looking_uses_nothing_up(web: Web, boss: Person) -> None:
    token = link_token(web)
    browser = Browser(web)
    for _ in range(3):
        shown = browser.open(f"/console/link/{token}")
        assert (shown.status_code, shown.headers["Referrer-Policy"]) == (200, "no-referrer")
        assert not browser.cookies
    browser.send("Sign in")
    assert browser.at == "/console"
    assert "You came in by a link" in browser.text
    assert Browser(web).open(f"/console/link/{token}").status_code == 401
    other = Browser(web)
    assert other.post(f"/console/link/{token}", {}).status_code == 401
    assert not other.cookies


def test_a_link_lasts_ten_minutes_and_dies_with_a_change_of_its_user(web: Web, boss: Person) -> None:
    token, second = link_token(web, "boss"), link_token(web, boss.email)
    web.clock.tick(599)
    assert Browser(web).open(f"/console/link/{token}").status_code == 200
    web.clock.tick(1)
    assert Browser(web).open(f"/console/link/{token}").status_code == 401
    assert second != token
    third = link_token(web)
    users.change_user(web.rt, By.command_line(), boss.id, groups=("ops",))
    assert Browser(web).post(f"/console/link/{third}", {}).status_code == 401


def test_a_link_is_for_whoever_administers_something(web: Web) -> None:
    with pytest.raises(Refused, match="no administrator|There is no"):
        visiting.link(web.rt, By.command_line(), None)
    ada = a_user(web.rt)
    with pytest.raises(Refused, match="CONFLICT"):
        visiting.link(web.rt, By.command_line(), ada.alias)
    olga = a_user(web.rt, tenants={"acme-bank": ("owner",)})
    browser = Browser(web)
    browser.open(f"/console/link/{link_token(web, olga.alias)}")
    browser.send("Sign in")
    assert "In the tenant acme-bank" in browser.text


def test_a_newcomer_sets_up_an_authenticator_and_signs_in_with_it(web: Web) -> None:
    root = a_user(web.rt, password=None, roles=("users_admin",))
    browser = Browser(web)
    browser.open(f"/console/link/{link_token(web)}")
    browser.send("Sign in")
    browser.open("/console/you")
    browser.send("Set up an authenticator")
    seed = re.findall(r"<code>([A-Z2-7]{32})</code>", browser.page.text)[0]
    wrong = browser.send("Switch it on", {"code": "000000"})
    assert (wrong.status_code, seed in wrong.text) == (401, False), "a seed is shown once"
    shown = browser.send("Switch it on", {"code": pyotp.TOTP(seed).at(web.clock.now())})
    codes = re.findall(r"<code>([a-z2-7-]{19})</code>", shown.text)
    assert len(codes) == 10
    browser.open("/console/you")
    assert seed not in browser.page.text
    assert codes[0] not in browser.page.text
    browser.send("Mail me a link")
    assert any("password-reset" in str(mail.get_body(("plain",))) for mail in web.mails())
    assert accounts.get(web.rt, root.id).has_password is False


# The cookie.


def test_the_cookie_is_the_safest_that_there_is(web: Web, boss: Person) -> None:
    browser = Browser(web)
    browser.open("/console/sign-in")
    browser.send("Go on", {"identifier": boss.email, "password": boss.password})
    answer = browser.send("Sign in", {"code": web.last_code()}, follows=False)
    line = answer.headers["Set-Cookie"]
    assert re.fullmatch(r"__Host-identity=idw_\w{33}; Path=/; Secure; HttpOnly; SameSite=Strict", line)
    out = Browser(web)
    out.cookies = dict(browser.cookies)
    browser.open("/console/users")
    gone = browser.send("Sign out", follows=False)
    assert "Max-Age=0" in gone.headers["Set-Cookie"]
    out.open("/console/users")
    assert out.at == "/console/sign-in", "the session has ended, whoever kept the cookie"


def test_its_bearer_serves_nowhere_else_and_nothing_else_serves_here(web: Web, browser: Browser, boss: Person) -> None:
    bearer = browser.cookies["__Host-identity"]
    for path in ("/auth/me", "/session", "/verify?tenant=optional", "/admin/users", "/sessions"):
        answer = web.get(path, bearer=bearer)
        assert (answer.status_code, answer.json["error"]) == (401, "INVALID_TOKEN"), path
        assert web.get(path, headers={"Cookie": f"__Host-identity={bearer}"}).status_code == 401, path
    assert web.post("/session/token", bearer=bearer).status_code == 401
    opened = a_session(web.rt, boss)
    assert opened.bearer is not None
    for other in (a_token(web.rt, boss), opened.bearer.reveal(), opened.bearer.reveal().replace("ids_", "idw_")):
        asked = Browser(web)
        asked.cookies = {"__Host-identity": other}
        asked.open("/console/users")
        assert asked.at == "/console/sign-in"
        fresh = Browser(web)
        fresh.open("/console/users", headers={"Authorization": f"Bearer {other}"})
        assert fresh.at == "/console/sign-in", "Authorization is not read"
    # Beside the cookie it is ignored, whatever it says.
    assert browser.open("/console/users", headers={"Authorization": "Bearer x"}).status_code == 200


def test_a_session_ends_idle_after_half_an_hour_and_at_last_after_eight(web: Web, browser: Browser) -> None:
    web.clock.tick(1_799)
    assert browser.open("/console/users", follows=False).status_code == 200
    web.clock.tick(1_799)
    assert browser.open("/console/users", follows=False).status_code == 200
    web.clock.tick(1_800)
    assert browser.open("/console/users", follows=False).status_code == 303
    browser.cookies.clear()
    boss = accounts.find_by_identifier(web.rt, "boss")
    assert boss is not None
    browser.sign_in(Person(boss.id, boss.email, "boss", a_user(web.rt).password))
    for _ in range(17):
        web.clock.tick(1_690)
        browser.open("/console/users", follows=False)
    assert browser.page.status_code == 200
    web.clock.tick(70)
    assert browser.open("/console/users", follows=False).status_code == 303, "8 hours"


# Forms.


def test_every_action_is_refused_from_anywhere_but_a_page_of_ours(web: Web, browser: Browser) -> None:
    ada = a_user(web.rt)
    browser.open(f"/console/user/{ada.id}")
    form = browser.form("Disable").fields
    sure = {**form, "sure": "yes"}
    before = accounts.get(web.rt, ada.id)
    forged: tuple[dict[str, str], ...] = (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": ""},
        {"Sec-Fetch-Site": "", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "", "Origin": "null"},
        {"Sec-Fetch-Site": "", "Origin": "http://auth.example"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://auth.example"},
    )
    for headers in forged:
        assert browser.post(f"/console/user/{ada.id}", sure, headers=headers).status_code == 403, headers
    other = Browser(web)
    other.sign_in(a_user(web.rt, roles=("users_admin",)))
    for token in ("", "x", other.form("Sign out").fields.get("form", "y")):
        assert browser.post(f"/console/user/{ada.id}", {**sure, "form": token}).status_code == 403
    browser.open(f"/console/user/{ada.id}?deed=disable&sure=yes")
    assert accounts.get(web.rt, ada.id) == before
    by_origin = {"Sec-Fetch-Site": "", "Origin": "https://auth.example"}
    assert browser.post(f"/console/user/{ada.id}", sure, headers=by_origin).status_code == 200
    assert not accounts.get(web.rt, ada.id).enabled


def test_every_page_asks_who_it_is_and_every_form_where_it_comes_from(web: Web, boss: Person) -> None:
    for one in PAGES:
        path = a_path(one.path, boss.id)
        stranger = Browser(web)
        if one.method == "POST":
            assert stranger.post(path, {"deed": "erase"}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        if one.reads is not Reads.COOKIE:
            continue
        if one.method == "GET":
            answer = stranger.open(path, follows=False)
            assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (303, "/console/sign-in"), path
        else:
            assert stranger.post(path, {"deed": "erase"}).status_code == 401, path
        assert "set-cookie" not in {name.lower() for name, _ in stranger.page.headers}


def test_a_form_outlives_its_session(web: Web, browser: Browser, boss: Person) -> None:
    ada = a_user(web.rt)
    browser.open(f"/console/user/{ada.id}")
    web.clock.tick(1_801)
    name = "Ada <script>alert(1)</script> \u05e2\u05d3\u05d4 & Söhne"
    refused = browser.send("Save", {"fullName": name, "groups": "ops"})
    assert refused.status_code == 401
    assert "What you typed is kept" in browser.text
    browser.answer(boss)
    assert "Go on" in browser.text
    assert name in browser.text
    browser.send("Go on: edit")
    assert browser.at == f"/console/user/{ada.id}"
    found = accounts.get(web.rt, ada.id)
    assert (found.full_name, found.groups) == (name, ("ops",))
    assert "<script>" not in browser.page.text


def test_what_cannot_be_undone_needs_a_login_of_the_last_minutes(web: Web, browser: Browser, boss: Person) -> None:
    ada = a_user(web.rt)
    for _ in range(2):
        web.clock.tick(600)
        browser.open(f"/console/user/{ada.id}")
    old = dict(browser.cookies)
    refused = browser.send("Disable")
    assert (refused.status_code, "Sign in again to go on" in browser.text) == (401, True)
    browser.answer(boss)
    browser.send("Go on: disable")
    assert "Disable" in browser.text
    assert accounts.get(web.rt, ada.id).enabled, "it still asks"
    browser.send("Disable")
    assert not accounts.get(web.rt, ada.id).enabled
    assert "every session has ended" in browser.text
    stale = Browser(web)
    stale.cookies = old
    stale.open("/console/users")
    assert stale.at == "/console/sign-in", "the login before has ended"


def test_two_administrators_who_edit_one_user_see_both_states(web: Web, browser: Browser) -> None:
    ada = a_user(web.rt, full_name="Ada")
    other = Browser(web)
    other.sign_in(a_user(web.rt, roles=("users_admin",)))
    for one in (browser, other):
        one.open(f"/console/user/{ada.id}")
    other.send("Save", {"fullName": "Ada of the other"})
    stale = browser.send("Save", {"fullName": "Ada of mine"})
    assert stale.status_code == 412
    assert "Now: Ada of the other" in browser.text
    assert browser.form("Save").fields["fullName"] == "Ada of mine"
    assert accounts.get(web.rt, ada.id).full_name == "Ada of the other"
    browser.send("Save")
    assert accounts.get(web.rt, ada.id).full_name == "Ada of mine"


# Who gets it at all.


def test_off_is_nothing_and_local_is_for_the_machine_alone(web: Web, settings: Settings) -> None:
    def asked(issuer: str = "http://127.0.0.1:8000", **sent: str) -> int:
        headers = {"Accept": "text/html", "Host": "127.0.0.1:8000", **sent}
        web.rt.settings = replace(settings, console="local", issuer=issuer)
        app = Web(create_app(runtime=web.rt), web.rt, Mailbox(), FakeClock())
        return app.get("/console/sign-in", headers=headers).status_code

    embedded = settings.is_embedded
    assert asked() == (200 if embedded else 404)
    assert asked(Host="localhost:8000") == (200 if embedded else 404)
    assert asked(Host="auth.example") == 404
    assert asked(**{"X-Forwarded-For": "127.0.0.1"}) == 404
    assert asked(issuer="https://auth.example") == 404
    web.rt.settings = replace(settings, console="off")
    off = Web(create_app(runtime=web.rt), web.rt, Mailbox(), FakeClock())
    for one in PAGES:
        assert off.call(one.method, one.path, headers=OURS).status_code == 404


def test_on_loopback_without_tls_the_cookie_has_its_other_name(web: Web, boss: Person) -> None:
    web.rt.settings = replace(web.rt.settings, issuer="http://127.0.0.1:8000")
    browser = Browser(web, host="localhost:8000")
    browser.open(f"/console/link/{link_token(web)}")
    answer = browser.send("Sign in", headers={"Sec-Fetch-Site": "", "Origin": "http://localhost:8000"}, follows=False)
    assert re.fullmatch(r"identity=idw_\w{33}; Path=/console; HttpOnly; SameSite=Strict", answer.headers["Set-Cookie"])


def test_every_page_is_bounded_by_its_head(web: Web, browser: Browser, boss: Person) -> None:
    for one in PAGES:
        if one.method != "GET":
            continue
        page = browser.open(a_path(one.path, boss.id), follows=False)
        assert page.headers["Content-Security-Policy"] == (
            "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
        ), one.path
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["X-Frame-Options"] == "DENY"
        assert "<script" not in page.text
        assert "style=" not in page.text
        assert "http://" not in page.text.replace("http://www.w3.org", "")


def test_a_return_address_is_a_page_of_the_console(web: Web, boss: Person) -> None:
    for then in (
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/docs",
        "/console/sign-out",
        "javascript:x",
        "/console/../docs",
    ):
        browser = Browser(web)
        browser.open("/console/sign-in", query_string={"then": then})
        assert browser.form("Go on").fields["then"] == "/console", then


def test_the_console_is_imported_when_it_is_opened() -> None:
    code = (
        "import sys, identity.app\n"
        "identity.app.endpoints()\n"
        "print([name for name in sys.modules if name.startswith('identity') and 'console' in name])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "['identity.wire.dialects.console']"


def test_a_session_of_the_console_is_listed_and_ended_like_any_other(web: Web, browser: Browser, boss: Person) -> None:
    (mine,) = [one for one in sessions.listing_of(web.rt, boss.id) if one.kind == "console"]
    assert web.delete(f"/session/{mine.id}", bearer=a_token(web.rt, boss)).status_code == 202
    browser.open("/console/users")
    assert browser.at == "/console/sign-in"
