"""The console as a browser meets it: over a socket, with real head fields and a real cookie."""

from __future__ import annotations

import re

import requests

from identity.core.admin import console as visiting
from identity.core.admin.by import By
from tests.builders import a_user
from tests.world import Live

OURS = {"Sec-Fetch-Site": "same-origin"}


def test_a_machine_of_its_own_gets_the_console_and_nobody_else_does(live: Live) -> None:
    boss = a_user(live.rt, roles=("users_admin",))
    path = f"/console/link/{visiting.link(live.rt, By.command_line(), boss.id)[1].reveal()}"
    if not live.rt.settings.is_embedded:
        assert live.get(path).status_code == 404, "several hosts may answer: no machine is the only one"
        return
    assert live.get(path, headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 404
    assert live.get(path, headers={"Host": "auth.example"}).status_code == 404
    shown = live.get(path)
    assert (shown.status_code, shown.headers["Cache-Control"]) == (200, "no-store")
    assert live.call("POST", path, data={"x": "y"}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    entered = live.call("POST", path, data={"x": "y"}, headers=OURS)
    assert (entered.status_code, entered.headers["Location"]) == (303, "/console")
    assert re.fullmatch(r"identity=idw_\w{33}; Path=/console; HttpOnly; SameSite=Strict", entered.headers["Set-Cookie"])
    with requests.Session() as browser:
        browser.cookies.update(entered.cookies)
        page = browser.get(f"{live.url}/console/users", timeout=30)
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
        form = re.findall(r'name="form" value="([^"]+)"', page.text)[0]
        user = f"{live.url}/console/user/{boss.id}"
        typed = {"form": form, "deed": "unlock"}
        assert browser.post(user, data=typed, timeout=30).status_code == 403, "neither Sec-Fetch-Site nor Origin"
        foreign = {"Origin": "http://evil.example"}
        assert browser.post(user, data=typed, headers=foreign, timeout=30).status_code == 403
        done = browser.post(user, data=typed, headers={"Origin": live.url}, timeout=30)
        assert (done.status_code, "Failed attempts are forgotten" in done.text) == (200, True)
        assert browser.get(f"{live.url}/auth/me", timeout=30).status_code == 401, "the cookie serves the console alone"
        assert browser.get(f"{live.url}/console/nothing", timeout=30).status_code == 404
