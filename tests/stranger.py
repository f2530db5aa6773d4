"""A verifier written by somebody who has read the IETF draft Token Status List and our metadata, and nothing of this package.

It knows PyJWT, zlib and base64. It caches keys and lists, each for its `ttl`, and goes on with what it has while nobody answers.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import jwt

Fetch = Callable[[str, Mapping[str, str]], tuple[int, Mapping[str, str], bytes]]
"""GET of a URL with headers: status, headers by lower-case name, body. Raises OSError when nobody answers."""


def value_at(lst: str, bits: int, index: int) -> int:
    """Section 4.1: the value of an index, whose bits stand lowest first in each byte."""
    packed = zlib.decompress(base64.urlsafe_b64decode(lst + "=" * (-len(lst) % 4)))
    byte, offset = divmod(index * bits, 8)
    return packed[byte] >> offset & (1 << bits) - 1


@dataclass
class _Copy:
    claims: dict[str, Any]
    etag: str
    checked_at: datetime


@dataclass
class Stranger:
    """Offline verification of our tokens. `now` is its own clock."""

    issuer: str
    fetch: Fetch
    now: Callable[[], datetime]
    fetched: list[int] = field(default_factory=list)
    _keys: dict[str, Any] = field(default_factory=dict)
    _copies: dict[str, _Copy] = field(default_factory=dict)

    def verdict(self, token: str) -> str:
        """`valid`, `changed` (status 3), or `invalid`."""
        try:
            header = jwt.get_unverified_header(token)
            if header["typ"] != "at+jwt":
                return "invalid"
            moment = self.now().timestamp()
            claims = jwt.decode(
                token,
                self._key(header["kid"]),
                ["RS256"],
                options={"verify_aud": False, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
                issuer=self.issuer,
            )
        except jwt.PyJWTError:
            return "invalid"
        if not claims["nbf"] - 60 <= moment < claims["exp"]:
            return "invalid"
        if "status" not in claims:
            return "valid"
        named = claims["status"]["status_list"]
        listed = self._list(named["uri"])
        value = value_at(listed["status_list"]["lst"], listed["status_list"]["bits"], named["idx"])
        if value == 3:
            return "changed"
        return "invalid" if value or claims["jti"] in listed.get("revoked_tokens", ()) else "valid"

    def _list(self, uri: str) -> dict[str, Any]:
        copy = self._copies.get(uri)
        if copy is not None and (self.now() - copy.checked_at).total_seconds() < copy.claims["ttl"]:
            return copy.claims
        asked = {"Accept": "application/statuslist+jwt"} | ({"If-None-Match": copy.etag} if copy else {})
        try:
            status, headers, body = self.fetch(uri, asked)
        except OSError:
            if copy is None:
                raise
            return copy.claims
        self.fetched.append(status)
        if status == 304:
            assert copy is not None
            copy.checked_at = self.now()
            return copy.claims
        assert (status, headers["content-type"]) == (200, "application/statuslist+jwt")
        claims = self._checked(body.decode("ascii"), uri)
        self._copies[uri] = _Copy(claims, headers["etag"], self.now())
        return claims

    def _checked(self, text: str, uri: str) -> dict[str, Any]:
        """Section 8.3: what a relying party must check of a list."""
        header = jwt.get_unverified_header(text)
        assert header["typ"] == "statuslist+jwt"
        options: Any = {"require": ["sub", "iat", "exp"], "verify_exp": False, "verify_iat": False}
        claims: dict[str, Any] = jwt.decode(text, self._key(header["kid"]), ["RS256"], options=options)
        assert claims["sub"] == uri
        assert claims["iat"] <= self.now().timestamp() < claims["exp"]
        assert claims["ttl"] > 0
        assert claims["status_list"]["bits"] in (1, 2, 4, 8)
        return claims

    def _key(self, kid: str) -> Any:
        if kid not in self._keys:
            _, _, body = self.fetch(f"{self.issuer}/.well-known/jwks.json", {})
            self._keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(json.loads(body)).keys}
        if kid not in self._keys:
            raise jwt.InvalidKeyError("no such key")
        return self._keys[kid]
