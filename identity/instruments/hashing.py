"""Passwords: what is accepted, how they are kept, and how many are computed at once."""

from __future__ import annotations

import re
import threading
import unicodedata
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final

import bcrypt
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from identity.errors import UNAVAILABLE, VALIDATION, Refused
from identity.settings import Settings

PASSWORD_MAX_BYTES: Final = 1024
_BCRYPT_BYTES: Final = 72


class Passwords:
    """Hash and check passwords with Argon2id, a bounded number at once in this process.

    Lanes stay at one: more buy nothing on a server that hashes in parallel anyway. A hash of an older system (bcrypt) or of older
    parameters verifies and is reported for an upgrade.
    """

    def __init__(self, settings: Settings) -> None:
        self._hasher = PasswordHasher(settings.argon2_time_cost, settings.argon2_memory_kib, parallelism=1)
        # Hashing has threads of its own, one for each slot: each keeps one Argon2 memory warm, where every thread of the server would
        # come to keep one. A turn more than slots lets the next guess be reserved while this one is hashed.
        self._hashing = ThreadPoolExecutor(settings.hash_slots, "hashing")
        self._turns = threading.BoundedSemaphore(settings.hash_slots + 1)
        self._wait_seconds = settings.hash_wait_seconds
        self._min_length = settings.password_min_length
        blank = b64encode(bytes(32)).decode().rstrip("=")
        cost = f"m={settings.argon2_memory_kib},t={settings.argon2_time_cost},p=1"
        self._nobody = f"$argon2id$v=19${cost}${blank[:22]}${blank}"

    def turn(self) -> _Turn:
        """Wait for a turn to hash; use as a context manager. Raises Refused(UNAVAILABLE) when none comes in time."""
        return _Turn(self._turns, self._wait_seconds)

    def hash(self, password: str) -> str:
        """The encoded hash to store. Call it inside `turn`."""
        return self._hashing.submit(self._hasher.hash, normalized(password).encode()).result()

    def verify(self, stored: str | None, password: str) -> bool:
        """Whether `password` is the one behind `stored`; `None` costs the same and is False. Call it inside `turn`."""
        given = normalized(password).encode("utf-8", "surrogatepass")
        fits = len(given) <= PASSWORD_MAX_BYTES
        if stored and stored.startswith("$2"):
            # bcrypt reads 72 bytes only: a longer password must not pass by its head, nor show by its haste that the hash is an old one.
            matches_head = self._hashing.submit(_bcrypt_matches, stored, given[:_BCRYPT_BYTES]).result()
            return matches_head and len(given) <= _BCRYPT_BYTES
        try:
            self._hashing.submit(self._hasher.verify, stored or self._nobody, given if fits else b"").result()
        except (VerificationError, InvalidHashError):
            return False
        return fits

    def is_outdated(self, stored: str) -> bool:
        """Whether a hash that just verified should be made anew with today's parameters."""
        return not stored.startswith("$argon2") or self._hasher.check_needs_rehash(stored)

    def check_policy(self, password: str, *, about: tuple[str, ...] = (), field: str = "password") -> None:
        """Refuse a password that people or lists would guess; `about` are words of this user.

        Length and lists only, no rules of composition (NIST SP 800-63B-4 section 3.1.1.2).
        """
        word = normalized(password)
        weak: str | None = None
        if len(word) < self._min_length:
            weak = f"The password needs at least {self._min_length} characters"
        elif len(word.encode("utf-8", "surrogatepass")) > PASSWORD_MAX_BYTES:
            weak = f"The password may have at most {PASSWORD_MAX_BYTES} bytes"
        elif word.lower() in _blocklist() or len(set(word)) <= 2:
            weak = "The password is on a list of common passwords"
        elif any(len(part) >= 4 and part.lower() in word.lower() and len(word) < len(part) + 4 for part in about):
            weak = "The password resembles the account's name"
        if weak:
            raise Refused(VALIDATION.saying(weak), field=field, detail="password policy")


class _Turn:
    __slots__ = ("_turns", "_wait_seconds")

    def __init__(self, turns: threading.BoundedSemaphore, wait_seconds: int) -> None:
        self._turns = turns
        self._wait_seconds = wait_seconds

    def __enter__(self) -> None:
        if not self._turns.acquire(timeout=self._wait_seconds):
            raise Refused(
                UNAVAILABLE, detail="no password hashing slot became free", retry_after_seconds=self._wait_seconds
            )

    def __exit__(self, *_: object) -> None:
        self._turns.release()


def normalized(password: str) -> str:
    """Unicode NFC, so that the same password typed on two systems is the same bytes; nothing else is changed."""
    return unicodedata.normalize("NFC", password)


def is_password_hash(text: str) -> bool:
    """Whether `text` is a hash that `Passwords.verify` can read."""
    return bool(re.fullmatch(r"\$2[aby]\$(?:0[4-9]|1[0-5])\$[./A-Za-z0-9]{53}|\$argon2id\$v=19\$[!-~]{20,200}", text))


def _bcrypt_matches(stored: str, given: bytes) -> bool:
    try:
        return bcrypt.checkpw(given, stored.encode())
    except ValueError:
        return False


@cache
def _blocklist() -> frozenset[str]:
    from zxcvbn.frequency_lists import FREQUENCY_LISTS  # noqa: PLC0415 -- 30,000 words that most processes never need

    return frozenset(word for word in FREQUENCY_LISTS["passwords"] if len(word) >= 8)
