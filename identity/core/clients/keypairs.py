"""API key pairs: an identifier that may be shown and a secret that is shown once.

A pair does nothing until its owner confirms it with an emailed code. It carries its owner's roles and memberships as they are now, or the
part of them that it was made for, and it stops with its owner. Both halves are 160 random bits, so checking them is one read and one keyed
hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    LargeBinary,
    String,
    Text,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.orm import Mapped, mapped_column

from identity import paging
from identity.ambient import Origin, later
from identity.canonical import canonical_id
from identity.columns import Instant
from identity.core.clients import applications
from identity.core.keeping import Keeping, delete_batch
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people import accounts, addresses, tenancy
from identity.core.people.accounts import AccessWindow, User, UserInfo, recheck
from identity.core.people.ownership import Anyone, Owner, may_touch
from identity.core.people.rights import ALL, Rights, decoded, narrowed
from identity.core.people.tenancy import Memberships
from identity.core.proofs import codes, guesses, machines
from identity.core.proofs.attempts import FAILURES
from identity.core.proofs.codes import Purpose
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import sessions
from identity.core.tokens.claims import AccessToken
from identity.errors import CONFLICT, INVALID_CODE, KEY_MISMATCH, NOT_FOUND, VALIDATION, Refused
from identity.instruments import opaque
from identity.instruments.opaque import Kind, Secret
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.storage import Base, Prepared, Unit

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
    previous_fingerprint: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    previous_until: Mapped[datetime | None] = mapped_column(Instant)


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


class KeyInfo(NamedTuple):
    """A key pair that was just proven, with its owner as of now."""

    id: str
    api_key: str
    name: str
    expires_at: datetime
    verified: bool
    user_id: str
    alias: str
    full_name: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    memberships: Memberships
    until: datetime
    """When it ends by itself: its own end, that of its owner's access window, or that of the secret which another has replaced."""
    rights: str | None = None


class _PairRow(NamedTuple):
    """A key pair with its owner."""

    id: str
    api_key: str
    name: str
    expires_at: datetime
    verified: bool
    user_id: str
    alias: str
    full_name: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    fingerprint: bytes
    cidrs: str
    enabled: bool
    starts_at: datetime | None
    ends_at: datetime | None
    failures: str | None
    memberships: str | None
    rights: str | None
    previous_fingerprint: bytes | None
    previous_until: datetime | None

    def secret_until(self, presented: bytes, now: datetime) -> datetime | None:
        """Until when the presented secret is this pair's, or None if it is not."""
        # Both are always compared: how long a refusal takes must not tell which was nearly right.
        is_present = opaque.matches(self.fingerprint, presented)
        is_previous = opaque.matches(self.previous_fingerprint or bytes(32), presented)
        if is_present:
            return self.expires_at
        known = is_previous and self.previous_until is not None and now < self.previous_until
        return self.previous_until if known else None


_PROVEN = Prepared(
    select(
        KeyPair.id,
        KeyPair.api_key,
        KeyPair.name,
        KeyPair.expires_at,
        KeyPair.verified,
        KeyPair.user_id,
        User.alias,
        User.full_name,
        User.roles,
        User.groups,
        KeyPair.fingerprint,
        KeyPair.cidrs,
        User.enabled,
        User.starts_at,
        User.ends_at,
        FAILURES,
        tenancy.memberships(User.id),
        KeyPair.rights,
        KeyPair.previous_fingerprint,
        KeyPair.previous_until,
    )
    .join(User, User.id == KeyPair.user_id)
    .where(KeyPair.api_key == bindparam("api_key")),
    into=_PairRow,
)


def authenticate(rt: Runtime, origin: Origin, api_key: str, api_secret: str) -> KeyInfo:
    """The proven pair. Unverified, expired, wrong, of a disabled user, from a foreign network: all KEY_MISMATCH.

    Raises Refused(LOCKED_OUT) after 20 failures in 5 minutes for one key from one address, and for every failure after 100 of that
    address.
    """
    name = api_key[:64]
    well_formed = opaque.is_well_formed(Kind.API_KEY, api_key) and opaque.is_well_formed(Kind.API_SECRET, api_secret)
    row = rt.database.row(_PROVEN, api_key=api_key, meter=machines.meter_key(origin)) if well_formed else None
    if row is None:
        machines.check(rt, origin, name)
    else:
        machines.judge(rt, name, row.failures)
    flaw, evidence = _flaw(rt, origin, row, api_secret)
    if row is None or flaw:
        with rt.unit(origin, lasting=row is not None) as unit:
            machines.record(unit, name)
            if row is not None:
                audit.record(
                    rt,
                    unit,
                    Action.LOGIN_FAILED,
                    actor=row.user_id,
                    target=row.id,
                    credential=f"key:{row.id}",
                    reason=flaw,
                )
        if row is None:
            rt.strangers.note(Action.LOGIN_FAILED, flaw, origin.address)
        raise Refused(KEY_MISMATCH, detail=flaw, evidence=evidence)
    roles, groups, memberships = narrowed(row.rights, row.roles, row.groups, Memberships(row.memberships or ""))
    secret_until = row.secret_until(_fingerprint(rt, api_secret), rt.clock.now()) or row.expires_at
    info = KeyInfo(
        id=row.id,
        api_key=row.api_key,
        name=row.name,
        expires_at=row.expires_at,
        verified=row.verified,
        user_id=row.user_id,
        alias=row.alias,
        full_name=row.full_name,
        roles=roles,
        groups=groups,
        memberships=memberships,
        until=min(row.expires_at, row.ends_at or row.expires_at, secret_until),
        rights=row.rights,
    )
    note_use(rt, origin, info)
    return info


def note_use(rt: Runtime, origin: Origin, key: KeyInfo) -> None:
    """Remember that the pair was used now, from here; written down a moment later."""
    rt.usage.note(KeyPair, key.id, rt.clock.now(), origin.address)


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
) -> tuple[KeyPairInfo, Secret]:
    """A new pair of `user_id`, good for `days`, and its secret, which is shown once. Raises Refused(VALIDATION).

    `rights`: a part of what the owner has; the pair never has more than that, nor more than its owner has at the time.
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
        fingerprint=_fingerprint(rt, secret.reveal()),
        name=_clean_name(name),
        cidrs=" ".join(_checked_networks(cidrs)),
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
    verification_id: str


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
    count = unit.execute(select(func.count()).select_from(KeyPair).where(KeyPair.user_id == user.id)).scalar_one()
    if count >= MAX_PAIRS:
        raise Refused(PAIRS_FULL, detail=f"{count} pairs")
    address = addresses.preferred_of(unit, user.id)
    if address is None:
        raise Refused(NO_ADDRESS, detail="no verified address")
    info, secret = create(rt, unit, user.id, name=name, days=days, actor=actor, cidrs=cidrs, rights=rights)
    values = {"account": user.alias, "key_name": info.name}
    verification_id = codes.issue(
        rt, unit, Purpose.KEYPAIR, subject=info.id, user_id=user.id, address=address, values=values
    )
    return Requested(info, secret, verification_id)


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


def trade(rt: Runtime, origin: Origin, key: KeyInfo, *, resource: str) -> AccessToken:
    """An hour's token for a proven pair, backed by a session that ends with the pair."""
    seconds = min(rt.settings.access_token_seconds, int((key.expires_at - rt.clock.now()).total_seconds()))
    with rt.unit(origin) as unit:
        user = recheck(unit, key.user_id)
        if unit.execute(select(KeyPair.id).where(KeyPair.id == key.id).with_for_update()).first() is None:
            raise Refused(KEY_MISMATCH, detail="the key pair was revoked meanwhile")
        opened = sessions.open_session(
            rt,
            unit,
            user,
            kind="keypair",
            amr=("key",),
            client_id=applications.standard_client(rt),
            resource=resource,
            idle_seconds=max(1, seconds),
            absolute_seconds=max(1, seconds),
            keypair_id=key.id,
            rights=key.rights,
        )
    live = sessions.live_of(rt, user, opened.session)
    return sessions.token_for(rt, live, seconds=max(1, seconds), at=opened.session.created_at)


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
    row.fingerprint = _fingerprint(rt, secret.reveal())
    unit.session.flush()
    audit.record(rt, unit, Action.KEYPAIR_ROTATED, actor=actor, target=row.id, user=row.user_id, grace=grace_seconds)
    return _info(row), secret, until


def revoke(rt: Runtime, unit: Unit, key_id: str, *, actor: str, of: Owner | Anyone) -> None:
    """Delete a pair, and end what it has opened. Raises Refused(NOT_FOUND), also for a pair that is not within `of`."""
    row = unit.session.get(KeyPair, canonical_id(key_id)) if canonical_id(key_id) else None
    if row is None or not may_touch(of, row.user_id):
        raise Refused(NOT_FOUND, detail="no such key pair")
    unit.execute(delete(KeyPair).where(KeyPair.id == row.id))
    codes.cancel(unit, Purpose.KEYPAIR, row.id)
    sessions.revoke_of_keypair(rt, unit, row.id, actor=actor)
    audit.record(rt, unit, Action.KEYPAIR_REVOKED, actor=actor, target=key_id, user=row.user_id)


def listing_of(rt: Runtime, user_id: str) -> list[KeyPairInfo]:
    """The pairs of a user, oldest first."""
    with rt.database.reading() as session:
        rows = session.scalars(
            select(KeyPair).where(KeyPair.user_id == user_id).order_by(KeyPair.created_at, KeyPair.id)
        )
        return [_info(row) for row in rows]


def listing(rt: Runtime, part: Part, *, user: str | None = None) -> Listed[KeyPairInfo]:
    """Key pairs, oldest first: all, or those of a user."""
    wanted = [] if user is None else [KeyPair.user_id == user]
    with rt.database.reading() as session:
        return paging.read(session, select(KeyPair).where(*wanted), KeyPair.id, part=part, make=_info)


def forget(unit: Unit, user_id: str) -> None:
    """Delete the pairs of a user who is erased."""
    unit.execute(delete(KeyPair).where(KeyPair.user_id == user_id))


def purge(_rt: Runtime, unit: Unit) -> int:
    """Delete pairs that expired more than 30 days ago."""
    return delete_batch(unit, KeyPair, KeyPair.expires_at < later(unit.now, -30 * 86_400))


def _flaw(  # noqa: PLR0911 -- one return for each reason
    rt: Runtime, origin: Origin, row: _PairRow | None, api_secret: str
) -> tuple[str, dict[str, Any]]:
    """Why this pair does not pass, and what would have, for operators only; empty when it passes.

    The secret is compared before anything else is looked at.
    """
    presented = _fingerprint(rt, api_secret)
    if row is None:
        return "unknown key, or not the shape of a pair", {}
    now = rt.clock.now()
    if row.secret_until(presented, now) is None:
        return "wrong secret", {"key": row.id}
    right = {"key": row.id, "near_miss": "the secret was right"}
    if not row.verified:
        return "the pair waits for its code", right
    if row.expires_at <= now:
        return "the pair has expired", right | {"skew_seconds": int((now - row.expires_at).total_seconds())}
    if not row.enabled:
        return "its user is disabled", right
    if not AccessWindow(row.starts_at, row.ends_at).is_open(now):
        return "outside the user's access window", right
    if not _is_allowed(row.cidrs, origin.address):
        return "foreign network", right | {"expected": row.cidrs.split(), "seen": origin.address}
    return "", {}


@lru_cache(maxsize=1024)
def _is_allowed(cidrs: str, address: str) -> bool:
    if not cidrs:
        return True
    try:
        peer = ip_address(address)
    except ValueError:
        return False
    return any(peer in ip_network(network) for network in cidrs.split())


def _checked_networks(cidrs: Sequence[str]) -> list[str]:
    if len(cidrs) > MAX_NETWORKS:
        raise Refused(VALIDATION.saying(f"A key pair has at most {MAX_NETWORKS} allowed networks"), field="cidrs")
    try:
        return [str(ip_network(cidr, strict=False)) for cidr in cidrs]
    except ValueError as exc:
        raise Refused(VALIDATION.saying("An allowed network is like 192.0.2.0/24"), field="cidrs", cause=exc) from exc


def _clean_name(text: str) -> str:
    name = " ".join(text.split())
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise Refused(VALIDATION.saying("A name has 1 to 200 printable characters"), field="name")
    return name


def _fingerprint(rt: Runtime, secret: str) -> bytes:
    return opaque.fingerprint(rt.ring.vault.derive("api secrets"), secret)


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
    )


KEEPING: Final = Keeping((KeyPair,), purge=purge, forget=forget)
