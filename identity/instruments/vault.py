"""Encryption at rest: the master keys, what is sealed under them, and the server's own secrets.

The master key lives outside the database (a 0600 file, or the environment); a copy of the database alone opens nothing.
Peppers and internal signing keys are derived from one random root that is itself sealed, so that the master key can be
replaced without touching a single hash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import LargeBinary, String, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from identity.ambient import Entropy, Origin
from identity.files import make_folder, open_new, sync_folder
from identity.settings import BadSettings, Settings
from identity.storage import Base, Database

_KEY_BYTES: Final = 32
_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_ROOT: Final = "root"


class ServerSecret(Base):
    """A random secret of the whole service, sealed."""

    __tablename__ = "server_secret"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)


class Unsealable(Exception):
    """No master key at hand opens this; or it was altered, or moved to another row."""


class Vault:
    """Seals under the newest master key and opens under any of them (AES-256-GCM)."""

    def __init__(self, master_keys: tuple[bytes, ...], entropy: Entropy) -> None:
        self._newest = _key_id(master_keys[0])
        self._ciphers = {_key_id(key): AESGCM(key) for key in master_keys}
        self._entropy = entropy
        self._root = b""
        self._derived: dict[str, bytes] = {}

    def seal(self, plaintext: bytes, *, context: str) -> bytes:
        """Encrypt for the one place that `context` names (table, column, row id): elsewhere it will not open."""
        nonce = self._entropy.bytes(_NONCE_BYTES)
        return self._newest + nonce + self._ciphers[self._newest].encrypt(nonce, plaintext, context.encode())

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """The plaintext. Raises Unsealable."""
        cipher = self._ciphers.get(sealed[:_ID_BYTES])
        nonce = sealed[_ID_BYTES : _ID_BYTES + _NONCE_BYTES]
        try:
            if cipher is None:
                raise Unsealable("sealed under a master key that is not configured")
            return cipher.decrypt(nonce, sealed[_ID_BYTES + _NONCE_BYTES :], context.encode())
        except (InvalidTag, ValueError) as exc:
            raise Unsealable(f"{context} does not open") from exc

    def is_current(self, sealed: bytes) -> bool:
        """Whether this is sealed under the newest master key already."""
        return sealed[:_ID_BYTES] == self._newest

    def load_root(self, database: Database, origin: Origin, now: datetime) -> None:
        """Read the root secret, making it first on a new database; any number of processes may try at once."""
        with database.reading() as session:
            row = session.get(ServerSecret, _ROOT)
        if row is None:
            fresh = self.seal(self._entropy.bytes(_KEY_BYTES), context=_ROOT)
            try:
                with database.unit(now, origin) as unit:
                    unit.add(ServerSecret(name=_ROOT, sealed=fresh))
            except IntegrityError:
                pass  # Another process was first: its root is the root.
            with database.reading() as session:
                row = session.scalars(select(ServerSecret).where(ServerSecret.name == _ROOT)).one()
        try:
            self._root = self.open(row.sealed, context=_ROOT)
        except Unsealable as exc:
            raise BadSettings(
                f"the master key does not open this database ({database.shown}): restore the right one, "
                "in IDENTITY_MASTER_KEYS or in the file master.key of IDENTITY_KEYS_DIR"
            ) from exc

    def derive(self, purpose: str) -> bytes:
        """The 32-byte secret of the service for one purpose; the same in every process, for ever."""
        if purpose not in self._derived:
            if not self._root:
                raise RuntimeError("the vault has no root yet: call load_root first")
            self._derived[purpose] = HKDF(SHA256(), _KEY_BYTES, salt=None, info=purpose.encode()).derive(self._root)
        return self._derived[purpose]

    def reseal_root(self, session: Session) -> bool:
        """Seal the root under the newest master key, if it is not; tell whether it changed."""
        row = session.get_one(ServerSecret, _ROOT)
        if self.is_current(row.sealed):
            return False
        row.sealed = self.seal(self.open(row.sealed, context=_ROOT), context=_ROOT)
        return True


def open_vault(settings: Settings, entropy: Entropy, *, makes_key: bool = True) -> Vault:
    """The vault under the configured master keys, or under `keys/master.key`; `makes_key`: which is made when missing.

    A key may be made only for a database that has no root yet: beside one that has, it could open nothing. Raises BadSettings, OSError.
    """
    if settings.master_keys:
        return Vault(tuple(_parse(text, "IDENTITY_MASTER_KEYS") for text in settings.master_keys), entropy)
    path = key_file(settings)
    if not path.exists():
        if not makes_key:
            raise BadSettings(
                f"{path} is missing, and this database is sealed under it: restore it, or set IDENTITY_KEYS_DIR or IDENTITY_MASTER_KEYS"
            )
        _create(path, entropy)
    try:
        lines = [line for line in path.read_text("ascii").split() if line]
    except UnicodeDecodeError as exc:
        raise BadSettings(f"{path} is not text: it holds the base64 of {_KEY_BYTES} bytes, one key a line") from exc
    if not lines:
        raise BadSettings(f"{path} is empty")
    return Vault(tuple(_parse(line, str(path)) for line in lines), entropy)


def key_file(settings: Settings) -> Path:
    """Where the master key is, if it is in no setting."""
    return (settings.keys_dir / "master.key").absolute()


def has_root(database: Database) -> bool:
    """Whether this database was ever served: then its root is sealed under a master key that must be found, not made."""
    with database.reading() as session:
        return session.get(ServerSecret, _ROOT) is not None


def _create(path: Path, entropy: Entropy) -> None:
    """Write a new master key, whole or not at all; of many processes that try at once, one wins and all use its key."""
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{entropy.bytes(4).hex()}")
    descriptor = open_new(draft)
    try:
        os.write(descriptor, base64.b64encode(entropy.bytes(_KEY_BYTES)) + b"\n")
        os.fsync(descriptor)
        os.link(draft, path)
    except FileExistsError:
        pass  # Another process made it; what counts is that it is there.
    finally:
        os.close(descriptor)
        draft.unlink()
    # Whoever comes here seals a database under it next, which may lie on another disk: the key must not be younger than that.
    sync_folder(path.parent)


def _parse(text: str, source: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise BadSettings(f"{source} holds a key that is not base64") from exc
    if len(key) != _KEY_BYTES:
        raise BadSettings(f"{source} holds a key that is not {_KEY_BYTES} bytes long")
    return key


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"identity master key id" + key).digest()[:_ID_BYTES]
