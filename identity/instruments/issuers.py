"""The keys of issuers that we trust, fetched with care: this is the only place from which we call a stranger over HTTP.

Only issuers on a list are ever asked. A fetch ends after three seconds, whatever the other side does, reads at most 64 KiB, follows no
redirect, and runs on a thread of its own: a caller waits for the fetch that it began, and for no other. Known keys go on working for a day
while their issuer is down.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from identity.ambient import later
from identity.canonical import decode_object
from identity.errors import UNAVAILABLE, Refused
from identity.instruments.jws import load_issuer_keys

if TYPE_CHECKING:
    from identity.instruments.jws import PublicKey

DISCOVERY: Final = "/.well-known/openid-configuration"
FETCH_SECONDS: Final = 3.0
MOST_BYTES: Final = 64 * 1024
FRESH_SECONDS: Final = (60, 300, 86_400)
"""The shortest, the usual and the longest time that keys are fresh."""
STALE_SECONDS: Final = 86_400
RETRY_SECONDS: Final = 30
_FETCHES_AT_ONCE: Final = 2
_MAX_AGE: Final = re.compile(r"(?:^|[\s,])max-age=\"?([0-9]{1,9})", re.ASCII | re.IGNORECASE)


class NotFetched(Exception):
    """A document could not be had; the reason is for operators."""


Resolve = Callable[[str, int], Sequence[str]]


@dataclass(slots=True)
class _Known:
    """What this process knows of one issuer."""

    keys: list[PublicKey] = field(default_factory=list)
    fetched_at: datetime | None = None
    fresh_until: datetime | None = None
    tried_at: datetime | None = None
    failure: str = ""
    is_under_way: bool = False
    guard: threading.Lock = field(default_factory=threading.Lock)

    def is_fresh(self, now: datetime) -> bool:
        return self.fresh_until is not None and now < self.fresh_until

    def is_usable(self, now: datetime) -> bool:
        return self.fresh_until is not None and now < later(self.fresh_until, STALE_SECONDS)

    def may_try(self, now: datetime) -> bool:
        # A clock that was set back must not stop us until it has caught up.
        return self.tried_at is None or not 0 <= (now - self.tried_at).total_seconds() < RETRY_SECONDS


class Issuers:
    """The keys of the issuers on a list, as far as this process has fetched them."""

    def __init__(self, trusted: Sequence[str], *, resolve: Resolve | None = None) -> None:
        self._trusted = frozenset(trusted)
        self._resolve = resolve or _addresses
        self._known = {issuer: _Known() for issuer in self._trusted}
        self._pool: ThreadPoolExecutor | None = None
        self._making = threading.Lock()

    def is_trusted(self, issuer: str) -> bool:
        """Whether the keys of this issuer, spelled exactly so, may be fetched."""
        return issuer in self._trusted

    def must_fetch(self, issuer: str, kid: str | None, now: datetime) -> bool:
        """Whether `keys` would wait for another host."""
        known = self._known[issuer]
        return self._wants(known, kid, now) and known.may_try(now) and not known.is_under_way

    def keys(self, issuer: str, kid: str | None, now: datetime) -> list[PublicKey]:
        """The keys of a trusted issuer, fetched again when they are no longer fresh, or do not hold `kid`; at most every 30 seconds.

        Raises Refused(UNAVAILABLE) where there are none that may still be used.
        """
        known = self._known[issuer]
        if self._wants(known, kid, now):
            self._refresh(issuer, known, now)
        if not known.is_usable(now):
            raise Refused(
                UNAVAILABLE.saying("The keys of the token's issuer cannot be had now, try again soon"),
                detail=f"issuer keys: {known.failure or 'being fetched'}",
                evidence={"expected": f"the key set of {issuer}", "seen": known.failure or "being fetched"},
                retry_after_seconds=1 if known.is_under_way else RETRY_SECONDS,
            )
        return known.keys

    def close(self) -> None:
        """Wait for nothing."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _wants(known: _Known, kid: str | None, now: datetime) -> bool:
        is_known = kid is None or any(key.kid in (None, kid) for key in known.keys)
        return not known.is_fresh(now) or not is_known

    def _refresh(self, issuer: str, known: _Known, now: datetime) -> None:
        """Fetch, unless somebody does or did a moment ago. Waits for a fetch of one's own only, and never longer than one may take."""
        with known.guard:
            if known.is_under_way or not known.may_try(now):
                return
            known.tried_at, known.is_under_way = now, True
            mine = self._threads().submit(self._fetch, issuer, known, now)
        with contextlib.suppress(FutureTimeoutError):
            mine.result(FETCH_SECONDS + 0.5)

    def _fetch(self, issuer: str, known: _Known, now: datetime) -> None:
        try:
            keys, seconds = fetch_keys(issuer, self._resolve)
            known.keys, known.fetched_at, known.fresh_until, known.failure = keys, now, later(now, seconds), ""
        except NotFetched as exc:
            known.failure = str(exc)
        except Exception as exc:  # noqa: BLE001 -- whatever it is, the next one must be able to try
            known.failure = type(exc).__name__
        finally:
            known.is_under_way = False

    def _threads(self) -> ThreadPoolExecutor:
        with self._making:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_FETCHES_AT_ONCE, "issuers")
            return self._pool


def fetch_keys(issuer: str, resolve: Resolve | None = None) -> tuple[list[PublicKey], int]:
    """The keys that an issuer's discovery document leads to, and for how many seconds they are fresh. Raises NotFetched."""
    at = _Way(resolve or _addresses, issuer)
    document, _ = at.get(issuer.removesuffix("/") + DISCOVERY)
    if document.get("issuer") != issuer:
        raise NotFetched("the discovery document names another issuer")
    location = document.get("jwks_uri")
    if not isinstance(location, str):
        raise NotFetched("the discovery document names no jwks_uri")
    jwks, seconds = at.get(location)
    try:
        keys = load_issuer_keys(jwks)
    except Refused as refused:
        raise NotFetched(refused.detail) from refused
    if not keys:
        raise NotFetched("the key set holds no key that we can use")
    return keys, seconds


class _Way:
    """One fetch: where it may go, and until when."""

    def __init__(self, resolve: Resolve, issuer: str) -> None:
        self._resolve = resolve
        self._home = urlsplit(issuer)
        self._places: set[str] = set()
        self._until = time.monotonic() + FETCH_SECONDS

    def get(self, url: str) -> tuple[dict[str, Any], int]:
        """The JSON object at `url`, and for how long it is fresh. Raises NotFetched."""
        parts = self._checked(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        addresses = self._vetted(parts, port)
        try:
            return self._ask(parts, _connected(addresses, port))
        except NotFetched:
            raise
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise NotFetched(f"{parts.hostname}: {type(exc).__name__}") from exc

    def _checked(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            fits = parts.hostname is not None and parts.username is None and (parts.port or 1) > 0
        except ValueError as exc:
            raise NotFetched("a URL that cannot be read") from exc
        # A listed issuer may be http only on loopback (`Settings` sees to it); what it leads to is no weaker than itself.
        plain = parts.scheme == "http" and self._home.scheme == "http"
        if not fits or parts.fragment or not (parts.scheme == "https" or plain) or not url.isascii():
            raise NotFetched("a URL that is not https")
        return parts

    def _vetted(self, parts: SplitResult, port: int) -> list[str]:
        """The addresses to connect to, looked up once: all are public, or lie where the listed issuer itself does."""
        try:
            found = list(self._resolve(parts.hostname or "", port))
        except OSError as exc:
            raise NotFetched(f"{parts.hostname}: no address ({type(exc).__name__})") from exc
        if not found:
            raise NotFetched(f"{parts.hostname}: no address")
        places = {_place(address) for address in found}
        if not self._places:
            # The issuer was listed by an operator, wherever it is; a name that suddenly also leads inside is another matter.
            if len(places) > 1:
                raise NotFetched(f"{parts.hostname}: its addresses are {' and '.join(sorted(places))}")
            self._places = places
        foreign = places - self._places - {"public"}
        if foreign:
            raise NotFetched(f"{parts.hostname}: an address that is {', '.join(sorted(foreign))}")
        return found

    def _ask(self, parts: SplitResult, sock: socket.socket) -> tuple[dict[str, Any], int]:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            sock = context.wrap_socket(sock, server_hostname=parts.hostname, do_handshake_on_connect=False)
        # The time is for all of it: a server that sends a byte a second trips no timeout of the socket.
        timer = threading.Timer(max(0.0, self._until - time.monotonic()), _hang_up, (sock,))
        timer.daemon = True
        timer.start()
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection = http.client.HTTPConnection(parts.hostname or "", timeout=FETCH_SECONDS)
            connection.sock = sock
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(
                "GET",
                target,
                headers={"Host": parts.netloc, "Accept": "application/json", "Accept-Encoding": "identity"},
            )
            answer = connection.getresponse()
            if answer.status != 200:
                raise NotFetched(f"{parts.hostname}: status {answer.status}")
            body = answer.read(MOST_BYTES + 1)
            if len(body) > MOST_BYTES:
                raise NotFetched(f"{parts.hostname}: over 64 KiB")
            if answer.length:
                raise NotFetched(f"{parts.hostname}: cut short")
            return _object(body, parts), _freshness(answer.getheader("Cache-Control") or "")
        finally:
            timer.cancel()
            with contextlib.suppress(OSError):
                sock.close()


def _connected(addresses: Sequence[str], port: int) -> socket.socket:
    failed: OSError | None = None
    for address in addresses[:4]:
        try:
            return socket.create_connection((address, port), timeout=FETCH_SECONDS / min(4, len(addresses)))
        except OSError as exc:
            failed = exc
    raise failed or OSError("no address")


def _object(body: bytes, parts: SplitResult) -> dict[str, Any]:
    try:
        return decode_object(body)
    except ValueError as exc:
        raise NotFetched(f"{parts.hostname}: {exc}") from exc


def _freshness(header: str) -> int:
    least, usual, most = FRESH_SECONDS
    found = _MAX_AGE.search(header)
    if "no-store" in header.lower() or "no-cache" in header.lower():
        return least
    return min(max(int(found[1]), least), most) if found else usual


def _place(address: str) -> str:
    """Where an address lies: `public`, or the kind of network that is none of a stranger's business."""
    found = ip_address(address.partition("%")[0])
    inner = found.ipv4_mapped or found.sixtofour if isinstance(found, IPv6Address) else None
    found = inner or found
    kinds = ("is_loopback", "is_link_local", "is_multicast", "is_unspecified", "is_private", "is_reserved")
    kind = next((kind for kind in kinds if getattr(found, kind)), None)
    if kind is None:
        return "public" if found.is_global else "private"
    return kind.removeprefix("is_").replace("_", "-")


def _addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not by SSLSocket's own method, which first forgets its TLS: whoever still reads would take plain bytes for the issuer's.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
