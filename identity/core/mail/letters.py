"""What the service's mails say. No transport, no database, no clock: text in, text and HTML out.

Every letter tells who asked, from where, when, and what to do if it was not the reader. Strangers choose some of the words in
it (a name, a user agent): those arrive as one short line in which no mail program finds a link, so that nobody can send their
own advertisement through us. Our own name comes from the configured issuer, never from a request.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from html import escape
from string import Template as Blank
from typing import Final
from urllib.parse import urlsplit

_WIDTH: Final = 72
_WORD_LIMIT: Final = 80
_LINK_DOT: Final = re.compile(r"\.(?=[^\W\d_])")
_ADDRESS: Final = re.compile(r"[!-~]{1,254}", re.ASCII)
_URL: Final = re.compile(r"https?://[!-~]{1,1000}", re.ASCII)


class Template(StrEnum):
    """The letters that we send; the value is what the outbox stores."""

    SESSION_CODE = "session_code"
    EMAIL_CODE = "email_code"
    KEYPAIR_CODE = "keypair_code"
    LOGIN_CODE = "login_code"
    RESET_CODE = "reset_code"
    INVITATION = "invitation"
    TENANT_INVITATION = "tenant_invitation"
    ADDRESS_IN_USE = "address_in_use"
    KEYPAIR_ADDED = "keypair_added"
    EMAIL_ADDED = "email_added"
    EMAIL_LOST = "email_lost"
    PASSWORD_CHANGED = "password_changed"
    FACTOR_CHANGED = "factor_changed"
    SESSIONS_ENDED = "sessions_ended"
    CREDENTIAL_EXPIRING = "credential_expiring"
    CREDENTIAL_CONTAINED = "credential_contained"
    DECOY_TRIED = "decoy_tried"
    TENANT_DISABLED = "tenant_disabled"
    TENANT_ENABLED = "tenant_enabled"


@dataclass(frozen=True, slots=True)
class Letter:
    """The words of one template. `$service` is always known; every other `$name` must come with the values."""

    subject: str
    opening: str
    who: str
    otherwise: str
    has_code: bool = False
    call: str = "Open the page"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A letter ready to be put into an envelope; `repr` hides what may hold a code."""

    subject: str
    text: str
    html: str

    def __repr__(self) -> str:
        return f"Rendered({self.subject!r}, ...)"


@dataclass(frozen=True, slots=True)
class _Page:
    """What both forms of a letter show, in this order."""

    subject: str
    opening: str
    code: str
    url: str
    facts: list[tuple[str, str]]
    otherwise: str
    issuer: str
    service: str
    logo: str
    call: str


_CELL: Final = "background:#ffffff;color:#1b1b1f;font:16px/1.5 Arial,sans-serif;padding:24px"
# No colour of six digits: whoever looks for a code, by eye or by machine, must find one.
_DARK: Final = (
    ":root{color-scheme:light dark}@media(prefers-color-scheme:dark){.b{background:#16171a!important}"
    ".c{background:#1f2226!important;color:#e8e6e3!important}}"
)
_SOMEBODY: Final = "somebody who gave this address"
_SIGNED_IN: Final = "somebody signed in to your account"
_IGNORE: Final = "If this was not you, you need not do anything: without the code nothing happens. Never pass the code on to anybody."
_SECURE: Final = (
    "If this was not you, somebody else can use your account: change your password, end your sessions, revoke key pairs that "
    "you do not know, and tell your administrator."
)

LETTERS: Final[Mapping[Template, Letter]] = {
    Template.SESSION_CODE: Letter(
        "Your sign-in code for $service",
        "Enter this code to sign in to $service.",
        _SOMEBODY,
        _IGNORE,
        has_code=True,
    ),
    Template.EMAIL_CODE: Letter(
        "Confirm your address for $service",
        "Enter this code to confirm that this address is yours and to add it to the account at $service.",
        _SOMEBODY,
        _IGNORE,
        has_code=True,
    ),
    Template.KEYPAIR_CODE: Letter(
        "Confirm a new key pair at $service",
        'Enter this code to switch on the new key pair "$key_name" at $service. It stays off until then.',
        _SIGNED_IN,
        "If this was not you, somebody else is signed in to your account: do not use the code, end your sessions and change your "
        "password.",
        has_code=True,
    ),
    Template.LOGIN_CODE: Letter(
        "Your second sign-in code for $service",
        "Your password was accepted. Enter this code to finish signing in to $service.",
        "somebody who knows your password",
        "If this was not you, somebody else knows your password: change it now, and never pass the code on to anybody.",
        has_code=True,
    ),
    Template.RESET_CODE: Letter(
        "Choose a new password for $service",
        "Follow the link to choose a new password for $service, or enter this code, with the verification ID below, where you are asked "
        "for it. Either works once.",
        _SOMEBODY,
        "If this was not you, you need not do anything: your password stays as it is. Never pass the code on to anybody.",
        has_code=True,
        call="Choose a password",
    ),
    Template.TENANT_INVITATION: Letter(
        "$by invites you to $tenant at $service",
        "$by invites you to $tenant at $service. Follow the link to accept: it works once, and only for this address.",
        "an administrator",
        "If you do not know what this is about, you need not do anything: nothing happens until you accept.",
        call="See the invitation",
    ),
    Template.INVITATION: Letter(
        "An account for you at $service",
        "An account was made for you at $service, under this address. Follow the link to choose your password: it works once.",
        "an administrator",
        "If you expect no such account, you need not do anything.",
        call="Choose a password",
    ),
    Template.ADDRESS_IN_USE: Letter(
        "You already have an account at $service",
        "Somebody tried to register at $service with this address, which belongs to your account already. If it was you, sign in "
        "instead.",
        _SOMEBODY,
        "If this was not you, you need not do anything: nothing was changed, and nobody was told that the account exists.",
    ),
    Template.KEYPAIR_ADDED: Letter(
        "New key pair on your account at $service",
        'The key pair "$key_name" now works for your account at $service.',
        _SIGNED_IN,
        _SECURE,
    ),
    Template.EMAIL_ADDED: Letter(
        "New address on your account at $service",
        "The address $address now belongs to your account at $service.",
        _SIGNED_IN,
        _SECURE,
    ),
    Template.EMAIL_LOST: Letter(
        "An address of your account at $service changed",
        "The address $address of your account at $service $change.",
        _SIGNED_IN,
        _SECURE,
    ),
    Template.PASSWORD_CHANGED: Letter(
        "Your password at $service was changed",
        "The password of your account at $service was changed, and your other sessions were ended.",
        _SIGNED_IN,
        "If this was not you, ask for a password reset now, and tell your administrator.",
    ),
    Template.FACTOR_CHANGED: Letter(
        "Your second factor at $service was changed",
        "The second factor of your account at $service was changed: $change.",
        _SIGNED_IN,
        _SECURE,
    ),
    Template.SESSIONS_ENDED: Letter(
        "A session of yours at $service was ended",
        "A sign-in token of your account at $service was used a second time. Somebody may have copied it, so the session that it "
        "belongs to was ended.",
        "whoever used the old token",
        _SECURE,
    ),
    Template.CREDENTIAL_EXPIRING: Letter(
        "A credential of yours at $service expires soon",
        'The credential "$key_name" of your account at $service stops working at $until. Make a new one before then.',
        "the service itself",
        "If you no longer use it, you need not do anything.",
    ),
    Template.CREDENTIAL_CONTAINED: Letter(
        "A credential of yours at $service was ended after a leak",
        "The $key_name, which you answer for at $service, may be in the wrong hands. It was ended, with everything that it had earned. "
        "Known of its use so far: $found. Make a new one for what needs it, and look for what else lay where this one was kept.",
        "an administrator",
        "If you know of no leak, ask your administrator.",
    ),
    Template.DECOY_TRIED: Letter(
        "Somebody tried a decoy of yours at $service",
        'The decoy "$key_name", which you answer for at $service, was tried $found. It proves nothing and was refused. If it was '
        "not you, somebody found it: look for what else lay where it was kept, and replace that.",
        "whoever found the decoy",
        "You hear of it again in an hour at the earliest, however often it is tried; the audit has every try.",
    ),
    Template.TENANT_DISABLED: Letter(
        "$tenant was stopped at $service",
        "The tenant $tenant, which you own, was stopped at $service. Nobody can act in it, and its applications get no tokens. "
        "Members and applications stay as they are and work again once it goes on.",
        "an administrator",
        "If you did not expect this, ask your administrator.",
    ),
    Template.TENANT_ENABLED: Letter(
        "$tenant goes on at $service",
        "The tenant $tenant, which you own, works again at $service. Its applications must ask for new tokens.",
        "an administrator",
        "If you did not expect this, ask your administrator.",
    ),
}
VALUES: Final = frozenset(
    {"account", "address", "by", "change", "code", "found", "key_name", "tenant", "until", "url", "verification_id"}
)
"""Every name that `values` may hold."""


def render(
    template: Template,
    values: Mapping[str, str | datetime],
    *,
    issuer: str,
    asked_at: datetime,
    asked_from: str = "",
    user_agent: str = "",
    service: str = "",
    logo: str = "",
) -> Rendered:
    """Write the letter. `service`: what people call us, where that is not the issuer's host.

    `values` beyond the template's own: `account` (whose), `by` (who asked, instead of the template's guess), `until` (a time),
    `url` (an absolute http or https URL that the caller has checked), `verification_id`, and `code` for letters that carry one.
    Raises ValueError for missing and unknown values: a fault of the calling code.
    """
    letter = LETTERS[template]
    unknown = values.keys() - VALUES
    if unknown or letter.has_code != ("code" in values):
        raise ValueError(
            f"{template}: unknown values {sorted(unknown)}, or a code where none belongs, or none where one does"
        )
    words = {name: _shown(name, value) for name, value in values.items()} | {
        "service": service or urlsplit(issuer).netloc
    }
    try:
        subject, opening = Blank(letter.subject).substitute(words), Blank(letter.opening).substitute(words)
    except KeyError as exc:
        raise ValueError(f"{template}: the value {exc} is missing") from exc
    facts = [
        ("Account", words.get("account", "")),
        ("Asked for by", words.get("by") or letter.who),
        ("From", one_line(asked_from)),
        ("With", one_line(user_agent)),
        ("At", _time(asked_at)),
        ("Valid until", words.get("until", "")),
        ("Verification ID", words.get("verification_id", "")),
    ]
    known = [(label, value) for label, value in facts if value]
    page = _Page(
        subject,
        _filled(opening),
        words.get("code", ""),
        words.get("url", ""),
        known,
        _filled(letter.otherwise),
        issuer,
        words["service"],
        logo,
        letter.call,
    )
    return Rendered(subject, _as_text(page), _as_html(page))


def one_line(text: str, limit: int = _WORD_LIMIT) -> str:
    """A stranger's words as one printable line of at most `limit` characters, in which no mail program finds a link."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    plain = _LINK_DOT.sub(". ", printable.replace("://", " "))
    line = " ".join(plain.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _shown(name: str, value: str | datetime) -> str:
    if isinstance(value, datetime):
        return _time(value)
    if name == "url":
        if not _URL.fullmatch(value):
            raise ValueError("a url in a mail must be an absolute http or https URL in ASCII")
        return value
    # An address must stay readable as one; it was normalised when it was stored.
    if name == "address" and _ADDRESS.fullmatch(value):
        return value
    return one_line(value)


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _as_text(page: _Page) -> str:
    blocks = [page.opening]
    blocks += [f"    {page.code}"] if page.code else []
    blocks += [page.url] if page.url else []
    blocks.append("\n".join(textwrap.fill(f"{k}: {v}", _WIDTH, subsequent_indent="  ") for k, v in page.facts))
    blocks += [page.otherwise, f"-- \n{page.issuer}"]
    return "\n\n".join(blocks) + "\n"


def _as_html(page: _Page) -> str:
    """The letter for programs that show HTML: tables and attributes, which Outlook reads too, and colours of its own in the dark."""
    cell = f'<td class="c" style="{_CELL}">'
    rows = [f"<p>{escape(page.opening)}</p>"]
    if page.code:
        rows.append(f'<p style="font-size:2em;letter-spacing:.2em"><b>{escape(page.code)}</b></p>')
    if page.url:
        url = escape(page.url)
        rows.append(
            f'<table role="presentation" cellpadding="0" cellspacing="0"><tr><td bgcolor="#0b57d0" style="padding:10px 18px">'
            f'<a href="{url}" style="color:#ffffff;text-decoration:none"><b>{escape(page.call)}</b></a></td></tr></table>'
        )
        rows.append(f'<p style="word-break:break-all"><small>{url}</small></p>')
    facts = "".join(f"{escape(label)}: {escape(value)}<br>\n" for label, value in page.facts)
    rows += [f"<p>{facts}</p>", f"<p>{escape(page.otherwise)}</p>", f"<p><small>{escape(page.issuer)}</small></p>"]
    logo = f'<img src="{escape(page.logo)}" alt="{escape(page.service)}" height="40" border="0">' if page.logo else ""
    lines = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">',
        f"<title>{escape(page.subject)}</title><style>{_DARK}</style></head>",
        '<body class="b" bgcolor="#f4f4f6" style="margin:0">',
        '<table role="presentation" width="100%" cellpadding="0" cellspacing="0"><tr><td align="center">',
        '<!--[if mso]><table role="presentation" width="560"><tr><td><![endif]-->',
        f'<table role="presentation" width="100%" style="max-width:560px" cellpadding="0" cellspacing="0"><tr>{cell}',
        *([logo] if logo else []),
        *rows,
        "</td></tr></table>",
        "<!--[if mso]></td></tr></table><![endif]-->",
        "</td></tr></table></body></html>",
    ]
    return "\n".join(lines) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH)
