"""Passwords: what is accepted, how they are kept, and how many are computed at once."""

from __future__ import annotations

import re
import threading
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from queue import LifoQueue
from typing import Any, Final, TypeVar

import bcrypt
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type, verify_secret

from identity.errors import UNAVAILABLE, VALIDATION, Refused
from identity.instruments import heap, old_hashes
from identity.settings import Settings

T = TypeVar("T")
PASSWORD_MAX_BYTES: Final = 1024
_BCRYPT_BYTES: Final = 72
_MAX_ARGON2_KIB: Final = 256 * 1024
# Django spells the name of its hasher before the hash.
_BCRYPT: Final = re.compile(
    r"(bcrypt_sha256\$|bcrypt\$)?(\$2[aby]\$(?:0[4-9]|1[0-5])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31})", re.ASCII
)
_ARGON2: Final = re.compile(
    r"\$argon2(?:id|i)\$v=19\$m=([0-9]{1,7}),t=([0-9]{1,3}),p=([0-9]{1,3})\$([A-Za-z0-9+/]{8,90})\$([A-Za-z0-9+/]{8,180})",
    re.ASCII,
)


class Passwords:
    """Hash and check passwords with Argon2id, a bounded number at once in this process.

    Lanes stay at one: more buy nothing on a server that hashes in parallel anyway. A hash of an older system (bcrypt) or of older
    parameters verifies and is reported for an upgrade.
    """

    def __init__(self, settings: Settings) -> None:
        self._hasher = PasswordHasher(settings.argon2_time_cost, settings.argon2_memory_kib, parallelism=1)
        # Hashing has threads of its own, one for each slot: each keeps one Argon2 memory warm, where every thread of the server would
        # come to keep one. A turn more than slots lets the next guess be reserved while this one is hashed.
        self._slots = [ThreadPoolExecutor(1, "hashing") for _ in range(settings.hash_slots)]
        self._free: LifoQueue[ThreadPoolExecutor] = LifoQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._turns = threading.BoundedSemaphore(settings.hash_slots + 1)
        self._is_warm = self._was_used = False
        self._wait_seconds = settings.hash_wait_seconds
        self._min_length = settings.password_min_length
        blank = b64encode(bytes(32)).decode().rstrip("=")
        cost = f"m={settings.argon2_memory_kib},t={settings.argon2_time_cost},p=1"
        self._nobody = f"$argon2id$v=19${cost}${blank[:22]}${blank}"

    def turn(self) -> _Turn:
        """Wait for a turn to hash; use as a context manager. Raises Refused(UNAVAILABLE) when none comes in time."""
        self._is_warm = self._was_used = True
        return _Turn(self._turns, self._wait_seconds)

    def rest(self) -> None:
        """Give the memory of the hashes back if none was made since this was called last; called every few seconds."""
        if self._is_warm and not self._was_used:
            self._is_warm = False
            for slot in self._slots:
                slot.submit(heap.give_back)
        self._was_used = False

    def _compute(self, work: Callable[..., T], *given: Any) -> T:
        """What `work` returns in a slot, the one that was used last if it is free."""
        slot = self._free.get()
        try:
            return slot.submit(work, *given).result()
        finally:
            self._free.put(slot)

    def hash(self, password: str) -> str:
        """The encoded hash to store. Call it inside `turn`."""
        return self._compute(self._hasher.hash, normalized(password).encode())

    def verify(self, stored: str | None, password: str) -> bool:
        """Whether `password` is the one behind `stored`; `None` costs the same and is False. Call it inside `turn`.

        A hash of another system accepts what that system accepted: the bytes as they were typed, and bcrypt reads 72 of them.
        """
        given = normalized(password).encode("utf-8", "surrogatepass")
        fits = len(given) <= PASSWORD_MAX_BYTES
        typed = password.encode("utf-8", "surrogatepass")
        if stored and not stored.startswith("$argon2id"):
            # One that is too long costs its hash too, and stands for none.
            spellings = dict.fromkeys((typed, given)) if fits else (b"",)
            matched = [self._compute(_old_matches, stored, one) for one in spellings]
            return fits and any(matched)
        try:
            self._compute(self._hasher.verify, stored or self._nobody, given if fits else b"")
        except (VerificationError, InvalidHashError):
            # An imported hash may be of bytes that we would have normalized.
            return fits and typed != given and self._compute(_old_matches, stored or "", typed)
        return fits

    def is_outdated(self, stored: str) -> bool:
        """Whether a hash that just verified should be made anew with today's parameters."""
        return not stored.startswith("$argon2id") or self._hasher.check_needs_rehash(stored)

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
    """Whether `text` is a hash that `Passwords.verify` can read, at a moderate cost."""
    if _BCRYPT.fullmatch(text):
        return True
    return _is_moderate_argon2(_argon2_of(text)) if "$argon2" in text[:14] else old_hashes.read(text) is not None


def _old_matches(stored: str, typed: bytes) -> bool:
    """Whether a hash of another system is of these bytes."""
    found = _BCRYPT.fullmatch(stored)
    if found is not None:
        # Django hashes a digest where it says so: bcrypt alone would read 72 bytes.
        content = sha256(typed).hexdigest().encode() if found[1] == "bcrypt_sha256$" else typed
        return _bcrypt_matches(found[2], content[:_BCRYPT_BYTES])
    if "$argon2" in stored[:14]:
        text = _argon2_of(stored)
        kind = Type.ID if text.startswith("$argon2id") else Type.I
        try:
            return _is_moderate_argon2(text) and verify_secret(text.encode(), typed, kind)
        except (VerificationError, InvalidHashError):
            return False
    read = old_hashes.read(stored)
    return read is not None and read.matches(typed)


def _argon2_of(text: str) -> str:
    """A hash in Argon2's own spelling; Django writes `argon2` before it."""
    return text.removeprefix("argon2")


def _is_moderate_argon2(text: str) -> bool:
    """Whether a text is a whole Argon2id or Argon2i hash that a login can afford."""
    found = _ARGON2.fullmatch(text)
    if found is None:
        return False
    memory, time, lanes = (int(found[number]) for number in (1, 2, 3))
    try:
        salt, digest = (b64decode(part + "=" * (-len(part) % 4), validate=True) for part in found.groups()[3:])
    except ValueError:
        return False
    moderate = 8 * lanes <= memory <= _MAX_ARGON2_KIB and 1 <= time <= 20 and 1 <= lanes <= 16
    return moderate and memory * time <= 4 * _MAX_ARGON2_KIB and 8 <= len(salt) <= 64 and 12 <= len(digest) <= 128


def _bcrypt_matches(stored: str, given: bytes) -> bool:
    try:
        return bcrypt.checkpw(given, stored.encode())
    except ValueError:
        return False


@cache
def _blocklist() -> frozenset[str]:
    from zxcvbn.frequency_lists import FREQUENCY_LISTS  # noqa: PLC0415 -- 30,000 words that most processes never need

    return frozenset(word for word in FREQUENCY_LISTS["passwords"] if len(word) >= 8)
