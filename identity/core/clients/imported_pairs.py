"""Key pairs that another system made: their owners keep the key and the secret that they have.

Of the secret comes its plain text or, as a rule, the digest that the other system kept. We keep a keyed hash of that digest, which tells
whoever reads the database as little as a pair of ours. A pair that was revoked here is not revived by importing it again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import delete, exists, func, literal, select

from identity.core.clients import keypairs
from identity.core.clients.keypairs import KeyPair, checked_networks, clean_name
from identity.core.keeping import Keeping
from identity.core.people import tenancy
from identity.core.people.accounts import User
from identity.core.people.rights import ALL, Rights
from identity.core.record import audit
from identity.core.record.audit import Action, AuditEvent
from identity.errors import CONFLICT, VALIDATION, Refused
from identity.instruments import opaque
from identity.instruments.key_shapes import KeyShape
from identity.runtime import Runtime
from identity.storage import Unit

DIGESTS: Final[Mapping[str, int]] = {"sha256": 32, "sha512": 64}
MIN_SECRET: Final = 16
MAX_SECRET: Final = 512
_SECRET: Final = re.compile(rf"[\x21-\x7e]{{{MIN_SECRET},{MAX_SECRET}}}")
_MIN_DIFFERENT: Final = 8
_BAD_HASH: Final = VALIDATION.saying(
    "secretHash is like sha256:<hex> or sha512:<base64>. Slow hashes are for passwords: checking one with each request would be dear"
)


@dataclass(frozen=True, slots=True)
class Imported:
    """A pair as it comes: its key, and what is known of its secret, `digest` being the hash that it is known by."""

    api_key: str
    digest: str
    secret_hash: bytes
    name: str
    expires_at: datetime
    cidrs: Sequence[str] = ()
    rights: Rights = ALL


def read_secret(*, plain: str | None, hashed: str | None) -> tuple[str, bytes]:
    """By which digest a secret is known, and that digest. Raises Refused(VALIDATION)."""
    if (plain is None) == (hashed is None):
        raise Refused(VALIDATION.saying("Give either apiSecret or secretHash"), field="secretHash")
    if plain is not None:
        if not _SECRET.fullmatch(plain) or len(set(plain)) < _MIN_DIFFERENT:
            raise Refused(
                VALIDATION.saying(
                    f"A secret has {MIN_SECRET} to {MAX_SECRET} visible characters, {_MIN_DIFFERENT} of them different"
                ),
                field="apiSecret",
            )
        return "sha256", hashlib.sha256(plain.encode()).digest()
    digest, _, text = (hashed or "").partition(":")
    raw = _decoded(text, DIGESTS[digest]) if digest in DIGESTS else None
    if raw is None:
        raise Refused(_BAD_HASH, field="secretHash")
    if hmac.compare_digest(raw, hashlib.new(digest, b"").digest()):
        raise Refused(VALIDATION.saying("That is the hash of an empty secret"), field="secretHash")
    return digest, raw


def take(rt: Runtime, unit: Unit, owner: User, pair: Imported, *, prefix: str, actor: str) -> bool:
    """Make the pair, good at once: whoever imports vouches for it. False if it is there already, whatever became of it since.

    Raises Refused(VALIDATION), Refused(CONFLICT) for a key that is another's or was revoked here, and for one pair too many.
    """
    key_id = _id_of(rt, pair.api_key)
    known = unit.execute(select(KeyPair.id, KeyPair.user_id).where(KeyPair.api_key == pair.api_key)).first()
    if known is not None:
        if (known.id, known.user_id) != (key_id, owner.id):
            raise Refused(CONFLICT.saying("Another user has that key"), field="apiKey")
        return False
    revoked = select(AuditEvent.id).where(AuditEvent.target == key_id, AuditEvent.action == Action.KEYPAIR_REVOKED)
    if unit.execute(revoked.limit(1)).first() is not None:
        raise Refused(CONFLICT.saying("That key was revoked here"), field="apiKey")
    keypairs.check_room(unit, owner.id)
    if pair.rights != ALL:
        pair.rights.check_within(owner.roles, tenancy.memberships_of(rt, owner.id))
    row = KeyPair(
        id=key_id,
        user_id=owner.id,
        api_key=pair.api_key,
        fingerprint=_fingerprint(rt, pair.digest, pair.secret_hash),
        imported_digest=pair.digest,
        name=clean_name(pair.name),
        cidrs=" ".join(checked_networks(pair.cidrs)),
        verified=True,
        created_at=unit.now,
        expires_at=pair.expires_at,
        rights=pair.rights.encoded(),
    )
    rt.key_shapes.admit(unit, pair.api_key, prefix)
    unit.add(row)
    audit.record(rt, unit, Action.KEYPAIR_CREATED, actor=actor, target=row.id, user=owner.id, imported=True)
    return True


def may_be(rt: Runtime, api_key: str, api_secret: str) -> bool:
    """Whether there may be an imported pair like that; asked before anything is read for it."""
    return bool(_SECRET.fullmatch(api_secret)) and rt.key_shapes.fits(api_key)


def fingerprint_of(rt: Runtime, digest: str, api_secret: str) -> bytes:
    """What a pair that came with such a digest keeps of its secret."""
    return _fingerprint(rt, digest, hashlib.new(digest, api_secret.encode("utf-8", "surrogatepass")).digest())


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget shapes that no pair has any more."""
    like = (
        func.substr(KeyPair.api_key, 1, func.length(KeyShape.prefix)) == KeyShape.prefix,
        func.length(KeyPair.api_key) == KeyShape.length,
    )
    used = exists(select(literal(1)).where(KeyPair.imported_digest.is_not(None), *like))
    return unit.changed(delete(KeyShape).where(~used))


def _fingerprint(rt: Runtime, digest: str, secret_hash: bytes) -> bytes:
    return opaque.fingerprint(rt.ring.vault.derive("imported api secrets"), f"{digest}:{secret_hash.hex()}")


def _id_of(rt: Runtime, api_key: str) -> str:
    # The same for the same key, so that the record of an earlier pair is found again (a UUIDv8, RFC 9562 section 5.8).
    number = bytearray(hmac.digest(rt.ring.vault.derive("imported key ids"), api_key.encode(), "sha256")[:16])
    number[6], number[8] = number[6] & 0x0F | 0x80, number[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(number)))


def _decoded(text: str, size: int) -> bytes | None:
    """The `size` bytes that are spelled in hexadecimal, or in base64 of either alphabet; None if it is neither."""
    try:
        if len(text) == 2 * size:
            return binascii.unhexlify(text)
        raw = base64.b64decode(
            text.rstrip("=").translate(str.maketrans("-_", "+/")) + "=" * (-len(text.rstrip("=")) % 4), validate=True
        )
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == size else None


KEEPING: Final = Keeping((KeyShape,), purge=purge)
