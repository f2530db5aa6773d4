"""What every page of ours shares: the templates, the head fields that bound what a page may do, and how a refusal is shown.

A page needs no script and nothing from elsewhere. It is rendered with escaping always on; what a form brings is text of bounded length. A
handler that wants its form shown again with what was wrong raises `Again`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from identity.errors import RATE_LIMITED, VALIDATION, Refused
from identity.runtime import Runtime
from identity.wire.endpoint import HTML, Call, Reply, Shape

POLICY: Final = "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
_TITLES: Final = {
    401: "This does not work any more",
    403: "You may not do this",
    404: "There is nothing here",
    429: "Too many tries",
}
_templates: Final = Environment(
    loader=PackageLoader("identity.wire"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Again(Refused):
    """A refusal that shows the page with the form once more, and says what was wrong with it."""

    def __init__(self, refused: Refused, page: str) -> None:
        super().__init__(
            refused.problem,
            detail=refused.detail,
            field=refused.field,
            evidence=refused.evidence,
            retry_after_seconds=refused.retry_after_seconds,
            cause=refused,
        )
        self.page = page


def name_of(rt: Runtime) -> str:
    """What the service calls itself to people."""
    return rt.settings.name or urlsplit(rt.settings.issuer).netloc


def rendered(rt: Runtime, template: str, **values: Any) -> str:
    """A page as text; `service` and `root`, the path below which everything of ours lies, are always known."""
    root = urlsplit(rt.settings.issuer).path.rstrip("/")
    return filled(template, service=name_of(rt), root=root, **values)


def filled(template: str, **values: Any) -> str:
    """A page as text, for whoever knows `service` and `root` already."""
    return _templates.get_template(template).render(**values)


def page(rt: Runtime, template: str, *, holds_token: bool = False, **values: Any) -> Reply:
    """A page as an answer; `holds_token`: its address does, and must not travel to any other page."""
    return Reply(
        raw=rendered(rt, template, **values).encode(), content_type=HTML, headers=headers(holds_token=holds_token)
    )


def headers(*, holds_token: bool) -> tuple[tuple[str, str], ...]:
    """The head fields of every page."""
    return (
        ("Content-Security-Policy", POLICY),
        ("Referrer-Policy", "no-referrer" if holds_token else "same-origin"),
        ("X-Frame-Options", "DENY"),
    )


def text(call: Call, name: str, *, most: int = 4096) -> str:
    """The text in a field of a form; empty where it was not sent. Raises Refused(VALIDATION)."""
    value: str = call.body.get(name, "")
    if len(value) > most:
        raise Refused(VALIDATION.saying(f"The {name} needs at most {most} characters"), field=name)
    return value


@functools.cache
def style() -> bytes:
    """The one style sheet of all pages."""
    return files("identity.wire").joinpath("templates", "style.css").read_bytes()


def _shown(refused: Refused, status: int) -> str:
    """The page of a refusal that no form shows."""
    if isinstance(refused, Again):
        return refused.page
    heading = _TITLES.get(status, "That did not work")
    what = f"{refused.problem.message}."
    if refused.problem.code == RATE_LIMITED.code:
        what += " Wait a few minutes, then try again."
    values: Mapping[str, Any] = {"heading": heading, "text": what, "error_id": ""}
    return _templates.get_template("message.html").render(service="Sign-in", root="", **values)


PAGE: Final = Shape("page", 422, _shown, headers_of=lambda _refused: headers(holds_token=True), is_page=True)
