"""A client that says exactly the bytes it is told to: for requests that no library would send."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.world import Live


@dataclass(frozen=True)
class Heard:
    """One response. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection to a live server."""

    def __init__(self, live: Live, *, timeout: float = 10) -> None:
        host, _, port = live.url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=timeout)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def say(self, *parts: bytes) -> None:
        """Send; a server that has closed already is no fault."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(b"".join(parts))

    def hear(self, *, method: str = "GET") -> Heard | None:
        """The next response, or None when the server has closed instead. Silence raises TimeoutError."""
        while b"\r\n\r\n" not in self._received:
            if not self._more():
                assert not self._received, f"closed inside a response head: {self._received!r}"
                return None
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status, *lines = head.decode("ascii").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        number = int(status.split(" ")[1])
        if number == 100:
            return self.hear(method=method)
        length = 0 if method == "HEAD" or number == 304 else int(headers.get("content-length", "0"))
        while len(self._received) < length:
            assert self._more(), "closed inside a response body"
        body, self._received = self._received[:length], self._received[length:]
        return Heard(number, headers, body)

    def ask(self, data: bytes) -> Heard | None:
        """Say and hear."""
        self.say(data)
        return self.hear()

    def is_sound(self) -> bool:
        """Whether the next request on this connection works, or the server has closed it."""
        self.say(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = self.hear()
        return answer is None or answer.status == 200

    def _more(self) -> bool:
        try:
            chunk = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self._received += chunk
        return bool(chunk)


def post(path: str, body: bytes, *headers: str, content_type: str = "application/json") -> bytes:
    """A POST request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: auth.example", f"Content-Type: {content_type}"]
    lines += [f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(path: str, *headers: str) -> bytes:
    """A GET request as bytes."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: auth.example", *headers]).encode("latin-1") + b"\r\n\r\n"
