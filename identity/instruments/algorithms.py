"""The algorithms that our own tokens are signed with: RS256, which every verifier reads, and ES256, which costs a twelfth to make.

One key, one algorithm (RFC 8725 section 3.1): which one follows from the key, never from a token.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from identity.canonical import encode_base64url

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Algorithm(Protocol):
    """How keys of one kind sign, and how their public half is written."""

    name: str

    def generate(self, rsa_bits: int) -> PrivateKey:
        """A new key."""
        ...

    def sign(self, key: Any, signed: bytes) -> bytes:
        """The signature as JWS spells it (RFC 7518 section 3): the same bytes for the same input, whoever signs."""
        ...

    def verify(self, key: Any, signature: bytes, signed: bytes) -> None:
        """Raise cryptography's InvalidSignature unless `signature` is the key's over `signed`."""
        ...

    def members(self, key: Any) -> dict[str, str]:
        """The members of the public key's JWK that its thumbprint covers (RFC 7638 section 3.2)."""
        ...


class _Rs256:
    name = "RS256"
    _padding: Final = PKCS1v15()
    _hash: Final = SHA256()

    def generate(self, rsa_bits: int) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, rsa_bits)

    def sign(self, key: rsa.RSAPrivateKey, signed: bytes) -> bytes:
        return key.sign(signed, self._padding, self._hash)

    def verify(self, key: rsa.RSAPublicKey, signature: bytes, signed: bytes) -> None:
        key.verify(signature, signed, self._padding, self._hash)

    def members(self, key: rsa.RSAPublicKey) -> dict[str, str]:
        numbers = key.public_numbers()
        return {"e": _unsigned(numbers.e), "kty": "RSA", "n": _unsigned(numbers.n)}


class _Es256:
    name = "ES256"
    # Deterministic (RFC 6979): every process and host signs a status list alike, and no bad chance gives the key away.
    _scheme: Final = ec.ECDSA(SHA256(), deterministic_signing=True)

    def generate(self, _rsa_bits: int) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(ec.SECP256R1())

    def sign(self, key: ec.EllipticCurvePrivateKey, signed: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(signed, self._scheme))
        return r.to_bytes(32) + s.to_bytes(32)

    def verify(self, key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> None:
        if len(signature) != 64:
            raise InvalidSignature
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
        key.verify(encode_dss_signature(r, s), signed, self._scheme)

    def members(self, key: ec.EllipticCurvePublicKey) -> dict[str, str]:
        numbers = key.public_numbers()
        x, y = (encode_base64url(value.to_bytes(32)) for value in (numbers.x, numbers.y))
        return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


RS256: Final[Algorithm] = _Rs256()
ES256: Final[Algorithm] = _Es256()
ALGORITHMS: Final = {algorithm.name: algorithm for algorithm in (RS256, ES256)}


def algorithm_of(key: object) -> Algorithm | None:
    """The algorithm of a private or public key; None for a kind that we do not sign with."""
    if isinstance(key, PrivateKey):
        key = key.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return RS256
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return ES256
    return None


def thumbprint(algorithm: Algorithm, key: PublicKey) -> str:
    """The JWK thumbprint of a public key (RFC 7638)."""
    canonical = json.dumps(algorithm.members(key), separators=(",", ":"), sort_keys=True)
    return encode_base64url(hashlib.sha256(canonical.encode()).digest())


def _unsigned(number: int) -> str:
    return encode_base64url(number.to_bytes((number.bit_length() + 7) // 8))
