"""What the issuer in memory answers: the few routes of the service that the kit speaks to."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import jwt

from identity_verifier.jose import STATUS_LIST, b64, claims_of, split
from identity_verifier.transport import Request, Response

if TYPE_CHECKING:
    from identity_verifier.testing import Issuer

ENTRIES: Final = 2**20
_LIST_SECONDS: Final = 3600
ASSERTION_TYPES: Final = (
    "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe",
)


class Answers:
    """Routes by path. `client_keys` are the public keys by which clients may sign, `workloads` what other platforms vouch for."""

    def __init__(self, issuer: Issuer) -> None:
        self.asked: Counter[str] = Counter()
        self._issuer = issuer
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Response:
        """The answer to a request."""
        path = urlsplit(request.url).path
        with self._lock:
            self.asked[path] += 1
        headers = {name.lower(): value for name, value in request.headers.items()}
        if path.endswith("/.well-known/jwks.json"):
            document = json.dumps({"keys": [key.jwk for key in self._issuer.keys]}).encode()
            return _kept(headers, document, "application/json", self._issuer.keys_seconds)
        if request.url == self._issuer.list_uri:
            return _kept(headers, self.status_list().encode(), f"application/{STATUS_LIST}", self._issuer.ttl)
        form = {name: values[0] for name, values in parse_qs((request.body or b"").decode()).items()}
        if path.endswith("/oauth/introspect"):
            return self._introspect(headers, form)
        if path.endswith("/oauth/token"):
            return self._token(headers, form)
        return _json(404, {"error": "NOT_FOUND", "message": "There is nothing here", "status": 404})

    def status_list(self, **changes: Any) -> str:
        """The list as it stands now, signed; `changes` are claims."""
        issuer = self._issuer
        entries = bytearray(ENTRIES // 4)
        for index, value in issuer.entries.items():
            entries[index // 4] |= value << (index % 4 * 2)
        issued = int(issuer.now()) // issuer.ttl * issuer.ttl
        claims: dict[str, Any] = {
            "sub": issuer.list_uri,
            "iat": issued,
            "exp": issued + max(_LIST_SECONDS, 2 * issuer.ttl),
            "ttl": issuer.ttl,
            "status_list": {"bits": 2, "lst": b64(zlib.compress(bytes(entries), 1))},
        }
        if issuer.revoked_tokens:
            claims["revoked_tokens"] = issuer.revoked_tokens
        return issuer.sign(claims | changes, header={"typ": STATUS_LIST})

    def _introspect(self, headers: Mapping[str, str], form: Mapping[str, str]) -> Response:
        if _basic(headers) != self._issuer.client:
            return _json(401, {"error": "invalid_client"})
        claims = claims_of(split(form["token"])[1])
        if not self._issuer.is_active(claims):
            return _json(200, {"active": False})
        index = claims.get("status", {}).get("status_list", {}).get("idx")
        rights = self._issuer.rights.get(index)
        if rights is not None:
            claims = {
                name: value for name, value in claims.items() if name not in ("roles", "groups", "tenants", "scope")
            }
            claims |= rights
        claims.pop("tenants_omitted", None)
        return _json(200, {"active": True, "token_type": "Bearer", **claims})

    def _token(self, headers: Mapping[str, str], form: Mapping[str, str]) -> Response:
        client = self._proven(headers, form)
        if client is None:
            return _json(401, {"error": "invalid_client"})
        if form.get("grant_type") != "client_credentials":
            return _json(400, {"error": "unsupported_grant_type"})
        token = self._issuer.application_token(
            client, scope=form.get("scope", ""), aud=form.get("resource", self._issuer.audience)
        )
        lives = token.claims["exp"] - token.claims["iat"]
        return _json(200, {"access_token": token, "token_type": "Bearer", "expires_in": lives})

    def _proven(self, headers: Mapping[str, str], form: Mapping[str, str]) -> str | None:
        """The client that a request proves to be, as the service would: by secret, by its own key, or by its platform's word."""
        basic = _basic(headers)
        if basic is not None:
            return basic[0] if basic == self._issuer.client else None
        assertion, client = form.get("client_assertion", ""), form.get("client_id", "")
        if form.get("client_assertion_type") not in ASSERTION_TYPES:
            return None
        if assertion in self._issuer.workloads:
            return client
        key = self._issuer.client_keys.get(client)
        if key is None:
            return None
        try:
            jwt.decode(
                assertion,
                key,
                algorithms=["RS256", "ES256"],
                audience=self._issuer.url,
                issuer=client,
                options={"require": ["exp", "iat", "jti", "sub"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.PyJWTError:
            return None
        return client


def _basic(headers: Mapping[str, str]) -> tuple[str, str] | None:
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme != "Basic":
        return None
    identifier, _, secret = base64.b64decode(encoded).decode().partition(":")
    return unquote(identifier), unquote(secret)


def _kept(headers: Mapping[str, str], body: bytes, kind: str, seconds: int) -> Response:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    said = {"content-type": kind, "etag": etag, "cache-control": f"public, max-age={seconds}"}
    if headers.get("if-none-match") == etag:
        return Response(304, said, b"")
    return Response(200, said, body)


def _json(status: int, document: Mapping[str, Any]) -> Response:
    return Response(status, {"content-type": "application/json"}, json.dumps(document).encode())
