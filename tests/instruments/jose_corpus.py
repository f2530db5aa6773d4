"""Our own corpus of JOSE cases: signatures, keys and encryptions, each with the verdict that we owe it.

Every case is made here, from keys that are made here, so it lies in the repository and always runs. It covers what the vectors of the
Wycheproof project cover (test_wycheproof.py): those run beside it where they are present.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

PAYLOAD = b'{"iss":"feed","sub":"feed","n":1}'
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ROCA_PRIMES = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)
SECRET = b"thirty-two bytes of a secret key"
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Case:
    """A token, the keys to verify it with, and the algorithm under which it is good; "" for none."""

    name: str
    token: str
    jwks: dict[str, Any]
    good_for: str = ""

    def is_good(self, algorithms: tuple[str, ...]) -> bool:
        """The verdict that we owe it where these are accepted: a set with a key that could make none of them is refused whole."""
        makes = {"RSA": "RS256", "EC": "ES256"}
        return self.good_for in algorithms and all(makes[one["kty"]] in algorithms for one in self.jwks["keys"])


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8 or 1))


@functools.cache
def rsa_key(bits: int = 2048, exponent: int = 65537, which: int = 0) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(exponent, bits)


@functools.cache
def ec_key(curve: type[ec.EllipticCurve] = ec.SECP256R1, which: int = 0) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


@functools.cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def rsa_jwk(key: rsa.RSAPrivateKey | None = None, **changes: Any) -> dict[str, Any]:
    numbers = (key or rsa_key()).public_key().public_numbers()
    plain = {"kty": "RSA", "kid": "a", "n": number(numbers.n), "e": number(numbers.e)} | changes
    return {name: value for name, value in plain.items() if value is not None}


def ec_jwk(key: ec.EllipticCurvePrivateKey | None = None, crv: str = "P-256", **changes: Any) -> dict[str, Any]:
    public = (key or ec_key()).public_key()
    size, numbers = (public.curve.key_size + 7) // 8, public.public_numbers()
    plain = {
        "kty": "EC",
        "kid": "a",
        "crv": crv,
        "x": b64(numbers.x.to_bytes(size)),
        "y": b64(numbers.y.to_bytes(size)),
    }
    return {name: value for name, value in (plain | changes).items() if value is not None}


def rs(digest: hashes.HashAlgorithm | None = None, key: rsa.RSAPrivateKey | None = None) -> Sign:
    return lambda signed: (key or rsa_key()).sign(signed, padding.PKCS1v15(), digest or hashes.SHA256())


def ps(signed: bytes) -> bytes:
    return rsa_key().sign(signed, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def es(key: ec.EllipticCurvePrivateKey | None = None, digest: hashes.HashAlgorithm | None = None) -> Sign:
    def sign(signed: bytes) -> bytes:
        chosen = key or ec_key()
        size = (chosen.curve.key_size + 7) // 8
        r, s = decode_dss_signature(chosen.sign(signed, ec.ECDSA(digest or hashes.SHA256())))
        return r.to_bytes(size) + s.to_bytes(size)

    return sign


def der(signed: bytes) -> bytes:
    """An ECDSA signature as X.509 spells it, and JOSE does not."""
    raw = es()(signed)
    return encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))


def hs(secret: bytes, digest: str = "sha256") -> Sign:
    return lambda signed: hmac.new(secret, signed, digest).digest()


def compact(header: Any, sign: Sign, payload: bytes = PAYLOAD) -> str:
    head = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    signed = f"{b64(head)}.{b64(payload)}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def keys(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"keys": list(entries)}


def roca_modulus() -> int:
    """An odd number of 2048 bits that is a power of 65537 modulo every prime that tells the broken generator."""
    modulus = prod(ROCA_PRIMES)
    residue = pow(65537, 12345, modulus)
    found = residue + modulus * ((1 << 2047) // modulus + 1)
    return found if found % 2 else found + modulus


def flip(token: str, part: int, *, bit: int = 0) -> str:
    parts = token.split(".")
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=" * (-len(parts[part]) % 4)))
    raw[bit // 8] ^= 1 << (bit % 8)
    parts[part] = b64(bytes(raw))
    return ".".join(parts)


def signature(token: str, change: Callable[[bytes], bytes]) -> str:
    head, payload, raw = token.split(".")
    return f"{head}.{payload}.{b64(change(base64.urlsafe_b64decode(raw + '=' * (-len(raw) % 4))))}"


def jws_cases() -> list[Case]:
    """Signatures: good ones in every form that we take, and everything that was ever mistaken for one."""
    return [*_good(), *_other_algorithms(), *_altered(), *_headers(), *_spellings()]


def _good() -> list[Case]:
    ring = keys(rsa_jwk(), ec_jwk(kid="b"))
    stated = rsa_jwk(use="sig", key_ops=["verify"], alg="RS256")
    two = keys(rsa_jwk(rsa_key(which=1), kid="b"), rsa_jwk())
    return [
        Case("RS256", compact({"alg": "RS256"}, rs()), keys(rsa_jwk()), "RS256"),
        Case("RS256 by kid", compact({"alg": "RS256", "kid": "a"}, rs()), ring, "RS256"),
        Case("RS256 by a key without kid", compact({"alg": "RS256", "kid": "x"}, rs()), keys(rsa_jwk(kid=None)), "RS256"),
        Case("RS256 with typ and cty", compact({"alg": "RS256", "typ": "JWT", "cty": "x"}, rs()), keys(rsa_jwk()), "RS256"),
        Case("RS256 by a key for signatures", compact({"alg": "RS256"}, rs()), keys(stated), "RS256"),
        Case("RS256 of 3072 bits", compact({"alg": "RS256"}, rs(key=rsa_key(3072))), keys(rsa_jwk(rsa_key(3072))), "RS256"),
        Case("RS256 with e = 3", compact({"alg": "RS256"}, rs(key=rsa_key(2048, 3))), keys(rsa_jwk(rsa_key(2048, 3))), "RS256"),
        Case("RS256 of an empty payload", compact({"alg": "RS256"}, rs(), b""), keys(rsa_jwk()), "RS256"),
        Case("RS256 by the second of two keys", compact({"alg": "RS256"}, rs()), two, "RS256"),
        Case("ES256", compact({"alg": "ES256"}, es()), keys(ec_jwk()), "ES256"),
        Case("ES256 by kid", compact({"alg": "ES256", "kid": "b"}, es()), ring, "ES256"),
        Case("ES256 with the other s", signature(compact({"alg": "ES256"}, es()), _other_s), keys(ec_jwk()), "ES256"),
    ]  # fmt: skip


def _other_s(raw: bytes) -> bytes:
    return raw[:32] + (P256_ORDER - int.from_bytes(raw[32:])).to_bytes(32)


def _other_algorithms() -> list[Case]:
    """Sound signatures of algorithms that we do not take, and of one key under the name of another."""
    p384, p521 = ec_key(ec.SECP384R1), ec_key(ec.SECP521R1)
    modulus = rsa_key().public_key().public_numbers().n.to_bytes(256)
    oct_jwk = {"kty": "oct", "kid": "a", "k": b64(SECRET)}
    okp = {"kty": "OKP", "kid": "a", "crv": "Ed25519", "x": b64(ed_key().public_key().public_bytes_raw())}
    jwk_text = json.dumps(rsa_jwk(), separators=(",", ":")).encode()
    return [
        Case("none without signature", compact({"alg": "none"}, lambda _: b""), keys(rsa_jwk())),
        Case("None in capitals", compact({"alg": "NONE"}, lambda _: b""), keys(rsa_jwk())),
        Case("none under a good signature", compact({"alg": "none"}, rs()), keys(rsa_jwk())),
        Case("HS256 by an oct key", compact({"alg": "HS256"}, hs(SECRET)), keys(oct_jwk)),
        Case("HS512 by an oct key", compact({"alg": "HS512"}, hs(SECRET, "sha512")), keys(oct_jwk)),
        Case("HS256 by the modulus", compact({"alg": "HS256"}, hs(modulus)), keys(rsa_jwk())),
        Case("HS256 by the JWK's text", compact({"alg": "HS256"}, hs(jwk_text)), keys(rsa_jwk())),
        Case("RS256 that is an HMAC", compact({"alg": "RS256"}, hs(modulus)), keys(rsa_jwk())),
        Case("RS384", compact({"alg": "RS384"}, rs(hashes.SHA384())), keys(rsa_jwk())),
        Case("RS512", compact({"alg": "RS512"}, rs(hashes.SHA512())), keys(rsa_jwk())),
        Case("PS256", compact({"alg": "PS256"}, ps), keys(rsa_jwk())),
        Case("RS256 that is PS256", compact({"alg": "RS256"}, ps), keys(rsa_jwk())),
        Case("RS256 that is RS512", compact({"alg": "RS256"}, rs(hashes.SHA512())), keys(rsa_jwk())),
        Case("RS256 that is RS1", compact({"alg": "RS256"}, rs(hashes.SHA1())), keys(rsa_jwk())),
        Case("ES384", compact({"alg": "ES384"}, es(p384, hashes.SHA384())), keys(ec_jwk(p384, "P-384"))),
        Case("ES512", compact({"alg": "ES512"}, es(p521, hashes.SHA512())), keys(ec_jwk(p521, "P-521"))),
        Case("ES256 by a P-384 key", compact({"alg": "ES256"}, es(p384)), keys(ec_jwk(p384, "P-384"))),
        Case("ES256 that is DER", compact({"alg": "ES256"}, der), keys(ec_jwk())),
        Case("RS256 by an EC key", compact({"alg": "RS256"}, es()), keys(ec_jwk())),
        Case("ES256 by an RSA key", compact({"alg": "ES256"}, rs()), keys(rsa_jwk())),
        Case("EdDSA", compact({"alg": "EdDSA"}, ed_key().sign), keys(okp)),
    ]  # fmt: skip


def _altered() -> list[Case]:
    good, curve = compact({"alg": "RS256"}, rs()), compact({"alg": "ES256"}, es())
    ring, p256 = keys(rsa_jwk()), keys(ec_jwk())
    modulus = rsa_key().public_key().public_numbers().n
    zero, one, order = bytes(32), (1).to_bytes(32), P256_ORDER.to_bytes(32)
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("another payload", flip(good, 1, bit=9), ring),
        ("a flipped bit at the start of the signature", flip(good, 2), ring),
        ("a flipped bit at the end of the signature", flip(good, 2, bit=2047), ring),
        ("no signature", good.rpartition(".")[0] + ".", ring),
        ("a signature cut short", signature(good, lambda raw: raw[:-1]), ring),
        ("a signature with a byte more", signature(good, lambda raw: raw + b"\0"), ring),
        ("a signature with a byte before", signature(good, lambda raw: b"\0" + raw), ring),
        ("a signature of zeros", signature(good, lambda raw: bytes(len(raw))), ring),
        ("a signature that is the modulus", signature(good, lambda _: modulus.to_bytes(256)), ring),
        ("a signature plus the modulus", signature(good, lambda raw: (int.from_bytes(raw) + modulus).to_bytes(257)), ring),
        ("a signature of another key", compact({"alg": "RS256"}, rs(key=rsa_key(which=1))), ring),
        ("a flipped bit in r", flip(curve, 2), p256),
        ("a flipped bit in s", flip(curve, 2, bit=300), p256),
        ("r and s swapped", signature(curve, lambda raw: raw[32:] + raw[:32]), p256),
        ("r = s = 0", signature(curve, lambda _: zero + zero), p256),
        ("r = 0, s = 1", signature(curve, lambda _: zero + one), p256),
        ("r = s = 1", signature(curve, lambda _: one + one), p256),
        ("r = n, s = 1", signature(curve, lambda _: order + one), p256),
        ("r = 1, s = n", signature(curve, lambda _: one + order), p256),
        ("s plus n", signature(curve, lambda raw: raw[:32] + (int.from_bytes(raw[32:]) + P256_ORDER).to_bytes(33)), p256),
        ("r and s with a zero before each", signature(curve, lambda raw: b"\0" + raw[:32] + b"\0" + raw[32:]), p256),
        ("an EC signature of another key", compact({"alg": "ES256"}, es(ec_key(which=1))), p256),
    ]  # fmt: skip
    return [Case(name, token, jwks) for name, token, jwks in changes]


def _headers() -> list[Case]:
    own = rsa_jwk(rsa_key(which=1))
    heads: list[tuple[str, Any]] = [
        ("no alg", {}),
        ("alg null", {"alg": None}),
        ("alg as a list", {"alg": ["RS256"]}),
        ("alg in lower case", {"alg": "rs256"}),
        ("alg with a blank", {"alg": "RS256 "}),
        ("an empty crit", {"alg": "RS256", "crit": []}),
        ("a crit that we do not know", {"alg": "RS256", "crit": ["x"], "x": 1}),
        ("a crit of a name that must not be in it", {"alg": "RS256", "crit": ["alg"]}),
        ("an unencoded payload", {"alg": "RS256", "b64": False, "crit": ["b64"]}),
        ("a header that is a list", ["RS256"]),
        ("a header that is text", "RS256"),
        ("alg twice", b'{"alg":"none","alg":"RS256"}'),
        ("a header with a BOM", b'\xef\xbb\xbf{"alg":"RS256"}'),
        ("a header in UTF-16", '{"alg":"RS256"}'.encode("utf-16")),
        ("a header that is cut short", b'{"alg":"RS256"'),
        ("a header with more behind it", b'{"alg":"RS256"}x'),
        ("a header with NaN", b'{"alg":"RS256","x":NaN}'),
        ("a kid of another key", {"alg": "RS256", "kid": "b"}),
        ("a kid that is a number", {"alg": "RS256", "kid": 1}),
    ]
    cases = [Case(name, compact(header, rs()), keys(rsa_jwk())) for name, header in heads]
    # Keys that the token brings along are nobody's.
    brought = {"jwk": own, "jku": "https://evil.example/jwks", "x5u": "https://evil.example/x", "kid": "a"}
    for name, value in brought.items():
        token = compact({"alg": "RS256", name: value}, rs(key=rsa_key(which=1)))
        cases.append(Case(f"the signer's own {name}", token, keys(rsa_jwk())))
    return cases


def _spellings() -> list[Case]:
    good = compact({"alg": "RS256"}, rs())
    head, payload, raw = good.split(".")
    flattened = json.dumps({"protected": head, "payload": payload, "signature": raw})
    general = json.dumps({"payload": payload, "signatures": [{"protected": head, "signature": raw}]})
    spelled = {
        "padding": f"{head}==.{payload}.{raw}",
        "padding of the signature": good + "==",
        "the alphabet of plain base64": f"{head}.{payload}.{raw[:-2]}+/",
        "a line break": f"{head}.{payload}\n.{raw}",
        "a blank before": " " + good,
        "a line break after": good + "\n",
        "a fourth part": good + ".",
        "two parts": f"{head}.{payload}",
        "one part": head,
        "nothing": "",
        "dots": "..",
        "a detached payload": f"{head}..{raw}",
        "the flattened form": flattened,
        "the general form": general,
        "nothing but NUL": "\0",
        "a letter that is no base64": f"{head}.{payload}.{raw[:-1]}\u00e9",
        "a megabyte": good + "A" * 1_000_000,
        "bits that are left over": f"{head}.{payload}.{raw[:-1]}{_next_letter(raw[-1])}",
    }
    return [Case(name, token, keys(rsa_jwk())) for name, token in spelled.items()]


def _next_letter(letter: str) -> str:
    # 256 bytes leave four bits of the last letter unused; a strict reader wants them to be zero.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(letter) + 1]


def jwk_cases() -> list[Case]:
    """Good signatures by keys, or key sets, that must not be trusted with any."""
    token, curve = compact({"alg": "RS256"}, rs()), compact({"alg": "ES256"}, es())
    numbers = rsa_key().private_numbers()
    weak, short = rsa_key(1024), rsa_key(2048)
    okp_x = b64(ed_key().public_key().public_bytes_raw())
    entries: list[tuple[str, str, dict[str, Any]]] = [
        ("an RSA key of 1024 bits", compact({"alg": "RS256"}, rs(key=weak)), keys(rsa_jwk(weak))),
        ("a ROCA modulus", token, keys(rsa_jwk(n=number(roca_modulus())))),
        ("e = 1", token, keys(rsa_jwk(e="AQ"))),
        ("an even e", token, keys(rsa_jwk(e="Ag"))),
        ("an even modulus", token, keys(rsa_jwk(n=number(numbers.public_numbers.n + 1)))),
        ("use enc", token, keys(rsa_jwk(use="enc"))),
        ("use of another case", token, keys(rsa_jwk(use="Sig"))),
        ("key_ops without verify", token, keys(rsa_jwk(key_ops=["sign"]))),
        ("key_ops of an encryption key", token, keys(rsa_jwk(key_ops=["encrypt", "wrapKey"]))),
        ("an alg of encryption", token, keys(rsa_jwk(alg="RSA-OAEP"))),
        ("another alg", token, keys(rsa_jwk(alg="RS512"))),
        ("alg none", token, keys(rsa_jwk(alg="none"))),
        ("a private exponent", token, keys(rsa_jwk(d=number(numbers.d)))),
        ("a private prime", token, keys(rsa_jwk(p=number(numbers.p), q=number(numbers.q)))),
        ("a kid twice", token, keys(rsa_jwk(), rsa_jwk(short))),
        ("a kid twice, of two types", token, keys(rsa_jwk(), ec_jwk())),
        ("a good key beside a symmetric one", token, keys(rsa_jwk(), {"kty": "oct", "kid": "b", "k": b64(SECRET)})),
        ("a good key beside a weak one", token, keys(rsa_jwk(), rsa_jwk(weak, kid="b"))),
        ("a good key beside one for encryption", token, keys(rsa_jwk(), rsa_jwk(short, kid="b", use="enc"))),
        ("no key", token, keys()),
        ("keys that are no list", token, {"keys": rsa_jwk()}),
        ("a set without keys", token, {}),
        ("a key that is text", token, {"keys": ["a"]}),
        ("a modulus in plain base64", token, keys(rsa_jwk(n=base64.b64encode(b"\xff" * 256).decode()))),
        ("no modulus", token, keys(rsa_jwk(n=None))),
        ("a point off the curve", curve, keys(ec_jwk(y=b64(bytes(32))))),
        ("a point at infinity", curve, keys(ec_jwk(x=b64(bytes(32)), y=b64(bytes(32))))),
        ("a point without y", curve, keys(ec_jwk(y=None))),
        ("a point of another curve", curve, keys(ec_jwk(crv="P-384"))),
        ("a curve that nobody knows", curve, keys(ec_jwk(crv="P-255"))),
        ("a private EC key", curve, keys(ec_jwk(d=number(ec_key().private_numbers().private_value)))),
        ("secp256k1", curve, keys(ec_jwk(ec_key(ec.SECP256K1), "secp256k1"))),
        ("an Ed25519 key", token, keys({"kty": "OKP", "kid": "a", "crv": "Ed25519", "x": okp_x})),
        ("eleven keys", token, keys(*(rsa_jwk(kid=str(count)) for count in range(11)))),
    ]
    return [Case(name, signed, jwks) for name, signed, jwks in entries]


def jwe_cases() -> list[Case]:
    """Encryptions, sound in themselves; we take none, under whatever key and with whatever inside."""
    inner = compact({"alg": "RS256"}, rs()).encode()
    content = b"\x01" * 32
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    wrapped = {
        "RSA-OAEP-256": rsa_key().public_key().encrypt(content, oaep),
        "RSA1_5": rsa_key().public_key().encrypt(content, padding.PKCS1v15()),
        "A256KW": aes_key_wrap(SECRET, content),
        "dir": b"",
    }
    cases = []
    for alg, encrypted in wrapped.items():
        for payload in (PAYLOAD, inner):
            head = b64(json.dumps({"alg": alg, "enc": "A256GCM"}).encode())
            nonce = hashlib.sha256(head.encode()).digest()[:12]
            sealed = AESGCM(content).encrypt(nonce, payload, head.encode())
            parts = (head, b64(encrypted), b64(nonce), b64(sealed[:-16]), b64(sealed[-16:]))
            for jwks in (keys(rsa_jwk()), keys(rsa_jwk(use="enc")), keys({"kty": "oct", "kid": "a", "k": b64(SECRET)})):
                cases.append(Case(f"{alg}, {len(payload)} bytes, {len(cases)}", ".".join(parts), jwks))
    head = b64(json.dumps({"alg": "RS256", "enc": "A256GCM"}).encode())
    cases.append(Case("a signature's alg on an encryption", f"{head}....", keys(rsa_jwk())))
    return cases
