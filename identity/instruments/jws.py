"""JSON Web Signatures and keys of other machines: read with care, verified with nothing taken for granted (RFC 7515, 7517, 7519)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from identity.canonical import decode_base64url, decode_object
from identity.errors import INVALID_TOKEN, VALIDATION, Refused

# Three megabytes and a thirtieth of a second, for machines that hold keys of their own; a process that meets none does not pay them.
if TYPE_CHECKING:
    from joserfc.jwk import ECKey, OKPKey, RSAKey

    PublicKey = RSAKey | ECKey | OKPKey

Algorithms = tuple[str, ...]
CLIENT_ALGORITHMS: Final = ("RS256", "ES256")
ISSUER_ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
TOKEN_MAX_CHARACTERS: Final = 8192
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192
_MOST_ISSUER_KEYS: Final = 100
_MOST_TRIES: Final = 10
# ROCA (CVE-2017-15361): the moduli of the broken generator are powers of 65537 modulo each of these primes.
_ROCA_PRIMES: Final = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)
_ROCA_POWERS: Final = {p: frozenset(pow(65537, e, p) for e in range(p)) for p in _ROCA_PRIMES}


def unverified_claims(token: str) -> dict[str, Any]:
    """What a compact JWS claims, whoever made it: for nothing but finding the keys to verify it with. Empty when it is none."""
    return _unverified(token, 1)


def verify_assertion(
    token: str, jwks: Mapping[str, Any], *, algorithms: Algorithms = CLIENT_ALGORITHMS
) -> dict[str, Any]:
    """The claims of a compact JWS that one of a client's registered public keys made (RFC 7523 section 3).

    Raises Refused(INVALID_TOKEN) for anything else.
    """
    return _claims(verify_jws(token, jwks, algorithms=algorithms))


def verify_workload(token: str, keys: Sequence[PublicKey]) -> dict[str, Any]:
    """The claims of a compact JWS that one of an issuer's keys (`load_issuer_keys`) made.

    Raises Refused(INVALID_TOKEN) for anything else.
    """
    return _claims(_verify(token, keys, ISSUER_ALGORITHMS))


def verify_jws(token: str, jwks: Mapping[str, Any], *, algorithms: Algorithms) -> bytes:
    """The payload of a compact JWS (RFC 7515 section 7.1) that a key of `jwks` made.

    Raises Refused(INVALID_TOKEN) for other algorithms, other serialisations, and keys that `load_jwks` refuses.
    """
    try:
        keys = load_jwks(jwks, algorithms=algorithms)
    except Refused as refused:
        raise Refused(INVALID_TOKEN, detail="assertion: the key set", cause=refused) from refused
    return _verify(token, keys, algorithms)


def unverified_header(token: str) -> dict[str, Any]:
    """What the header of a compact JWS says, whoever made it; empty when it is none."""
    return _unverified(token, 0)


def load_jwks(jwks: Mapping[str, Any], *, algorithms: Algorithms = CLIENT_ALGORITHMS) -> list[PublicKey]:
    """A client's public keys, if all of them are fit for signatures: RSA of 2048 bits or more (not ROCA, odd exponent over 1), or P-256.

    Raises Refused(VALIDATION) for symmetric, private or weak keys, a wrong `use` or `key_ops`, and repeated `kid`s.
    """
    entries = jwks.get("keys")
    if not isinstance(entries, list) or not 1 <= len(entries) <= 10:
        raise Refused(VALIDATION.saying("A key set holds from 1 to 10 keys"), field="jwks")
    kids = [entry.get("kid") for entry in entries if isinstance(entry, dict) and "kid" in entry]
    if len(set(map(str, kids))) != len(kids):
        raise Refused(VALIDATION.saying("A key set must not repeat a kid"), field="jwks")
    return [_load_public(entry, algorithms) for entry in entries]


def load_issuer_keys(jwks: Mapping[str, Any]) -> list[PublicKey]:
    """The keys of another issuer's set that can make what we accept; others in it are none of our business.

    Raises Refused(INVALID_TOKEN) for what is no key set.
    """
    entries = jwks.get("keys")
    if not isinstance(entries, list) or len(entries) > _MOST_ISSUER_KEYS:
        raise Refused(INVALID_TOKEN, detail="the issuer's key set is no key set")
    keys = []
    for entry in entries:
        # In a SPIFFE bundle a key's use says what kind of document it signs.
        is_svid = isinstance(entry, dict) and entry.get("use") == "jwt-svid"
        with contextlib.suppress(Refused):
            keys.append(_load_public({**entry, "use": "sig"} if is_svid else entry, ISSUER_ALGORITHMS))
    return keys


def _verify(token: str, keys: Sequence[PublicKey], algorithms: Algorithms) -> bytes:
    from joserfc import jws  # noqa: PLC0415 -- see above
    from joserfc.errors import BadSignatureError, JoseError  # noqa: PLC0415 -- see above
    from joserfc.jwa import EdDSA  # type: ignore[attr-defined]  # noqa: PLC0415 -- see above

    # RFC 9864 gives it another name, issuers go on signing by this one; a warning for each token helps nobody.
    EdDSA.security_warning = ""

    parts = token.split(".")
    if (
        len(token) > TOKEN_MAX_CHARACTERS
        or len(parts) != 3
        or any(part and decode_base64url(part) is None for part in parts)
    ):
        raise Refused(INVALID_TOKEN, detail="not a compact JWS")
    header = unverified_header(token)
    named, kid = header.get("alg"), header.get("kid")
    if named not in algorithms:
        evidence = {"expected": {"alg": list(algorithms)}, "seen": {"alg": str(named)[:32]}}
        raise Refused(INVALID_TOKEN, detail="assertion: alg", evidence=evidence)
    if "crit" in header:
        # joserfc lets an empty list pass, which RFC 7515 section 4.1.11 forbids; we understand no extension at all.
        raise Refused(INVALID_TOKEN, detail="assertion: crit")
    # A key without a kid is tried by what it can do; so is every key, where the token names none.
    fit = [key for key in keys if _can_make(key, named) and (kid is None or key.kid in (None, kid))]
    fit.sort(key=lambda key: key.kid is None)
    for key in fit[:_MOST_TRIES]:
        try:
            return jws.deserialize_compact(token, key, algorithms=[named]).payload
        except BadSignatureError:
            continue
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as exc:
            raise Refused(INVALID_TOKEN, detail=f"assertion: {type(exc).__name__}", cause=exc) from exc
    evidence = {"expected": {"kid": [key.kid for key in keys]}, "seen": {"kid": str(kid)[:200], "alg": named}}
    raise Refused(
        INVALID_TOKEN, detail=f"assertion: {'signature' if fit else 'no key of that kid and alg'}", evidence=evidence
    )


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        return decode_object(payload)
    except ValueError as exc:
        raise Refused(INVALID_TOKEN, detail=f"assertion: the payload is {exc}", cause=exc) from exc


def _unverified(token: str, part: int) -> dict[str, Any]:
    fits = token.count(".") == 2 and len(token) <= TOKEN_MAX_CHARACTERS
    try:
        return decode_object((decode_base64url(token.split(".")[part]) if fits else None) or b"")
    except ValueError:
        return {}


def check_rsa(public: RSAPublicKey) -> None:
    """Raise Refused(VALIDATION) for an RSA key that must not be trusted."""
    numbers = public.public_numbers()
    if not _MIN_RSA_BITS <= public.key_size <= _MAX_RSA_BITS:
        raise Refused(VALIDATION.saying("RSA keys need from 2048 to 8192 bits"), field="jwks")
    if numbers.e < 3 or numbers.e % 2 == 0 or numbers.n % 2 == 0:
        raise Refused(VALIDATION.saying("That RSA key has an unsafe exponent or modulus"), field="jwks")
    if all(numbers.n % prime in powers for prime, powers in _ROCA_POWERS.items()):
        raise Refused(VALIDATION.saying("That RSA key comes from a broken generator (CVE-2017-15361)"), field="jwks")


def _load_public(entry: Any, algorithms: Algorithms) -> PublicKey:
    from joserfc.errors import JoseError  # noqa: PLC0415 -- see above
    from joserfc.jwk import ECKey, OKPKey, RSAKey  # noqa: PLC0415 -- see above

    unfit = Refused(VALIDATION.saying("A key of the set is not a public RSA or P-256 signature key"), field="jwks")
    if not isinstance(entry, dict) or {"d", "k", "p", "q"} & entry.keys() or entry.get("use", "sig") != "sig":
        raise unfit
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations or not isinstance(entry.get("kid", ""), str):
        raise unfit
    kind = (entry.get("kty"), entry.get("crv"))
    possible = [alg for alg in algorithms if alg in _MAKES.get(kind, _MAKES.get((kind[0], None), ()))]
    if entry.get("alg", possible[0] if possible else None) not in possible:
        raise unfit
    # joserfc only warns of short moduli, on standard error; those never reach it.
    if kind[0] == "RSA" and len(str(entry.get("n", ""))) * 6 < _MIN_RSA_BITS:
        raise unfit
    try:
        if kind[0] == "RSA":
            rsa = RSAKey.import_key(entry)
            check_rsa(rsa.public_key)
            return rsa
        return ECKey.import_key(entry) if kind[0] == "EC" else OKPKey.import_key(entry)
    except (JoseError, ValueError, TypeError, KeyError, OverflowError, UnicodeError) as exc:
        raise unfit from exc


def _can_make(key: PublicKey, algorithm: str) -> bool:
    return key.get("alg") in (None, algorithm) and algorithm in _MAKES.get(
        (key.key_type, key.get("crv")), _MAKES.get((key.key_type, None), ())
    )


# By type and curve: what a key of a set may have made.
_MAKES: Final[Mapping[tuple[Any, Any], tuple[str, ...]]] = {
    ("RSA", None): ("RS256", "PS256"),
    ("EC", "P-256"): ("ES256",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
