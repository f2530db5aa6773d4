"""Whether a request comes from the machine itself: for what only whoever sits there may see."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from identity.settings import Settings
from identity.wire.endpoint import Request

_FORWARDING: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def has_console(settings: Settings, request: Request) -> bool:
    """Whether the console is there for whoever is asking."""
    return settings.console == "on" or (
        settings.console == "local" and settings.is_embedded and is_at_home(settings, request)
    )


def is_at_home(settings: Settings, request: Request) -> bool:
    """Whether everybody who could be asking sits at this machine."""
    named = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    bound = "" if settings.bind.startswith("unix:") else settings.bind.rpartition(":")[0]
    # The name too: a page in the user's own browser could point its own name at this address.
    hosts = (request.peer, bound, named, urlsplit(settings.issuer).hostname or "")
    return all(_is_loopback(host) for host in hosts) and not any(name in request.headers for name in _FORWARDING)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
