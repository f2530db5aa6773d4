"""Asking the issuer what a token is worth at this moment (RFC 7662).

What it answers is the truth of now, and kept only where the caller says for how long. Not to get an answer is never an answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from identity_verifier.clocks import Clock
from identity_verifier.refusals import Unreachable
from identity_verifier.transport import Request, Transport

_KEPT: Final = 2048


class Introspection:
    """The issuer's endpoint, asked as one client of its own."""

    def __init__(self, endpoint: str, client: tuple[str, str], transport: Transport, *, elapsed: Clock) -> None:
        self._endpoint = endpoint
        # RFC 6749 section 2.3.1: both halves are form-encoded before they are joined.
        pair = ":".join(quote(part, safe="") for part in client)
        self._authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        self._transport = transport
        self._elapsed = elapsed
        self._answers: OrderedDict[bytes, tuple[float, Mapping[str, Any] | None]] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, token: str, *, keep_seconds: float = 0) -> Mapping[str, Any] | None:
        """The claims and present rights of a token that is good now, None for one that is not. Raises Unreachable.

        With `keep_seconds`, an answer of at most that age will do.
        """
        # The whole token is the key: two tokens that begin alike must never share an answer.
        name = hashlib.sha256(token.encode()).digest()
        now = self._elapsed()
        if keep_seconds:
            with self._lock:
                kept = self._answers.get(name)
            if kept is not None and now < kept[0] + keep_seconds:
                return kept[1]
        answer = self._ask(token)
        if keep_seconds:
            with self._lock:
                self._answers[name] = (now, answer)
                self._answers.move_to_end(name)
                while len(self._answers) > _KEPT:
                    self._answers.popitem(last=False)
        return answer

    def forget_lock(self) -> None:
        """For a child process: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def _ask(self, token: str) -> Mapping[str, Any] | None:
        headers = {
            "Authorization": self._authorization,
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
        }
        body = urlencode({"token": token}).encode()
        response = self._transport(Request("POST", self._endpoint, headers, body))
        if response.status == 401:
            raise Unreachable("introspection: the issuer refuses this service's own client id or secret")
        if response.status != 200:
            raise Unreachable(f"introspection: the issuer answered {response.status}")
        try:
            said = json.loads(response.body)
        except (ValueError, RecursionError) as exc:
            raise Unreachable("introspection: the answer is no JSON") from exc
        if not isinstance(said, dict) or not isinstance(said.get("active"), bool):
            raise Unreachable("introspection: the answer does not say whether the token is active")
        return said if said["active"] else None
