"""Tokens that nobody may accept, made from one that is good and from the keys that everybody can read.

For `conformance` and for tests. No private key of the issuer is needed, which is the point: whoever lets one of these in can be deceived by
any stranger.
"""

from __future__ import annotations

import base64
import functools
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from identity_verifier.jose import b64, un64

_EVIL: Final = "https://evil.example"
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
Sign = Callable[[bytes], bytes]


@functools.cache
def stranger() -> rsa.RSAPrivateKey:
    """The key of somebody who is not the issuer."""
    return rsa.generate_private_key(65537, 2048)


def spell(header: Mapping[str, Any], claims: Mapping[str, Any], sign: Sign) -> str:
    """A compact JWS of that header and those claims."""
    signed = f"{b64(_json(header))}.{b64(_json(claims))}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def forgeries(token: str, jwk: Mapping[str, Any]) -> dict[str, str]:
    """Bad variants of `token` by what is wrong with them; `jwk` is the published key that signed it."""
    head, body, signature = token.split(".")
    header, claims = json.loads(un64(head)), json.loads(un64(body))
    return (
        _unsigned(header, claims, un64(signature))
        | _keyed_by_what_is_public(header, claims, jwk)
        | _signed_by_a_stranger(header, claims, jwk)
        | _changed_after_signing(head, header, claims, signature)
        | _other_spellings(head, body, signature)
    )


def _unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes) -> dict[str, str]:
    nones: tuple[Any, ...] = ("none", "None", "NONE", "nOnE", "", [], 7)
    found = {f"alg {none}": spell(header | {"alg": none}, claims, lambda _: b"") for none in nones}
    without = {name: value for name, value in header.items() if name != "alg"}
    return found | {
        "alg none with the real signature": spell(header | {"alg": "none"}, claims, lambda _: signature),
        "no alg": spell(without, claims, lambda _: b""),
        "an empty signature": spell(header, claims, lambda _: b""),
        "a signature of zeros": spell(header, claims, lambda _: bytes(256)),
        "a signature of one": spell(header, claims, lambda _: bytes(255) + b"\1"),
        "one bit of the signature": spell(header, claims, lambda _: bytes([signature[0] ^ 1]) + signature[1:]),
        "half of the signature": spell(header, claims, lambda _: signature[:128]),
        "a byte more of signature": spell(header, claims, lambda _: signature + b"x"),
    }


def _keyed_by_what_is_public(header: dict[str, Any], claims: dict[str, Any], jwk: Mapping[str, Any]) -> dict[str, str]:
    public = jwt.PyJWK(dict(jwk)).key.public_bytes
    pem = public(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    secrets = {
        "the public key in PEM": pem,
        "the public key in PEM without its last line end": pem.rstrip(),
        "the public key in PEM after a space": b" " + pem,
        "the public key in DER": public(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "the JWK": _json(jwk),
        "the modulus": un64(str(jwk.get("n", jwk.get("x", "")))),
        "the kid": str(jwk.get("kid", "")).encode(),
        "nothing": b"",
    }
    found = {
        f"HS256 keyed by {name}": spell(header | {"alg": "HS256"}, claims, _hmac(secret))
        for name, secret in secrets.items()
    }
    for alg, digest in (("HS384", "sha384"), ("HS512", "sha512")):
        found[f"{alg} keyed by the public key in PEM"] = spell(header | {"alg": alg}, claims, _hmac(pem, digest))
    found["RS256 in name, HMAC in truth"] = spell(header, claims, _hmac(pem))
    return found


def _signed_by_a_stranger(header: dict[str, Any], claims: dict[str, Any], jwk: Mapping[str, Any]) -> dict[str, str]:
    key = stranger()
    numbers = key.public_key().public_numbers()
    theirs = {
        "kty": "RSA",
        "alg": "RS256",
        "use": "sig",
        "kid": jwk.get("kid"),
        "e": "AQAB",
        "n": b64(numbers.n.to_bytes(256)),
    }
    certificate = base64.b64encode(bytes(64)).decode()
    rs256 = header | {"alg": "RS256"}
    changes: dict[str, dict[str, Any]] = {
        "under the issuer's kid": {},
        "under a kid of its own": {"kid": "stranger"},
        "under no kid": {"kid": None},
        "under a kid that is a list": {"kid": [jwk.get("kid")]},
        "that brings its own jwk": {"jwk": theirs},
        "that names its own jku": {"jku": f"{_EVIL}/jwks.json", "kid": "stranger"},
        "that names its own x5u": {"x5u": f"{_EVIL}/cert.pem"},
        "that brings its own x5c": {"x5c": [certificate]},
        "whose kid is a path": {"kid": "../../../../dev/null"},
        "whose kid is SQL": {"kid": "x' UNION SELECT 'a' --"},
        "whose kid is an address": {"kid": f"{_EVIL}/jwks.json"},
        "with a crit that nobody knows": {"crit": ["bork"], "bork": True},
    }
    found = {f"signed by a stranger {name}": spell(rs256 | more, claims, _rs256(key)) for name, more in changes.items()}
    elsewhere = claims | {"iss": _EVIL}
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    curve = ec.generate_private_key(ec.SECP256R1())
    return found | {
        "a whole token of another issuer": spell(rs256 | {"kid": "stranger"}, elsewhere, _rs256(key)),
        "another issuer under our kid": spell(rs256, elsewhere, _rs256(key)),
        "PS256 by a stranger": spell(header | {"alg": "PS256"}, claims, lambda s: key.sign(s, pss, hashes.SHA256())),
        "ES256 by a stranger": spell(
            header | {"alg": "ES256"}, claims, lambda s: curve.sign(s, ec.ECDSA(hashes.SHA256()))
        ),
    }


def _changed_after_signing(head: str, header: dict[str, Any], claims: dict[str, Any], signature: str) -> dict[str, str]:
    changes: dict[str, dict[str, Any]] = {
        "another subject": {"sub": "00000000-0000-4000-8000-000000000000"},
        "one role more": {"roles": [*claims.get("roles", ()), "users_admin"]},
        "one tenant more": {"tenants": {**claims.get("tenants", {}), "somebody-else": ["owner"]}},
        "one scope more": {"scope": f"{claims.get('scope', '')} admin".strip()},
        "a later end": {"exp": claims.get("exp", 0) + 86_400},
        "another status": {"status": {"status_list": {"idx": 0, "uri": f"{_EVIL}/list"}}},
    }
    found = {
        f"{name}, old signature": f"{head}.{b64(_json(claims | more))}.{signature}" for name, more in changes.items()
    }
    typed = b64(_json(header | {"typ": "JWT"}))
    return found | {"another type, old signature": f"{typed}.{b64(_json(claims))}.{signature}"}


def _other_spellings(head: str, body: str, signature: str) -> dict[str, str]:
    token = f"{head}.{body}.{signature}"
    # The last character of 256 bytes carries bits that say nothing: another one there means the same to a lax decoder.
    other_last = _ALPHABET[_ALPHABET.index(signature[-1]) ^ 1]
    return {
        "one part": head,
        "two parts": f"{head}.{body}",
        "two parts and a dot": f"{head}.{body}.",
        "four parts": f"{token}.{signature}",
        "JSON serialisation": json.dumps({"protected": head, "payload": body, "signature": signature}),
        "padding": f"{token}==",
        "stray bits at the end": token[:-1] + other_last,
        "a character that decoders skip": f"{head}.{body}.{signature[:-1]}!{signature[-1]}",
        "more than 8 KiB": token + "A" * 8192,
        "nothing but letters": "a" * 300,
        "dots": "..",
    }


def _hmac(secret: bytes, digest: str = "sha256") -> Sign:
    return lambda signed: hmac.digest(secret, signed, digest)


def _rs256(key: rsa.RSAPrivateKey) -> Sign:
    return lambda signed: key.sign(signed, padding.PKCS1v15(), hashes.SHA256())


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
