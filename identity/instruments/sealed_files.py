"""Files that only who holds the key can read, and that nobody can shorten, reorder or change unseen: what a backup is written in.

A line names the format, a line of JSON says what the file is and holds the file's own key, sealed under the master key or under a
passphrase. Behind them come compressed parts of at most a mebibyte, each encrypted by AES-256-GCM with its number and with whether it
is the last in the nonce, and bound to the head (the STREAM construction). So a file of any length passes through a few mebibytes of memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from identity.ambient import Entropy
from identity.instruments.vault import Unsealable, Vault

PASSPHRASE_MIN_CHARACTERS: Final = 12
_MAGIC: Final = b"identity backup 1\n"
_PART: Final = 1 << 20
_TAG_BYTES: Final = 16
_KEY_BYTES: Final = 32
_HEAD_MAX: Final = 65_536
_CONTEXT: Final = "backup"
# 128 MiB and about half a second, once for each file: a passphrase is guessed at offline.
_SCRYPT: Final = {"n": 1 << 17, "r": 8, "p": 1}
_SCRYPT_MAX_MEMORY: Final = 256 << 20
_LENGTH: Final = struct.Struct(">I")


class BadBackup(Exception):
    """What is wrong with a backup or with making one, in words for an operator."""


class Sealer:
    """Writes one sealed file; it is whole only after `finish`."""

    def __init__(
        self, file: BinaryIO, about: Mapping[str, Any], *, vault: Vault, entropy: Entropy, passphrase: str | None
    ) -> None:
        """`about`: what anybody may read of the file. Sealed under the newest master key, or under a `passphrase`."""
        key = entropy.bytes(_KEY_BYTES)
        head = json.dumps({**about, "key": _wrap(key, vault, entropy, passphrase)}, sort_keys=True).encode() + b"\n"
        self._file = file
        self._cipher = AESGCM(key)
        self._bound = hashlib.sha256(head).digest()
        self._packer = zlib.compressobj(1)
        self._waiting = bytearray()
        self._number = 0
        file.write(_MAGIC + head)

    def write(self, data: bytes) -> None:
        """Take the next bytes, however many."""
        self._waiting += self._packer.compress(data)
        while len(self._waiting) > _PART:
            self._put(bytes(self._waiting[:_PART]), is_last=False)
            del self._waiting[:_PART]

    def finish(self) -> None:
        """Write what is left, as the last part."""
        self._waiting += self._packer.flush()
        while len(self._waiting) > _PART:
            self._put(bytes(self._waiting[:_PART]), is_last=False)
            del self._waiting[:_PART]
        self._put(bytes(self._waiting), is_last=True)

    def _put(self, plain: bytes, *, is_last: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._number, is_last=is_last), plain, self._bound)
        self._file.write(_LENGTH.pack(len(sealed)) + sealed)
        self._number += 1


class Sealed:
    """A sealed file to read, from its beginning."""

    def __init__(self, file: BinaryIO) -> None:
        """Reads the head. Raises BadBackup for what is no such file."""
        if file.read(len(_MAGIC)) != _MAGIC:
            raise BadBackup("is no backup that this version can read")
        head = file.readline(_HEAD_MAX)
        try:
            about = json.loads(head)
            self._key: dict[str, Any] = about.pop("key")
        except (ValueError, KeyError, AttributeError, RecursionError) as exc:
            raise BadBackup("is damaged: its head cannot be read") from exc
        self.about: dict[str, Any] = about
        self._file = file
        self._bound = hashlib.sha256(head).digest()

    @property
    def needs_passphrase(self) -> bool:
        """Whether a passphrase opens it, and not a master key."""
        return self._key.get("by") == "passphrase"

    def parts(self, vault: Vault | None, passphrase: str | None) -> Iterator[bytes]:
        """What was written, in parts of at most a mebibyte. Raises BadBackup for a wrong key, and where anything was changed or is missing.

        What came before such an error is what was written there; only a run to the end shows that the file is whole.
        """
        cipher = AESGCM(self._unwrap(vault, passphrase))
        unpacker = zlib.decompressobj()
        number, is_last = 0, False
        while not is_last:
            sealed = self._frame()
            plain, is_last = self._open(cipher, number, sealed)
            number += 1
            while plain:
                yield unpacker.decompress(plain, _PART)
                plain = unpacker.unconsumed_tail
        yield unpacker.flush()
        if self._file.read(1) or not unpacker.eof:
            raise BadBackup("is damaged: it does not end where it says")

    def _frame(self) -> bytes:
        said = self._file.read(_LENGTH.size)
        length = _LENGTH.unpack(said)[0] if len(said) == _LENGTH.size else 0
        sealed = self._file.read(length) if _TAG_BYTES <= length <= _PART + _TAG_BYTES else b""
        if not sealed or len(sealed) != length:
            raise BadBackup("is damaged: it was cut off, or changed")
        return sealed

    def _open(self, cipher: AESGCM, number: int, sealed: bytes) -> tuple[bytes, bool]:
        for is_last in (False, True):
            try:
                return cipher.decrypt(_nonce(number, is_last=is_last), sealed, self._bound), is_last
            except InvalidTag:
                continue
        raise BadBackup("is damaged: a part of it was changed")

    def _unwrap(self, vault: Vault | None, passphrase: str | None) -> bytes:
        try:
            sealed = base64.b64decode(self._key["sealed"])
            if not self.needs_passphrase:
                assert vault is not None, "a master key seals it, so a vault is at hand"
                return vault.open(sealed, context=_CONTEXT)
            salt, cost = base64.b64decode(self._key["salt"]), {name: int(self._key[name]) for name in _SCRYPT}
            if cost != _SCRYPT:
                raise BadBackup("was sealed with other costs than this version uses")
            return _by_passphrase(passphrase or "", salt).decrypt(sealed[:12], sealed[12:], _CONTEXT.encode())
        except Unsealable as exc:
            raise BadBackup(
                "was sealed under another master key: restore that one, in IDENTITY_MASTER_KEYS or in master.key of IDENTITY_KEYS_DIR"
            ) from exc
        except InvalidTag as exc:
            raise BadBackup("does not open with this passphrase") from exc
        except (KeyError, TypeError, ValueError) as exc:
            raise BadBackup("is damaged: its head cannot be read") from exc


def _wrap(key: bytes, vault: Vault, entropy: Entropy, passphrase: str | None) -> dict[str, Any]:
    if passphrase is None:
        return {"by": "master", "sealed": _text(vault.seal(key, context=_CONTEXT))}
    salt, nonce = entropy.bytes(16), entropy.bytes(12)
    sealed = nonce + _by_passphrase(passphrase, salt).encrypt(nonce, key, _CONTEXT.encode())
    return {"by": "passphrase", "salt": _text(salt), **_SCRYPT, "sealed": _text(sealed)}


def _by_passphrase(passphrase: str, salt: bytes) -> AESGCM:
    return AESGCM(
        hashlib.scrypt(passphrase.encode(), salt=salt, dklen=_KEY_BYTES, maxmem=_SCRYPT_MAX_MEMORY, **_SCRYPT)
    )


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11) + bytes([is_last])


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
