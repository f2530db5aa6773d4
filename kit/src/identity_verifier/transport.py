"""How the kit speaks to the issuer: short answers, no redirects, a deadline for the whole, connections kept for the next question.

Everything else in the kit sees only `Transport`, which tests replace. What comes back is as untrusted as a stranger's request: its size
and its time are bounded here, what it says is checked by whoever asked.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

from identity_verifier.refusals import Unreachable

_KEPT: Final = 8
_CHUNK: Final = 65_536
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the issuer."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    max_bytes: int = 65_536


@dataclass(frozen=True, slots=True)
class Response:
    """Its answer; header names are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class Transport(Protocol):
    """Answers a request or raises Unreachable; it blocks, and is called from any thread."""

    def __call__(self, request: Request) -> Response: ...


def check_issuer(url: str, *, insecure: bool) -> str:
    """`url` if it can be an issuer that is asked over the network; plain http only on loopback unless that is said to be wanted."""
    parts = urlsplit(url)
    fit = parts.scheme in ("https", "http") and parts.hostname and not (parts.query or parts.fragment or parts.username)
    if not fit or url != url.strip():
        raise ValueError(f"not an issuer: {url!r}; it is the service's IDENTITY_ISSUER, letter for letter")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not insecure:
        raise ValueError(
            f"{url} is plain http: whoever is on the way could hand out keys (allow_http=True to accept that)"
        )
    return url


class HttpTransport:
    """HTTP/1.1 over http.client. `timeout_seconds` bounds each wait, and twice as much the body of an answer."""

    def __init__(self, *, timeout_seconds: float = 3.0, context: ssl.SSLContext | None = None) -> None:
        self._timeout = timeout_seconds
        self._context = context  # Made at the first https connection: it reads every root certificate.
        self._kept: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Response:
        """The answer of the issuer. Raises Unreachable; redirects are answers like any other, and not followed."""
        parts = urlsplit(request.url)
        place = (parts.scheme, parts.netloc)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        kept = self._take(place)
        if kept is not None:
            try:
                return self._ask(kept, place, target, request)
            except (ConnectionError, http.client.BadStatusLine):
                pass  # It was closed while it waited; nothing of an answer came, so the question may be put again.
            except (OSError, http.client.HTTPException) as exc:
                raise Unreachable(f"{parts.netloc}: {type(exc).__name__}") from exc
        try:
            return self._ask(self._connect(place), place, target, request)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise Unreachable(f"{parts.netloc}: {type(exc).__name__}: {exc}") from exc

    def close(self) -> None:
        """Close what is kept open; the next question opens anew."""
        with self._lock:
            kept, self._kept = self._kept, {}
        for connection in (each for group in kept.values() for each in group):
            connection.close()

    def forget_connections(self) -> None:
        """Drop what is kept open; a child process must not share it with its parent."""
        self._lock = threading.Lock()
        self._kept = {}

    def _ask(
        self, connection: http.client.HTTPConnection, place: tuple[str, str], target: str, request: Request
    ) -> Response:
        deadline = time.monotonic() + 2 * self._timeout
        try:
            connection.request(request.method, target, body=request.body, headers=dict(request.headers))
            received = connection.getresponse()
            parts: list[bytes] = []
            room = request.max_bytes
            while chunk := received.read1(min(_CHUNK, room + 1)):
                parts.append(chunk)
                room -= len(chunk)
                if room < 0 or time.monotonic() > deadline:
                    break
        except BaseException:
            connection.close()
            raise
        cut = bool(received.length)  # None for an answer without a length, whose end is told otherwise
        received.close()
        if cut or chunk:
            connection.close()
            raise Unreachable(f"{place[1]}: an answer of more than {request.max_bytes} bytes, or without its end")
        answer = Response(received.status, {k.lower(): v for k, v in received.getheaders()}, b"".join(parts))
        if received.will_close:
            connection.close()
        else:
            self._keep(place, connection)
        return answer

    def _connect(self, place: tuple[str, str]) -> http.client.HTTPConnection:
        scheme, netloc = place
        if scheme == "https":
            self._context = self._context or ssl.create_default_context()
            return http.client.HTTPSConnection(netloc, timeout=self._timeout, context=self._context)
        return http.client.HTTPConnection(netloc, timeout=self._timeout)

    def _take(self, place: tuple[str, str]) -> http.client.HTTPConnection | None:
        with self._lock:
            kept = self._kept.get(place)
            return kept.pop() if kept else None

    def _keep(self, place: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        with self._lock:
            kept = self._kept.setdefault(place, [])
            if len(kept) < _KEPT:
                kept.append(connection)
                return
        connection.close()
