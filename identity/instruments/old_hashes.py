"""Password hashes of other systems, as far as the standard library computes them: read strictly, bounded, and checked against a password.

Each format is a row of `FORMATS`. What is broken, or would cost too much to check, is refused when it is imported: at a login it would be
too late. Passwords are the bytes that their owner typed, with no normalization.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

_MAX_ITERATIONS: Final = 5_000_000
_MAX_ROUNDS: Final = 500_000
_MAX_SCRYPT_BYTES: Final = 256 * 1024 * 1024
_CRYPT_ALPHABET: Final = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGEST_BYTES: Final = {"sha1": 20, "sha256": 32, "sha512": 64}


class Hashed(NamedTuple):
    """A hash that was read: what it should be, and what computes it from a password's bytes."""

    expected: bytes
    compute: Callable[[bytes], bytes]

    def matches(self, password: bytes) -> bool:
        return hmac.compare_digest(self.compute(password), self.expected)


class Format(NamedTuple):
    """A spelling of hashes. `read` gives None for what is broken or immoderate."""

    name: str
    pattern: re.Pattern[str]
    read: Callable[[re.Match[str]], Hashed | None]


def read(text: str) -> Hashed | None:
    """The hash that `text` spells, or None: unknown, broken, or too costly."""
    for one in FORMATS:
        found = one.pattern.fullmatch(text)
        if found is not None:
            try:
                return one.read(found)
            except ValueError:
                return None
    return None


def _pbkdf2(digest: str, iterations: int, salt: bytes, expected: bytes) -> Hashed | None:
    if not 1 <= iterations <= _MAX_ITERATIONS or not 16 <= len(expected) <= 128 or len(salt) > 256:
        return None
    return Hashed(expected, lambda password: hashlib.pbkdf2_hmac(digest, password, salt, iterations, len(expected)))


def _pbkdf2_django(found: re.Match[str]) -> Hashed | None:
    return _pbkdf2(found[1], int(found[2]), found[3].encode(), b64decode(found[4], validate=True))


def _pbkdf2_passlib(found: re.Match[str]) -> Hashed | None:
    return _pbkdf2(found[1] or "sha1", int(found[2]), _ab64(found[3]), _ab64(found[4]))


def _pbkdf2_werkzeug(found: re.Match[str]) -> Hashed | None:
    return _pbkdf2(found[1], int(found[2]), found[3].encode(), bytes.fromhex(found[4]))


def _scrypt(n: int, r: int, p: int, salt: bytes, expected: bytes) -> Hashed | None:
    fits = n >= 2 and n & (n - 1) == 0 and 1 <= r <= 64 and 1 <= p <= 16 and 128 * n * r * p <= _MAX_SCRYPT_BYTES
    if not fits or not 16 <= len(expected) <= 128 or len(salt) > 256:
        return None
    memory = 128 * r * (n + p + 2) + 1024
    return Hashed(
        expected,
        lambda password: hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=len(expected)),
    )


def _scrypt_phc(found: re.Match[str]) -> Hashed | None:
    logarithm = int(found[1])
    return (
        _scrypt(1 << logarithm, int(found[2]), int(found[3]), _ab64(found[4]), _ab64(found[5]))
        if logarithm < 32
        else None
    )


def _scrypt_werkzeug(found: re.Match[str]) -> Hashed | None:
    return _scrypt(int(found[1]), int(found[2]), int(found[3]), found[4].encode(), bytes.fromhex(found[5]))


def _scrypt_firebase(found: re.Match[str]) -> Hashed | None:
    """Firebase derives a key by scrypt and encrypts the project's signer key with it (AES-256-CTR, counter 0)."""
    logarithm, rounds = int(found[1]), int(found[2])
    separator, signer, salt, expected = (b64decode(found[number], validate=True) for number in (3, 4, 5, 6))
    if logarithm > 20 or len(expected) != len(signer) or not 16 <= len(signer) <= 128:
        return None
    inner = _scrypt(1 << logarithm, rounds, 1, salt + separator, bytes(64))
    if inner is None:
        return None

    def compute(password: bytes) -> bytes:
        key = inner.compute(password)[:32]
        encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()
        return encryptor.update(signer) + encryptor.finalize()

    return Hashed(expected, compute)


def _salted_sha(found: re.Match[str]) -> Hashed | None:
    """RFC 2307's `{SSHA}`: the digest of password and salt, with the salt behind it."""
    digest = {"": "sha1", "256": "sha256", "512": "sha512"}[found[1]]
    raw = b64decode(found[2], validate=True)
    size = _DIGEST_BYTES[digest]
    salt = raw[size:]
    if len(raw) < size or len(salt) > 256:
        return None
    return Hashed(raw[:size], lambda password: hashlib.new(digest, password + salt).digest())


def _sha512_crypt(found: re.Match[str]) -> Hashed | None:
    rounds = 5000 if found[1] is None else int(found[1])
    if not 1000 <= rounds <= _MAX_ROUNDS:
        return None
    salt = found[2].encode()
    return Hashed(found[3].encode(), lambda password: _sha512_crypted(password, salt, rounds))


def _sha512_crypted(password: bytes, salt: bytes, rounds: int) -> bytes:
    """Glibc's SHA-512 crypt (Drepper's specification, in its own order)."""

    def sha(data: bytes) -> bytes:
        return hashlib.sha512(data).digest()

    def stretched(block: bytes, length: int) -> bytes:
        return (block * (length // 64 + 1))[:length]

    inner = sha(password + salt + password)
    mixed = password + salt + stretched(inner, len(password))
    count = len(password)
    while count:
        mixed += inner if count & 1 else password
        count >>= 1
    digest = sha(mixed)
    p = stretched(sha(password * len(password)), len(password))
    s = stretched(sha(salt * (16 + digest[0])), len(salt))
    for number in range(rounds):
        head = p if number & 1 else digest
        middle = (s if number % 3 else b"") + (p if number % 7 else b"")
        digest = sha(head + middle + (digest if number & 1 else p))
    return _crypt_base64(digest)


def _crypt_base64(digest: bytes) -> bytes:
    """The digest in crypt's own order and alphabet."""
    encoded = bytearray()
    first, second, third = 0, 21, 42
    for _ in range(21):
        word = digest[first] << 16 | digest[second] << 8 | digest[third]
        encoded += bytes(_CRYPT_ALPHABET[word >> shift & 63] for shift in (0, 6, 12, 18))
        first, second, third = second + 1, third + 1, first + 1
    word = digest[63]
    encoded += bytes(_CRYPT_ALPHABET[word >> shift & 63] for shift in (0, 6))
    return bytes(encoded)


def _ab64(text: str) -> bytes:
    """Base64 without padding; passlib writes `.` for `+`."""
    return b64decode(text.replace(".", "+") + "=" * (-len(text) % 4), validate=True)


_B64: Final = r"([A-Za-z0-9+/]{1,400}={0,2})"
_AB64: Final = r"([A-Za-z0-9+./]{1,400})"
_TEXT: Final = r"([!-#%-~]{1,128})"
_HEX: Final = r"([0-9a-f]{32,256})"
_SMALL: Final = r"([0-9]{1,3})"
_LARGE: Final = r"([0-9]{1,8})"
_DIGESTS: Final = r"(sha1|sha256|sha512)"


def _format(name: str, pattern: str, read_match: Callable[[re.Match[str]], Hashed | None]) -> Format:
    return Format(name, re.compile(pattern, re.ASCII), read_match)


FORMATS: Final = (
    _format("PBKDF2, Django", rf"pbkdf2_{_DIGESTS}\${_LARGE}\${_TEXT}\${_B64}", _pbkdf2_django),
    _format("PBKDF2, passlib", rf"\$pbkdf2(?:-(sha256|sha512))?\${_LARGE}\${_AB64}\${_AB64}", _pbkdf2_passlib),
    _format("PBKDF2, werkzeug", rf"pbkdf2:{_DIGESTS}:{_LARGE}\${_TEXT}\${_HEX}", _pbkdf2_werkzeug),
    _format("scrypt, PHC", rf"\$scrypt\$ln={_SMALL},r={_SMALL},p={_SMALL}\${_AB64}\${_AB64}", _scrypt_phc),
    _format("scrypt, werkzeug", rf"scrypt:{_LARGE}:{_SMALL}:{_SMALL}\${_TEXT}\${_HEX}", _scrypt_werkzeug),
    _format(
        "scrypt, Firebase",
        rf"\$fbscrypt\$v=1,n={_SMALL},r={_SMALL},p=1,ss={_B64},sk={_B64}\${_B64}\${_B64}",
        _scrypt_firebase,
    ),
    _format("salted SHA", rf"\{{SSHA(|256|512)\}}{_B64}", _salted_sha),
    _format("SHA-512 crypt", r"\$6\$(?:rounds=([0-9]{1,9})\$)?([^$:\n]{0,16})\$([./0-9A-Za-z]{86})", _sha512_crypt),
)
