"""JSON Web Signatures and keys of other machines: read with care, verified with nothing taken for granted (RFC 7515, 7517, 7519)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from identity.canonical import decode_base64url, decode_object
from identity.errors import INVALID_TOKEN, VALIDATION, Refused

# Three megabytes and a thirtieth of a second, for machines that hold keys of their own; a process that meets none does not pay them.
if TYPE_CHECKING:
    from joserfc.jwk import ECKey, KeySet, RSAKey

TOKEN_MAX_CHARACTERS: Final = 8192
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192
# ROCA (CVE-2017-15361): the moduli of the broken generator are powers of 65537 modulo each of these primes.
_ROCA_PRIMES: Final = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)
_ROCA_POWERS: Final = {p: frozenset(pow(65537, e, p) for e in range(p)) for p in _ROCA_PRIMES}


def unverified_claims(token: str) -> dict[str, Any]:
    """What a compact JWS claims, whoever made it: for nothing but finding the keys to verify it with. Empty when it is none."""
    body = (
        decode_base64url(token.split(".")[1]) if token.count(".") == 2 and len(token) <= TOKEN_MAX_CHARACTERS else None
    )
    try:
        return decode_object(body or b"")
    except ValueError:
        return {}


def verify_assertion(
    token: str, jwks: Mapping[str, Any], *, algorithms: tuple[str, ...] = ("RS256", "ES256")
) -> dict[str, Any]:
    """The claims of a compact JWS that one of a client's registered public keys made (RFC 7523 section 3).

    Raises Refused(INVALID_TOKEN) for anything else.
    """
    payload = verify_jws(token, jwks, algorithms=algorithms)
    try:
        return decode_object(payload)
    except ValueError as exc:
        raise Refused(INVALID_TOKEN, detail=f"assertion: the payload is {exc}", cause=exc) from exc


def verify_jws(token: str, jwks: Mapping[str, Any], *, algorithms: tuple[str, ...]) -> bytes:
    """The payload of a compact JWS (RFC 7515 section 7.1) that a key of `jwks` made.

    Raises Refused(INVALID_TOKEN) for other algorithms, other serialisations, and keys that `load_jwks` refuses.
    """
    from joserfc import jws  # noqa: PLC0415 -- see above
    from joserfc.errors import JoseError  # noqa: PLC0415 -- see above

    parts = token.split(".")
    if (
        len(token) > TOKEN_MAX_CHARACTERS
        or len(parts) != 3
        or any(part and decode_base64url(part) is None for part in parts)
    ):
        raise Refused(INVALID_TOKEN, detail="not a compact JWS")
    try:
        signed = jws.deserialize_compact(token, load_jwks(jwks), algorithms=list(algorithms))
    except (JoseError, Refused, ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Refused(INVALID_TOKEN, detail=f"assertion: {type(exc).__name__}", cause=exc) from exc
    if "crit" in signed.protected:
        # joserfc lets an empty list pass, which RFC 7515 section 4.1.11 forbids; we understand no extension at all.
        raise Refused(INVALID_TOKEN, detail="assertion: crit")
    return signed.payload


def load_jwks(jwks: Mapping[str, Any]) -> KeySet:
    """A client's public keys, if all of them are fit for signatures: RSA of 2048 bits or more (not ROCA, odd exponent over 1), or P-256.

    Raises Refused(VALIDATION) for symmetric, private or weak keys, a wrong `use` or `key_ops`, and repeated `kid`s.
    """
    from joserfc.jwk import KeySet  # noqa: PLC0415 -- see above

    entries = jwks.get("keys")
    if not isinstance(entries, list) or not 1 <= len(entries) <= 10:
        raise Refused(VALIDATION.saying("A key set holds from 1 to 10 keys"), field="jwks")
    kids = [entry.get("kid") for entry in entries if isinstance(entry, dict) and "kid" in entry]
    if len(set(map(str, kids))) != len(kids):
        raise Refused(VALIDATION.saying("A key set must not repeat a kid"), field="jwks")
    return KeySet([_load_public(entry) for entry in entries])


def check_rsa(public: RSAPublicKey) -> None:
    """Raise Refused(VALIDATION) for an RSA key that must not be trusted."""
    numbers = public.public_numbers()
    if not _MIN_RSA_BITS <= public.key_size <= _MAX_RSA_BITS:
        raise Refused(VALIDATION.saying("RSA keys need from 2048 to 8192 bits"), field="jwks")
    if numbers.e < 3 or numbers.e % 2 == 0 or numbers.n % 2 == 0:
        raise Refused(VALIDATION.saying("That RSA key has an unsafe exponent or modulus"), field="jwks")
    if all(numbers.n % prime in powers for prime, powers in _ROCA_POWERS.items()):
        raise Refused(VALIDATION.saying("That RSA key comes from a broken generator (CVE-2017-15361)"), field="jwks")


def _load_public(entry: Any) -> RSAKey | ECKey:
    from joserfc.errors import JoseError  # noqa: PLC0415 -- see above
    from joserfc.jwk import ECKey, RSAKey  # noqa: PLC0415 -- see above

    unfit = Refused(VALIDATION.saying("A key of the set is not a public RSA or P-256 signature key"), field="jwks")
    if not isinstance(entry, dict) or {"d", "k", "p", "q"} & entry.keys() or entry.get("use", "sig") != "sig":
        raise unfit
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations or not isinstance(entry.get("kid", ""), str):
        raise unfit
    # joserfc only warns of short moduli, on standard error; those never reach it.
    if entry.get("kty") == "RSA" and len(str(entry.get("n", ""))) * 6 < _MIN_RSA_BITS:
        raise unfit
    try:
        if entry.get("kty") == "RSA" and entry.get("alg", "RS256") == "RS256":
            rsa = RSAKey.import_key(entry)
            check_rsa(rsa.public_key)
            return rsa
        if entry.get("kty") == "EC" and entry.get("crv") == "P-256" and entry.get("alg", "ES256") == "ES256":
            return ECKey.import_key(entry)
    except (JoseError, ValueError, TypeError, KeyError, OverflowError, UnicodeError) as exc:
        raise unfit from exc
    raise unfit
