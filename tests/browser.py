"""A browser without script, as far as the console sees one: it keeps cookies, follows redirects, and sends forms as its pages have them."""

from __future__ import annotations

import html
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import pyotp
from werkzeug.test import TestResponse

from identity.wire import dialects
from tests.builders import Authenticator, Person
from tests.world import Web, code_in

OURS = {"Sec-Fetch-Site": "same-origin"}


def console_deeds() -> list[str]:
    """The name of every deed that a page of the console has."""
    found = set()
    for module in pkgutil.iter_modules(dialects.__path__):
        if module.name.startswith("console_"):
            found |= set(getattr(importlib.import_module(f"{dialects.__name__}.{module.name}"), "DEEDS", ()))
    return sorted(found)


@dataclass
class Form:
    """A form of a page: where it goes, and what its fields hold."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    buttons: list[str] = field(default_factory=list)


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._in_button = False
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(given.get("action", ""), given.get("method", "get")))
        elif tag == "input" and self.forms and given.get("name"):
            if given.get("type") not in ("checkbox", "radio") or "checked" in given:
                self.forms[-1].fields[given["name"]] = given.get("value", "")
        elif tag == "textarea" and self.forms:
            self.forms[-1].fields[given["name"]] = ""
        elif tag == "select" and self.forms:
            self._select = given["name"]
            self.forms[-1].fields.setdefault(self._select, "")
        elif tag == "option" and self._select and "selected" in given:
            self.forms[-1].fields[self._select] = given.get("value", "")
        elif tag == "button" and self.forms:
            self._in_button = True
            self.forms[-1].buttons.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_button = self._in_button and tag != "button"
        self._select = "" if tag == "select" else self._select

    def handle_data(self, data: str) -> None:
        if self._in_button:
            self.forms[-1].buttons[-1] += data


class Browser:
    """One person's browser."""

    def __init__(self, web: Web, *, host: str = "auth.example", **environ: str) -> None:
        self.web = web
        self.host = host
        self.environ = environ
        self.cookies: dict[str, str] = {}
        self.page: TestResponse = None  # type: ignore[assignment] -- nothing is open yet
        self.at = ""

    def open(self, path: str, **options: Any) -> TestResponse:
        """Type an address, or follow a link."""
        return self._ask("GET", path, **options)

    def send(self, button: str, fields: Mapping[str, str] | None = None, **options: Any) -> TestResponse:
        """Press the button, with this typed into its form."""
        form = self.form(button)
        assert set(fields or {}) <= set(form.fields), f"no such field: {sorted(form.fields)}"
        return self.post(form.action or self.at, form.fields | dict(fields or {}), **options)

    def post(self, path: str, fields: Mapping[str, str], **options: Any) -> TestResponse:
        """Send a form."""
        return self._ask("POST", path, data=dict(fields), content_type="application/x-www-form-urlencoded", **options)

    def form(self, button: str) -> Form:
        """The first form of the open page with this button."""
        forms = self.forms()
        found = [one for one in forms if any(label.strip().rstrip("…") == button for label in one.buttons)]
        assert found, f"no button {button!r}: {[one.buttons for one in forms]}"
        return found[0]

    def forms(self) -> list[Form]:
        """Every form of the open page."""
        parser = _Forms()
        parser.feed(self.page.text)
        return parser.forms

    @property
    def text(self) -> str:
        """The open page without its tags."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.page.text)).split())

    def _ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, follows: bool = True, **options: Any
    ) -> TestResponse:
        sent = {"Host": self.host, "Accept": "text/html", **OURS, **(headers or {})}
        sent = {name: value for name, value in sent.items() if value}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        environ = {f"environ_{name}": value for name, value in self.environ.items()}
        self.page = self.web.call(method, path, headers=sent, **options, **environ)
        self.at = path.partition("?")[0]
        for line in self.page.headers.getlist("Set-Cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies.pop(name, None)
            if value:
                self.cookies[name] = value
        if follows and self.page.status_code == 303:
            return self._ask("GET", urljoin(path, self.page.headers["Location"]))
        return self.page

    # The ways in.

    def sign_in(
        self, person: Person, authenticator: Authenticator | None = None, path: str = "/console"
    ) -> TestResponse:
        """Sign in by password and code, on the way to a page."""
        self.open(path)
        return self.answer(person, authenticator)

    def answer(self, person: Person, authenticator: Authenticator | None = None) -> TestResponse:
        """Fill in the sign-in that is on the page."""
        self.send("Go on", {"identifier": person.email, "password": person.password})
        if authenticator is not None:
            self.web.clock.tick(30)
            code = pyotp.TOTP(authenticator.seed).at(self.web.clock.now())
        else:
            code = code_in(next(mail for mail in reversed(self.web.mails()) if str(mail["To"]) == person.email))
        return self.send("Sign in", {"code": code})
