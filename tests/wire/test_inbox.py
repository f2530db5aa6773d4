"""The development inbox: there for the machine itself, and nowhere for anybody else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from identity.app import create_app
from identity.core.mail import outbox
from identity.instruments.transports import mailer_for
from tests.builders import a_user
from tests.world import CODE, Web

AT_HOME = {"Host": "127.0.0.1:8000"}


@pytest.fixture(params=["sqlite"])
def backend(request: pytest.FixtureRequest) -> str:
    """What a page shows of a folder is the same over any database."""
    chosen: str = request.param
    return chosen


def served(web: Web, folder: Path, **changes: Any) -> Web:
    """The same service, whose mail goes to `folder` and which has other settings."""
    rt = web.rt
    rt.settings = dataclasses.replace(rt.settings, **{"mail_url": f"file:{folder}", **changes})
    if rt.settings.mail_url.startswith("file:"):
        rt.mailer = mailer_for(rt.settings)
    return Web(create_app(runtime=rt), rt, web.mailbox, web.clock)


def test_the_page_shows_the_newest_mail_first(web: Web, tmp_path: Path) -> None:
    here = served(web, tmp_path / "mail")
    assert "No mail yet" in here.get("/dev/inbox", headers=AT_HOME).text
    ada = a_user(web.rt)
    for _ in range(2):
        here.post("/session", {"email": ada.email})
        outbox.deliver_due(web.rt)
        web.clock.tick(60)
    page = here.get("/dev/inbox", headers=AT_HOME)
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert page.headers["Cache-Control"] == "no-store"
    assert page.text.count("<article>") == 2
    assert ada.email in page.text
    assert "http://" not in page.text.replace(web.rt.settings.issuer, "")


def test_a_filter_and_a_button_find_the_newest_code(web: Web, tmp_path: Path) -> None:
    here = served(web, tmp_path / "mail")
    ada, grace = a_user(web.rt), a_user(web.rt)
    for person in (ada, grace):
        here.post("/session", {"email": person.email})
        outbox.deliver_due(web.rt)
        web.clock.tick(60)
    assert here.get(f"/dev/inbox?q={ada.email.upper()}", headers=AT_HOME).text.count("<article>") == 1
    mails = sorted((tmp_path / "mail").glob("*.eml"))
    codes = [CODE.search(path.read_text().partition("\n\n")[2])[1] for path in mails]
    for query, code in (("newest=code", codes[1]), (f"newest=code&q={ada.email}", codes[0])):
        assert f"<output>{code}</output>" in here.get(f"/dev/inbox?{query}", headers=AT_HOME).text
    nothing = here.get("/dev/inbox?newest=code&q=nobody", headers=AT_HOME).text
    assert "<output>" not in nothing
    assert "no code" in nothing


def test_nothing_in_a_mail_becomes_markup(web: Web, tmp_path: Path) -> None:
    here = served(web, tmp_path / "mail")
    ada = a_user(web.rt)
    here.post("/session", {"email": ada.email}, headers={"User-Agent": "<script>alert(1)</script>"})
    outbox.deliver_due(web.rt)
    page = here.get("/dev/inbox", headers=AT_HOME).text
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_the_machine_itself_may_look_under_any_name_of_its_own(web: Web, tmp_path: Path, host: str) -> None:
    assert served(web, tmp_path).get("/dev/inbox", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("changes", "headers", "peer"),
    [
        ({}, {"Host": "rebound.evil.example"}, "127.0.0.1"),
        ({}, {"Host": "127.0.0.1.evil.example"}, "127.0.0.1"),
        ({}, {**AT_HOME, "X-Forwarded-For": "127.0.0.1"}, "127.0.0.1"),
        ({}, {**AT_HOME, "Forwarded": "for=127.0.0.1"}, "127.0.0.1"),
        ({}, AT_HOME, "192.0.2.7"),
        ({"bind": "0.0.0.0:8000"}, AT_HOME, "127.0.0.1"),
        ({"bind": "unix:/run/identity"}, AT_HOME, ""),
        ({"mail_url": "smtp://127.0.0.1"}, AT_HOME, "127.0.0.1"),
        ({"issuer": "https://auth.example"}, AT_HOME, "127.0.0.1"),
    ],
)
def test_for_anybody_else_there_is_no_inbox(
    web: Web, tmp_path: Path, changes: dict[str, Any], headers: dict[str, str], peer: str
) -> None:
    here = served(web, tmp_path, **changes)
    answer = here.get("/dev/inbox", headers=headers, environ_base={"REMOTE_ADDR": peer})
    assert (answer.status_code, answer.json["error"]) == (404, "NOT_FOUND")
