"""Why was this refused? From what somebody pastes to one sentence, who else, what to tell, and the thing at fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

from identity.core.admin import causes
from identity.core.admin.why import error_id_in
from identity.errors import CATALOGUE
from identity.settings import Settings
from tests.browser import Browser
from tests.builders import a_token, a_user, an_application
from tests.forgeries import expired
from tests.world import Web

ID = "3e4c4a1f-c756-423c-aacc-b7d1ecaacd0e"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, console="on", issuer="https://auth.example")


@pytest.fixture
def browser(web: Web) -> Browser:
    found = Browser(web)
    found.sign_in(a_user(web.rt, alias="boss", roles=("users_admin",)))
    return found


def paste(browser: Browser, text: str) -> str:
    browser.open("/console/why")
    browser.send("Explain", {"pasted": text})
    return browser.text


def test_a_whole_pasted_response_is_explained(web: Web, browser: Browser) -> None:
    feed = an_application(web.rt, name="feed")
    wrong = {"clientId": feed.client_id, "secret": feed.secret[:-1] + ("x" if feed.secret[-1] != "x" else "y")}
    answers = [web.post("/application/token", wrong) for _ in range(3)]
    head = "\r\n".join(f"{name}: {value}" for name, value in answers[0].headers)
    told = paste(browser, f"HTTP/1.1 401 UNAUTHORIZED\r\n{head}\r\n\r\n{answers[0].text}")
    assert browser.page.status_code == 200
    assert "The secret that was sent is cut short, mistyped or another kind of credential." in told
    assert "POST /application/token answered 401 INVALID_CREDENTIALS" in told
    assert f"Expected secret: {feed.secret_id}" in told
    assert "3 refusals by this check" in told
    assert "copy it again" in told
    assert "2 more in the hour around it" in told
    assert feed.secret not in browser.page.text
    # The same in one document, for the command line and for programs.
    boss = a_token(web.rt, a_user(web.rt, roles=("users_admin",)))
    document = web.get(f"/admin/error/{answers[0].headers['x-error-id']}", bearer=boss).json
    assert document["cause"] == "The secret that was sent is cut short, mistyped or another kind of credential."
    assert document["evidence"]["client"] == feed.client_id
    assert "copy it again" in document["advice"]


def test_the_user_at_fault_is_one_link_away(web: Web, browser: Browser) -> None:
    ada = a_user(web.rt, alias="ada")
    refused = web.post("/user/token", {"email": "ada", "password": "wrong"})
    told = paste(browser, refused.headers["x-error-id"])
    assert "The password was wrong." in told
    assert "Open the user ada" in told
    assert f'href="/console/user/{ada.id}"' in browser.page.text


def test_a_pasted_token_is_judged_and_not_shown_again(web: Web, browser: Browser) -> None:
    ada = a_user(web.rt, alias="ada")
    token = a_token(web.rt, ada)
    told = paste(browser, f"Authorization: Bearer {token}")
    assert "This token is good now." in told
    assert "Whose ada" in told
    dead = expired(web.rt, token, forged=False)
    told = paste(browser, dead)
    assert "The token was genuine, and past its time." in told
    assert "What it says (not proven)" in told
    for text in (token, dead):
        assert text not in browser.page.text
        assert text.split(".")[2] not in browser.page.text
    assert "no header of ours" in paste(browser, "x" * 40 + ".yyy.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("idr_" + "0" * 33, "a refresh token"),
        ("client_secret=idc_" + "0" * 33, "a client secret"),
        ("idk_" + "0" * 33, "the api-key of a key pair"),
    ],
)
def test_another_credential_is_called_by_its_name(browser: Browser, text: str, words: str) -> None:
    assert words in paste(browser, text)
    assert text not in browser.page.text


def test_what_explains_nothing_keeps_the_form_and_says_so(browser: Browser) -> None:
    assert "There is no x-error-id and no token in this" in paste(browser, "it does not work <script>")
    assert browser.page.status_code == 422
    assert "No refusal has this id" in paste(browser, ID)
    assert browser.page.status_code == 404
    assert browser.form("Explain")


def test_an_id_is_found_in_whatever_surrounds_it() -> None:
    for text in (
        ID,
        f"  {ID.upper()}\n",
        f"x-error-id: {ID}",
        f"< X-Error-Id: {ID}\r\n< x-request-id: 00000000-0000-4000-8000-000000000000",
        f"X-Request-Id: 00000000-0000-4000-8000-000000000000\nx-error-id: {ID}",
        f'{{"x-error-id": "{ID}"}}',
    ):
        assert error_id_in(text) == ID, text
    assert error_id_in("no id, 3e4c4a1f") is None


def test_refusals_are_counted_by_check_and_hour(web: Web) -> None:
    for _ in range(4):
        web.get("/verify", bearer="x.y.z")
    web.clock.tick(3_700)
    for _ in range(2):
        web.get("/verify", bearer="x.y.z")
    boss = a_token(web.rt, a_user(web.rt, roles=("users_admin",)))
    told = web.get("/admin/errors/counts", bearer=boss).json
    (mine,) = [one for one in told["checks"] if one["error"] == "INVALID_TOKEN"]
    assert (mine["count"], mine["addresses"], mine["caller"]) == (2, 1, None)
    day = web.get("/admin/errors/counts?since=0&error=INVALID_TOKEN", bearer=boss).json
    assert [one["count"] for one in day["hours"]] == [2, 4]
    listed = web.get("/admin/errors", bearer=boss, query_string={"check": mine["check"], "limit": 3}).json
    assert (listed["items"], len(listed["errors"])) == (6, 3)
    browser = Browser(web)
    browser.sign_in(a_user(web.rt, roles=("users_admin",)), path="/console/why?period=24h")
    assert "INVALID_TOKEN" in browser.text
    assert " 6 " in browser.text


def test_the_box_finds_whatever_is_named(web: Web, browser: Browser) -> None:
    ada = a_user(web.rt, alias="ada")
    refused = web.post("/user/token", {"email": "ada", "password": "wrong"})
    for text, place in (
        ("ada", f"/console/user/{ada.id}"),
        (ada.email, f"/console/user/{ada.id}"),
        (ada.id, f"/console/user/{ada.id}"),
        (refused.headers["x-error-id"], f"/console/why/{refused.headers['x-error-id']}"),
        ("ad", "/console/users"),
        ("<nobody>", "/console/users"),
    ):
        browser.open("/console/users")
        browser.send("Find", {"q": text})
        assert browser.at == place, text


def test_an_owner_explains_nothing(web: Web) -> None:
    owner = Browser(web)
    owner.sign_in(a_user(web.rt, tenants={"acme-bank": ("owner",)}))
    for path in ("/console/why", f"/console/why/{ID}", "/console/refusals", "/console/users/new"):
        assert owner.open(path).status_code == 404, path
    assert "Why refused?" not in owner.text


def test_every_error_of_the_catalogue_has_a_sentence() -> None:
    for problem, _ in CATALOGUE:
        cause = causes.cause_of(problem.code, "something that no line knows", problem.message)
        assert cause.sentence.endswith(".")
        assert cause.tell.endswith(".")
