"""The mails of an embedded service on a page, for whoever tries it out on their own machine.

It is there only while mail goes to files, and only for the machine itself: bound to loopback, asked from loopback, under a loopback
name, by nobody's proxy. Everywhere else nothing is there.
"""

from __future__ import annotations

from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTP
from html import escape
from pathlib import Path
from typing import Final

from identity.errors import NOT_FOUND, Refused
from identity.instruments.transports import mail_directory
from identity.wire.endpoint import Call, Dialect, Reply
from identity.wire.home import is_at_home

inbox = Dialect("I: the development inbox")

NEWEST: Final = 50
_HEADERS: Final = (
    # Nothing of a mail may run, load or leave, whatever stands in it.
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
)
_STYLE: Final = (
    "body{font:1rem/1.5 sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "article{border:1px solid #bbb;border-radius:.4rem;margin:1rem 0;padding:0 1rem}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere}small{color:#555}"
)


@inbox.endpoint(
    "GET", "/dev/inbox", is_page=True, ignores_body=True, produces="text/html; charset=utf-8", refusals=(NOT_FOUND,)
)
def show(call: Call) -> Reply:
    """The newest mails as a page; only on the machine that runs an embedded service."""
    directory = mail_directory(call.rt.settings)
    if directory is None or not is_at_home(call.rt.settings, call.request):
        raise Refused(NOT_FOUND, detail="the inbox is for the machine itself, while mail goes to files")
    page = _page([_article(mail) for mail in _newest(directory)])
    return Reply(raw=page.encode(), content_type="text/html; charset=utf-8", headers=_HEADERS)


def _newest(directory: Path) -> list[EmailMessage]:
    """The newest mails; names sort by time."""
    paths = sorted(directory.glob("*.eml"), reverse=True)[:NEWEST] if directory.is_dir() else []
    parser = BytesParser(EmailMessage, policy=SMTP)
    return [parser.parsebytes(path.read_bytes()) for path in paths]


def _article(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    text = body.get_content() if body is not None else ""
    return (
        f"<article><h2>{escape(str(mail['Subject']))}</h2>"
        f"<small>to {escape(str(mail['To']))}, {escape(str(mail['Date']))}</small><pre>{escape(text)}</pre></article>"
    )


def _page(articles: list[str]) -> str:
    shown = "\n".join(articles) or "<p>No mail yet. Ask for a session, and reload.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Inbox</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>Inbox</h1>\n{shown}\n</body></html>\n"
    )
