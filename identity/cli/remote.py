"""Group H over the network: with a key pair, or with a login that `identity login` has stored."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from identity.ambient import SystemClock
from identity.cli.desk import Document, path_of, sent
from identity.errors import NOT_FOUND, UNAUTHENTICATED, UNAVAILABLE, Problem, Refused

_SECONDS: Final = 60
_EARLY_SECONDS: Final = 30
_NO_LOGIN: Final = UNAUTHENTICATED.saying(
    "No credential for that server: run `identity login --server URL`, or set IDENTITY_API_KEY and IDENTITY_API_SECRET"
)


class OverNetwork:
    """A service at a URL. Redirects are not followed: a credential goes to the server that was named, and to no other."""

    def __init__(self, server: str) -> None:
        self.server = server.rstrip("/")
        parts = urlsplit(self.server)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise Refused(UNAVAILABLE.saying("A server is a URL like https://auth.example.com"))
        self._parts = parts

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        raw: bytes | None = None,
    ) -> Document:
        status, answer, headers = self.send(method, path, query=query, body=body, raw=raw, headers=self._credential())
        if status < 400:
            return answer
        raise self._refused(status, answer, headers)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Document, Mapping[str, str]]:
        """Status, JSON and headers of an answer. Raises Refused(UNAVAILABLE) where there is none."""
        asked = sent(query)
        target = f"{self._parts.path}{path}" + (f"?{urlencode(asked)}" if asked else "")
        kind = "application/x-ndjson" if raw is not None else "application/json"
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        given = {"Accept": "application/json", "User-Agent": "identity"} | dict(headers or {})
        if content is not None:
            given["Content-Type"] = kind
        host, port = self._parts.hostname or "", self._parts.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=ssl.create_default_context())
            if self._parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=_SECONDS)
        )
        try:
            connection.request(method, target, content, given)
            answer = connection.getresponse()
            text = answer.read()
            received = {name.lower(): value for name, value in answer.getheaders()}
        except (OSError, http.client.HTTPException) as exc:
            words = f"{self.server} does not answer ({getattr(exc, 'strerror', None) or type(exc).__name__})"
            raise Refused(UNAVAILABLE.saying(words), cause=exc) from exc
        finally:
            connection.close()
        try:
            document = json.loads(text) if text else {}
        except ValueError as exc:
            raise Refused(UNAVAILABLE.saying(f"{self.server} answers {answer.status} without JSON"), cause=exc) from exc
        if 300 <= answer.status < 400:
            raise Refused(
                UNAVAILABLE.saying(f"{self.server} leads elsewhere ({answer.status}); name the server itself")
            )
        return answer.status, document if isinstance(document, dict) else {}, received

    def _refused(self, status: int, answer: Document, headers: Mapping[str, str]) -> Refused:
        problem = Problem(str(answer.get("error", "ERROR")), status, str(answer.get("message", f"status {status}")))
        detail = ""
        error_id = headers.get("x-error-id", "")
        if error_id and status not in (401, 429):
            # Who administers may know the check that failed; on the database it is told too.
            told, explained, _ = self.send("GET", path_of("admin", "error", error_id), headers=self._credential())
            check = explained.get("check", "") if told == 200 else ""
            detail = "" if check == problem.message else str(check)
        elif problem.code == NOT_FOUND.code:
            detail = problem.message
        return Refused(problem, detail=detail, field=answer.get("field"))

    def _credential(self) -> dict[str, str]:
        key, secret = os.environ.get("IDENTITY_API_KEY"), os.environ.get("IDENTITY_API_SECRET")
        if key and secret:
            return {"api-key": key, "api-secret": secret}
        with logins() as stored:
            login = stored.get(self.server)
            if login is None:
                raise Refused(_NO_LOGIN, detail=self.server)
            if "apiKey" in login:
                return {"api-key": login["apiKey"], "api-secret": login["apiSecret"]}
            if login["expiresAt"] - _EARLY_SECONDS <= _now():
                stored[self.server] = login = self._refreshed(login)
            return {"Authorization": f"Bearer {login['accessToken']}"}

    def _refreshed(self, login: Document) -> Document:
        status, answer, _ = self.send("POST", "/auth/refresh", body={"refreshToken": login["refreshToken"]})
        if status >= 400:
            raise Refused(_NO_LOGIN.saying("The stored login is over: run `identity login` again"), detail=self.server)
        return kept_login(answer)


def kept_login(answer: Document) -> Document:
    """What is kept of a login's answer."""
    return {
        "accessToken": answer["accessToken"],
        "refreshToken": answer["refreshToken"],
        "expiresAt": _now() + int(answer["expiresIn"]),
    }


def logins_file() -> Path:
    """Where logins are stored."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "identity" / "logins.json"


@contextmanager
def logins() -> Iterator[dict[str, Document]]:
    """The stored logins by server; what is changed in it is stored, for this user's eyes only. One process at a time."""
    path = logins_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # A refresh token serves once: two commands at once must not both use it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = path.read_text() if path.exists() else "{}"
        try:
            stored: dict[str, Document] = json.loads(before)
        except ValueError:
            stored = {}
        yield stored
        after = json.dumps(stored)
        if after != before:
            fresh = path.with_suffix(".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(after)
            fresh.replace(path)
    finally:
        os.close(lock)


def _now() -> int:
    return int(SystemClock().now().timestamp())
