"""API key pairs: an identifier that may be shown and a secret that is shown once.

A pair does nothing until its owner confirms it with an emailed code. It carries its owner's roles and memberships as they are now, or the
part of them that it was made for, and it stops with its owner. Both halves are 160 random bits, so checking them is one read and one keyed
hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    ForeignKey,
    LargeBinary,
    String,
    Text,
    delete,
    false,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Mapped, mapped_column

from identity import paging
from identity.ambient import Origin, later
from identity.canonical import canonical_id
from identity.columns import Instant
from identity.core.keeping import Keeping, delete_batch
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people import accounts, addresses, tenancy
from identity.core.people.accounts import User, UserInfo
from identity.core.people.ownership import Anyone, Owner, may_touch
from identity.core.people.rights import ALL, Rights, decoded
from identity.core.proofs import codes, guesses
from identity.core.proofs.codes import Purpose
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import sessions
from identity.errors import CONFLICT, INVALID_CODE, NOT_FOUND, VALIDATION, Refused
from identity.instruments import opaque, tallies
from identity.instruments.opaque import Kind, Secret
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Base, Unit

MAX_DAYS: Final = 3650
MAX_NETWORKS: Final = 32
MAX_PAIRS: Final = 100
MAX_GRACE_SECONDS: Final = 604_800
PAIRS_FULL: Final = CONFLICT.saying(f"An account has at most {MAX_PAIRS} key pairs")
NO_ADDRESS: Final = CONFLICT.saying("The account has no verified email that a code could go to")


class KeyPair(Base):
    """A key pair; the secret only as a keyed hash."""

    __tablename__ = "keypair"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), index=True)
    api_key: Mapped[str] = mapped_column(String(64), unique=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32))
    name: Mapped[str] = mapped_column(String(200))
    cidrs: Mapped[str] = mapped_column(Text, default="")
    verified: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)
    last_used_at: Mapped[datetime | None] = mapped_column(Instant)
    last_used_address: Mapped[str | None] = mapped_column(String(64))
    warned_days: Mapped[int | None] = mapped_column(BigInteger)
    rights: Mapped[str | None] = mapped_column(Text)
    # Looks like any other and proves nothing; see `decoys`.
    decoy: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    decoy_told_at: Mapped[datetime | None] = mapped_column(Instant)
    previous_fingerprint: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    previous_until: Mapped[datetime | None] = mapped_column(Instant)
    # By which hash another system knew the secret; see `imported_pairs`.
    imported_digest: Mapped[str | None] = mapped_column(String(16))


@dataclass(frozen=True, slots=True)
class KeyPairInfo:
    """A key pair as its owner and administrators see it: never the secret."""

    id: str
    user_id: str
    api_key: str
    name: str
    cidrs: tuple[str, ...]
    verified: bool
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    last_used_ip: str | None
    rights: Rights
    decoy: bool = False


def create(
    rt: Runtime,
    unit: Unit,
    user_id: str,
    *,
    name: str,
    days: int,
    actor: str,
    cidrs: Sequence[str] = (),
    verified: bool = False,
    rights: Rights = ALL,
    decoy: bool = False,
) -> tuple[KeyPairInfo, Secret]:
    """A new pair of `user_id`, good for `days`, and its secret, which is shown once. Raises Refused(VALIDATION).

    `rights`: a part of what the owner has; the pair never has more than that, nor more than its owner has at the time. A `decoy` looks the
    same and is refused wherever it is used.
    """
    if not 1 <= days <= MAX_DAYS:
        raise Refused(VALIDATION.saying("A key lives from 1 to 3650 days"), field="days")
    if rights != ALL:
        owner = accounts.get(rt, user_id)
        rights.check_within(owner.roles, tenancy.memberships_of(rt, user_id))
    secret = opaque.mint(Kind.API_SECRET, rt.entropy)
    row = KeyPair(
        id=rt.new_id(),
        user_id=user_id,
        api_key=opaque.mint(Kind.API_KEY, rt.entropy).reveal(),
        fingerprint=fingerprint_of(rt, secret.reveal(), decoy=decoy),
        decoy=decoy,
        name=clean_name(name),
        cidrs=" ".join(checked_networks(cidrs)),
        verified=verified,
        created_at=unit.now,
        expires_at=later(unit.now, days * 86_400),
        rights=rights.encoded(),
    )
    unit.add(row)
    audit.record(
        rt, unit, Action.KEYPAIR_CREATED, actor=actor, target=row.id, user=user_id, days=days, verified=verified
    )
    return _info(row), secret


@dataclass(frozen=True, slots=True)
class Requested:
    """A pair that waits for its code, and its secret, which exists only here."""

    info: KeyPairInfo
    secret: Secret
    #: None for a decoy, which waits for none.
    verification_id: str | None


def request(
    rt: Runtime,
    unit: Unit,
    user: UserInfo,
    *,
    name: str,
    days: int,
    actor: str,
    cidrs: Sequence[str] = (),
    rights: Rights = ALL,
) -> Requested:
    """A new pair of `user` that does nothing until the code comes back that was mailed to the address they prefer.

    Raises Refused(VALIDATION), Refused(CONFLICT) for one pair too many, Refused(RATE_LIMITED) for too many codes.
    """
    check_room(unit, user.id)
    address = addresses.preferred_of(unit, user.id)
    if address is None:
        raise Refused(NO_ADDRESS, detail="no verified address")
    info, secret = create(rt, unit, user.id, name=name, days=days, actor=actor, cidrs=cidrs, rights=rights)
    values = {"account": user.alias, "key_name": info.name}
    verification_id = codes.issue(
        rt, unit, Purpose.KEYPAIR, subject=info.id, user_id=user.id, address=address, values=values
    )
    return Requested(info, secret, verification_id)


def check_room(unit: Unit, user_id: str) -> None:
    """Raise Refused(CONFLICT) where one pair more is one too many for this user."""
    # The user's row is the lock: two that ask at once would both find the last place free.
    unit.execute(select(User.id).where(User.id == user_id).with_for_update())
    count = unit.execute(select(func.count()).select_from(KeyPair).where(KeyPair.user_id == user_id)).scalar_one()
    if count >= MAX_PAIRS:
        raise Refused(PAIRS_FULL, detail=f"{count} pairs")


def prove(rt: Runtime, origin: Origin, verification_id: str, code: str) -> None:
    """Switch a pair on by its emailed code, and tell its owner. Raises Refused(INVALID_CODE), Refused(LOCKED_OUT)."""
    with guesses.mailed_code(rt, origin, Purpose.KEYPAIR, verification_id, code) as (unit, consumed):
        row = unit.session.get(KeyPair, consumed.subject)
        if row is None or row.expires_at <= unit.now:
            raise Refused(INVALID_CODE, detail="the key pair was revoked or has expired meanwhile")
        info = mark_proven(rt, unit, row.id, actor=row.user_id)
        address = addresses.preferred_of(unit, info.user_id)
        if address is not None:
            outbox.queue(rt, unit, Template.KEYPAIR_ADDED, to=address, values={"key_name": info.name})


def mark_proven(rt: Runtime, unit: Unit, key_id: str, *, actor: str) -> KeyPairInfo:
    """Make a waiting pair usable: its code was right, or an administrator vouches. Raises Refused(NOT_FOUND)."""
    if not canonical_id(key_id) or not unit.changed(update(KeyPair).where(KeyPair.id == key_id).values(verified=True)):
        raise Refused(NOT_FOUND, detail="no such key pair")
    audit.record(rt, unit, Action.KEYPAIR_VERIFIED, actor=actor, target=key_id)
    return _info(unit.session.get_one(KeyPair, key_id))


def rotate(
    rt: Runtime, unit: Unit, key_id: str, *, actor: str, grace_seconds: int = 0, of: Owner | Anyone
) -> tuple[KeyPairInfo, Secret, datetime]:
    """A new secret of a pair, shown once, and until when the one before it still works. Raises Refused(NOT_FOUND).

    Its identifier, name, end and rights stay; so do the tokens that it was traded for, unless they are revoked.
    """
    row = unit.session.get(KeyPair, canonical_id(key_id), with_for_update=True) if canonical_id(key_id) else None
    if row is None or not may_touch(of, row.user_id):
        raise Refused(NOT_FOUND, detail="no such key pair")
    if not 0 <= grace_seconds <= MAX_GRACE_SECONDS:
        raise Refused(VALIDATION.saying(f"A grace is from 0 to {MAX_GRACE_SECONDS} seconds"), field="graceSeconds")
    secret = opaque.mint(Kind.API_SECRET, rt.entropy)
    until = later(unit.now, grace_seconds)
    row.previous_fingerprint, row.previous_until = row.fingerprint, until
    row.fingerprint = fingerprint_of(rt, secret.reveal(), decoy=row.decoy)
    unit.session.flush()
    audit.record(rt, unit, Action.KEYPAIR_ROTATED, actor=actor, target=row.id, user=row.user_id, grace=grace_seconds)
    return _info(row), secret, until


def revoke(rt: Runtime, unit: Unit, key_id: str, *, actor: str, of: Owner | Anyone) -> str:
    """Delete a pair, and end what it has opened; tell whose it was. Raises Refused(NOT_FOUND), also for a pair that is not within `of`."""
    row = unit.session.get(KeyPair, canonical_id(key_id)) if canonical_id(key_id) else None
    if row is None or not may_touch(of, row.user_id):
        raise Refused(NOT_FOUND, detail="no such key pair")
    unit.execute(delete(KeyPair).where(KeyPair.id == row.id))
    codes.cancel(unit, Purpose.KEYPAIR, row.id)
    sessions.revoke_of_keypair(rt, unit, row.id, actor=actor)
    audit.record(rt, unit, Action.KEYPAIR_REVOKED, actor=actor, target=key_id, user=row.user_id)
    return row.user_id


def listing_of(rt: Runtime, user_id: str) -> list[KeyPairInfo]:
    """The pairs of a user, oldest first."""
    with rt.database.reading() as session:
        rows = session.scalars(
            select(KeyPair).where(KeyPair.user_id == user_id).order_by(KeyPair.created_at, KeyPair.id)
        )
        return [_info(row) for row in rows]


def get(rt: Runtime, key_id: str) -> KeyPairInfo:
    """A key pair, by its id or its `api-key`. Raises Refused(NOT_FOUND)."""
    with rt.database.reading() as session:
        row = session.get(KeyPair, canonical_id(key_id)) if canonical_id(key_id) else None
        row = row or session.scalars(select(KeyPair).where(KeyPair.api_key == key_id)).one_or_none()
        if row is None:
            raise Refused(NOT_FOUND, detail="no such key pair")
        return _info(row)


def listing(rt: Runtime, part: Part, *, user: str | None = None, q: str | None = None) -> Listed[KeyPairInfo]:
    """Key pairs, oldest first: all, those of a user, or those whose name, `api-key` or id begins with `q`."""
    wanted: list[ColumnElement[bool]] = [] if user is None else [KeyPair.user_id == user]
    if q is not None:
        is_sqlite = rt.database.is_sqlite
        by_name = paging.begins_in_any_case(KeyPair.name, q, is_sqlite=is_sqlite)
        by_id = (paging.begins(column, q, is_sqlite=is_sqlite) for column in (KeyPair.api_key, KeyPair.id))
        wanted.append(or_(by_name, *by_id))
    with rt.database.reading() as session:
        return paging.read(session, select(KeyPair).where(*wanted), KeyPair.id, part=part, make=_info)


def forget(unit: Unit, user_id: str) -> None:
    """Delete the pairs of a user who is erased."""
    ids = unit.execute(select(KeyPair.id).where(KeyPair.user_id == user_id)).scalars().all()
    tallies.forget(unit, [f"key:{one}" for one in ids])
    unit.execute(delete(KeyPair).where(KeyPair.user_id == user_id))


def purge(_rt: Runtime, unit: Unit) -> int:
    """Delete pairs that expired more than 30 days ago."""
    return delete_batch(unit, KeyPair, KeyPair.expires_at < later(unit.now, -30 * 86_400))


def checked_networks(cidrs: Sequence[str]) -> list[str]:
    """The networks that a pair may be used from, each in its one spelling. Raises Refused(VALIDATION)."""
    if len(cidrs) > MAX_NETWORKS:
        raise Refused(VALIDATION.saying(f"A key pair has at most {MAX_NETWORKS} allowed networks"), field="cidrs")
    try:
        return [str(ip_network(cidr, strict=False)) for cidr in cidrs]
    except ValueError as exc:
        raise Refused(VALIDATION.saying("An allowed network is like 192.0.2.0/24"), field="cidrs", cause=exc) from exc


def clean_name(text: str) -> str:
    """The name of a pair without blanks too many. Raises Refused(VALIDATION)."""
    name = " ".join(text.split())
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise Refused(VALIDATION.saying("A name has 1 to 200 printable characters"), field="name")
    return name


def fingerprint_of(rt: Runtime, secret: str, *, decoy: bool = False) -> bytes:
    """The keyed hash that a pair keeps of its secret; a decoy's is of another kind, and equals nothing that is presented."""
    return opaque.fingerprint(rt.ring.vault.derive("decoys" if decoy else "api secrets"), secret)


def _info(row: KeyPair) -> KeyPairInfo:
    return KeyPairInfo(
        row.id,
        row.user_id,
        row.api_key,
        row.name,
        tuple(row.cidrs.split()),
        row.verified,
        row.created_at,
        row.expires_at,
        row.last_used_at,
        row.last_used_address,
        decoded(row.rights),
        row.decoy,
    )


KEEPING: Final = Keeping((KeyPair,), purge=purge, forget=forget)
