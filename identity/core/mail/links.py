"""Links in mails: to our own pages, or below a portal that whoever asked has named and that was checked."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from identity.instruments.opaque import Secret
from identity.runtime import Runtime


def link(rt: Runtime, page: str, token: Secret, *, portal_url: str = "") -> str:
    """The address of the page for whoever holds `token`: below the portal, or else below our own issuer."""
    parts = urlsplit(portal_url or rt.settings.issuer)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{page}/{token.reveal()}", fragment=""))
