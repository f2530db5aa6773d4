"""Opaque secrets: what we mint for people and machines to hold.

One is `<prefix>_<27 base-62 characters: 160 random bits><6: CRC-32>`. The prefix tells a secret scanner what
it found, the checksum lets us reject typos without a query. At rest there is only a keyed
hash. Nothing here knows the database.
"""

from __future__ import annotations

import hmac
import zlib
from enum import StrEnum
from functools import cache
from typing import Final

from identity.ambient import Entropy

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGIT: Final = {character: value for value, character in enumerate(_ALPHABET)}
_CHECK_LENGTH: Final = 6
SECRET_BYTES: Final = 20


class Kind(StrEnum):
    """The prefix of each kind of opaque secret."""

    SESSION = "ids"
    CONSOLE = "idw"
    REFRESH = "idr"
    API_KEY = "idk"
    API_SECRET = "idx"
    CLIENT_SECRET = "idc"
    INVITATION = "idi"
    RESET = "idp"
    LINK = "idl"


class Secret:
    """A secret on its way to its owner. Only `reveal` shows it; `repr`, `str` and formatting do not."""

    __slots__ = ("_plaintext",)

    def __init__(self, plaintext: str) -> None:
        self._plaintext = plaintext

    def reveal(self) -> str:
        return self._plaintext

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._plaintext.encode(), other._plaintext.encode())

    def __hash__(self) -> int:
        return hash(self._plaintext)


def mint(kind: Kind, entropy: Entropy) -> Secret:
    """A new secret of `kind` with 160 random bits."""
    return encode(kind, entropy.bytes(SECRET_BYTES))


def encode(kind: Kind, payload: bytes) -> Secret:
    """Spell `payload` as a secret of `kind`; `decode` reads it back."""
    text = f"{kind}_{_base62(int.from_bytes(payload), _width(len(payload)))}"
    return Secret(text + _checksum(text))


def decode(kind: Kind, text: str, size: int = SECRET_BYTES) -> bytes | None:
    """The payload of a well-formed secret of `kind`, or None. One spelling only: no strict prefix, suffix or case variant passes."""
    prefix = f"{kind}_"
    body = text[len(prefix) : -_CHECK_LENGTH]
    if not text.startswith(prefix) or len(body) != _width(size) or len(text) != len(prefix) + len(body) + _CHECK_LENGTH:
        return None
    number = 0
    for character in body:
        digit = _DIGIT.get(character)
        if digit is None:
            return None
        number = number * 62 + digit
    if number >> (8 * size) or _checksum(text[:-_CHECK_LENGTH]) != text[-_CHECK_LENGTH:]:
        return None
    return number.to_bytes(size)


def is_well_formed(kind: Kind, text: str) -> bool:
    """Whether `text` could be a secret of `kind`: prefix, length and checksum hold."""
    return decode(kind, text) is not None


def fingerprint(pepper: bytes, text: str) -> bytes:
    """The keyed hash under which a secret is stored. Fast on purpose: these secrets hold 160 random bits."""
    return hmac.digest(pepper, text.encode("utf-8", "surrogatepass"), "sha256")


def matches(stored: bytes, presented: bytes) -> bool:
    """Compare two fingerprints in constant time."""
    return hmac.compare_digest(stored, presented)


@cache
def _width(size: int) -> int:
    """How many base-62 digits `size` bytes need."""
    digits, number = 0, (1 << (8 * size)) - 1
    while number:
        number //= 62
        digits += 1
    return digits


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), _CHECK_LENGTH)
