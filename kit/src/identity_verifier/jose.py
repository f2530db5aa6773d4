"""Signed things (RFC 7515) and published keys (RFC 7517), as strictly as the issuer itself reads them.

A token has exactly one spelling here: three parts of canonical base64url, and a header of the very bytes that the issuer writes. So
whatever a header could say beyond that (`jku`, `x5u`, `jwk`, `crit`, another algorithm) is refused before it is understood, and a key is
found by comparing bytes. Signatures are checked by PyJWT's algorithms.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from identity_verifier.refusals import Unreachable, log

MAX_TOKEN_BYTES: Final = 8192
ACCESS_TOKEN: Final = "at+jwt"
STATUS_LIST: Final = "statuslist+jwt"
_MAX_KEYS: Final = 50
_ALGORITHMS: Final = {"RSA": "RS256", "EC": "ES256"}
_SIGNATURE_CHARACTERS: Final = {"ES256": (86, 86), "RS256": (342, 1366)}
# The last character of base64url may carry bits that say nothing; only the spelling with zeros there is canonical.
_LAST: Final = {2: frozenset("AQgw"), 3: frozenset("AEIMQUYcgkosw048")}
_PADDING: Final = {0: b"", 2: b"==", 3: b"="}
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


class Unfit(Exception):
    """This is not what it should be; the text says which check failed, for the log."""


def b64(raw: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def un64(text: str) -> bytes:
    """Decode the one canonical spelling of base64url. Raises Unfit for any other."""
    rest = len(text) % 4
    # `+` and `/` are letters of the other alphabet; the decoder checks the rest.
    if rest == 1 or (rest and text[-1] not in _LAST[rest]) or "+" in text or "/" in text or "=" in text:
        raise Unfit("not base64url")
    try:
        spelled = text.encode("ascii").translate(_STANDARD) + _PADDING[rest]
        return binascii.a2b_base64(spelled, strict_mode=True)
    except (ValueError, UnicodeEncodeError) as exc:
        raise Unfit("not base64url") from exc


def header_of(alg: str, typ: str, kid: str) -> str:
    """The first part of everything that the issuer signs with that key as that type."""
    return b64(json.dumps({"alg": alg, "typ": typ, "kid": kid}, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class Key:
    """A public key that the issuer has published."""

    kid: str
    alg: str
    verify: Callable[[bytes, bytes], bool]


class KeySet:
    """The keys of a JWKS that can have signed something for us; entries of other kinds are passed over.

    Raises Unreachable where none is left: an issuer without a key has not answered.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        entries = document.get("keys")
        self.by_kid: dict[str, Key] = {}
        twice: set[str] = set()
        for entry in entries[:_MAX_KEYS] if isinstance(entries, list) else ():
            key = _key(entry)
            if key is None:
                continue
            if key.kid in self.by_kid:
                twice.add(key.kid)
            self.by_kid[key.kid] = key
        for kid in twice:
            log.warning("the JWKS names the kid %r twice: neither key is used", kid)
            del self.by_kid[kid]
        if not self.by_kid:
            raise Unreachable("the JWKS holds no key that can be used")
        self._headers = {
            (typ, header_of(key.alg, typ, key.kid)): key
            for key in self.by_kid.values()
            for typ in (ACCESS_TOKEN, STATUS_LIST)
        }

    def find(self, header: str, typ: str) -> Key | None:
        """The key that a header of the issuer's own spelling names; None for any other header."""
        return self._headers.get((typ, header))


class UnknownKey(Exception):
    """The header is well formed, and names a key that is not among those we hold."""


def find_key(keys: KeySet, header: str, typ: str) -> Key:
    """The key for a header. Raises UnknownKey where newer keys may help, and Unfit, with the reason, where nothing does."""
    key = keys.find(header, typ)
    if key is not None:
        return key
    try:
        said = json.loads(un64(header))
    except (ValueError, RecursionError) as exc:
        raise Unfit("the header is no JSON") from exc
    if not isinstance(said, dict):
        raise Unfit("the header is no object")
    alg, kid = said.get("alg"), said.get("kid")
    if not isinstance(alg, str) or alg not in _SIGNATURE_CHARACTERS:
        raise Unfit("the algorithm is neither RS256 nor ES256")
    if said.get("typ") != typ:
        raise Unfit(f"the type is not {typ}")
    if not isinstance(kid, str) or not 0 < len(kid) <= 256:
        raise Unfit("no kid")
    if kid in keys.by_kid:
        raise Unfit("the header is not spelled as the issuer spells it, or names another algorithm than the key")
    if header != header_of(alg, typ, kid):
        raise Unfit("the header is not spelled as the issuer spells it")
    raise UnknownKey(kid)


def split(token: str) -> tuple[str, str, str]:
    """The three parts of a compact JWS. Raises Unfit."""
    parts = token.split(".", 3)
    if len(parts) != 3:
        raise Unfit("not three parts")
    return parts[0], parts[1], parts[2]


def check_signature(key: Key, header: str, body: str, signature: str) -> None:
    """Raise Unfit unless `key` made the signature."""
    low, high = _SIGNATURE_CHARACTERS[key.alg]
    if not low <= len(signature) <= high or not key.verify(
        f"{header}.{body}".encode("ascii", "replace"), un64(signature)
    ):
        raise Unfit("the signature does not hold")


def claims_of(body: str) -> dict[str, Any]:
    """The claims, which are believed only once the signature has held. Raises Unfit."""
    try:
        claims = json.loads(un64(body))
    except (ValueError, RecursionError) as exc:
        raise Unfit("the payload is no JSON") from exc
    if not isinstance(claims, dict):
        raise Unfit("the payload is no object")
    return claims


def _key(entry: Any) -> Key | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or not isinstance(entry.get("kid"), str):
        return None
    kind = str(entry.get("kty"))
    alg = str(entry.get("alg", _ALGORITHMS.get(kind)))
    if _ALGORITHMS.get(kind) != alg or not 0 < len(entry["kid"]) <= 256:
        return None
    public = {name: entry[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in entry}
    try:
        parsed = jwt.PyJWK(public, algorithm=alg)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as exc:
        log.warning("a key of the JWKS cannot be read: %s", type(exc).__name__)
        return None
    key = parsed.key
    rsa = isinstance(key, RSAPublicKey) and key.key_size >= 2048
    if not rsa and not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)):
        log.warning("a key of the JWKS is too weak, or of the wrong curve")
        return None
    check = parsed.Algorithm.verify
    return Key(entry["kid"], alg, lambda signed, signature: bool(check(signed, key, signature)))
