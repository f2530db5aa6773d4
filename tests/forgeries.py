"""Tokens that are not ours, made from one that is: everything that was ever mistaken for a signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from identity.instruments.keyring import LoadedKey
from identity.runtime import Runtime

FOREIGN = rsa.generate_private_key(65537, 2048)
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
Sign = Callable[[bytes], bytes]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def un64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def rs256(key: RSAPrivateKey) -> Sign:
    return lambda signed: key.sign(signed, padding.PKCS1v15(), hashes.SHA256())


def spell(header: Any, payload: bytes, sign: Sign) -> str:
    """A compact JWS."""
    signed = f"{b64(json.dumps(header, separators=(',', ':')).encode())}.{b64(payload)}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def signing_key(rt: Runtime) -> LoadedKey:
    """The key that signs now."""
    return rt.ring._active(rt.clock.now())


def forgeries(rt: Runtime, token: str, listener: str) -> dict[str, str]:
    """Forged variants of `token` by name; `listener` is the address that a key of theirs would be fetched from."""
    head, body, signature = token.split(".")
    header, payload = json.loads(un64(head)), un64(body)
    ours = signing_key(rt)
    return (
        _without_signature(header, payload, signature)
        | _symmetric(header, payload, ours)
        | _foreign_keys(header, payload, ours, listener)
        | _our_key_but_another_header(header, payload, ours)
        | _other_spellings(head, body, signature)
        | _other_claims(rt, header, payload, ours)
    )


def _without_signature(header: dict[str, Any], payload: bytes, signature: str) -> dict[str, str]:
    found = {}
    for none in ("none", "None", "NONE", "nOnE", "", " ", None, [], "none\0"):
        for name, end in (("empty", b""), ("the old", un64(signature)), ("any", b"x")):
            found[f"alg {none!r}, {name} signature"] = spell(header | {"alg": none}, payload, lambda _, end=end: end)
    found["no alg"] = spell({name: value for name, value in header.items() if name != "alg"}, payload, lambda _: b"")
    found["the header of ours, empty signature"] = spell(header, payload, lambda _: b"")
    found["the header of ours, zeros"] = spell(header, payload, lambda _: bytes(256))
    found["the header of ours, a signature of one"] = spell(header, payload, lambda _: bytes(255) + b"\1")
    return found


def _symmetric(header: dict[str, Any], payload: bytes, ours: LoadedKey) -> dict[str, str]:
    """HMAC keyed by what everybody knows: our public key in every spelling."""
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = ours.public.public_bytes(serialization.Encoding.PEM, spki)
    secrets = {
        "SPKI PEM": pem,
        "SPKI PEM without its end of line": pem.rstrip(),
        "SPKI PEM after a space": b" " + pem,
        "SPKI PEM after a byte order mark": b"\xef\xbb\xbf" + pem,
        "SPKI PEM after a comment": b"# key\n" + pem,
        "PKCS1 PEM": ours.public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1),
        "SPKI DER": ours.public.public_bytes(serialization.Encoding.DER, spki),
        "PKCS1 DER": ours.public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1),
        "n": un64(ours.jwk["n"]),
        "n in base64url": ours.jwk["n"].encode(),
        "the JWK": json.dumps(dict(ours.jwk)).encode(),
        "the JWK set": json.dumps({"keys": [dict(ours.jwk)]}).encode(),
        "the kid": ours.kid.encode(),
        "nothing": b"",
    }
    found = {}
    for name, secret in secrets.items():
        for alg, digest in (("HS256", hashlib.sha256), ("HS384", hashlib.sha384), ("HS512", hashlib.sha512)):
            found[f"{alg} keyed by {name}"] = spell(
                header | {"alg": alg}, payload, lambda signed, s=secret, d=digest: hmac.new(s, signed, d).digest()
            )
    found["RS256 that is an HMAC"] = spell(header, payload, lambda signed: hmac.digest(pem, signed, "sha256"))
    return found


def _foreign_keys(header: dict[str, Any], payload: bytes, ours: LoadedKey, listener: str) -> dict[str, str]:
    numbers = FOREIGN.public_key().public_numbers()
    theirs = {
        "kty": "RSA",
        "alg": "RS256",
        "use": "sig",
        "kid": ours.kid,
        "e": "AQAB",
        "n": b64(numbers.n.to_bytes(256)),
    }
    certificate = base64.b64encode(bytes(64)).decode()
    changes: dict[str, dict[str, Any]] = {
        "our kid": {},
        "a foreign kid": {"kid": "theirs"},
        "no kid": {"kid": None},
        "a kid that is a path": {"kid": "../../../../dev/null"},
        "a kid that is SQL": {"kid": "x' UNION SELECT 'a' --"},
        "a kid that is a list": {"kid": [ours.kid]},
        "their jwk": {"jwk": theirs},
        "their jwk, another kid": {"jwk": theirs | {"kid": "theirs"}, "kid": "theirs"},
        "their jku": {"jku": f"http://{listener}/jwks.json"},
        "their x5u": {"x5u": f"http://{listener}/cert.pem"},
        "their x5c": {"x5c": [certificate]},
        "a kid that is an address": {"kid": f"http://{listener}/jwks.json"},
    }
    return {f"a foreign key, {name}": spell(header | more, payload, rs256(FOREIGN)) for name, more in changes.items()}


def _our_key_but_another_header(header: dict[str, Any], payload: bytes, ours: LoadedKey) -> dict[str, str]:
    """Really signed by our key, as if another part of the service could be made to sign something: still no access token."""
    changes: dict[str, dict[str, Any]] = {
        "typ JWT": {"typ": "JWT"},
        "typ of a challenge": {"typ": "mfa-challenge+jwt"},
        "typ of an ID token": {"typ": "id_token+jwt"},
        "typ in capitals": {"typ": "AT+JWT"},
        "typ with its prefix": {"typ": "application/at+jwt"},
        "no typ": {"typ": None},
        "alg in small letters": {"alg": "rs256"},
        "alg PS256": {"alg": "PS256"},
        "alg RS512": {"alg": "RS512"},
        "crit of the unknown": {"crit": ["bork"], "bork": True},
        "crit of nothing": {"crit": []},
        "crit that is text": {"crit": "exp"},
        "b64 false": {"b64": False, "crit": ["b64"]},
        "one member more": {"cty": "JWT"},
    }
    found = {f"our key, {name}": spell(header | more, payload, rs256(ours.private)) for name, more in changes.items()}
    reordered = dict(reversed(header.items()))
    return found | {"our key, members in another order": spell(reordered, payload, rs256(ours.private))}


def _other_spellings(head: str, body: str, signature: str) -> dict[str, str]:
    token = f"{head}.{body}.{signature}"
    flipped = bytearray(un64(signature))
    flipped[0] ^= 1
    trailing = _ALPHABET[
        _ALPHABET.index(signature[-1]) ^ 1
    ]  # The last character of 256 bytes has four bits that say nothing.
    flattened = {"protected": head, "payload": body, "signature": signature}
    general = {"payload": body, "signatures": [{"protected": head, "signature": signature}]}
    altered = b64(un64(body).replace(b'"sub":"', b'"sub":"0', 1))
    return {
        "one part": head,
        "two parts": f"{head}.{body}",
        "two parts and a dot": f"{head}.{body}.",
        "four parts": f"{token}.{signature}",
        "an empty fourth part": f"{token}.",
        "five parts": f"{token}.{signature}.{signature}",
        "an empty first part": f".{token}",
        "dots": ".." + "." * 2000,
        "flattened JSON": json.dumps(flattened),
        "general JSON": json.dumps(general),
        "stray bits at the end": token[:-1] + trailing,
        "padding of the signature": f"{token}==",
        "padding of the payload": f"{head}.{body}=.{signature}",
        "padding of the header": f"{head}=.{body}.{signature}",
        "the other alphabet": f"{head}.{body}.{signature[:-2]}+/",
        "a space inside": f"{head}. {body}.{signature}",
        "a character that decoders skip": f"{head}.{body}.{signature[:-1]}!{signature[-1]}",
        "one bit of the signature": f"{head}.{body}.{b64(bytes(flipped))}",
        "the first half of the signature": f"{head}.{body}.{signature[:171]}",
        "a byte more": f"{head}.{body}.{b64(un64(signature) + b'x')}",
        "another subject": f"{head}.{altered}.{signature}",
        "another case": f"{head}.{body}.{signature.swapcase()}",
        "empty payload": f"{head}..{signature}",
        "empty header": f".{body}.{signature}",
        "without its first character": token[1:],
        "without its last character": token[:-1],
        "over 8 KiB": token + "A" * 8192,
        "nothing but letters": "a" * 300,
        "a colon": "ids:x",
    }


def _other_claims(rt: Runtime, header: dict[str, Any], payload: bytes, ours: LoadedKey) -> dict[str, str]:
    """Signed by our key with the right header, with claims that we would never make."""
    claims = json.loads(payload)
    now = int(rt.clock.now().timestamp())
    changes: dict[str, dict[str, Any]] = {
        "another issuer": {"iss": "https://evil.example"},
        "a list of issuers": {"iss": ["https://evil.example", claims["iss"]]},
        "our issuer with a slash": {"iss": claims["iss"] + "/"},
        "another subject": {"sub": "00000000-0000-4000-8000-000000000000"},
        "another session": {"sid": "00000000-0000-4000-8000-000000000000"},
        "a session that is no id": {"sid": "' OR 1=1 --"},
        "not yet born": {"nbf": now + 3600},
    }
    return {
        f"our key, {name}": spell(header, json.dumps(claims | more).encode(), rs256(ours.private))
        for name, more in changes.items()
    }


def for_another_audience(rt: Runtime, token: str) -> str:
    """`token`, really signed by our key, for somebody else: good at the gate, which asks for others, and nowhere else."""
    head, body, _ = token.split(".")
    claims = json.loads(un64(body)) | {"aud": ["https://somebody.example"]}
    return spell(json.loads(un64(head)), json.dumps(claims).encode(), rs256(signing_key(rt).private))


def expired(rt: Runtime, token: str, *, forged: bool) -> str:
    """`token` with an end that is past, signed by our key or by a foreign one."""
    head, body, _ = token.split(".")
    claims = json.loads(un64(body)) | {"exp": int(rt.clock.now().timestamp()) - 1}
    key = FOREIGN if forged else signing_key(rt).private
    return spell(json.loads(un64(head)), json.dumps(claims).encode(), rs256(key))


ODD: tuple[Any, ...] = (
    None, True, 7, -1, 1.5, 2**70, "", "x", "a\0b", "\ud800", " ", [], [7], [[]], {}, {"a": 7}, {"a": [7]},
)  # fmt: skip


def almost_ours(rt: Runtime, token: str) -> dict[str, str]:
    """`token` with one claim missing or odd, and payloads that are no claims at all: really signed by our key, with our header.

    An imported key may be another issuer's too, who writes what it likes.
    """
    head, body, _ = token.split(".")
    header, claims = json.loads(un64(head)), json.loads(un64(body))
    key = rs256(signing_key(rt).private)
    payloads = {f"without {name}": json.dumps({k: v for k, v in claims.items() if k != name}) for name in claims}
    for name in claims:
        payloads |= {f"{name} is {odd!r}": json.dumps(claims | {name: odd}) for odd in ODD}
    text = json.dumps(claims)
    payloads |= {
        "nothing": "",
        "no JSON": "{",
        "text": '"x"',
        "a list": "[]",
        "a number": "7",
        "null": "null",
        "no claims": "{}",
        "a claim twice": text[:-1] + f', "sub": {json.dumps(claims["sub"])}}}',
        "a lone surrogate in a claim of somebody's": text[:-1] + ', "x": "\\ud800"}',
        "NUL in a claim of somebody's": text[:-1] + ', "x": {"y": ["\\u0000"]}}',
        "NaN": text[:-1] + ', "x": NaN}',
        "a nest": text[:-1] + ', "x": ' + "[" * 200 + "]" * 200 + "}",
    }
    found = {name: spell(header, payload.encode(), key) for name, payload in payloads.items()}
    return found | {"no UTF-8": spell(header, b"\xff\xfe", key)}
