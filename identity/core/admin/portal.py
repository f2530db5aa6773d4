"""Which links an invitation may carry."""

from __future__ import annotations

from urllib.parse import urlsplit

from identity.errors import VALIDATION, Refused
from identity.runtime import Runtime


def check_portal(rt: Runtime, url: str) -> None:
    """Refuse (VALIDATION) a link that an invitation must not carry: it has to lie under one of `IDENTITY_PORTAL_URLS`.

    Origins are compared as a whole and paths by segment: `https://portal.example.evil` does not lie under `https://portal.example`,
    nor `/appendix` under `/app`.
    """
    parts = _parts(url)
    if parts is None:
        raise Refused(
            VALIDATION.saying("A portalURL is an absolute http or https URL without user information"),
            field="portalURL",
        )
    for allowed in map(_parts, rt.settings.portal_urls):
        if allowed is None or allowed[:3] != parts[:3]:
            continue
        prefix = allowed[3].rstrip("/")
        if parts[3] == prefix or parts[3].startswith(f"{prefix}/"):
            return
    raise Refused(VALIDATION.saying("That portalURL is not on the list of allowed ones"), field="portalURL")


def _parts(url: str) -> tuple[str, str, int, str] | None:
    """Scheme, host, port and path of a URL that every program reads alike; None for any other."""
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or "@" in url or len(url) > 1000:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "%" in parts.netloc:
        return None
    # A path that climbs would leave its prefix in the reader's browser; so would one that hides its dots.
    plain = parts.path.lower().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/")
    if any(segment in (".", "..") for segment in plain.split("/")):
        return None
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/") if parts.path == "/" else parts.path
