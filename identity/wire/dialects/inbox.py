"""The mails of an embedded service on a page, for whoever tries it out on their own machine.

It is there only while mail goes to files, and only for the machine itself: bound to loopback, asked from loopback, under a loopback
name, by nobody's proxy. Everywhere else nothing is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTP
from pathlib import Path
from typing import Final, NamedTuple

from markupsafe import Markup, escape

from identity.errors import NOT_FOUND, Refused
from identity.instruments.transports import mail_directory
from identity.wire import pages
from identity.wire.endpoint import HTML, Call, Dialect, Reply
from identity.wire.home import is_at_home

inbox = Dialect("I: the development inbox")

NEWEST: Final = 50
_SEARCHED: Final = 500
_CODE: Final = re.compile(r"(?<![0-9])[0-9]{6}(?![0-9])")


class Mail(NamedTuple):
    """A mail as the page shows it. `text` holds links of ours as links, and everything else as text."""

    subject: str
    to: str
    date: str
    text: Markup
    code: str


@inbox.endpoint(
    "GET", "/dev/inbox", is_page=True, ignores_body=True, produces=HTML, query=("q", "newest"), refusals=(NOT_FOUND,)
)
def show(call: Call) -> Reply:
    """The newest mails as a page, and the newest code in them; only on the machine that runs an embedded service."""
    directory = mail_directory(call.rt.settings)
    if directory is None or not is_at_home(call.rt.settings, call.request):
        raise Refused(NOT_FOUND, detail="the inbox is for the machine itself, while mail goes to files")
    wanted = " ".join(call.query.get("q", [])).strip()[:200]
    mails = [mail for mail in _newest(directory, call.rt.settings.issuer) if _fits(mail, wanted)][:NEWEST]
    newest = next((mail for mail in mails if mail.code), None) if "newest" in call.query else None
    asked = "newest" in call.query
    return pages.page(call.rt, "inbox.html", mails=mails, wanted=wanted, newest=newest, asked=asked)


def _newest(directory: Path, issuer: str) -> Iterator[Mail]:
    """The mails, newest first; names sort by time."""
    paths = sorted(directory.glob("*.eml"), reverse=True)[:_SEARCHED] if directory.is_dir() else []
    parser = BytesParser(EmailMessage, policy=SMTP)
    for path in paths:
        mail = parser.parsebytes(path.read_bytes())
        body = mail.get_body(("plain",))
        text = body.get_content() if body is not None else ""
        found = _CODE.search(text)
        yield Mail(
            str(mail["Subject"]), str(mail["To"]), str(mail["Date"]), _linked(text, issuer), found[0] if found else ""
        )


def _linked(text: str, issuer: str) -> Markup:
    """The text with links of ours to follow: nothing that a mail quotes leads anywhere else."""
    parts = re.split(rf"({re.escape(issuer)}/[\w/.-]*[\w/])", text)
    return Markup("").join(
        Markup('<a href="{}">{}</a>').format(part, part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def _fits(mail: Mail, wanted: str) -> bool:
    """Whether a mail is to this address, or has these words in it."""
    return wanted.casefold() in f"{mail.to}\n{mail.subject}\n{mail.text.unescape()}".casefold()
